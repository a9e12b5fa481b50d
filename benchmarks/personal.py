"""CLaP + Latent DPO: is a person's z worth as much as an LLM of their own?

  sentiment  the paper's task: win rate over the unadapted LLM, perplexity and seconds, against DPO with LoRA, of all
             weights, and P-tuning on the same pairs
  questions  what the paper leaves open: size of z, what r(x, z) knows, another domain, feedback turned round
  tastes     rewards fitted to a person, by `personal_tastes.py`
  many       people fitted a second, bytes of a person, a million of them, by `personal_many.py`

What is done is kept in --work and not run again.

    python benchmarks/personal.py --quick
    python benchmarks/personal.py --work runs/personal
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import personal_sentiment as task
from common import Job, finish, job_key, kept, run_jobs, table
from personal_figures import figures_of, headline, tables

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("personal_tastes", "personal_many")
FARTHER = 1.25
"""A limit of perplexity that is not the default: at what LoRA lets it grow to, who wins more?"""
CODE = [Path(__file__).parent / f"personal_{part}.py" for part in ("job", "sentiment", "ptuning")]


def jobs(seeds: list[int], quick: bool) -> tuple[list[Job], list[Job]]:
    """What others stand on, then the rest, the most telling first."""
    people, first = list(task.TASTES), seeds[:1]
    before: list[Job] = [{"method": "base", "draw": draw, "seed": seed} for seed in seeds for draw in (0, 1)]
    before += [{"method": "pretrain", "adapter": "shift", "seed": seed} for seed in seeds]
    after: list[Job] = [{"method": "latent", "adapter": "shift", "seed": seed} for seed in seeds]
    after += [{"method": "latent", "adapter": "shift", "limit": FARTHER, "seed": seed} for seed in seeds]
    after += [{"method": "lora", "person": who, "seed": seed} for seed in seeds for who in people]
    one = [{"method": "pretrain", "adapter": "positions", "seed": seed} for seed in first]
    before += one
    after += [{"method": "latent", "adapter": "positions", "seed": seed} for seed in first]
    after += [{"method": "latent", "adapter": "shift", "full": True, "seed": seed} for seed in first]
    after += [{"method": "latent", "adapter": "shift", "read": "encoder", "seed": seed} for seed in first]
    after += [{"method": "reward", "adapter": "shift", "seed": seed} for seed in first]
    if not quick:
        for flips in (0.2, 0.4):
            after += [{"method": "latent", "adapter": "shift", "flips": flips, "seed": seed} for seed in first]
        before += [{"method": "base", "draw": 0, "domain": "demo", "seed": seed} for seed in first]
        after += [{"method": "latent", "adapter": "shift", "domain": "demo", "seed": seed} for seed in first]
        for size in (8, 64, 128):
            before += [{"method": "pretrain", "adapter": "shift", "latent": size, "seed": seed} for seed in first]
            after += [{"method": "latent", "adapter": "shift", "latent": size, "seed": seed} for seed in first]
    after += [
        {"method": name, "person": who, "seed": seed}
        for seed in first
        for name in ("ptuning", "full")
        for who in people
    ]
    if quick:
        before, after = ([{**job, "quick": True} for job in part] for part in (before, after))
        # An encoder each, all weights, and two of three people would take too long.
        after = [job for job in after if job.get("full") is None and job["method"] != "full"]
        after = [job for job in after if job.get("person", "negative") == "negative"]
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few prompts and pairs, one seed: does it run?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "personal", help="where finished runs are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run of the sentiment task after these")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    task.data_file("movies/snippets")  # says at once where the data are not
    args.work.mkdir(parents=True, exist_ok=True)
    task.pool(args.work, task.QUICK_POOL if args.quick else task.POOL)
    script, found = Path(__file__).with_name("personal_job.py"), {}
    stages = jobs(seeds, args.quick)
    for stage in stages:
        found |= run_jobs(script, stage, args.work, CODE, args.work, args.workers, args.minutes)
    results = [found[key] for stage in stages for job in stage if (key := job_key(job, CODE)) in found]
    details: dict[str, Any] = {
        "sentiment": figures_of(results),
        "missing": sum(map(len, stages)) - len(results),
    }
    for title, rows in tables(details):
        print(f"\n{title}\n{table(rows)}")
    if details["missing"]:
        print(f"\n{details['missing']} runs of the sentiment task were not done in the time given.")
    figures = headline(details)
    for name in OTHERS:
        figures |= kept(args.work / f"{name}{'-quick' * args.quick}.json", partial(closing_line, name, args.quick))
    finish("personal", figures, full=not args.quick, details=details, seeds=seeds)


def closing_line(name: str, quick: bool) -> dict[str, Any]:
    """Run another script, whose output is shown; the figures of its last line."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *(["--quick"] if quick else [])]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    print("\n".join(lines[:-1]))
    found: dict[str, Any] = json.loads(lines[-1])
    return found


if __name__ == "__main__":
    main()
