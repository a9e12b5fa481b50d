"""A person's p(z | x): fitted by Latent DPO from a few pairs, for many people in one computation, and kept small.

Everybody shares the posterior's trunk: its features of a prompt, in their r leading principal coordinates c(x) with a
one behind them. A person owns W_u [r + 1, 2 latent] alone,

    p_u(z | x) = N(mean, deviation^2),  [mean, log deviation] = [c(x), 1] W_u,

where the authors train a whole encoder a person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian
from penchant.personal.latent_dpo import CANDIDATES, candidates, latent_dpo_losses

T = TypeVar("T")
COORDINATES = 4
"""r."""
READ_AT_ONCE = 64
"""Texts that the encoder reads at once."""
PAIRS_AT_ONCE = 4096
"""Pairs whose candidates are held at once."""


@dataclass(frozen=True)
class LatentDPOSettings:
    """How a person is fitted."""

    steps: int = 100
    """Of Adam, each on all pairs of a person."""
    learning_rate: float = 0.03
    beta: float = 0.1
    pull: float = 0.01
    """Weight of |W_u - W_0|^2, W_0 being what the person starts from."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; give 1 or more.")
        for name in ("learning_rate", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.pull < float("inf"):
            raise InputError(f"pull is {self.pull}; give a finite number, 0 or more.")


class Coordinates(nn.Module):
    """c(x): the leading principal coordinates [r] of the trunk's features of a prompt, with mean square 1 together."""

    center: Tensor
    axes: Tensor

    def __init__(self, center: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("axes", axes)

    @classmethod
    def of(cls, features: Tensor, most: int = COORDINATES) -> Coordinates:
        """From features [n, queries, width] of prompts; as many coordinates as they span, at most `most`."""
        rows = features.flatten(1).double().cpu()
        center = rows.mean(0)
        _, sizes, axes = torch.linalg.svd(rows - center, full_matrices=False)
        r = min(most, int((sizes > 1e-6 * rows.norm()).sum()))
        scale = sizes[:r].square().sum().div(len(rows)).sqrt()
        return cls(center.float(), (axes[:r] / scale).T.float())

    def forward(self, features: Tensor) -> Tensor:
        """[n, r + 1], the last a one."""
        c = (features.flatten(1).cpu() - self.center) @ self.axes
        return torch.cat([c, torch.ones(len(c), 1)], 1)


class Judged(NamedTuple):
    """What n pairs say of z, without a pass of the LLM; all on the CPU."""

    coordinates: Tensor
    """c(x) and one, [n, r + 1]."""
    chosen: Gaussian
    rejected: Gaussian
    """q(z | x, y) of both responses, [n, latent]."""

    def take(self, rows: Tensor) -> Judged:
        return Judged(self.coordinates[rows], *(Gaussian(*(part[rows] for part in q)) for q in self[1:]))


@torch.no_grad()
def read_pairs(
    clap: Clap, coordinates: Coordinates, pairs: Sequence[tuple[Tokens, Tokens]], show_progress: bool = False
) -> Judged:
    """What the encoder makes of n pairs; each different text is read once, and no layer of the LLM is run."""
    texts = {item.key: item for pair in pairs for item in pair}
    prompts = {chosen.prompt_key: chosen for chosen, _ in pairs}
    parts = in_batches(clap.read, list(texts.values()), "read" if show_progress else None)
    read = Gaussian(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
    c = coordinates(prompt_features(clap, list(prompts.values())))
    asked, row = ({key: number for number, key in enumerate(keys)} for keys in (prompts, texts))
    chosen, rejected = (Gaussian(*(part[[row[pair[side].key] for pair in pairs]] for part in read)) for side in (0, 1))
    return Judged(c[[asked[chosen.prompt_key] for chosen, _ in pairs]], chosen, rejected)


@torch.no_grad()
def prompt_features(clap: Clap, items: Sequence[Tokens]) -> Tensor:
    """The trunk's features [n, queries, width] of the sequences' prompts alone."""
    prompts = [torch.from_numpy(item.prompt).long() for item in items]
    return torch.cat(in_batches(clap.posterior.features, prompts))


def in_batches(read: Callable[[Sequence[T]], Any], items: Sequence[T], label: str | None = None) -> list[Any]:
    """What `read` makes of READ_AT_ONCE items at a time; a `label` shows progress."""
    starts = tqdm(range(0, len(items), READ_AT_ONCE), desc=label, disable=label is None, leave=False)
    return [read(items[start : start + READ_AT_ONCE]) for start in starts]


def gaussians(coordinates: Tensor, weights: Tensor) -> Gaussian:
    """p_u(z | x) [n, latent] for coordinates [n, r + 1] and weights [n or 1, r + 1, 2 latent]."""
    return Gaussian.of(*(coordinates[:, None] @ weights)[:, 0].chunk(2, -1))


def fit_people(judged: Judged, owner: Tensor, start: Tensor, settings: LatentDPOSettings) -> Tensor:
    """Everybody's weights [people, r + 1, 2 latent] by Latent DPO.

    People are fitted side by side and do not touch each other: a person's weights are those of a fit alone, as the
    random numbers are the same for every pair.

    Args:
        judged: what n pairs say. owner: int [n], the number of who judged each.
        start: [people, r + 1, 2 latent], what each person starts from and is pulled to.
    """
    noise = torch.randn(3, CANDIDATES, 1, start.shape[2] // 2, generator=torch.Generator().manual_seed(settings.seed))
    order = torch.argsort(owner, stable=True)
    counts = torch.bincount(owner, minlength=len(start))
    found = start.clone()
    first, row = 0, 0
    while first < len(start):
        held = counts[first:].cumsum(0)
        people = max(1, int((held <= PAIRS_AT_ONCE).sum()))
        rows = order[row : row + int(held[people - 1])]
        part = slice(first, first + people)
        if len(rows):
            found[part] = _fit_some(judged.take(rows), owner[rows] - first, start[part], noise, settings)
        first, row = first + people, row + len(rows)
    return found


def _fit_some(judged: Judged, owner: Tensor, start: Tensor, noise: Tensor, settings: LatentDPOSettings) -> Tensor:
    """`fit_people` for as many as are held at once."""
    seen = candidates(judged.chosen, judged.rejected, noise.expand(-1, -1, len(owner), -1))
    weights = start.clone().requires_grad_(True)
    share = 1 / torch.bincount(owner, minlength=len(start))[owner]  # a person's loss is the mean over their pairs
    adam = torch.optim.Adam([weights], settings.learning_rate)
    for _ in range(settings.steps):
        adam.zero_grad()
        losses = latent_dpo_losses(gaussians(judged.coordinates, weights[owner]), seen, settings.beta)
        loss = (losses * share).sum() + settings.pull * (weights - start).square().sum()
        loss.backward()
        adam.step()
    return weights.detach()
