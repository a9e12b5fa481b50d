"""Pairs whose latents do not fit into memory are written to files without a name, which end with the pairs.

Such a file is in no folder, so nothing is left when the process ends or is killed: the system takes its room back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from penchant.errors import PenchantError
from penchant.latents import Array, LatentPairs, Recipe
from penchant.mapped import Descriptor, Mapped, memory_limit
from penchant.store import default_root


class Spool(NamedTuple):
    """Where the latents of pairs go if they take more than so much."""

    folder: Path
    limit: int
    """Bytes of chosen and rejected latents that may be in memory."""

    @classmethod
    def beside(cls, cache: str | Path | None, memory_gb: float | None = None) -> Spool:
        """In the cache's folder; by default an eighth of the machine's memory may be used."""
        return cls(Path(cache).expanduser() if cache else default_root(), memory_limit(memory_gb))

    def wanted(self, pairs: int, recipe: Recipe) -> bool:
        return 8 * pairs * recipe.dim > self.limit

    def write(self, blocks: Iterable[LatentPairs], pairs: int, recipe: Recipe) -> LatentPairs:
        """The pairs of all the blocks, `pairs` in number, in files; their prompts' own latents are not kept.

        Views lie one after the other, so that a head on some of them reads no others. Raises PenchantError, before
        the first block is made, if the disk has no room.
        """
        self.check_room(pairs, recipe)
        size = 4 * pairs * recipe.dim
        sides = [_mapped(_nameless_file(self.folder, size), pairs, recipe, self) for _ in range(2)]
        columns: dict[str, list[Any]] = {name: [] for name in PER_PAIR}
        start = 0
        for block in blocks:
            for side, latents in zip(sides, (block.chosen, block.rejected), strict=True):
                _write(side, start, latents)
            start += len(block)
            for name, values in columns.items():
                values.append(getattr(block, name))
        known: dict[str, Any] = {
            name: np.concatenate(parts) if parts[0] is not None else None for name, parts in columns.items()
        }
        chosen, rejected = (cast(Array, side) for side in sides)
        return LatentPairs(chosen, rejected, no_prompts(pairs, recipe, self), recipe, **known)

    def check_room(self, pairs: int, recipe: Recipe) -> None:
        """Raise PenchantError if the folder has no room for the latents of so many pairs."""
        size = 8 * pairs * recipe.dim
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise PenchantError(
                f"the latents of these pairs take {size:,} bytes, more than may be in memory ({self.limit:,}), and"
                f" {self.folder} has {free:,} bytes free: make room, give another cache folder, or raise memory_gb"
            )


PER_PAIR = tuple(
    f.name for f in fields(LatentPairs) if f.name not in ("chosen", "rejected", "prompt", "recipe", "meta")
)


def no_prompts(pairs: int, recipe: Recipe, spool: Spool) -> Array:
    """Stands for the prompts' own latents [n, d], which were not kept: no head reads them."""
    return cast(Array, _mapped(None, pairs, recipe, spool))


def _mapped(file: Descriptor | None, pairs: int, recipe: Recipe, spool: Spool) -> Mapped:
    views, row = tuple(range(len(recipe.views))), 4 * recipe.width
    return Mapped(file, range(pairs), views, recipe.width, 0, row, pairs * row, spool.limit, spool.folder)


def _nameless_file(folder: Path, size: int) -> Descriptor:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return Descriptor(os.dup(file.fileno()))


def _write(side: Mapped, start: int, latents: Array) -> None:
    """Put latents [b, d] into the rows from `start` on; zeros are there already, as a hole."""
    assert side.file is not None
    if not latents.any():
        return
    for view in side.views:
        own = np.ascontiguousarray(latents[:, view * side.width : (view + 1) * side.width], np.float32)
        left, at = own.data.cast("B"), view * side.view_stride + start * side.row_stride
        try:
            while left:
                done = os.pwrite(side.file.number, left, at)
                left, at = left[done:], at + done
        except OSError as error:
            raise PenchantError(
                f"{side.folder} cannot take the latents of {len(side):,} pairs, {2 * side.nbytes:,} bytes"
                f" ({error.strerror}): make room, give another cache folder, or raise memory_gb"
            ) from error
