"""The preloaded library of disk.c: built where there is a C compiler, told what to do by the process it is in."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("disk.c")


class Action(IntEnum):
    """What happens at an operation; in the order of disk.c."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_HALF = 2
    """A write gets half-way; anything else is done."""
    KILL_AFTER = 3
    STOP = 4
    FAIL_ONCE = 5
    FAIL_ON = 6
    """From this operation on."""
    FULL = 7
    """After so many bytes."""
    FAIL_READ = 8
    CLOCK = 9
    """From here on it is an hour earlier."""


class Plan(NamedTuple):
    """What the disk does, and when."""

    action: Action = Action.COUNT
    at: int = 0
    error: int = 0


class Counts(NamedTuple):
    operations: int
    reads: int
    bytes: int


def build() -> Path | None:
    """The library; None where there is no C compiler, and then no fault at an operation."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"penchant-faults-{os.getuid()}-{digest}.so"
    if not made.is_file():
        partial = made.with_suffix(f".{os.getpid()}")
        done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", partial, SOURCE, "-ldl"], capture_output=True)
        if done.returncode:
            return None
        os.replace(partial, made)
    return made


def is_loaded() -> bool:
    return hasattr(ctypes.CDLL(None), "fault_arm")


def arm(folder: Path, plan: Plan) -> None:
    """From here on this process's disk below `folder` follows the plan."""
    if is_loaded():
        ctypes.CDLL(None).fault_arm(str(folder).encode(), int(plan.action), ctypes.c_long(plan.at), plan.error)


def counts() -> Counts:
    """What was done since `arm`; zeros without the library."""
    found = (ctypes.c_long * 3)()
    if is_loaded():
        ctypes.CDLL(None).fault_counts(found)
    return Counts(*found)
