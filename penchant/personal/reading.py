"""What is known of z of pairs' texts, once, for whoever is fitted on them, in one of three ways.

kept     texts that CLaP was pretrained on have the z that their latents gave them: nothing is read at all
llm      z of others from their latents as well: the LLM reads them up to its middle layer, once, and caches them
encoder  the paper's way: z as the encoder's two layers guess it, with no layer of the LLM; quicker, and knows less
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.packing import stack_keys
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian
from penchant.personal.start import middle_states
from penchant.saved import read_tensors
from penchant.writing import save_tensors

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
def read_pairs(
    clap: Clap,
    pairs: Sequence[tuple[Tokens, Tokens]],
    show_progress: bool = False,
    kept: Mapping[bytes, Tensor] | None = None,
) -> Judged:
    """z of n pairs: as `kept` by a text's key, with a deviation of 1, or what the encoder makes of it; each different
    text is read once, and no layer of the LLM is run."""
    kept = kept or {}
    texts = {item.key: item for pair in pairs for item in pair}
    known, unread = ([item for item in texts.values() if (item.key in kept) == here] for here in (True, False))
    means, deviations = [kept[item.key][None] for item in known], [torch.zeros(1, clap.latent) for _ in known]
    unread.sort(key=len)  # what is read at once is about as long, so little of it is padding
    for mean, log_deviation in in_batches(clap.read, unread, "read" if show_progress else None):
        means.append(mean.cpu())
        deviations.append(log_deviation.cpu())
    read = Gaussian(torch.cat(means), torch.cat(deviations))
    row = {item.key: number for number, item in enumerate([*known, *unread])}
    return Judged(*(Gaussian(*(part[[row[pair[side].key] for pair in pairs]] for part in read)) for side in (0, 1)))


def read_by_llm(
    clap: Clap,
    pairs: Sequence[tuple[Tokens, Tokens]],
    projection: Tensor,
    cache: str | Path | None,
    show_progress: bool = False,
) -> Judged:
    """z of n pairs from their latents times the projection [n, latent], with a deviation of 1.

    A prompt's own part, which z is without, is the same in both responses; so z is taken from the middle of the pair.
    """
    texts = {item.key: item for pair in pairs for item in pair}
    total = sum(map(len, texts.values()))
    with tqdm(total=total, unit="tok", unit_scale=True, desc="read", disable=not show_progress, leave=False) as bar:
        found = middle_states(clap, list(texts.values()), cache, bar) @ projection.double()
    row = {key: number for number, key in enumerate(texts)}
    chosen, rejected = (found[[row[pair[side].key] for pair in pairs]] for side in (0, 1))
    half = ((chosen - rejected) / 2).float()
    return Judged(Gaussian(half, torch.zeros_like(half)), Gaussian(-half, torch.zeros_like(half)))


def save_z(path: Path, items: Iterable[Tokens], z: Tensor, projection: Tensor) -> None:
    """Keep z [r, latent] of r texts, and the projection that made it, for `load_z`."""
    keys = torch.from_numpy(stack_keys(item.key for item in items).copy())
    save_tensors(path, {"keys": keys, "z": z, "projection": projection})


def load_z(path: Path) -> tuple[dict[bytes, Tensor], Tensor | None]:
    """z [latent] by a text's key, and the projection; nothing of both where nothing was kept."""
    if not path.is_file():
        return {}, None
    found = read_tensors(path, "pretrain anew.")
    if not {"keys", "z"} <= found.keys() or len(found["keys"]) != len(found["z"]):
        raise InputError(f"{path} does not hold a key for each z; pretrain anew.")
    z = {key.tobytes(): z for key, z in zip(found["keys"].numpy(), found["z"], strict=True)}
    return z, found.get("projection")


def in_batches(read: Callable[[Sequence[T]], Any], items: Sequence[T], label: str | None = None) -> list[Any]:
    """What `read` makes of READ_AT_ONCE items at a time; a `label` shows progress."""
    starts = tqdm(range(0, len(items), READ_AT_ONCE), desc=label, disable=label is None, leave=False)
    return [read(items[start : start + READ_AT_ONCE]) for start in starts]
