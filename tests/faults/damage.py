"""What happens to files between two runs: rot, cuts, losses, mix-ups, and what a killed writer left lying."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

SECTOR = 512


def flip(path: Path, rng: random.Random) -> str:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    content[at] ^= 1 << bit
    _put(path, bytes(content))
    return f"bit {bit} of byte {at}"


def cut(path: Path, rng: random.Random) -> str:
    """The end is gone."""
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"after {size} bytes"


def zero(path: Path, rng: random.Random) -> str:
    """A block was never written."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content)) // SECTOR * SECTOR
    part = len(content[start : start + SECTOR])
    content[start : start + part] = bytes(part)
    _put(path, bytes(content))
    return f"from byte {start}"


def empty(path: Path, rng: random.Random) -> str:
    """A name without content."""
    os.truncate(path, 0)
    return ""


def delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return ""


def swap(path: Path, rng: random.Random) -> str:
    """Another file of its kind is in its place, or itself where there is none."""
    others = sorted(p for p in _root(path).rglob(f"*{path.suffix}") if p.is_file() and p != path)
    other = rng.choice(others or [path])
    _put(path, other.read_bytes())
    return f"by {other.relative_to(_root(path))}"


def touch(path: Path, rng: random.Random) -> str:
    """A copy with another inode and another time: no content changes."""
    beside = path.with_name(f"{path.name}.copied")
    shutil.copyfile(path, beside)
    os.replace(beside, path)
    moment = rng.uniform(0, 2e9)
    os.utime(path, (moment, moment))
    return ""


def leave(path: Path, rng: random.Random) -> str:
    """Half of it lies beside it, under the names that writers use before a file is whole."""
    names = (path.with_suffix(".partial").name, f"{path.name}.partial", f".tmp-0-1-{rng.randrange(1 << 30):x}")
    name = rng.choice(names)
    content = path.read_bytes()
    path.with_name(name).write_bytes(content[: len(content) // 2])
    return f"as {name}"


KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    f.__name__: f for f in (flip, cut, zero, empty, delete, swap, touch, leave)
}


def written_since(begun: dict[Path, tuple[int, int]], folder: Path) -> list[Path]:
    """Files that have content and are not as they were in the beginning."""
    now = state_of(folder)
    return sorted(path for path in now if now[path] != begun.get(path) and path.stat().st_size)


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Of each file its inode and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _put(path: Path, content: bytes) -> None:
    """In place: the inode stays."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))


def _root(path: Path) -> Path:
    """The job's folder."""
    return next(parent for parent in path.parents if parent.name.startswith("fault-"))
