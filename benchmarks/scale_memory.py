"""Memory by number of pairs: does fitting on latents in files stay flat?

The latents are random, with one hidden direction to learn, since the question is memory and not accuracy; they are
written to disk block by block. Each contender runs in a process of its own, whose anonymous memory (RssAnon: what it
holds itself, without the system's cache of files) is sampled, and which may not allocate more than a cap above what it
had at its start (RLIMIT_DATA): whoever holds all latents dies of it.

    gather   latents from a store into files, block by block
    linear   LinearHead with cross-validation, in files
    mlp      MLPHead, one epoch, in files
    lens     LENS, one synthetic pair a real one, and a linear head on both, in files
    memory   LinearHead on the same pairs in memory, without a cap, for comparison

Seconds are CPU time, as the machine may be busy with other things. `peak_growth` is a contender's peak at the largest
number of pairs over that at a quarter of them (with fewer, LENS's blocks of 4,096 pairs are not full yet), and
`share_held` how much of the latents of the pairs between the two stays in memory.
The hours for 10 million pairs of 4,096 numbers are the passes that the linear head took, times what a pass takes at
that size: the slower of reading (both sides, at the rate at which this disk reads what no cache holds) and of computing
(CPU time, in proportion to the pairs).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, table

from penchant.encode import gather as gathered
from penchant.heads import LinearHead, MLPHead, streamed
from penchant.heads.base import pair_accuracy
from penchant.latents import LatentPairs, Recipe
from penchant.spooled import Spool
from penchant.store import Store
from penchant.synthesis import Lens
from penchant.synthesis.augmented import Augmented

Plan = dict[str, Any]

SIZES = (5_000, 20_000, 80_000)
FULL: Plan = {
    "width": 4096,
    "cap_mb": 1500,
    "pairs": {**dict.fromkeys(("gather", "linear", "mlp", "lens"), SIZES), "memory": (20_000,)},
}
QUICK: Plan = {
    "width": 512,
    "cap_mb": 250,
    "pairs": {**dict.fromkeys(("gather", "linear"), (16_000, 64_000)), "lens": (5_000, 20_000)},
}
TARGET = 10_000_000, 4096
ROWS = 1000
"""Pairs written at once."""
SIDES = ("chosen", "rejected")


def rows(number: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Block `number` of the pairs [ROWS, width]: noise of falling variance, sides swapped as a hidden taste says."""
    rng = np.random.default_rng([7, number])
    taste = np.random.default_rng(7).standard_normal(width)
    spread = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    good, bad = (rng.standard_normal((ROWS, width), dtype=np.float32) for _ in SIDES)
    gap = (good - bad) @ taste / np.linalg.norm(taste)
    swap = (rng.random(ROWS) > 1 / (1 + np.exp(-3 * gap)))[:, None]
    return np.where(swap, bad, good) * spread, np.where(swap, good, bad) * spread


def keys(side: int, start: int, stop: int) -> np.ndarray:
    """Keys uint8 [n, 16] of the rows in the store."""
    found = np.zeros((stop - start, 2), np.uint64)
    found[:, 0], found[:, 1] = np.arange(start, stop), side
    return found.view(np.uint8).reshape(-1, 16)


def recipe(width: int) -> Recipe:
    return Recipe("random", "0", ("1:last",), width, "none", 1, "float32")


def write_data(folder: Path, width: int, pairs: int) -> None:
    """The pairs as two plain files and as a store."""
    store = Store(folder / "store", recipe(width))
    with open(folder / "chosen", "wb") as chosen, open(folder / "rejected", "wb") as rejected:
        for number in range(pairs // ROWS):
            for side, (file, latents) in enumerate(zip((chosen, rejected), rows(number, width), strict=True)):
                file.write(latents.data)
                store.write(keys(side, number * ROWS, (number + 1) * ROWS), latents)


def mapped_pairs(folder: Path, width: int, n: int) -> LatentPairs:
    """The first n pairs, memory-mapped; two pairs a prompt."""
    sides = [np.memmap(folder / side, np.float32, "r", shape=(n, width)) for side in SIDES]
    return LatentPairs(*sides, np.broadcast_to(np.float32(0), (n, width)), recipe(width), np.arange(n) // 2)


class Passes:
    """When, in this process's CPU time, each pass over all pairs began, by what reads the linear head's blocks."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        read = streamed.read_blocks

        def counted(*sides: Any) -> Any:
            self.starts.append(time.process_time())
            return read(*sides)

        streamed.read_blocks = counted  # type: ignore[assignment]

    def seconds(self) -> list[float]:
        """Of each pass but the first, which checks the pairs and makes the preconditioner as well."""
        return np.diff([*self.starts[1:], time.process_time()]).tolist()


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """One contender in this process, watched."""
    folder, width, n = Path(job["folder"]), job["width"], job["pairs"]
    test = rows(1_000_000, width)
    np.linalg.eigh(np.eye(64))  # BLAS takes its buffers
    passes = Passes()

    def accuracy(head: Any) -> float:
        return pair_accuracy(head.score(test[0]) - head.score(test[1]))

    def gather() -> float | None:
        store = Store(folder / "store", recipe(width))
        own = {side: keys(number, 0, n) for number, side in enumerate(SIDES)}
        own["prompt"] = own["chosen"]
        pairs = gathered(store, recipe(width), own, Spool(folder, 1))
        assert np.array_equal(pairs.chosen[n - 1 :].read()[0], rows((n - 1) // ROWS, width)[0][-1])
        return None

    pairs = mapped_pairs(folder, width, n)
    if job["contender"] == "memory":
        pairs = pairs.loaded()

    def capped() -> float:
        return accuracy(LinearHead().fit(pairs.loaded()))

    work: dict[str, Callable[[], float | None]] = {
        "gather": gather,
        "capped": capped,
        "linear": lambda: accuracy(LinearHead().fit(pairs)),
        "memory": lambda: accuracy(LinearHead().fit(pairs)),
        "mlp": lambda: accuracy(MLPHead(epochs=1).fit(pairs)),
        "lens": lambda: accuracy(Augmented(LinearHead(), Lens(), 2).fit(pairs)),
    }
    base = status("RssAnon") - (pairs.nbytes / 1e6 if job["contender"] == "memory" else 0)
    if job["cap_mb"]:
        cap = int((status("VmData") + job["cap_mb"]) * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    with Peak() as peak:
        wall, start = time.perf_counter(), time.process_time()
        found = work[job["contender"]]()
        spent, waited = time.process_time() - start, time.perf_counter() - wall
    result = {"accuracy": found, "seconds": spent, "wall_seconds": waited, "peak_mb": peak.most - base, "base_mb": base}
    return result | {"passes": len(passes.starts), "pass_seconds": passes.seconds() if passes.starts else []}


def status(name: str) -> float:
    """A figure of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


class Peak:
    """The most anonymous memory of this process while it is entered, sampled every 10 ms."""

    def __enter__(self) -> Peak:
        self.most, self.over = 0.0, threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, status("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watcher.join()


def forget(path: Path) -> None:
    """Let the system's cache of this file go, so that it is read from the disk."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def disk_rate(folder: Path) -> float:
    """Bytes a second of both sides, read once in blocks from the disk."""
    block, total, start = bytearray(16 << 20), 0, time.perf_counter()
    for side in SIDES:
        forget(folder / side)
        with open(folder / side, "rb", buffering=0) as file:
            while size := file.readinto(block):
                total += size
    return total / (time.perf_counter() - start)


def contend(job: dict[str, Any]) -> dict[str, Any] | None:
    """A contender's result, from a process of its own; None if it asked for more memory than the cap."""
    for side in SIDES:
        forget(Path(job["folder"]) / side)
    return in_process(run_job, job)


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, done in a fork of this process, in which everything is loaded and nothing was done yet."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def target() -> None:
        try:
            there.send(work(*arguments))
        except MemoryError:
            there.send(None)

    process = fork.Process(target=target)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError as gone:
        raise RuntimeError(f"{arguments} failed") from gone
    finally:
        process.join()


def extrapolated(linear: dict[str, Any], width: int, rate: float) -> dict[str, Any]:
    """Hours for 10 million pairs of 4,096 numbers, from a fit of fewer, its first pass taken like the others."""
    pairs, columns = TARGET
    size = 8 * pairs * columns
    computing = (
        sum(linear["pass_seconds"]) / len(linear["pass_seconds"]) * (pairs * columns) / (linear["pairs"] * width)
    )
    reading = size / rate
    hours = linear["passes"] * max(computing, reading) / 3600
    binds = "reading" if reading > computing else "computing"
    return {
        "passes": linear["passes"],
        "gigabytes_a_pass": size / 1e9,
        "reading_minutes_a_pass": reading / 60,
        "computing_minutes_a_pass": computing / 60,
        "hours": hours,
        "binds": binds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 numbers a latent, up to 64,000 pairs, under a minute")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    width, cap = plan["width"], plan["cap_mb"]
    most = max(max(sizes) for sizes in plan["pairs"].values())
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        in_process(write_data, folder, width, most)
        rate = disk_rate(folder)
        size = 8 * most * width / 1e9
        print(f"{most:,} pairs of {width} numbers, {size:.2f} GB; the disk reads {rate / 1e9:.2f} GB/s")
        for contender, sizes in plan["pairs"].items():
            for n in sizes:
                job = {"folder": name, "width": width, "pairs": n, "contender": contender}
                found = contend(job | {"cap_mb": 0 if contender == "memory" else cap})
                if found is None:
                    raise RuntimeError(f"{contender} on {n:,} pairs took more than {cap} MB")
                results.append({"contender": contender, "pairs": n, "latents_mb": 8 * n * width / 1e6, **found})
                print(f"{contender} {n:,}: {found['peak_mb']:.0f} MB, {found['seconds']:.0f} s", flush=True)
        capped = contend(job | {"contender": "capped", "pairs": most, "cap_mb": cap})
    report(plan, results, capped, rate, full=not options.quick)


def report(plan: dict[str, Any], results: list[dict[str, Any]], capped: Any, rate: float, *, full: bool) -> None:
    shown = [["contender", "pairs", "latents MB", "peak MB", "seconds", "passes", "accuracy"]]
    for r in results:
        accuracy = "" if r["accuracy"] is None else f"{r['accuracy']:.3f}"
        figures = [f"{r['latents_mb']:,.0f}", f"{r['peak_mb']:,.0f}", f"{r['seconds']:.1f}", str(r["passes"] or "")]
        shown.append([r["contender"], f"{r['pairs']:,}", *figures, accuracy])
    print(table(shown))
    of: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        of.setdefault(r["contender"], []).append(r)
    figures_: dict[str, Any] = {"width": plan["width"], "pairs": of["linear"][-1]["pairs"], "cap_mb": plan["cap_mb"]}
    for contender, own in of.items():
        first, last = own[max(0, len(own) - 2)], own[-1]
        figures_[f"{contender}_peak_mb"] = round(last["peak_mb"])
        if len(own) > 1:
            held = (last["peak_mb"] - first["peak_mb"]) / (last["latents_mb"] - first["latents_mb"])
            figures_[f"{contender}_peak_growth"] = round(last["peak_mb"] / first["peak_mb"], 2)
            figures_[f"{contender}_share_held"] = round(held, 3)
    figures_["in_memory_dies_under_cap"] = capped is None
    far = extrapolated(of["linear"][-1], plan["width"], rate)
    figures_ |= {"disk_gb_s": round(rate / 1e9, 2), "linear_passes": far["passes"]}
    figures_ |= {"hours_10m_x_4096": round(far["hours"], 1), "binds": far["binds"]}
    print(
        f"10 million pairs of 4,096 numbers: {far['passes']} passes of {far['gigabytes_a_pass']:.0f} GB, each with"
        f" {far['reading_minutes_a_pass']:.1f} minutes of reading beside {far['computing_minutes_a_pass']:.1f} of"
        f" computing; {far['hours']:.1f} hours, {far['binds']} binds"
    )
    finish("scale_memory", figures_, full=full, details={"results": results, "far": far})


if __name__ == "__main__":
    main()
