"""What the encoder makes of prompts and pairs, once, for whoever is fitted on them; no layer of the LLM is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.chat import Tokens
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian

T = TypeVar("T")
COORDINATES = 4
"""r."""
READ_AT_ONCE = 64
"""Texts that the encoder reads at once."""


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
