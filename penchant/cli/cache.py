"""`penchant cache`: what the cache of latents and of frozen layers' states holds, and its care."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penchant.errors import InputError
from penchant.store import default_root
from penchant.store_admin import list_stores, prune, verify


def cache(
    action: Literal["list", "verify", "prune"],
    *,
    cache: str | None = None,
    older_than_days: float | None = None,
    fingerprint: str | None = None,
    everything: bool = False,
) -> None:
    """List, verify or prune the cache of latents.

    Args:
        action: list shows each recipe with rows and bytes; verify checks every checksum; prune deletes.
        cache: folder of the cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        older_than_days: prune recipes not used for so long.
        fingerprint: prune this recipe.
        everything: prune all.
    """
    root = Path(cache) if cache else default_root()
    if action == "list":
        for store in list_stores(root):
            recipe = store.recipe
            what = f"{recipe.model} {','.join(recipe.views)} {recipe.dtype}" if recipe else "unreadable recipe"
            rows = f"{store.rows:>9,} rows"
            if store.is_states:
                rows, what = " " * 14, "states of frozen layers (align --top_layers)"
            print(f"{store.fingerprint}  {rows}  {store.bytes / 2**20:>8,.1f} MiB  {what}")
        print(root)
    elif action == "verify":
        bad = verify(root)
        for shard in bad:
            print(f"{shard.path}: {shard.reason}")
        if bad:
            raise InputError(f"{len(bad)} files are damaged; encode again, and only the rows they held are redone.")
        print("every checksum is right")
    else:
        removed = prune(root, older_than_days=older_than_days, fingerprint=fingerprint, everything=everything)
        for store in removed:
            print(f"removed {store.fingerprint}")
        print(f"{len(removed)} removed")
