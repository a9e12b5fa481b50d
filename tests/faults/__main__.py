"""`python -m tests.faults --count 200 --seed 0`: a line a fault, a table, and last one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter

from tests.faults import disk

ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""A process that has threads must not be forked."""


def restarted() -> None:
    """Begin again with the library that fails on command preloaded, once."""
    if "FAULTS_STARTED" in os.environ:
        return
    environment = {**os.environ, **ALONE, "FAULTS_STARTED": "1"}
    environment["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="penchant-faults-datasets-")
    if library := disk.build():
        environment["LD_PRELOAD"] = str(library)
    os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], environment)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of faults of this seed")
    parser.add_argument("--jobs", nargs="*", help="only these jobs; the numbers are others then")
    parser.add_argument("--kinds", nargs="*", help="of the faults drawn, only these kinds")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/faults.json")
    asked = parser.parse_args()
    restarted()
    from tests.faults.kit import EQUAL, FAILED, REFUSED, Kit
    from tests.faults.registry import JOBS, LEFT_OUT, SPECIALS

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then as well
    start = time.monotonic()
    jobs = [job for job in JOBS if not asked.jobs or job.name in asked.jobs]
    specials = {name: found for name, found in SPECIALS.items() if not asked.jobs or name in asked.jobs}
    kit = Kit(jobs, specials, asked.seed)
    left_out = [f"no faults of {name}, as {reason}" for name, reason in LEFT_OUT.items()]
    left_out += [] if disk.is_loaded() else ["no faults at operations, as there is no C compiler"]
    left_out += [] if kit.mounts else ["no small disks, as mounting them takes root"]
    print("; ".join([f"seed {asked.seed}", *left_out]), flush=True)
    faults = kit.drawn(max([asked.count, *(1 + number for number in asked.only or [])]))
    faults = [f for f in faults if not asked.only or f.number in asked.only]
    faults = [f for f in faults if not asked.kinds or f.kind in asked.kinds]
    counts: Counter[tuple[str, str, str]] = Counter()
    failed = []
    try:
        for fault in faults:
            before = time.monotonic()
            outcome = kit.happen(fault)
            counts[fault.job, fault.kind, outcome.result] += 1
            again = f"--seed {fault.seed} --only {fault.number}"
            again += f" --jobs {' '.join(asked.jobs)}" if asked.jobs else ""
            print(
                f"{again}: {fault.job} {fault.kind}, {'; '.join(outcome.said)} -> {outcome.result}"
                f" ({time.monotonic() - before:.1f} s)",
                flush=True,
            )
            if outcome.result == FAILED:
                failed.append(again)
    finally:
        kit.close()
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
    print(table(counts))
    for line in failed:
        print(f"FAILED: python -m tests.faults {line}")
    figures = {
        "benchmark": "faults",
        "seed": asked.seed,
        "faults": len(faults),
        **{name.lower(): sum(n for key, n in counts.items() if key[2] == name) for name in (EQUAL, REFUSED, FAILED)},
        "by_kind": grouped(counts, 1),
        "by_job": grouped(counts, 0),
        "seconds": round(time.monotonic() - start, 1),
    }
    if asked.write:
        from benchmarks.common import finish

        finish("faults", figures, full=True, seeds=(asked.seed,))
    else:
        print(json.dumps(figures))
    return 1 if failed else 0


def grouped(counts: Counter[tuple[str, str, str]], by: int) -> dict[str, dict[str, int]]:
    """Faults by outcome, of each kind or job."""
    found: dict[str, dict[str, int]] = {}
    for key in sorted(counts):
        one = found.setdefault(key[by], {})
        one[key[2].lower()] = one.get(key[2].lower(), 0) + counts[key]
    return found


def table(counts: Counter[tuple[str, str, str]]) -> str:
    """Kinds down, jobs across: equal/refused/FAILED."""
    jobs, kinds = (sorted({key[i] for key in counts}) for i in (0, 1))

    def cell(job: str, kind: str) -> str:
        found = [counts[job, kind, result] for result in ("equal", "refused", "FAILED")]
        return "/".join(map(str, found)) if sum(found) else "-"

    rows = [["equal/refused/FAILED", *jobs], *([kind, *(cell(job, kind) for job in jobs)] for kind in kinds)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
