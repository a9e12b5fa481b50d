"""Runs a job in a forked process, for a fork of a process that has torch imported costs a hundredth of a start."""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.errors import PenchantError
from tests.faults.disk import Counts, Plan, arm, counts

PATIENCE = 240.0
"""Seconds until a process counts as hanging; this is not a measure of speed."""
PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """What the command line said, with exit code 2."""


@dataclass
class Ended:
    """How a process ended: "done" with a digest, "refused" with a sentence, "failed" with a traceback, or "killed"."""

    kind: str
    text: str = ""
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    seconds: float = 0.0

    def short(self) -> str:
        """Digests that say nothing to a reader are cut; of a traceback where Penchant stood, and the last line."""
        if self.kind == "done":
            return f"done {self.text[:12]}"
        if self.kind != "failed":
            return f"{self.kind} {self.text.strip()}"
        frames = re.findall(r'File "[^"]*/(penchant/[^"]*)", line (\d+)', self.text)
        where = ":".join(frames[-1]) if frames else "no frame of penchant"
        return f"failed at {where} with {self.text.strip().splitlines()[-1]}"


class Child:
    """A process that does `work()`, whose text is what the artefact's bits are known by."""

    def __init__(self, work: Callable[[], str], folder: Path, plan: Plan | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.start = time.monotonic()
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _be_child(work, folder, plan or Plan(), writer)
        os.close(writer)
        self._reader, self._said = reader, b""
        self._ended: Ended | None = None

    def signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self._ended is None:
            os.kill(self.pid, number)

    def stopped(self, seconds: float) -> bool:
        """Wait until it stops by SIGSTOP; False where it ended, or `seconds` went by, before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            if state in "TZX":
                return state == "T"
            select.select([self._reader], [], [], 0.01)
        return False

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """How it ended; "hung" after so many seconds."""
        if self._ended is not None:
            return self._ended
        end, hung = self.start + seconds, False
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
                break
            part = os.read(self._reader, 1 << 16)
            if not part:
                break
            self._said += part
        os.close(self._reader)
        _, status = os.waitpid(self.pid, 0)
        spent = time.monotonic() - self.start
        if hung:
            self._ended = Ended("hung", f"after {spent:.0f} s", seconds=spent)
        elif self._said:
            told: dict[str, Any] = json.loads(self._said)
            self._ended = Ended(told["kind"], told["text"], Counts(*told["counts"]), spent)
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            kind = "killed" if number in (signal.SIGKILL, signal.SIGTERM) else "crashed"
            self._ended = Ended(kind, signal.Signals(number).name, seconds=spent)
        else:
            self._ended = Ended("crashed", f"exit code {os.waitstatus_to_exitcode(status)}", seconds=spent)
        return self._ended


def run(work: Callable[[], str], folder: Path, plan: Plan | None = None) -> Ended:
    return Child(work, folder, plan).wait()


def _be_child(work: Callable[[], str], folder: Path, plan: Plan, writer: int) -> None:
    """Never returns."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(os.devnull, os.O_WRONLY)
        os.dup2(log, 1)
        if not os.environ.get("FAULTS_VERBOSE"):
            os.dup2(log, 2)
        arm(folder, plan)
        try:
            kind, text = "done", work()
        except (Refusal, PenchantError) as error:
            kind, text = "refused", str(error)
        except KeyboardInterrupt:
            kind, text = "killed", "KeyboardInterrupt"
        except BaseException:
            kind, text = "failed", traceback.format_exc()
        found = counts()
        arm(folder, Plan())
        os.write(writer, json.dumps({"kind": kind, "text": text, "counts": found}).encode())
    finally:
        os._exit(0)
