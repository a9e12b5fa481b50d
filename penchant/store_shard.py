"""One shard of the latent store: a safetensors file named by its own checksum, so damage anywhere in it shows.

The header is written here and not by the safetensors library, whose metadata come out in a different order in each
process: equal batches must give equal bytes, hence equal names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.errors import PenchantError
from penchant.latents import Array, Recipe

FORMAT = "1"
SUFFIX = ".safetensors"
KEY_BYTES = 16
KEY = np.dtype(f"V{KEY_BYTES}")
"""A key as one item; numpy orders such items by their bytes."""

Stamp = tuple[int, int, int]
"""Inode, size and time of change: a file that keeps its stamp keeps its content."""


class Moved(Exception):
    """A shard is gone or another file since it was checked; the folder must be listed again."""


@dataclass(frozen=True)
class BadShard:
    """A file that holds no usable latents, and why."""

    path: Path
    reason: str
    stamp: Stamp


@dataclass(frozen=True, eq=False)
class Shard:
    """A file whose checksum was right when it had this stamp."""

    path: Path
    stamp: Stamp
    keys: Array
    """KEY [m], in row order."""
    offset: int
    """Where the latents start, in bytes."""
    dim: int

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.stamp[1]

    def latents(self) -> NDArray[np.float32]:
        """Memory-mapped float32 [m, dim]; raises Moved if the file is no longer the one that was checked."""
        try:
            with open(self.path, "rb") as file:
                if stamp_of(os.fstat(file.fileno())) != self.stamp:
                    raise Moved
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as gone:
            raise Moved from gone
        return np.frombuffer(mapped, "<f4", len(self.keys) * self.dim, self.offset).reshape(-1, self.dim)


def stamp_of(stat: os.stat_result) -> Stamp:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def load_shard(path: Path, recipe: Recipe, checked: Stamp | None = None) -> Shard | BadShard | None:
    """Hash the whole file, unless it still has the stamp with which it was `checked`, then read its keys.

    None if it no longer exists; PenchantError if its format is newer.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        return None
    with file:
        stamp = stamp_of(os.fstat(file.fileno()))
        try:
            if stamp[1] == 0:
                return BadShard(path, "it is empty", stamp)
            if stamp != checked and _digest(file) != path.stem:
                return BadShard(path, "its checksum differs from its name", stamp)
            start, about = _header(file)
            meta = about["__metadata__"]
            if meta["penchant_store"] != FORMAT:
                raise PenchantError(
                    f"{path} has store format {meta['penchant_store']} and this Penchant reads {FORMAT}: "
                    "use the version that wrote it, or another cache folder"
                )
            if meta["recipe"] != recipe.fingerprint:
                return BadShard(path, "it belongs to another recipe", stamp)
            rows = int(about["keys"]["shape"][0])
            keys = np.frombuffer(os.pread(file.fileno(), rows * KEY_BYTES, start), KEY)
            offset = start + rows * KEY_BYTES
            if about["latents"]["shape"] != [rows, recipe.dim] or offset + rows * recipe.dim * 4 != stamp[1]:
                return BadShard(path, "its latents have another size than the recipe's", stamp)
            return Shard(path, stamp, keys, offset, recipe.dim)
        except (ValueError, KeyError, TypeError):
            return BadShard(path, "it is not a shard", stamp)
        except OSError as error:
            if error.errno != errno.EIO:  # too many open files, say: that is no fault of the shard
                raise
            return BadShard(path, "the disk cannot read it", stamp)


def shard_rows(path: Path) -> int:
    """Rows by the header alone, unchecked; 0 where there is no readable header."""
    try:
        with open(path, "rb", buffering=0) as file:
            return int(_header(file)[1]["keys"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def write_shard(folder: Path, keys: Array, latents: NDArray[np.float32], recipe: Recipe) -> Shard:
    """Write keys KEY [m] and latents float32 [m, dim] as one shard; returns when it is durable."""
    split, rows = keys.nbytes, len(keys)
    end = split + latents.nbytes
    about = {
        "__metadata__": {"penchant_store": FORMAT, "recipe": recipe.fingerprint},
        "keys": {"dtype": "U8", "shape": [rows, KEY_BYTES], "data_offsets": [0, split]},
        "latents": {"dtype": "F32", "shape": [rows, recipe.dim], "data_offsets": [split, end]},
    }
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)  # keeps the numbers aligned
    content: list[bytes | memoryview] = [
        len(header).to_bytes(8, "little"),
        header,
        keys.tobytes(),
        latents.data.cast("B"),
    ]
    path, stamp = write_file(folder, content)
    return Shard(path, stamp, keys.copy(), 8 + len(header) + split, recipe.dim)


def write_file(folder: Path, content: Sequence[bytes | memoryview], name: str | None = None) -> tuple[Path, Stamp]:
    """Put a whole, durable file into `folder` or none at all; without a name, its checksum names it as a shard.

    Raises PenchantError when it cannot be written, above all when the disk is full.
    """
    temp, digest = temp_in(folder), hashlib.sha256()
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for part in content:
                digest.update(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
            stamp = stamp_of(os.fstat(fd))
        finally:
            os.close(fd)
        path = folder / (name or digest.hexdigest()[:32] + SUFFIX)
        os.replace(temp, path)
        sync(folder)
    except OSError as error:
        raise not_written(folder, sum(len(part) for part in content), error) from error
    finally:
        with contextlib.suppress(OSError):  # gone already if all went well
            temp.unlink()
    return path, stamp


def temp_in(folder: Path) -> Path:
    """A new name for a file that is not whole yet; `remove_dead_temps` knows whose it is."""
    return folder / f".tmp-{_here()}-{os.getpid()}-{secrets.token_hex(8)}"


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_dead_temps(folder: Path) -> None:
    """Delete what killed writers left, folders too: their process is gone from this host, or it is older than a day."""
    for temp in folder.glob(".tmp*"):  # safetensors has names of its own
        found = re.fullmatch(r"\.tmp-([0-9a-f]+)-(\d+)-[0-9a-f]+", temp.name)
        try:
            dead = found is not None and found[1] == _here() and not _alive(int(found[2]))
            if dead or time.time() - temp.stat().st_mtime > 24 * 3600:
                shutil.rmtree(temp) if temp.is_dir() else temp.unlink()
        except OSError:  # its writer has just finished, or the folder is read-only
            continue


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _here() -> str:
    """Names where a process number means something: this host and, in containers, this pid namespace."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _digest(file: FileIO) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while size := file.readinto(block):
        digest.update(block[:size])
    return digest.hexdigest()[:32]


def _header(file: FileIO) -> tuple[int, dict[str, Any]]:
    """Where the data start, and the header: 8 bytes of length, then JSON."""
    size = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    if size > os.fstat(file.fileno()).st_size:
        raise ValueError("the header is longer than the file")
    return 8 + size, json.loads(os.pread(file.fileno(), size, 8))


def not_written(folder: Path, size: int, error: OSError) -> PenchantError:
    """What to say of a disk that did not take so many bytes."""
    kept = "everything written before is kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            free = f"{shutil.disk_usage(folder).free:,} are free"
        except OSError:
            free = "there is no room"
        return PenchantError(
            f"{folder} is full ({error.strerror}): this batch needs {size:,} bytes and {free}; {kept}, "
            "so make room and run the same command again"
        )
    return PenchantError(f"{folder} cannot be written ({error.strerror}): check its permissions and disk; {kept}")
