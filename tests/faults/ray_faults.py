"""Encoding on Ray: a worker or the driver dies by kill -9, and the same command again ends with the same bits."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from penchant.backbone import Backbone
from penchant.encode import read_latents, tokenize_pairs
from penchant.packing import stack_keys
from penchant.pairs import load_pairs
from penchant.store import Store
from tests.faults.jobs import digest
from tests.faults.jobs_latents import VIEWS, give_llm
from tests.faults.kit import EQUAL, FAILED, REFUSED, Outcome, Special
from tests.faults.process import PATIENCE, run

MARK = "PENCHANT_FAULT"
"""In the environment of a run's processes, Ray's own among them: what may be killed."""


def missing() -> str | None:
    """Why there are no such faults here."""
    for name in ("penchant.cluster", "ray"):
        if importlib.util.find_spec(name) is None:
            return f"there is no {name}"
    return None


class Encoding:
    """`penchant encode --engine ray` as a process, and all that it starts."""

    def __init__(self, given: Path, cache: Path) -> None:
        self.mark = uuid.uuid4().hex
        asked = [str(given / "pairs.jsonl"), "--model", str(given / "llm"), "--views", f"[{','.join(VIEWS)}]"]
        asked += ["--cache", str(cache), "--dtype", "float32", "--token_budget", "128"]
        ours = ("LD_PRELOAD", "FAULTS_STARTED")
        environment = {name: value for name, value in os.environ.items() if name not in ours} | {MARK: self.mark}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penchant", "encode", *asked, "--engine", "ray", "--actors", "2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def started(self) -> dict[int, str]:
        """Processes that carry the mark, and their command lines."""
        found = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                number = int(folder.name)
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[number] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def workers(self, seconds: float) -> list[int]:
        """Ray's workers that do something, once there is one; none where the run ends before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            # An agent of Ray's takes the whole node with it, which is no worker's death.
            busy = {n: line for n, line in self.started().items() if line.startswith("ray::") and "Agent" not in line}
            if found := [n for n, line in busy.items() if "IDLE" not in line]:
                return sorted(found)
            time.sleep(0.05)
        return []

    def end(self) -> tuple[int | None, str]:
        """The exit code, None for one that hung, and the last line on stderr; nothing is left running."""
        code: int | None = None
        said = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, said = self.process.communicate(timeout=PATIENCE)
            code = self.process.returncode
        for number in self.started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()
        return code, (said.strip().splitlines() or [""])[-1]


def kept(given: Path, cache: Path, folder: Path) -> str:
    """The digest of all latents in a cache, or what hinders reading them."""

    def work() -> str:
        backbone, pairs = Backbone.load(str(given / "llm"), dtype="float32"), load_pairs(str(given / "pairs.jsonl"))
        recipe = backbone.recipe(VIEWS)
        tokens = tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
        keys = stack_keys(item.key for item in tokens)
        return digest(read_latents(Store(cache, recipe), recipe, keys, keys))

    return run(work, folder).short()


def give(given: Path) -> None:
    give_llm(given)
    code, said = Encoding(given, given / "cache").end()
    assert code == 0, said


def special(choose: Callable[[Encoding, random.Random], list[int]]) -> Callable[[random.Random, Path, Path], Outcome]:
    def happen(rng: random.Random, folder: Path, given: Path) -> Outcome:
        encoding = Encoding(given, folder)
        found, moment = choose(encoding, rng), rng.uniform(0, 2)
        time.sleep(moment)
        for number in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        code, line = encoding.end()
        said = [f"kill -9 of {len(found)} after {moment:.2f} s: exit code {code} {line}"]
        if code not in (0, 2, -signal.SIGKILL):
            return Outcome(FAILED, [*said, "BECAUSE of the exit code"])
        code, line = Encoding(given, folder).end()
        said.append(f"again: exit code {code}")
        if code == 2:
            return Outcome(REFUSED, [*said, line])
        right, here = kept(given, given / "cache", folder), kept(given, folder, folder)
        good = code == 0 and here == right and here.startswith("done")
        return Outcome(EQUAL if good else FAILED, [*said, here, *([] if good else [f"BECAUSE it is not {right}"])])

    return happen


def one_worker(encoding: Encoding, rng: random.Random) -> list[int]:
    workers = encoding.workers(PATIENCE)
    return [rng.choice(workers)] if workers else []


def the_driver(encoding: Encoding, rng: random.Random) -> list[int]:
    encoding.workers(PATIENCE)
    return [encoding.process.pid]


SPECIAL = Special(give, {"ray-worker-killed": special(one_worker), "ray-driver-killed": special(the_driver)})
