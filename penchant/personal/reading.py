"""What the encoder makes of pairs, once, for whoever is fitted on them; no layer of the LLM is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.chat import Tokens
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian

T = TypeVar("T")
READ_AT_ONCE = 64
"""Texts that the encoder reads at once."""


class Judged(NamedTuple):
    """What n pairs say of z, without a pass of the LLM; all on the CPU."""

    chosen: Gaussian
    rejected: Gaussian
    """q(z | x, y) of both responses, [n, latent]."""

    def take(self, rows: Tensor) -> Judged:
        return Judged(*(Gaussian(*(part[rows] for part in q)) for q in self))


@torch.no_grad()
def read_pairs(clap: Clap, pairs: Sequence[tuple[Tokens, Tokens]], show_progress: bool = False) -> Judged:
    """What the encoder makes of n pairs; each different text is read once, and no layer of the LLM is run."""
    texts = {item.key: item for pair in pairs for item in pair}
    items = sorted(texts.values(), key=len)  # what is read at once is about as long, so little of it is padding
    parts = in_batches(clap.read, items, "read" if show_progress else None)
    read = Gaussian(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
    row = {item.key: number for number, item in enumerate(items)}
    return Judged(*(Gaussian(*(part[[row[pair[side].key] for pair in pairs]] for part in read)) for side in (0, 1)))


def in_batches(read: Callable[[Sequence[T]], Any], items: Sequence[T], label: str | None = None) -> list[Any]:
    """What `read` makes of READ_AT_ONCE items at a time; a `label` shows progress."""
    starts = tqdm(range(0, len(items), READ_AT_ONCE), desc=label, disable=label is None, leave=False)
    return [read(items[start : start + READ_AT_ONCE]) for start in starts]
