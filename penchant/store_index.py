"""Which shard and row hold a key: sorted arrays and binary search, so that millions of keys stay small and quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penchant.latents import Array
from penchant.store_shard import KEY, Shard


class Index(NamedTuple):
    """Where each key's row is, in 24 bytes a key."""

    keys: Array
    """KEY [N], ascending, no two alike."""
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    covered: int
    """How many of the shards, from the first on, it knows."""

    @classmethod
    def empty(cls) -> Index:
        return cls(np.empty(0, KEY), np.empty(0, np.int32), np.empty(0, np.int32), 0)

    def merged(self, shards: Sequence[Shard], start: int) -> Index:
        """This index of shards[:start], and shards[start:] with it. The sort is near linear where most is sorted."""
        new = shards[start:]
        sizes = [len(shard.keys) for shard in new]
        keys = np.concatenate([self.keys, *[shard.keys for shard in new]])
        shard = np.concatenate([self.shard, np.repeat(np.arange(start, len(shards), dtype=np.int32), sizes)])
        row = np.concatenate([self.row, *[np.arange(size, dtype=np.int32) for size in sizes]])
        order = np.argsort(keys, kind="stable")
        keys, shard, row = keys[order], shard[order], row[order]
        while len(losers := _losers(shards, keys, shard, row)):
            keys, shard, row = (np.delete(column, losers) for column in (keys, shard, row))
        return Index(keys, shard, row, len(shards))

    def find(self, wanted: Array) -> NDArray[np.intp]:
        """Positions [n] in the index, -1 where a key is missing."""
        if not len(self.keys):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, at, -1)


def _losers(shards: Sequence[Shard], keys: Array, shard: Array, row: Array) -> Array:
    """Of every two neighbours with one key, the position of that with the larger bits; of equals, the second's."""
    first = np.flatnonzero(keys[1:] == keys[:-1])
    found = [np.empty(0, np.intp)]
    dim = shards[0].dim
    step = max(1, (32 << 20) // (4 * dim))  # rows in 32 MiB
    for start in range(0, len(first), step):
        one, two = first[start : start + step], first[start : start + step] + 1
        a = gather(shards, shard[one], row[one], dim).view(np.uint32)
        b = gather(shards, shard[two], row[two], dim).view(np.uint32)
        column = (a != b).argmax(1)
        at = np.arange(len(one))
        found.append(np.where(a[at, column] > b[at, column], one, two))
    return np.concatenate(found)


def gather(shards: Sequence[Shard], shard: Array, row: Array, dim: int) -> NDArray[np.float32]:
    """Rows float32 [n, dim] at (shard, row); each shard is mapped once and read in its own order."""
    out = np.empty((len(row), dim), np.float32)
    order = np.lexsort((row, shard))
    for block in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        if len(block):
            out[block] = shards[shard[block[0]]].latents()[row[block]]
    return out
