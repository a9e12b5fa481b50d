"""A person's p(z | x), fitted by Latent DPO from a few pairs, for many people in one computation, and kept small.

A person owns one vector m_u, and p_u(z | x) = N(m_u, I). The candidates of a pair are the means a and b of its
posteriors q(z | x, chosen) and q(z | x, rejected), so that Latent DPO's loss is

    -log sigmoid( beta [ (log p_u(a) - log N(a)) - (log p_u(b) - log N(b)) ] ) = -log sigmoid( beta m_u . (a - b) ),

a Bradley-Terry model of z that has one minimum and takes no random numbers; N(m_u, I) is the policy that its reward
beta m_u . z asks for where straying from N(0, I) costs beta a nat.

The paper draws 48 candidates a pair and trains a whole encoder a person (`full_encoder`). What is drawn from wide
posteriors says less of a pair than their means do, and heads that read the prompt or move deviations learn more noise
than taste from few pairs: docs/LOG.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.errors import InputError
from penchant.heads.tastes import newton
from penchant.personal.reading import Judged
from penchant.workers import one_a_core

PAIRS_AT_ONCE = 16_384
"""Pairs that are fitted on at once on each core."""


@dataclass(frozen=True)
class LatentDPOSettings:
    """How a person is fitted."""

    beta: float = 0.1
    pull: float = 0.005
    """What holds a person where they start from, m_0, for each pair that was ever seen: a person's loss is

        mean over n new pairs + pull (1 + pairs seen before / n) |m_u - m_0|^2,

    so that few new pairs do not undo what many old ones said."""

    def __post_init__(self) -> None:
        for name in ("beta", "pull"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")


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
    """Everybody's m_u [people, latent] by Latent DPO.

    People are fitted side by side and do not touch each other: a person's vector is that of a fit alone. Who has no
    pairs stays where they start. Beyond the pairs themselves, memory grows with PAIRS_AT_ONCE.

    Args:
        judged: what n pairs say. owner: int [n], the number of who judged each.
        start: [people, latent], what each person starts from and is pulled to.
        seen: [people], how many pairs what they start from came from; 0 for all where it is None.
        weight: [n], how much each of a person's pairs counts beside the others; all alike where it is None.
    """
    sides = settings.beta * (judged.chosen.mean - judged.rejected.mean).double()
    order, counts = torch.argsort(owner, stable=True), torch.bincount(owner, minlength=len(start))
    weight = torch.ones(len(owner)) if weight is None else weight
    share = (weight / torch.zeros(len(start)).index_add(0, owner, weight)[owner]).double()
    pull = settings.pull * (1 + (0 if seen is None else seen) / counts.clamp_min(1)).double()

    def fit(people: Tensor) -> Tensor:
        rows, real = padded(order, counts, people)
        prior = 2 * pull[people].numpy()[:, None, None] * np.eye(start.shape[1])
        mean, _ = newton(sides[rows].numpy(), start[people].double().numpy(), prior, (share[rows] * real).numpy())
        return torch.from_numpy(mean).float()

    found = start.clone()
    with tqdm(total=len(start), unit="person", desc="fit", disable=not show_progress, leave=False) as bar:
        for people, means in one_a_core(side_by_side(counts), fit):
            found[people] = means
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
