"""What synthesis costs: seconds and memory against text augmentation by the same LLM, throughput, and scale.

    python benchmarks/lens_cost.py --scale 100000 4096     # one process of its own, whose peak memory is its own

is what `measure` runs for the scaling figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import lens_pool
import numpy as np
from common import table
from lens_data import Source

from penchant.encode import encode_texts
from penchant.generation import Generator
from penchant.heads import LinearHead
from penchant.latents import LatentPairs, Recipe
from penchant.runs import peak_memory_mb
from penchant.synthesis import Lens
from penchant.synthesis.text import judged_pairs, least_answers, llm_judge
from penchant.synthesis.theory import order_kept, order_preservation

SEEDS, FACTOR = 1000, 8
ONE = ("24:mean",)
SHOWN = ("generation_speedup", "size_ratio", "pairs_per_second_576", "pairs_per_second_4096", "scale_seconds")


def random_pairs(n: int, width: int, rank: int = 64, seed: int = 0) -> LatentPairs:
    """Latents of low rank plus noise, for timing alone. The prompt's latents are one row seen n times."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((rank, width), dtype=np.float32)
    sides = []
    for _ in range(2):
        side = np.empty((n, width), np.float32)
        for start in range(0, n, 4096):
            rows = min(4096, n - start)
            noise = rng.standard_normal((rows, width), dtype=np.float32)
            side[start : start + rows] = rng.standard_normal((rows, rank), dtype=np.float32) @ basis + noise
        sides.append(side)
    recipe = Recipe("random", "", ONE, width, "none", 0, "float32")
    return LatentPairs(sides[0], sides[1], np.broadcast_to(np.float32(0), (n, width)), recipe, np.arange(n))


def scale(n: int, width: int) -> dict[str, float]:
    """Fit LENS on n seed pairs and stream 8x, block by block, keeping nothing."""
    pairs = random_pairs(n, width)
    before = peak_memory_mb()
    start = time.perf_counter()
    lens = Lens().fit(pairs)
    fit = time.perf_counter() - start
    made = sum(len(block) for block in lens.batches(pairs, FACTOR)) - n
    seconds = time.perf_counter() - start
    return {
        "fit_seconds": round(fit, 2),
        "seconds": round(seconds, 2),
        "pairs": made,
        "pairs_per_second": round(made / (seconds - fit)),
        "seeds_mib": round(before),
        "peak_mib": round(peak_memory_mb()),
    }


def alone(n: int, width: int) -> dict[str, float]:
    """`scale` in a process of its own."""
    command = [sys.executable, __file__, "--scale", str(n), str(width)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def text_seconds(generator: Generator, prompts: int) -> dict[str, float]:
    """Seconds a synthetic pair takes by text, measured on some hh prompts: sample, encode, judge (both judges)."""
    asked = lens_pool.prompts_of("hh")
    rng = np.random.default_rng(0)
    chosen = [asked[i] for i in rng.choice(len(asked), prompts, replace=False)]
    k = least_answers(FACTOR - 1)
    start = time.perf_counter()
    answers = generator.sample(chosen, answers=k, max_new_tokens=lens_pool.POOLS["hh"].max_new_tokens, seed=1)
    sampled = time.perf_counter() - start
    texts = [text or " " for row in answers for text in row]
    latents = encode_texts(generator.backbone, [p for p in chosen for _ in range(k)], texts, ONE)
    encoded = time.perf_counter() - start - sampled
    # A judge of the right shape; its order does not matter for its cost.
    seeds = random_pairs(SEEDS, latents.shape[1])
    scores = LinearHead(strength=1.0).fit(seeds).score(latents).reshape(prompts, k)
    pairs = len(judged_pairs(scores, FACTOR - 1)[0])
    total = time.perf_counter() - start
    llm_judge(generator, chosen, [[text or " " for text in row] for row in answers])
    judged = time.perf_counter() - start - total
    return {
        "pairs": pairs,
        "answers": k,
        "sample_seconds": round(sampled, 2),
        "encode_seconds": round(encoded, 2),
        "llm_judge_seconds": round(judged, 2),
        "seconds_a_pair": total / pairs,
    }


def measure(generator: Generator, quick: bool) -> dict[str, Any]:
    """`generation_speedup` and the rest, one after the other on as many threads."""
    width = generator.backbone.width
    seeds = random_pairs(SEEDS, width)
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        lens = Lens().fit(seeds)
        made = len(lens.sample(seeds, FACTOR)) - SEEDS
        rounds.append(time.perf_counter() - start)
    text = text_seconds(generator, 8 if quick else 64)
    whole = sum(p.numel() for p in generator.model.parameters())
    wide = alone(SEEDS, 4096)
    large = alone(10_000 if quick else 100_000, 4096)
    by_text, seconds = text["seconds_a_pair"] * made, float(np.median(rounds))
    print(
        table(
            [
                ["way to 7,000 synthetic pairs from 1,000 seeds", "seconds", "parameters"],
                [
                    "LENS, VAE training included",
                    f"{seconds:.2f}",
                    f"{lens.diagnostics_['parameters']:,}",
                ],
                [f"text by the LLM, from {text['pairs']} pairs timed", f"{by_text:,.0f}", f"{whole:,}"],
            ]
        )
    )
    return {
        "generation_speedup": round(by_text / seconds, 1),
        "lens_seconds_8x": round(seconds, 3),
        "text_seconds_8x": round(by_text, 1),
        "text": text,
        "size_ratio": round(whole / lens.diagnostics_["parameters"], 1),
        "pairs_per_second_576": alone(SEEDS * 10, width)["pairs_per_second"],
        "pairs_per_second_4096": wide["pairs_per_second"],
        "scale": large,
        "scale_seconds": large["seconds"],
    }


def theory(source: Source) -> dict[str, Any]:
    """Order kept against noise, with a judge fitted on other pairs, beside the theorem's bound."""
    pairs = source.pairs.select(ONE)
    half = pairs.group % 2 == 0
    judge = LinearHead().fit(pairs.take(half))
    seeds = pairs.take(np.flatnonzero(~half)[:300])
    lens = Lens().fit(seeds)
    return {
        "diagnostics": lens.diagnostics_,
        "order": order_kept(lens, seeds, judge, rounds=7),
        "by_noise": order_preservation(lens, seeds, judge),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", nargs=2, type=int, required=True, metavar=("PAIRS", "WIDTH"))
    options = parser.parse_args()
    print(json.dumps(scale(*options.scale)))
