"""LPC against the losses it extends, its controls, and what its reviewers asked for.

Every run is a job of its own (see lpc_job.py), on one thread, as many at once as there are cores; what is done is kept
in --work and not run again. Policies are SmolLM2-135M-Instruct with LoRA of rank 16 on its top two layers.

  grid      four sets x DPO, IPO, SimPO x plain, 64 codes
  controls  equal extra parameters without a latent, a Gaussian z, K = 1 to 128, other posteriors
  people    conflict for one and the same prompt: z inferred from eight pairs of an annotator
  noise     labels turned round, with a tag in the prompt and without
  quality   sampled answers: gold scores on the demo data, win rate on hh by a reward model that knows neither split
  cost      seconds a step and memory with codes, without, in TRL
  exact     equal to TRL without codes, and to no codes with a code of zeros

    python benchmarks/lpc.py --quick
    python benchmarks/lpc.py --work runs/lpc
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import lpc_cost
import lpc_data
import lpc_figures
from common import Job, finish, job_key, kept, run_jobs, table
from lpc_data import QUICK

ROOT = Path(__file__).resolve().parent.parent
JOB = Path(__file__).with_name("lpc_job.py")
CODE = [Path(__file__).with_name(f"lpc_{part}.py") for part in ("job", "data", "people", "controls")]
LOSSES = ("dpo", "ipo", "simpo")
SETS = ("demo", "hh", "science", "ultrafeedback")


def jobs(quick: bool, seeds: list[int]) -> list[Job]:
    """All runs, the most telling first."""
    found: list[Job] = []

    def add(name: str, loss: str = "dpo", latent: str = "none", codes: int = 64, **more: Any) -> None:
        for seed in seeds:
            found.append({"set": name, "loss": loss, "latent": latent, "codes": codes, "seed": seed, **more})

    sampled = {"sample": True}
    add("demo", **sampled)
    add("demo", latent="codes", **sampled, people=True)
    add("demo", latent="codes", posterior="people", people=True)
    add("demo", latent="codes", codes=8, posterior="people", people=True)
    for name in ("hh", "science"):
        add(name, latent="codes", codes=8, posterior="people")
    add("hh", **sampled)
    add("hh", latent="codes", **sampled, switch=True)
    for latent in ("bias", "mlp", "gaussian"):
        add("demo", latent=latent)
    for name in ("science", "ultrafeedback"):
        for latent in ("none", "codes"):
            add(name, latent=latent)
    for name in SETS:
        for loss in ("ipo", "simpo"):
            for latent in ("none", "codes"):
                add(name, loss, latent)
    for flips in (0.5, 0.25):
        for tag in (False, True):
            for latent in ("none", "codes"):
                add("hh", latent=latent, flips=flips, tag=tag, **({"switch": True} if latent == "codes" else {}))
    for k in (1, 8, 32, 128):
        add("demo", latent="codes", codes=k)
    for posterior in ("difference", "both"):
        add("demo", latent="codes", posterior=posterior)

    def core(job: Job) -> bool:
        usual = job["loss"] == "dpo" and job["set"] != "ultrafeedback" and "flips" not in job and job["codes"] == 64
        return usual and job["latent"] in ("none", "codes") and job.get("posterior", "people") == "people"

    def grid(job: Job) -> bool:
        return job["latent"] in ("none", "codes") and job["codes"] == 64 and not {"posterior", "flips"} & job.keys()

    # Then seed by seed, so that a run that is cut short has every row once before it has any twice; the losses first.
    found.sort(key=lambda job: (not core(job), 0 if core(job) else job["seed"] + (0 if grid(job) else 1.5)))
    if quick:  # each kind of row once
        seen: set[tuple[Any, ...]] = set()
        few = []
        for job in found:
            kind = (job["loss"], job["latent"], job.get("posterior"), "flips" in job)
            if job["set"] in QUICK and job["codes"] in (8, 64) and kind not in seen:
                seen.add(kind)
                few.append({**job, "quick": True})
        return few
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few pairs and steps, one seed: does it run?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "lpc", help="where finished runs are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run after this many minutes")
    parser.add_argument(
        "--no-judge", action="store_true", help="leave out the win rate on hh, whose judge takes minutes"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    if not args.quick:
        lpc_data.whole("hh")  # says at once where the data are not
    todo = jobs(args.quick, seeds)
    cache = args.work / "cache"
    done = run_jobs(JOB, todo, args.work, CODE, cache, args.workers, args.minutes)
    results = [done[key] for job in todo if (key := job_key(job, CODE)) in done]
    judged = [run for run in results if not args.no_judge or run["job"]["set"] == "demo"]
    import lpc_exact

    extra = {
        "exact": kept(args.work / f"exact{args.quick}.json", lambda: lpc_exact.exact(cache)),
        "cost": kept(
            args.work / f"cost{args.quick}.json",
            # TRL's steps are the slow ones, and --quick has one round of them: TRL as it comes.
            lambda: lpc_cost.cost(1, 2, cache, lpc_cost.CONTESTANTS[:-1]) if args.quick else lpc_cost.cost(2, 3, cache),
        ),
        "quality": lpc_figures.quality(judged, cache),
        "ridge": kept(
            args.work / f"ridge{args.quick}{len(seeds)}.json",
            lambda: lpc_figures.ridge(seeds, cache, tuple(QUICK) if args.quick else SETS, quick=args.quick),
        ),
    }
    details = lpc_figures.details(results, len(seeds))
    for title, rows in lpc_figures.tables(details, extra):
        print(f"\n{title}\n{table(rows)}")
    figures = lpc_figures.headline(details, extra)
    missing = len(todo) - len(results)
    if missing:
        print(f"\n{missing} of {len(todo)} runs were not done in the time given.")
    finish("lpc", figures, full=not args.quick, details={**details, **extra, "missing": missing}, seeds=seeds)


if __name__ == "__main__":
    main()
