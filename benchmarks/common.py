"""What the benchmarks share: where the data lies, tables, result files, the closing line of JSON."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
DATA = Path(os.environ.get("PENCHANT_DATA") or HERE.parent.parent / "shared" / "data")
RESULTS = HERE / "results"


def data_file(name: str) -> Path:
    """The path of a benchmark data set such as "hh/train"; ends the script, with a reason, where it is not there."""
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        skip(f"the benchmark data are not at {DATA}; set PENCHANT_DATA to the folder that holds {name}.jsonl.gz")
    return path


def skip(reason: str) -> NoReturn:
    """End a benchmark that cannot run here; exit code 0, so that the others of `make bench-quick` still run."""
    print(reason)
    print(json.dumps({"skipped": reason}))
    sys.exit(0)


Job = dict[str, Any]
"""What one run is to do, as JSON."""


def job_key(job: Job, code: Sequence[Path]) -> str:
    """Names a run's file. It changes with these scripts; empty --work after a change of what penchant does."""
    text = b"".join(path.read_bytes() for path in code)
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode() + text).hexdigest()[:16]


def run_jobs(
    script: Path, todo: Sequence[Job], work: Path, code: Sequence[Path], given: Path, workers: int, minutes: float
) -> dict[str, dict[str, Any]]:
    """Results by key, of the runs that could be done before the time was up; each is `script JOB given FILE`, on one
    thread. Finished ones are kept in `work`."""
    end = time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)

    def one(numbered: tuple[int, Job]) -> tuple[str, dict[str, Any]] | None:
        number, job = numbered
        file = work / f"{job_key(job, code)}.json"
        if not file.is_file():
            if time.monotonic() > end:
                return None
            start = time.monotonic()
            command = [sys.executable, str(script), json.dumps(job), str(given), str(file)]
            threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr[-3000:], file=sys.stderr)
                raise RuntimeError(f"run {job} failed")
            print(f"{number + 1}/{len(todo)} {job} {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return job_key(job, code), json.loads(file.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(workers) as pool:
        return dict(found for found in pool.map(one, enumerate(todo)) if found)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What is in the file, or else what `make` gives, kept there."""
    if not file.is_file():
        made = make()
        file.write_text(json.dumps(made), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Text columns of equal width, the first row as the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def finish(name: str, figures: dict[str, Any], *, full: bool, details: Any = None, seeds: Sequence[int] = (0,)) -> None:
    """Print the closing line of JSON; a full run is kept in benchmarks/results/NAME.json as well."""
    if full:
        from penchant.runs import versions  # heavy; a process that starts contestants must stay small before

        record = {
            "benchmark": name,
            "date": date.today().isoformat(),
            "versions": versions(),
            "machine": machine(),
            "seeds": list(seeds),
            "figures": figures,
            "details": details,
        }
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(record, indent=1, allow_nan=False)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(figures, allow_nan=False))


def machine() -> str:
    """Processor and cores, as the results name them."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"
