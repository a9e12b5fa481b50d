"""How fast pairs become latents, and how exactly.

Rounds alternate, on the same hh pairs, model, dtype and depth: a large matrix product; length-sorted right-padded
batches, the usual way; Penchant's packed trees. Ratios are medians over rounds, so that a noisy machine hits all alike.

    ratio_vs_sorted_padding  seconds of right-padded batches (at their best batch size) over Penchant's
    ratio_vs_one_by_one      seconds of one sequence at a time over Penchant's, on a part of the pairs
    matmul_fraction          floating-point operations of the unique tokens in the layers' weight matrices, over seconds
                             times the rate of the large product; 1 would be nothing but matrix products at full rate
    max_rel_error_fp32       |latent - plain transformers forward| / |plain|, the worst of all latents, in fp32
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from common import data_file, finish, table

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import MemoryStore, batch_latents, encode, tokenize_pairs
from penchant.packing import pack
from penchant.pairs import load_pairs

DEPTH = 20
GOALS = {"ratio_vs_sorted_padding": 2.5, "matmul_fraction": 0.6, "max_rel_error_fp32": 1e-4}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def product_rate(dtype: torch.dtype, size: int = 4096) -> float:
    """Floating-point operations a second of one size x size x size product, the best of three."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(3))


def padded_batches(tokens: list[Tokens], budget: int) -> Iterator[list[torch.Tensor]]:
    rows = sorted((torch.from_numpy(np.concatenate((t.prompt, t.response))).long() for t in tokens), key=len)
    batch: list[torch.Tensor] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def run_padded(backbone: Backbone, tokens: list[Tokens], budget: int) -> None:
    for batch in padded_batches(tokens, budget):
        state = backbone.run_padded(batch, (DEPTH,))[0]
        for row, ids in zip(state, batch, strict=True):
            row[len(ids) - 1].float().numpy()


def run_packed(backbone: Backbone, tokens: list[Tokens]) -> MemoryStore:
    store = MemoryStore()
    encode(backbone, backbone.recipe((f"{DEPTH}:last", f"{DEPTH}:mean")), tokens, store)
    return store


def layer_operations(backbone: Backbone) -> int:
    """Floating-point operations a token needs in the weight matrices of the layers that run (attention not counted)."""
    return 2 * sum(p.numel() for layer in backbone.layers[:DEPTH] for p in layer.parameters() if p.ndim == 2)


def worst_error(backbone: Backbone, tokens: list[Tokens]) -> float:
    """Largest relative error of an fp32 latent against one plain forward pass a sequence."""
    exact = Backbone(copy.deepcopy(backbone.model).float(), backbone.chat.tokenizer, "exact", "fp32")
    store = MemoryStore()
    encode(exact, exact.recipe((f"{DEPTH}:last", f"{DEPTH}:mean")), tokens, store)
    errors = []
    for item in tokens:
        ids = torch.from_numpy(np.concatenate((item.prompt, item.response))).long()
        plain = exact.run_padded([ids], (DEPTH,))[0][0]
        wanted = torch.cat((plain[-1], plain[len(item.prompt) :].mean(0))).numpy()
        errors.append(np.linalg.norm(store.rows[item.key] - wanted) / np.linalg.norm(wanted))
    return float(max(errors))


def profile(backbone: Backbone, tokens: list[Tokens]) -> dict[str, float]:
    """Share of CPU time by operation, on one thread, as each worker of `encode` runs."""
    recipe = backbone.recipe((f"{DEPTH}:last", f"{DEPTH}:mean"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.profiler.profile() as prof:
        for batch in pack(tokens, backbone.budget(), packed=backbone.packed):
            batch_latents(backbone, recipe, batch)
    torch.set_num_threads(threads)
    events = sorted(prof.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return {e.key: round(e.self_cpu_time_total / total, 4) for e in events[:12]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 pairs, 2 rounds, under 3 minutes")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    count, rounds = (150, 2) if options.quick else (options.pairs, options.rounds)

    pairs = load_pairs(data_file("hh/train")).select(range(count))
    backbone = Backbone.load()
    tokens = tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
    half = len(tokens) // 2
    few = tokens[:15] + tokens[half : half + 15]
    unique = sum(len(t.response) for t in tokens) + sum({t.prompt_key: len(t.prompt) for t in tokens}.values())
    operations = unique * layer_operations(backbone)
    print(f"{count} hh pairs, {sum(map(len, tokens)):,} tokens, {unique:,} unique; {backbone.dtype}, depth {DEPTH}")

    run_packed(backbone, few)
    budget = min((1024, 2048, 4096, 8192), key=lambda b: timed(lambda: run_padded(backbone, few * 2, b)))
    found: dict[str, list[float]] = {"product": [], "padded": [], "packed": [], "alone": [], "packed_few": []}
    for number in range(rounds):
        found["product"].append(product_rate(backbone.dtype))
        found["padded"].append(timed(lambda: run_padded(backbone, tokens, budget)))
        found["packed"].append(timed(lambda: run_packed(backbone, tokens)))
        found["alone"].append(timed(lambda: run_padded(backbone, few, 1)))
        found["packed_few"].append(timed(lambda: run_packed(backbone, few)))
        rate = unique / found["packed"][-1]
        print(f"round {number + 1} of {rounds}: {rate:,.0f} unique tokens/s packed", flush=True)

    def ratio(top: str, bottom: str) -> float:
        return median(a / b for a, b in zip(found[top], found[bottom], strict=True))

    fractions = [operations / s / rate for s, rate in zip(found["packed"], found["product"], strict=True)]
    figures = {
        "ratio_vs_sorted_padding": round(ratio("padded", "packed"), 3),
        "ratio_vs_one_by_one": round(ratio("alone", "packed_few"), 3),
        "matmul_fraction": round(median(fractions), 3),
        "max_rel_error_fp32": worst_error(backbone, few),
        "tokens_per_second": round(unique / median(found["packed"])),
        "product_gflops": round(median(found["product"]) / 1e9),
    }
    shares = profile(backbone, few)
    rows = [["figure", "measured", "goal"]]
    for name, value in figures.items():
        goal = GOALS.get(name)
        rows.append([name, f"{value:.3g}" if value < 100 else f"{value:,.0f}", f"{goal:g}" if goal else ""])
    print(table(rows))
    print("\nwhere the time goes (share of CPU time, profiler on)")
    print(table([["operation", "share"], *([name, f"{share:.1%}"] for name, share in shares.items())]))
    details = {"pairs": count, "rounds": found, "padded_budget": budget, "profile": shares, "fractions": fractions}
    finish("encode", figures, full=not options.quick, details=details)


if __name__ == "__main__":
    main()
