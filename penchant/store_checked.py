"""Which shards of a large store were hashed lately: hundreds of gigabytes anew in each process would take minutes.

A shard that keeps its inode, size and time of change is taken as checked for a day, then hashed again, so that what
rots on the disk is found. Stores of less than WORTH_NOTING are hashed whenever they are opened.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from penchant.errors import PenchantError
from penchant.store_shard import Shard, Stamp, write_file

CHECKED_FILE = "checked.json"
TRUSTED_SECONDS = 24 * 3600.0
WORTH_NOTING = 1 << 30
"""Bytes hashed at once, from which on it is noted."""


def read_checked(folder: Path) -> dict[str, Stamp]:
    """The stamps of shards that were hashed within the last day, by file name; none where the note is damaged."""
    return {name: (inode, size, changed) for name, (inode, size, changed, _) in _notes(folder).items()}


def note_checked(folder: Path, shards: Sequence[Shard]) -> None:
    """Note that these were hashed just now, if they are many bytes. What cannot be noted is only hashed again."""
    if sum(shard.size for shard in shards) < WORTH_NOTING:
        return
    now = time.time()
    found = {name: note for name, note in _notes(folder).items() if (folder / name).exists()}
    found |= {shard.path.name: (*shard.stamp, now) for shard in shards}
    with contextlib.suppress(PenchantError):
        write_file(folder, [json.dumps(found).encode()], CHECKED_FILE)


def _notes(folder: Path) -> dict[str, tuple[int, int, int, float]]:
    now = time.time()
    try:
        found = json.loads((folder / CHECKED_FILE).read_bytes())
        notes = {str(name): (int(i), int(s), int(c), float(t)) for name, (i, s, c, t) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: note for name, note in notes.items() if 0 <= now - note[3] < TRUSTED_SECONDS}
