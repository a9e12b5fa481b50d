"""What the benchmarks share: where the data lies, tables, result files, the closing line of JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
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
