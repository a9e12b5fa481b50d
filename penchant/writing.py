"""Files that are whole or not there, checked when they are read, and a disk's refusals as sentences."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penchant.errors import InputError, PenchantError
from penchant.store_shard import remove_dead_temps, sync, temp_in

SEAL = "checksums.json"
"""Of a folder: the SHA-256 of each of its files."""
MOST_SEAL = 16 << 20
"""Bytes of the largest seal that is read."""
CARD = "README.md"
"""Not sealed: people write into it."""
ABOUT, DIGEST = "penchant", "digest"
"""Of a file of tensors: the one entry of its metadata, as several come out in another order each time, and what of it
is the checksum of all the rest."""
TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "iostream error")
"""What torch says where a disk refuses."""
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)
"""What is no fault of a program."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A disk that refuses within the block gives a PenchantError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if (reason := refusal(error)) is None:
            raise
        raise PenchantError(
            f"{path} cannot be written ({reason}): make room, or check its permissions and disk, then run the same"
            " again; what was saved before is kept"
        ) from error


def refusal(error: BaseException) -> str | None:
    """Why a disk refused, in the system's words; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error) if error.errno in REFUSALS else None
    if isinstance(error, SafetensorError):  # knows the number, as text
        found = re.search(r"os error (\d+)", str(error))
        return os.strerror(int(found[1])) if found and int(found[1]) in REFUSALS else None
    return "the disk refused" if any(words in str(error) for words in TORCH_WRITES) else None


def write_text(path: Path, text: str) -> None:
    """Replaced at once. Raises PenchantError where the disk refuses."""
    with writing(path), _replacing(path) as temp:
        temp.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file that knows its own checksum, replaced at once. Raises PenchantError where the disk refuses."""
    plain, facts = {name: value.detach().contiguous() for name, value in tensors.items()}, dict(metadata or {})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead_temps(path.parent)
        with _replacing(path) as temp:
            save_file(plain, temp, {ABOUT: json.dumps({**facts, DIGEST: _digest(plain, facts)})})


def read_tensors(path: Path, *, checked: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of `save_tensors`; ValueError for a file of which a bit has changed.

    A safetensors file without a checksum is refused where it must have been `checked`.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if not isinstance(facts, dict):
        raise ValueError("its metadata are another's")
    said = facts.pop(DIGEST, None)
    if (said is not None or checked) and said != _digest(tensors, facts):
        raise ValueError("its checksum is another")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    found = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, which takes its place, durable, when the block has ended."""
    temp = temp_in(path.parent)
    try:
        yield temp
        sync(temp)
        os.replace(temp, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # gone already if all went well
            temp.unlink()


def lock(file: IO[str]) -> None:
    """The open file for this process until it is closed; BlockingIOError where another has it.

    A disk without locks, as some in networks are, gives none.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


@contextlib.contextmanager
def alone(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """The folder for this process; PenchantError where another one still has it after `patience` seconds.

    Who dies has it no longer.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        end = time.monotonic() + patience
        while True:
            try:
                lock(file)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise PenchantError(
                        f"another process is at work in {folder}; wait until it has ended, or use another folder"
                    ) from error
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def saving(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write into, whose files then take their places in `folder`, with a seal over all of them.

    The seal goes first: who reads while some files are still those of before is refused by `check_seal`. Raises
    PenchantError where the disk refuses; `folder` is as it was then or, where that happened while files took their
    places, is refused.
    """
    target = Path(folder)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        remove_dead_temps(target)
        staging = temp_in(target)
        try:
            staging.mkdir()
            yield staging
            seal(staging)
            names = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            for name in names:
                sync(staging / name)
                (target / name).parent.mkdir(parents=True, exist_ok=True)
            for name in sorted(names, key=lambda name: name != Path(SEAL)):
                os.replace(staging / name, target / name)
            sync(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write down the checksums of these files in the folder, or of all, at any depth."""
    if names is None:
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        ours = (name for name in found if name.name not in (SEAL, CARD) and not name.parts[0].startswith(".tmp"))
        names = [name.as_posix() for name in ours]
    sums = {name: _sha256(folder / name) for name in names}
    write_text(folder / SEAL, json.dumps(sums, indent=1) + "\n")


def sealed(folder: Path) -> dict[str, str] | None:
    """Checksums by file as `seal` wrote them; None where they cannot be read, or name what is not in the folder."""
    try:
        if (folder / SEAL).stat().st_size > MOST_SEAL:
            return None
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(sums, dict) or not all(isinstance(text, str) for text in sums.values()):
        return None
    return None if any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums) else sums


def broken_seal(folder: Path) -> Path | None:
    """The first file that is not the one that was sealed, the seal itself where it cannot be read; None if all are."""
    sums = sealed(folder)
    if sums is None:
        return folder / SEAL
    found = ((folder / name, right) for name, right in sums.items())
    return next((path for path, right in found if _sha256(path) != right), None)


def check_seal(folder: Path, cure: str) -> None:
    """InputError with this cure if a file is not the one that was saved. A folder without a seal is not checked."""
    if (folder / SEAL).exists() and (path := broken_seal(folder)) is not None:
        raise InputError(f"{path} is damaged, or was not saved to the end; {cure}.")


def _sha256(path: Path) -> str:
    """ "" where there is no such file, or it cannot be read."""
    found = hashlib.sha256()
    if not path.is_file():  # a device would never end
        return ""
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    except OSError:
        return ""
    return found.hexdigest()
