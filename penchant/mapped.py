"""Latents in a file instead of in memory: rows and views are picked without reading, and read a block at a time."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.errors import InputError

Array = NDArray[Any]

BLOCK_BYTES = 8 << 20
"""Of one side of the pairs in a block: small beside what a head needs anyway, large beside the cost of a read."""
HEADS = "linear, mlp or auto head, or a committee of one"
SHARE = 0.125
"""Of the machine's memory, for latents: a linear head's fit in memory holds 4.3 times what chosen and rejected take."""


def memory_limit(gigabytes: float | None = None) -> int:
    """Bytes that latents may take in memory: so many GB, or an eighth of what the machine (or container) has."""
    if gigabytes is not None:
        if not 0 < gigabytes < np.inf:
            raise InputError(f"memory_gb is {gigabytes}; give a finite number above 0")
        return int(gigabytes * 1e9)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cap = Path("/sys/fs/cgroup/memory.max")
    text = cap.read_text(encoding="ascii").strip() if cap.is_file() else "max"
    return int(SHARE * min(memory, int(text) if text.isdigit() else memory))


class Descriptor:
    """An open file, closed when nothing refers to it any more; a file without a name then gives its room back."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


@dataclass(frozen=True, eq=False)
class Mapped:
    """Latents float32 [n, d] in a file, of one or more views; stands in `LatentPairs` where an array stands.

    Picking rows (`m[index]`) or whole views (`m[:, columns]`) reads nothing and gives another Mapped; `read` gives an
    array. numpy reads it where it is asked to make an array of it, unless that is more than `limit` bytes: InputError.
    """

    file: Descriptor | None
    """None where nothing was kept, as of prompts: it can be picked from, and not read."""
    rows: Array | range
    """Which rows of the file, in which order."""
    views: tuple[int, ...]
    """Which views of the file."""
    width: int
    """Of a view."""
    start: int
    """Bytes before the first view's first row."""
    row_stride: int
    """Bytes from row to row of a view."""
    view_stride: int
    """Bytes from view to view of a row."""
    limit: int
    folder: Path
    """Where a file made from this one should lie."""

    dtype = np.dtype(np.float32)
    ndim = 2

    @classmethod
    def of(cls, latents: Any, width: int) -> Mapped | None:
        """From an `np.memmap` float32 [n, d] of a named file, or a slice of its rows; None for anything else."""
        whole = latents
        while isinstance(getattr(whole, "base", None), np.ndarray):
            whole = whole.base
        named = isinstance(whole, np.memmap) and whole.filename and whole.mode != "c"  # "c" hides changes from the file
        if not named or latents.dtype != np.float32 or latents.ndim != 2 or latents.shape[1] % width:
            return None
        (n, d), (row, column) = latents.shape, latents.strides
        if row < 4 * d or column != 4:
            return None
        start = whole.offset + latents.ctypes.data - whole.ctypes.data
        file, path = Descriptor(os.open(whole.filename, os.O_RDONLY)), Path(whole.filename)
        return cls(file, range(n), tuple(range(d // width)), width, start, row, 4 * width, memory_limit(), path.parent)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.views) * self.width

    @property
    def nbytes(self) -> int:
        return 4 * self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Mapped:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        picked = self._pick(rows) if not (isinstance(rows, slice) and rows == slice(None)) else self.rows
        return replace(self, rows=picked, views=self._pick_views(columns))

    def _pick(self, index: Any) -> Array | range:
        if isinstance(self.rows, np.ndarray) or isinstance(index, slice):
            picked: Array | range = self.rows[index]
            return picked
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return np.where(chosen < 0, chosen + len(self.rows), chosen) * self.rows.step + self.rows.start

    def _pick_views(self, columns: Any) -> tuple[int, ...]:
        if isinstance(columns, slice):
            columns = np.arange(self.shape[1])[columns]
        places = np.asarray(columns)[:: self.width]
        whole = (places[:, None] + np.arange(self.width)).ravel()
        if len(places) and ((places % self.width).any() or not np.array_equal(whole, columns)):
            raise InputError("latents in files can be picked by whole views only; read them first")
        return tuple(self.views[place // self.width] for place in places)

    def read(self) -> NDArray[np.float32]:
        """All its rows, float32 [n, d], whatever the limit: pick few enough first."""
        if self.file is None:
            raise InputError("the prompts' own latents were not kept beside pairs in files; encode them again")
        out = np.empty(self.shape, np.float32)
        rows, place = self._sorted_rows()
        for number, view in enumerate(self.views):
            found = self._read_view(rows, self.start + view * self.view_stride)
            out[:, number * self.width : (number + 1) * self.width] = found if place is None else found[place]
        return out

    def _sorted_rows(self) -> tuple[Array | range, Array | None]:
        """The file's rows in order, each once, and where in them each row stands (None: at its own place)."""
        if isinstance(self.rows, range) and self.rows.step == 1:
            return self.rows, None
        rows, place = np.unique(np.asarray(self.rows), return_inverse=True)
        return rows, place

    def _read_view(self, rows: Array | range, start: int) -> Array:
        """Rows of one view; neighbours in one piece, and small gaps with them."""
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        first, last = int(rows[0]), int(rows[-1])
        if last - first < 2 * len(rows):
            span = self._piece(first, last + 1, start)
            return span if isinstance(rows, range) else span[np.asarray(rows) - first]
        out = np.empty((len(rows), self.width), np.float32)
        cuts = [0, *(np.flatnonzero(np.diff(rows) > 1) + 1).tolist(), len(rows)]
        for a, b in pairwise(cuts):
            out[a:b] = self._piece(int(rows[a]), int(rows[b - 1]) + 1, start)
        return out

    def _piece(self, first: int, stop: int, start: int) -> Array:
        assert self.file is not None
        pitch = self.row_stride // 4
        out = np.empty((stop - first) * pitch, np.float32)
        # The last row of the last view may be the file's end, so no more is asked for than is needed.
        wanted = 4 * (len(out) - pitch + self.width)
        view, at = out.data.cast("B")[:wanted], start + first * self.row_stride
        while view:
            found = os.pread(self.file.number, len(view), at)
            if not found:
                raise InputError(f"a file of latents ends {len(view)} bytes too early; make it again")
            view[: len(found)] = found
            view, at = view[len(found) :], at + len(found)
        return out.reshape(-1, pitch)[:, : self.width]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.nbytes > self.limit:
            raise InputError(too_large(len(self), self.nbytes, self.limit))
        return self.read().astype(dtype or np.float32, copy=False)


def read(latents: Array | Mapped) -> Array:
    """The latents in memory, wherever they are."""
    return latents.read() if isinstance(latents, Mapped) else latents


def row_blocks(n: int, width: int) -> list[slice]:
    """Even parts of n rows of so many float32 numbers, each of at most `BLOCK_BYTES`."""
    count = max(1, -(-n * width * 4 // BLOCK_BYTES))
    edges = np.linspace(0, n, count + 1).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def read_blocks(chosen: Array | Mapped, rejected: Array | Mapped) -> Iterator[tuple[slice, Array, Array]]:
    """Which rows, and both sides [b, d] of them: all at once where they are in memory, else block by block, the next
    block being read while the last one is worked on."""
    if not isinstance(chosen, Mapped):
        yield slice(0, len(chosen)), chosen, read(rejected)
        return
    blocks = row_blocks(*chosen.shape)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(lambda b: (read(chosen[b]), read(rejected[b])), blocks[0]) if blocks else None
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            assert ahead is not None
            sides = ahead.result()
            if following is not None:
                ahead = pool.submit(lambda b: (read(chosen[b]), read(rejected[b])), following)
            yield block, *sides


def too_large(pairs: int, size: int, limit: int) -> str:
    """Why they are not read whole, in one sentence."""
    fit = limit * pairs // size
    return (
        f"{pairs:,} pairs of latents take {size / 1e9:.3g} GB and {limit / 1e9:.3g} GB are allowed, which {fit:,} pairs"
        f" fit: use the {HEADS}, which read block by block, give fewer pairs or views, or raise memory_gb"
    )
