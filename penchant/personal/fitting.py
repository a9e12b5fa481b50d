"""A person's p(z | x): fitted by Latent DPO from a few pairs, for many people in one computation, and kept small.

Everybody shares the posterior's trunk: its features of a prompt, in their r leading principal coordinates c(x) with a
one behind them. A person owns W_u [r + 1, 2 latent] alone,

    p_u(z | x) = N(mean, deviation^2),  [mean, log deviation] = [c(x), 1] W_u,

where the authors train a whole encoder a person (`full_encoder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.errors import InputError
from penchant.personal.encoder import Gaussian
from penchant.personal.latent_dpo import CANDIDATES
from penchant.personal.ranking import Draws, Natural, Ranking, Table
from penchant.personal.reading import Judged
from penchant.workers import one_a_core

PAIRS_AT_ONCE = 1024
"""Pairs whose candidates are compared at once on each core: 18 MB at most."""
FIRST_STEP = 0.1
"""How far the first step goes, before anything is known of the loss's curvature."""


@dataclass(frozen=True)
class LatentDPOSettings:
    """How a person is fitted."""

    steps: int = 30
    """Down the loss of all pairs of a person."""
    beta: float = 0.1
    pull: float = 0.0005
    """What holds a person where they start from, W_0, for each pair that was ever seen: a person's loss is

        mean over n new pairs + pull (1 + pairs seen before / n) |W_u - W_0|^2,

    so that few new pairs do not undo what many old ones said."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; give 1 or more.")
        if not 0 < self.beta < float("inf"):
            raise InputError(f"beta is {self.beta}; give a finite number above 0.")
        if not 0 <= self.pull < float("inf"):
            raise InputError(f"pull is {self.pull}; give a finite number, 0 or more.")


def gaussians(coordinates: Tensor, weights: Tensor) -> Gaussian:
    """p_u(z | x) [n, latent] for coordinates [n, r + 1] and weights [n or 1, r + 1, 2 latent]."""
    return Gaussian.of(*(coordinates[:, None] @ weights)[:, 0].chunk(2, -1))


def fit_people(
    judged: Judged,
    owner: Tensor,
    start: Tensor,
    settings: LatentDPOSettings,
    *,
    seen: Tensor | None = None,
    weight: Tensor | None = None,
    show_progress: bool = False,
) -> Tensor:
    """Everybody's weights [people, r + 1, 2 latent] by Latent DPO.

    People are fitted side by side and do not touch each other: a person's weights are those of a fit alone, as the
    random numbers are the same for every pair. Beyond the pairs themselves, memory grows with PAIRS_AT_ONCE.

    Args:
        judged: what n pairs say. owner: int [n], the number of who judged each.
        start: [people, r + 1, 2 latent], what each person starts from and is pulled to.
        seen: [people], how many pairs what they start from came from; 0 for all where it is None.
        weight: [n], how much each of a person's pairs counts beside the others; all alike where it is None.
    """
    latent = start.shape[2] // 2
    noise = torch.randn(3, CANDIDATES, 1, latent, generator=torch.Generator().manual_seed(settings.seed))
    order, counts = torch.argsort(owner, stable=True), torch.bincount(owner, minlength=len(start))
    weight = torch.ones(len(owner)) if weight is None else weight
    share = weight / torch.zeros(len(start)).index_add(0, owner, weight)[owner]
    pull = settings.pull * (1 + (0 if seen is None else seen) / counts.clamp_min(1))

    def fit(people: Tensor) -> Tensor:
        rows, real = padded(order, counts, people)
        # More than one block only where one person has more pairs than may be held at once.
        parts = zip(rows.split(PAIRS_AT_ONCE, 1), (share[rows] * real).split(PAIRS_AT_ONCE, 1), strict=True)
        blocks = [Block.of(judged, *part, noise) for part in parts]
        return descend(blocks, start[people], pull[people, None, None], settings)

    found = start.clone()
    with tqdm(total=len(start), unit="person", desc="fit", disable=not show_progress, leave=False) as bar:
        for people, weights in one_a_core(side_by_side(counts), fit):
            found[people] = weights
            bar.update(len(people))
    return found


def side_by_side(counts: Tensor) -> Iterator[Tensor]:
    """The numbers of people who have pairs, in groups of about as many pairs each and PAIRS_AT_ONCE at most together;
    who has more is alone."""
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    first = 0
    while first < len(order):
        held = torch.arange(1, len(order) - first + 1) * counts[order[first:]]
        people = max(1, int((held <= PAIRS_AT_ONCE).sum()))
        yield order[first : first + people]
        first += people


def padded(order: Tensor, counts: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [people, most] of these people's pairs, and which are real and not a person's last one once more."""
    first = (counts.cumsum(0) - counts)[people]
    place = torch.arange(int(counts[people].max()))
    rows = order[first[:, None] + torch.minimum(place, counts[people, None] - 1)]
    return rows, place < counts[people, None]


class Block(NamedTuple):
    """Pairs [p, k] of p people, ranked; what a step needs beside is made anew each time, for it is large."""

    judged: Judged
    rows: Tensor
    share: Tensor
    """What each pair counts [p, k]."""
    ranking: Ranking
    noise: Tensor

    @classmethod
    def of(cls, judged: Judged, rows: Tensor, share: Tensor, noise: Tensor) -> Block:
        own = judged.take(rows.flatten())
        draws = Draws.of(own.chosen, own.rejected, noise)
        return cls(judged, rows, share, Ranking.of(draws.rewards(own.chosen, own.rejected)), noise)

    def ready(self) -> Ready:
        own = self.judged.take(self.rows.flatten())
        draws = Draws.of(own.chosen, own.rejected, self.noise)
        return Ready(own.coordinates.view(*self.rows.shape, -1), draws, Table.of(self.ranking, self.share.flatten()))


class Ready(NamedTuple):
    coordinates: Tensor
    """[p, k, r + 1]"""
    draws: Draws
    table: Table

    def slope(self, weights: Tensor, beta: float) -> Tensor:
        """Derivative [p, r + 1, 2 latent] by the weights of each person's sum of share times `latent_dpo_losses`.

        A deviation that is held at an end of DEVIATIONS keeps its slope.
        """
        found = self.coordinates @ weights
        person = Gaussian.of(*found.flatten(0, 1).chunk(2, -1))
        by_evidence = self.table.slope(self.draws.evidence(Natural.of(person)), beta)
        by_person = torch.cat(self.draws.sums(by_evidence).by(person), -1)
        return self.coordinates.transpose(1, 2) @ by_person.view_as(found)


def descend(blocks: Sequence[Block], start: Tensor, pull: Tensor, settings: LatentDPOSettings) -> Tensor:
    """From `start` [p, r + 1, 2 latent] down the loss of p people, each by steps of their own: -a dL/dW,

        a = dW . dg / dg . dg   (Barzilai and Borwein, of the last change of the weights and of the slope),

    as the loss is close to a parabola as wide in all directions. (Adam's steps, alike in all coordinates, would make
    as much of those that say nothing.)
    """
    once = [blocks[0].ready()] if len(blocks) == 1 else None
    weights, slope, moved = start, torch.zeros_like(start), torch.zeros_like(start)
    size = start.new_zeros(())
    for step in range(settings.steps):
        before, slope = slope, 2 * pull * (weights - start)
        for block in once or (block.ready() for block in blocks):
            slope = slope + block.slope(weights, settings.beta)
        if step == 0:
            size = FIRST_STEP / by_kind(slope, slope).sqrt().clamp_min(1e-12)
        else:
            change = slope - before
            agree, bent = by_kind(moved, change), by_kind(change, change)
            size = torch.where(agree > 0, agree / bent.clamp_min(1e-30), size)
        moved = -size * slope
        weights = weights + moved
    return weights


def by_kind(a: Tensor, b: Tensor) -> Tensor:
    """a . b of a person's means and, apart, of the log deviations, each number in the places of its kind."""
    parts = [(x * y).sum((1, 2), keepdim=True).expand_as(x) for x, y in zip(a.chunk(2, 2), b.chunk(2, 2), strict=True)]
    return torch.cat(parts, 2)
