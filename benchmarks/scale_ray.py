"""What Ray costs: `--engine ray` against the local engine, on the same cores, pairs, LLM and number type.

Rounds alternate the local engine, Ray with one actor on all cores and Ray with one actor a core, each with an empty
cache. Ratios are medians over rounds of Ray's seconds over the local engine's of the same round; `_range` is the lowest
and the highest of them.

    ray_overhead       steady: the local engine from its first text tokenised to its last latent stored, the LLM loaded;
                       Ray from the first batch begun by an actor, its LLM loaded, to the last one stored
    ray_with_start_up  the whole of both: the local engine reads the pairs, loads the LLM and encodes; Ray also starts
                       and ends its processes, each of which imports torch, and loads the LLM once to look at it and
                       once an actor
    resume_cost        seconds of a run that finds everything stored over the seconds of the run that stored it, both
                       with start-up

The tokens counted are equal, and so are the latents: `equal` compares every bit of what the engines stored. The details
hold the machine's load at the start of each run: where others work too, Ray's processes together get a larger share of
the cores than one process, and the ratios flatter it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import finish, table

from penchant.backbone import DEFAULT, Backbone
from penchant.cluster.encoding import encode_with_ray
from penchant.encode import fill
from penchant.pairs import load_pairs
from penchant.store_views import open_store

DEMO = Path(__file__).parent.parent / "penchant" / "data" / "demo.jsonl.gz"
VIEWS = ("15:mean", "20:mean", "20:last")
GOAL = 1.15


def local_run(pairs: int, cache: Path, cores: int, dtype: str) -> dict[str, float]:
    """Encode the first demo pairs with the local engine on `cores` threads; seconds, tokens."""
    start = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    data = load_pairs(DEMO, limit=pairs)
    backbone = Backbone.load(dtype=dtype)
    recipe = backbone.recipe(VIEWS)
    backbone.cut(max(recipe.layers))
    store = open_store(cache, recipe)
    loaded = time.perf_counter()
    _, cost = fill(backbone, recipe, data, store, show_progress=False)
    end = time.perf_counter()
    torch.set_num_threads(before)
    return {"seconds": end - start, "steady": end - loaded, "tokens": cost.unique_tokens}


def ray_run(pairs: int, cache: Path, cores: int, dtype: str, actors: int) -> dict[str, float]:
    """The same pairs by a Ray of its own, with `cores` shared out to the actors."""
    start = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    done = encode_with_ray(
        str(DEMO), model=DEFAULT, views=VIEWS, limit=pairs, cache=cache, dtype=dtype, actors=actors, show_progress=False
    )
    torch.set_num_threads(before)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steady": done.steady_seconds, "tokens": done.cost.unique_tokens}


def same_latents(pairs: int, caches: list[Path], dtype: str) -> bool:
    """Whether the caches hold the same bits for every sequence and prompt of the pairs."""
    backbone = Backbone.load(dtype=dtype)
    recipe, data = backbone.recipe(VIEWS), load_pairs(DEMO, limit=pairs)
    stores = [open_store(cache, recipe) for cache in caches]
    keys, cost = fill(backbone, recipe, data, stores[0], show_progress=False)
    assert not cost.encoded_sequences
    found = [[store.read(side).view(np.uint32) for side in keys.values()] for store in stores]
    return all(np.array_equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))


def measure(pairs: int, rounds: int, dtype: str, one: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and their details: the seconds of every run, by engine; what one actor takes only if asked for."""
    cores = os.cpu_count() or 1
    engines = {"local": 0, **({"ray 1": 1} if one else {}), f"ray {cores}": cores}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    again: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        for number in range(rounds):
            for name, actors in engines.items():
                cache = Path(work) / f"{name} {number}"
                runs[name].append(_run(pairs, cache, cores, dtype, actors))
                print(f"round {number + 1} of {rounds}, {name}: {_told(runs[name][-1])}", flush=True)
        for name, actors in engines.items():
            again[name] = _run(pairs, Path(work) / f"{name} 0", cores, dtype, actors)["seconds"]
            print(f"everything stored, {name}: {again[name]:.1f} s", flush=True)
        equal = same_latents(pairs, [Path(work) / f"{name} 0" for name in engines], dtype)

    def ratios(name: str, what: str) -> list[float]:
        return sorted(round(ray[what] / local[what], 4) for ray, local in zip(runs[name], runs["local"], strict=True))

    figures: dict[str, Any] = {"equal": equal}
    names = ("overhead_1", "overhead_1_range", "with_start_up_1")
    figures |= {f"ray_{name}": None for name in names} | {"resume_cost_ray_1": None}
    for name, actors in list(engines.items())[1:]:
        found = ratios(name, "steady")
        figures[f"ray_overhead_{actors}"] = round(median(found), 4)
        figures[f"ray_overhead_{actors}_range"] = [found[0], found[-1]]
        figures[f"ray_with_start_up_{actors}"] = round(median(ratios(name, "seconds")), 4)
    figures["ray_overhead"] = figures[f"ray_overhead_{cores}"]
    for name in engines:
        figures[f"resume_cost_{name.replace(' ', '_')}"] = round(again[name] / runs[name][0]["seconds"], 3)
    figures["local_tokens_per_second"] = round(median(run["tokens"] / run["steady"] for run in runs["local"]))
    return figures, {"pairs": pairs, "cores": cores, "dtype": dtype, "runs": runs, "everything_stored": again}


def _run(pairs: int, cache: Path, cores: int, dtype: str, actors: int) -> dict[str, float]:
    load = os.getloadavg()[0]
    found = ray_run(pairs, cache, cores, dtype, actors) if actors else local_run(pairs, cache, cores, dtype)
    return {**found, "load": load}


def _told(run: dict[str, float]) -> str:
    seconds = f"{run['steady']:.1f} s steady, {run['seconds']:.1f} s with start-up"
    return f"{seconds}, {run['tokens']:,.0f} tokens, load before {run['load']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="24 pairs, one round, without one actor; ratios say little then, and are not recorded",
    )
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    pairs, rounds = (24, 1) if options.quick else (options.pairs, options.rounds)
    figures, details = measure(pairs, rounds, options.dtype, one=not options.quick)
    rows = [["figure", "measured", "goal"]]
    for name, value in figures.items():
        rows.append([name, str(value), f"at most {GOAL:g}" if name == "ray_overhead" else ""])
    print(table(rows))
    finish("scale_ray", figures, full=not options.quick, details=details)


if __name__ == "__main__":
    main()
