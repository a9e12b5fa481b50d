"""Latents on disk, found by content and recipe: what was encoded once is never encoded again.

A store is a folder `root/<recipe.fingerprint>/` with `recipe.json` and shards, one for each batch written. A shard
appears whole or not at all and is named by its checksum (see `store_shard`), so processes may write, read and compact
the same store at once, without locks, and be killed at any moment. A damaged shard is renamed `*.bad` and its keys
count as missing; nothing reads the renamed file again, so it may be examined or deleted.

What `read` returns depends only on the set of rows written, never on the order of writing or on how shards were merged:
where a key was written twice with different bits, the row with the smaller bits (compared as unsigned integers) holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from penchant.errors import InputError, PenchantError, RecipeMismatch
from penchant.latents import Array, Recipe
from penchant.store_checked import note_checked, read_checked
from penchant.store_index import Index, gather
from penchant.store_shard import (
    KEY,
    KEY_BYTES,
    SUFFIX,
    BadShard,
    Moved,
    Shard,
    Stamp,
    load_shard,
    not_written,
    remove_dead_temps,
    stamp_of,
    sync,
    write_file,
    write_shard,
)

T = TypeVar("T")
RECIPE_FILE = "recipe.json"
ATTEMPTS = 50
"""How often a listing or a read starts again while other processes change the folder; each change costs one."""


def default_root() -> Path:
    """The folder of all stores: $PENCHANT_CACHE, else ~/.cache/penchant."""
    return Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")


class Writer:
    """Puts latents of one recipe into its folder and reads nothing that is there; threads may share one."""

    def __init__(self, root: Path | str, recipe: Recipe) -> None:
        """Open or create `root/<recipe.fingerprint>/`.

        Raises RecipeMismatch if the folder's recipe.json holds another recipe, PenchantError if that file is not
        readable or the folder cannot be made.
        """
        self.recipe = recipe
        self.folder = Path(root).expanduser() / recipe.fingerprint
        self._open_folder()

    def write(self, keys: NDArray[np.uint8], latents: NDArray[np.float32]) -> None:
        """Store one batch, keys uint8 [m, 16] and latents float32 [m, dim], as one shard; durable on return.

        Raises InputError for a wrong shape or type, PenchantError if the disk is full or refuses.
        """
        wanted = _as_key(keys)
        if latents.dtype != np.float32 or latents.shape != (len(wanted), self.recipe.dim):
            raise InputError(
                f"latents are {latents.dtype} {latents.shape}, the store wants float32 {(len(wanted), self.recipe.dim)}"
            )
        if len(wanted):
            self._written(write_shard(self.folder, wanted, np.ascontiguousarray(latents, "<f4"), self.recipe))

    def _written(self, shard: Shard) -> None:
        """Take note of a shard of one's own."""

    def _open_folder(self) -> None:
        path = self.folder / RECIPE_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_file(self.folder, [json.dumps(self.recipe.to_dict(), indent=1).encode()], RECIPE_FILE)
                sync(self.folder.parent)
        except OSError as error:
            raise PenchantError(f"{self.folder} cannot be made ({error.strerror}): choose another folder") from error
        if read_recipe(self.folder) != self.recipe:
            raise RecipeMismatch(f"{path} describes another recipe than its folder's name: delete {self.folder}")


class Store(Writer):
    """The latents of one recipe. Use one object a thread; any number of processes may share the folder.

    Every shard's checksum is verified before any of its keys is believed, when the store is opened or refreshed; in a
    large store once a day (see `store_checked`).
    """

    bad_shards: list[BadShard]
    """What this object set aside since it was opened."""

    def __init__(self, root: Path | str, recipe: Recipe) -> None:
        """Open or create the folder as a `Writer` does, and look at what is there."""
        super().__init__(root, recipe)
        self.bad_shards = []
        self._shards: dict[str, Shard] = {}  # by file name; the index numbers them in this order
        self._index = Index.empty()
        self._ignored: dict[str, Stamp] = {}  # bad shards in a folder where they cannot be renamed
        remove_dead_temps(self.folder)
        self.refresh()

    def has(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Bool [n]: which of the keys, uint8 [n, 16], can be read."""
        wanted = _as_key(keys)
        return self._steadily(lambda: self._current_index().find(wanted) >= 0)

    def read(self, keys: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The latents float32 [n, dim] of the keys, uint8 [n, 16], in that order; InputError if one is missing."""
        wanted = _as_key(keys)

        def rows() -> NDArray[np.float32]:
            index = self._current_index()
            at = index.find(wanted)
            missing = np.flatnonzero(at < 0)
            if len(missing):
                raise InputError(
                    f"{len(missing)} of {len(wanted)} latents are not in {self.folder}, the first is key "
                    f"{missing[0]} ({wanted[missing[0]].tobytes().hex()}): encode them first"
                )
            return gather(list(self._shards.values()), index.shard[at], index.row[at], self.recipe.dim)

        return self._steadily(rows)

    def _written(self, shard: Shard) -> None:
        self._shards[shard.path.name] = shard

    def refresh(self) -> None:
        """Take note of shards that other processes wrote, merged away or damaged since the last look.

        One listing can miss a shard that a merge moves from a name not yet seen to one already passed, so a listing
        counts only when a second one agrees with it.
        """
        with contextlib.suppress(OSError):
            os.utime(self.folder / RECIPE_FILE)  # the time of last use, for `store_admin`
        for attempt in range(ATTEMPTS):
            found = {name: stamp for name, stamp in list_shards(self.folder) if self._ignored.get(name) != stamp}
            if attempt and found == {name: shard.stamp for name, shard in self._shards.items()}:
                return
            for name in self._shards.keys() - found.keys():
                self._forget(name)
            known = self._shards
            fresh = [n for n in sorted(found) if n not in known or known[n].stamp != found[n]]
            checked = read_checked(self.folder) if fresh else {}
            paths = [self.folder / name for name in fresh]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                loaded = list(pool.map(load_shard, paths, repeat(self.recipe), map(checked.get, fresh)))
            sound = [shard for shard in loaded if isinstance(shard, Shard)]
            note_checked(self.folder, [shard for shard in sound if checked.get(shard.path.name) != shard.stamp])
            for name, shard in zip(fresh, loaded, strict=True):
                if isinstance(shard, Shard):
                    self._shards[name] = shard  # same name, same content: its numbers in the index stay right
                else:
                    self._forget(name)
                if isinstance(shard, BadShard):
                    self._set_aside(shard)

    def compact(self, max_bytes: int = 256 << 20) -> None:
        """Merge shards below half of `max_bytes` into shards of at most `max_bytes`, whole ones in file-name order.

        A merged shard is durable before its sources go. Rows that occur twice among the sources are kept once.
        Raises PenchantError if the disk is full; nothing is lost then.
        """
        self.refresh()
        for group in _groups([self._shards[name] for name in sorted(self._shards)], max_bytes):
            with contextlib.suppress(Moved):  # another process merges these just now
                self._merge(group)
        self.refresh()

    def _merge(self, group: Sequence[Shard]) -> None:
        again = [load_shard(shard.path, self.recipe) for shard in group]  # never a fresh checksum on rotten bits
        for bad in (shard for shard in again if isinstance(shard, BadShard)):
            self._forget(bad.path.name)
            self._set_aside(bad)
        sources = [shard for shard in again if isinstance(shard, Shard)]
        if len(sources) < len(group):
            return  # the next compaction merges the rest
        index = Index.empty().merged(sources, 0)
        order = np.lexsort((index.row, index.shard))
        latents = gather(sources, index.shard[order], index.row[order], self.recipe.dim)
        merged = write_shard(self.folder, index.keys[order], latents, self.recipe)
        for source in sources:
            if source.path != merged.path:  # equal if one source already held all rows
                try:
                    source.path.unlink(missing_ok=True)
                except OSError as error:
                    raise not_written(self.folder, 0, error) from error
                self._forget(source.path.name)
        self._shards[merged.path.name] = merged

    def _set_aside(self, bad: BadShard) -> None:
        self.bad_shards.append(bad)
        fate = f"it was set aside as {bad.path.name}.bad"
        try:
            if stamp_of(bad.path.stat()) == bad.stamp:  # else another process has put a sound one in its place
                os.replace(bad.path, bad.path.with_name(bad.path.name + ".bad"))
        except FileNotFoundError:
            pass  # another process was faster
        except OSError:
            self._ignored[bad.path.name] = bad.stamp
            fate = "it is ignored"
        warnings.warn(f"{bad.path} is damaged ({bad.reason}): {fate}, its latents are encoded again", stacklevel=2)

    def _forget(self, name: str) -> None:
        if self._shards.pop(name, None):
            self._index = Index.empty()

    def _current_index(self) -> Index:
        shards = list(self._shards.values())
        if len(shards) > self._index.covered:
            self._index = self._index.merged(shards, self._index.covered)
        return self._index

    def _steadily(self, look: Callable[[], T]) -> T:
        """`look()`, again after a refresh for as long as another process moves shards away under it."""
        for _ in range(ATTEMPTS):
            try:
                return look()
            except Moved:
                self.refresh()
        raise PenchantError(f"{self.folder} changes faster than it can be read: stop the other processes or wait")


def _groups(shards: Sequence[Shard], max_bytes: int) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    total = 0
    for shard in shards:
        if shard.size > max_bytes // 2:
            continue
        if total + shard.size > max_bytes:
            yield group
            group, total = [], 0
        group.append(shard)
        total += shard.size
    if len(group) > 1:
        yield group


def _as_key(keys: NDArray[np.uint8]) -> Array:
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise InputError(f"keys are {keys.dtype} {keys.shape}, the store wants uint8 [n, {KEY_BYTES}]")
    return np.ascontiguousarray(keys).reshape(-1).view(KEY)


def list_shards(folder: Path) -> Iterator[tuple[str, Stamp]]:
    """Name and stamp of each shard in a store's folder; none if the folder is gone."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, stamp_of(entry.stat())


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the store in `folder`; PenchantError if its recipe.json is missing or damaged."""
    path = folder / RECIPE_FILE
    try:
        return Recipe.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PenchantError(f"{path} is missing or damaged: delete it, the next run writes it again") from error
