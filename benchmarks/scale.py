"""Beyond one machine and beyond memory: Ray's overhead, memory by number of pairs, resuming, the cost model, a GPU.

Each part is a script of its own that says what it measures: scale_ray, scale_memory, scale_model and, where torch sees
a CUDA device, scale_gpu. The records of a full run, and of its parts, fill docs/scaling.md.
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
from common import finish, table

GOALS = {"ray_overhead": "at most 1.15", "memory_growth": "1 (flat)", "encode_fraction_gpu": "at least .5"}


def part(script: str, quick: bool) -> dict[str, Any]:
    """Figures of a part that runs in a process of its own; a full run of it leaves a record of its own."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *(["--quick"] if quick else [])]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(out, flush=True)
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs and one round, under 5 minutes")
    quick = parser.parse_args().quick

    model = scale_model.check(4, (10, 20), 1) if quick else scale_model.check(20, (10, 20, 30), 3)
    print(table(scale_model.rows_of(model)), flush=True)
    ray, grown = part("scale_ray.py", quick), part("scale_memory.py", quick)
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
    finish("scale", figures, full=not quick, details={"model": model, "gpu": gpu})


if __name__ == "__main__":
    main()
