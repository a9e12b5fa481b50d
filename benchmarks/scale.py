"""Beyond one machine and beyond memory: Ray's overhead, memory by number of pairs, resuming, the cost model, a GPU.

Each part is a script of its own that says what it measures: scale_ray, scale_memory, scale_model and, where torch sees
a CUDA device, scale_gpu. The record of a full run fills docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import scale_gpu
import scale_model
import scale_ray
from common import RESULTS, finish, table

GOALS = {"ray_overhead": "at most 1.15", "memory_growth": "1 (flat)", "encode_fraction_gpu": "at least .5"}


def memory(quick: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Figures of scale_memory, and the record that a full run of it leaves."""
    command = [sys.executable, str(Path(__file__).with_name("scale_memory.py")), *(["--quick"] if quick else [])]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(out)
    kept = None if quick else json.loads((RESULTS / "scale_memory.json").read_text(encoding="utf-8"))
    return json.loads(out.splitlines()[-1]), kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs and one round, under 5 minutes")
    quick = parser.parse_args().quick

    model = scale_model.check(8, (10, 20), 1) if quick else scale_model.check(20, (10, 20, 30), 3)
    print(table(scale_model.rows_of(model)), flush=True)
    ray, ray_runs = scale_ray.measure(40, 1, dtype="auto") if quick else scale_ray.measure(1000, 2, dtype="auto")
    grown, record = memory(quick)
    gpu = scale_gpu.measure()
    print(table(scale_gpu.rows_of(gpu)) if gpu else "no GPU: torch sees no CUDA device")
    figures = {
        **ray,
        "memory_growth": grown["linear_peak_growth"],
        **{f"memory_{name}": value for name, value in grown.items()},
        **model["figures"],
        "encode_fraction": round(model["fraction"], 3),
        "encode_fraction_gpu": gpu and {name: round(each["fraction"], 3) for name, each in gpu["encode"].items()},
    }
    print(table([["figure", "measured", "goal"], *([k, str(v), GOALS.get(k, "")] for k, v in figures.items())]))
    details = {"ray": ray_runs, "memory": record, "model": model, "gpu": gpu}
    finish("scale", figures, full=not quick, details=details)


if __name__ == "__main__":
    main()
