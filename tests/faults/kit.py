"""Draws faults from a seed, lets each happen, runs the job again, and says whether the bits are the same."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tests.faults import families
from tests.faults.disk import is_loaded
from tests.faults.families import EXTRA, FAMILIES, Scene
from tests.faults.jobs import Job
from tests.faults.process import Ended, run

EQUAL, REFUSED, FAILED = "equal", "refused", "FAILED"
CURE = re.compile("make room|check its|delete|again|in its place|encode them first|give |choose |wait")
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


class Fault(NamedTuple):
    """Which job meets what; the seed and the number say the rest."""

    seed: int
    number: int
    job: str
    kind: str


class Outcome(NamedTuple):
    result: str
    """EQUAL, REFUSED or FAILED."""
    said: list[str]
    """What happened, in the order in which it did."""


class Special(NamedTuple):
    """A job with kinds of faults of its own."""

    give: Callable[[Path], None]
    """Makes what is given, once."""
    kinds: dict[str, Callable[[random.Random, Path, Path], Outcome]]
    """(random numbers, an empty folder, what is given) -> what came of it."""


@dataclass
class Stage:
    """A job with what it is given and how it ends without faults, both made when first needed."""

    job: Job
    root: Path

    @cached_property
    def given(self) -> Path:
        folder = self.root / f"given-{self.job.name}"
        folder.mkdir()
        _must(run(lambda: self.job.give(folder) or "", folder))
        return folder

    @cached_property
    def measured(self) -> tuple[Ended, int, int, set[str]]:
        """A run without faults, the bytes on disk after and before it, and what may be seen by who looks."""
        folder = self.begin(self.root / f"fault-{self.job.name}-reference")
        before, given = _size(folder), self.given
        seen = {"", self.look(folder).text} if self.job.look else set()
        ended = _must(run(lambda: self.job.run(given, folder), folder))
        after = _size(folder)
        if self.job.look:
            seen.add(_must(self.look(folder)).text)
        shutil.rmtree(folder)
        return ended, after, before, seen

    def begin(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        given = self.given  # made by this process, not by a fork of it
        _must(run(lambda: self.job.begin(given, folder) or "", folder))
        return folder

    def look(self, folder: Path) -> Ended:
        assert self.job.look is not None
        look, given = self.job.look, self.given
        return run(lambda: look(given, folder), folder)


class Kit:
    """All faults of one seed. `drawn` says which, `happen` lets one happen."""

    def __init__(self, jobs: Sequence[Job], specials: dict[str, Special], seed: int) -> None:
        self.seed, self.specials = seed, specials
        memory = Path("/dev/shm")  # where a thousand fsyncs cost nothing
        place = memory if os.access(memory, os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="penchant-faults-", dir=place))
        self.stages = {job.name: Stage(job, self.root) for job in jobs}
        self.mounts = may_mount()
        kinds = [kind for kind in FAMILIES if self._can(kind) for _ in range(EXTRA.get(kind, 1))]
        couples = [
            (name, kind)
            for name, stage in self.stages.items()
            for kind in kinds
            if kind != "in-turn" or stage.job.shared
        ]
        couples += [(name, kind) for name, special in specials.items() for kind in special.kinds]
        self.stages |= {name: Stage(Job(name, _never, special.give), self.root) for name, special in specials.items()}
        random.Random(seed).shuffle(couples)
        self.couples = couples

    def _can(self, kind: str) -> bool:
        if kind == "full-disk":
            return self.mounts
        return is_loaded() or FAMILIES[kind] not in families.AT_OPERATIONS

    def drawn(self, count: int) -> list[Fault]:
        """Every job meets every kind before one comes again."""
        return [Fault(self.seed, i, *self.couples[i % len(self.couples)]) for i in range(count)]

    def happen(self, fault: Fault) -> Outcome:
        rng, folder = random.Random(f"{fault.seed} {fault.number}"), self.root / f"fault-{fault.number}" / "job"
        try:
            if fault.job in self.specials:
                folder.mkdir(parents=True)
                return self.specials[fault.job].kinds[fault.kind](rng, folder, self.stages[fault.job].given)
            return self._happen(fault, rng, folder.with_name("fault-job"))
        finally:
            subprocess.run(["umount", "-l", folder.with_name("fault-job")], capture_output=True)
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _happen(self, fault: Fault, rng: random.Random, folder: Path) -> Outcome:
        stage = self.stages[fault.job]
        reference, size, begun, seen = stage.measured
        scene = Scene(stage.job, stage.given, stage.begin(folder), reference, size, begun, rng)
        FAMILIES[fault.kind](scene)
        said, wrong = scene.said, ""
        for ended in scene.ended:
            said.append(ended.short())
            wrong = wrong or _wrong(ended, reference, folder)
        if stage.job.look and not wrong:
            found = stage.look(folder)
            if found.kind == "done" and found.text not in seen:
                wrong = "who looks is given wrong bits"
            elif found.kind not in ("done", "refused"):
                wrong = f"who looks meets: {found.short()}"
        again = run(lambda: stage.job.run(stage.given, folder), folder)
        said.append(f"again: {again.short()}")
        wrong = wrong or _wrong(again, reference, folder)
        if wrong or again.kind == "done":
            return Outcome(FAILED if wrong else EQUAL, [*said, *([f"BECAUSE {wrong}"] if wrong else [])])
        for _ in range(2):  # of two damaged files each is named in its turn
            said.append(f"cured by {cure(again.text, folder, scene.copies)}")
            cured = run(lambda: stage.job.run(stage.given, folder), folder)
            said.append(f"then: {cured.short()}")
            if cured.kind != "refused" or _wrong(cured, reference, folder):
                break
            again = cured
        if cured.kind == "done" and cured.text == reference.text:
            return Outcome(REFUSED, said)
        return Outcome(FAILED, [*said, "BECAUSE what the refusal says does not cure it"])

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _never(given: Path, folder: Path) -> str:
    raise NotImplementedError


def _wrong(ended: Ended, reference: Ended, folder: Path) -> str:
    """What no run may do, under a fault or after it; "" for the others."""
    if ended.kind in ("failed", "crashed", "hung"):
        return f"a run {ended.kind}"
    if ended.kind == "done" and ended.text != reference.text:
        return "wrong bits"
    if ended.kind == "refused" and ("\n" in ended.text.strip() or not CURE.search(ended.text)):
        return "a refusal that says no cure, or is more than one sentence"
    return ""


def cure(message: str, folder: Path, copies: dict[Path, bytes]) -> str:
    """Do what a refusal says: delete the file or folder that it names first, or put a copy in its place."""
    named = [Path(found.rstrip(".,;:)")) for found in re.findall(re.escape(str(folder)) + r"[^\s()'\"]*", message)]
    restores = "copy in its place" in message
    path = next((path for path in named if path != folder and (path.exists() or (restores and path in copies))), None)
    if path is None:
        return "nothing, for it names nothing that is there"
    name = path.relative_to(folder)
    if restores and path in copies:
        for beside in path.parent.glob(f"{path.name}*"):  # a database has its log beside it
            beside.unlink()
        for beside, content in copies.items():
            if beside.parent == path.parent and beside.name.startswith(path.name):
                beside.write_bytes(content)
        return f"putting a copy of {name} in its place"
    if "delete" in message and path.is_dir():
        shutil.rmtree(path)
        return f"deleting {name}/"
    if "delete" in message:
        path.unlink()
        return f"deleting {name}"
    return "nothing, for it says nothing that can be done"


def may_mount() -> bool:
    """Whether a small disk can be had: in a name space of mounts that ends with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _size(folder: Path) -> int:
    """Bytes that the files take up, whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _must(ended: Ended) -> Ended:
    if ended.kind != "done":
        raise RuntimeError(f"without any fault: {ended.kind} {ended.text}")
    return ended
