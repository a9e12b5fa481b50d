"""Looking after what a cache holds, latent stores and states of frozen layers: list, check shards, remove."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from penchant.errors import InputError, PenchantError
from penchant.latents import Recipe
from penchant.store import RECIPE_FILE, list_shards, read_recipe
from penchant.store_checked import CHECKED_FILE
from penchant.store_shard import SUFFIX, BadShard, load_shard, shard_rows, stamp_of

DAY = 24 * 3600.0
TRUNKS = "trunk"
"""Folder of the states of layers that `penchant align --top_layers` keeps frozen, a file for each set of pairs."""
STATES = ".states"


@dataclass(frozen=True)
class StoreInfo:
    """One store as `list_stores` finds it, without checking a shard; or a file with states of frozen layers."""

    path: Path
    recipe: Recipe | None
    """None where recipe.json is missing or damaged, and of states."""
    rows: int
    """Latents in all shards; one that stands in two shards counts twice."""
    bytes: int
    """Size of all files, set-aside shards included."""
    last_used: float
    """When it was last opened or written, in seconds since 1970."""

    @property
    def fingerprint(self) -> str:
        return self.path.stem

    @property
    def is_states(self) -> bool:
        return self.path.suffix == STATES


def list_stores(root: Path | str) -> list[StoreInfo]:
    """All stores and states below `root`, the most recently used first; none if there is no such folder."""
    found = [_info(folder) for folder in _folders(root)]
    trunks = Path(root).expanduser() / TRUNKS
    for path in () if trunks.is_symlink() else trunks.glob(f"*{STATES}"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append(StoreInfo(path, None, 0, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda info: -info.last_used)


def verify(root: Path | str) -> list[BadShard]:
    """Every file below `root` that a reader would refuse, with the reason; changes nothing.

    A store whose recipe.json is damaged is named by that file, and its shards cannot be checked.
    """
    found: list[BadShard] = []
    for folder in _folders(root):
        try:
            recipe = read_recipe(folder)
            if recipe.fingerprint != folder.name:
                raise PenchantError("it describes another recipe than its folder's name")
        except PenchantError as error:
            found.append(BadShard(folder / RECIPE_FILE, str(error), (0, 0, 0)))
            continue
        shards = [load_shard(folder / name, recipe) for name, _ in sorted(list_shards(folder))]
        found += [shard for shard in shards if isinstance(shard, BadShard)]
    return found


def prune(
    root: Path | str,
    older_than_days: float | None = None,
    fingerprint: str | None = None,
    everything: bool = False,
) -> list[StoreInfo]:
    """Remove stores below `root` and say which: those not used for so many days, the one named, both, or all.

    Only files that Penchant writes are deleted: in folders named by 32 hex digits, and states; folders that are links
    are left alone, with all that lies behind them. Raises InputError if nothing, or no store, is named.
    """
    if everything == (older_than_days is not None or fingerprint is not None):
        raise InputError("say which stores to remove: an age in days, a fingerprint or both, or everything alone")
    if older_than_days is not None and not older_than_days >= 0:
        raise InputError(f"older_than_days is {older_than_days}, give zero or more days")
    stores = list_stores(root)
    if fingerprint is not None:
        stores = [info for info in stores if info.fingerprint == fingerprint]
        if not stores:
            raise InputError(
                f"no store below {root} has the fingerprint {fingerprint!r}: list the stores to see theirs"
            )
    if older_than_days is not None:
        stores = [info for info in stores if info.last_used < time.time() - older_than_days * DAY]
    for info in stores:
        if info.is_states:
            info.path.unlink(missing_ok=True)
        else:
            _remove(info.path)
    return stores


def _folders(root: Path | str) -> list[Path]:
    root = Path(root).expanduser()
    if not root.is_dir():
        return []
    named = (path for path in sorted(root.iterdir()) if re.fullmatch("[0-9a-f]{32}", path.name))
    return [path for path in named if path.is_dir() and not path.is_symlink()]


def _info(folder: Path) -> StoreInfo:
    recipe = None
    with contextlib.suppress(PenchantError):
        recipe = read_recipe(folder)
    rows = sum(shard_rows(folder / name) for name, _ in list_shards(folder))
    sizes, times = [0], [0.0]
    for path in (folder, *folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # a writer's temporary file has just got its name
            stat = path.stat()
            sizes.append(stamp_of(stat)[1] if path != folder else 0)
            times.append(stat.st_mtime if path == folder or path.name == RECIPE_FILE else 0.0)
    return StoreInfo(folder, recipe, rows, sum(sizes), max(times))


def _remove(folder: Path) -> None:
    """The recipe goes last, so that what an interrupted removal leaves can be opened, listed and removed again."""
    ours = [path for path in folder.iterdir() if path.name.endswith((SUFFIX, SUFFIX + ".bad"))]
    ours += [path for path in folder.iterdir() if path.name.startswith(".tmp-")]
    for path in [*ours, folder / CHECKED_FILE, folder / RECIPE_FILE]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something that is not ours lies there, and stays
        folder.rmdir()
