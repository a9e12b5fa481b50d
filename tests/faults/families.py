"""The kinds of faults that any job can meet: each runs the job in its folder, with what goes wrong while it does."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import damage
from tests.faults.disk import Action, Plan
from tests.faults.jobs import Job
from tests.faults.process import Child, Ended

KILLS = (Action.KILL_BEFORE, Action.KILL_HALF, Action.KILL_AFTER)
ROOM = "64m"


@dataclass
class Scene:
    """One fault's job, in its folder."""

    job: Job
    given: Path
    folder: Path
    reference: Ended
    """How a run without faults ended."""
    size: int
    """Bytes that it takes up on disk."""
    begun: int
    """Those that lie there in the beginning."""
    rng: random.Random
    said: list[str] = field(default_factory=list)
    """What was done, for the fault's line."""
    copies: dict[Path, bytes] = field(default_factory=dict)
    """Files as they were before they were damaged, as somebody may have kept them elsewhere."""
    ended: list[Ended] = field(default_factory=list)
    """How each run under the fault ended."""

    def start(self, plan: Plan | None = None) -> Child:
        return Child(lambda: self.job.run(self.given, self.folder), self.folder, plan)

    def run(self, plan: Plan | None = None) -> Ended:
        ended = self.start(plan).wait()
        self.ended.append(ended)
        return ended

    def moment(self) -> float:
        """Of a run, at random."""
        return self.rng.uniform(0, self.reference.seconds)

    def operation(self) -> int:
        """Of a run, at random; from 1."""
        return self.rng.randint(1, max(1, self.reference.counts.operations))

    def kill_plan(self) -> Plan:
        plan = Plan(self.rng.choice(KILLS), self.operation())
        self.said.append(f"{plan.action.name.lower()} operation {plan.at}")
        return plan


def kill_at_time(scene: Scene) -> None:
    """SIGKILL at a random moment."""
    _signal(scene, signal.SIGKILL)


def interrupt(scene: Scene) -> None:
    """Ctrl-C, or the polite signal of a cluster that wants its machine back."""
    _signal(scene, scene.rng.choice((signal.SIGINT, signal.SIGTERM)))


def _signal(scene: Scene, number: signal.Signals) -> None:
    moment = scene.moment()
    scene.said.append(f"{number.name} after {moment:.3f} s")
    child = scene.start()
    time.sleep(moment)
    child.signal(number)
    scene.ended.append(child.wait())


def kill_at_operation(scene: Scene) -> None:
    """SIGKILL right before, amid or right after one operation on a file."""
    scene.run(scene.kill_plan())


def kill_again(scene: Scene) -> None:
    """Killed three times, each time further on or not."""
    for _ in range(3):
        scene.run(scene.kill_plan())


def full(scene: Scene) -> None:
    """No byte more after so many."""
    room = scene.rng.randint(0, scene.reference.counts.bytes)
    number = scene.rng.choice((errno.ENOSPC, errno.EDQUOT))
    scene.said.append(f"{errno.errorcode[number]} after {room} bytes")
    scene.run(Plan(Action.FULL, room, number))


def full_disk(scene: Scene) -> None:
    """A tmpfs that holds only a part of what is written; memory maps meet it too."""
    room = scene.begun + int(scene.rng.uniform(0.02, 1.0) * (scene.size - scene.begun))
    pages = max(8, room // 4096)
    scene.said.append(f"a disk of {4 * pages} KiB")
    kept = scene.folder.with_name("kept")
    shutil.copytree(scene.folder, kept)
    _mount("-t", "tmpfs", "-o", f"size={4 * pages}k", "none", scene.folder)
    shutil.copytree(kept, scene.folder, dirs_exist_ok=True)
    scene.run()
    _mount("-o", f"remount,size={ROOM}", scene.folder)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def broken_write(scene: Scene) -> None:
    """The disk fails once at an operation."""
    at = scene.operation()
    scene.said.append(f"EIO at operation {at}")
    scene.run(Plan(Action.FAIL_ONCE, at, errno.EIO))


def denied(scene: Scene) -> None:
    """From an operation on nothing may be changed any more."""
    at, number = scene.operation(), scene.rng.choice((errno.EACCES, errno.EROFS))
    scene.said.append(f"{errno.errorcode[number]} from operation {at} on")
    scene.run(Plan(Action.FAIL_ON, at, number))


def broken_read(scene: Scene) -> None:
    """After a kill, the disk fails to read once."""
    scene.run(scene.kill_plan())
    at = scene.rng.randint(1, max(1, scene.reference.counts.reads))
    scene.said.append(f"EIO at read {at} of the next run")
    scene.run(Plan(Action.FAIL_READ, at))


def clock_back(scene: Scene) -> None:
    """It is an hour earlier from an operation on; then a kill, and the clock is right again."""
    at = scene.operation()
    scene.said.append(f"an hour back at operation {at}")
    child = scene.start(Plan(Action.CLOCK, at))
    if scene.rng.random() < 0.5:
        moment = scene.moment()
        scene.said.append(f"SIGKILL after {moment:.3f} s")
        time.sleep(moment)
        child.signal(signal.SIGKILL)
    scene.ended.append(child.wait())


def twice(scene: Scene) -> None:
    """Two or three do the same at once; one of them may be killed."""
    plans: list[Plan] = [Plan() for _ in range(scene.rng.choice((2, 2, 3)))]
    if scene.rng.random() < 0.5:
        plans[0] = scene.kill_plan()
    scene.said.append(f"{len(plans)} at once")
    children = [scene.start(plan) for plan in plans]
    scene.ended += [child.wait() for child in children]


def stopped(scene: Scene) -> None:
    """One is stopped at an operation; another does it all meanwhile, or is killed; the first goes on."""
    at = scene.operation()
    scene.said.append(f"stopped at operation {at} while another runs")
    first = scene.start(Plan(Action.STOP, at))
    if first.stopped(seconds=60):
        scene.run(scene.kill_plan() if scene.rng.random() < 0.3 else None)
        first.signal(signal.SIGCONT)
    scene.ended.append(first.wait())


def in_turn(scene: Scene) -> None:
    """Three write; one after the other is killed while the others go on."""
    children = [scene.start(scene.kill_plan()) for _ in range(2)] + [scene.start()]
    scene.ended += [child.wait() for child in children]


def damaged(scene: Scene) -> None:
    """A file that the job left, finished or killed, is not what it was."""
    begun = damage.state_of(scene.folder)
    scene.run(scene.kill_plan() if scene.rng.random() < 0.7 else None)
    files = damage.written_since(begun, scene.folder)
    if not files:  # it was killed too early to have left any
        scene.run()
        files = damage.written_since(begun, scene.folder)
    path, kind = scene.rng.choice(files), scene.rng.choice(list(damage.KINDS))
    if path.name in scene.job.records and kind == "delete":
        kind = "cut"
    scene.copies = {each: each.read_bytes() for each in damage.state_of(scene.folder)}
    how = damage.KINDS[kind](path, scene.rng)
    scene.said.append(f"{kind} {path.relative_to(scene.folder)} {how}".rstrip())


AT_OPERATIONS = (
    kill_at_operation, kill_again, full, broken_write, denied, broken_read, clock_back, twice, stopped, in_turn, damaged
)  # fmt: skip
"""Kinds that need the preloaded library."""
FAMILIES: dict[str, Callable[[Scene], None]] = {
    f.__name__.replace("_", "-"): f for f in (kill_at_time, interrupt, full_disk, *AT_OPERATIONS)
}
EXTRA = {"damaged": 4, "kill-at-operation": 2}
"""How many times as often as the others: they have the most to choose from."""
