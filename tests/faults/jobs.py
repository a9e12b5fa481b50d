"""What is interrupted: a job makes something from what is given, in a folder, and goes on there when run again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.cli.main import main
from tests.faults.process import Refusal

Work = Callable[[Path, Path], str]
"""(folder of what is given, folder of the job) -> the digest of what the job made, read back from disk."""


@dataclass(frozen=True)
class Job:
    name: str
    run: Work
    give: Callable[[Path], None] = lambda given: None
    """Makes what is given, once."""
    begin: Callable[[Path, Path], None] = lambda given, folder: None
    """(given, folder): what lies in the folder before the first run."""
    look: Work | None = None
    """What somebody who reads finds after a fault, before the job is run again: the digest of what was there at the
    beginning, or of what the job makes, or "" for nothing; else a refusal."""
    records: tuple[str, ...] = ()
    """Names of files that say what was done already: who deletes one asks for it to be done once more."""
    shared: bool = True
    """Whether several processes may do it in one folder at once; else one of them is refused."""


def digest(*parts: Any) -> str:
    """Of arrays, bytes and whatever JSON holds: two that differ in a bit have two digests."""
    found = hashlib.sha256()
    for part in parts:
        if hasattr(part, "detach"):
            part = part.detach().cpu().contiguous().numpy()
        if isinstance(part, np.ndarray):
            part = f"{part.dtype}{part.shape}".encode() + part.tobytes()
        found.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return found.hexdigest()


def of_tensors(tensors: dict[str, Any]) -> str:
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def cli(*argv: object) -> None:
    """`penchant ...`; Refusal for exit code 2, KeyboardInterrupt for 130."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([str(each) for each in argv])
    if code == 2:
        raise Refusal(said.getvalue().strip().splitlines()[-1].removeprefix("penchant: "))
    if code == 130:
        raise KeyboardInterrupt
    assert code == 0, said.getvalue()


def read_back(path: Path) -> bytes:
    """What a job made, for its digest; that the disk fails under this reader is not the job's fault."""
    try:
        return path.read_bytes()
    except OSError:
        return path.read_bytes()


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
