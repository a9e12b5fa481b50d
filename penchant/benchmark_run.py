"""What `penchant evaluate --benchmark` runs: score all responses of a benchmark's rows, and say how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.encode import TOKEN_BUDGET, Cost, encode_texts
from penchant.evaluate.benchmark_rows import Benchmark, Items
from penchant.evaluate.benchmarks import evaluate_benchmark
from penchant.reward_model import RewardModel, backbone_facts
from penchant.store_views import open_store


def benchmark_run(
    rm: RewardModel,
    benchmark: Benchmark,
    rows: Items,
    name: str,
    *,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
    show_progress: bool = True,
) -> dict[str, Any]:
    """What metrics.json says of a model on a benchmark's rows, which came from `name`."""
    texts = [(item.row, item.prompt, response) for item in rows.items for response in item.responses]
    numbers, prompts, responses = (list(column) for column in zip(*texts, strict=True))
    cost = Cost()
    latents = encode_texts(
        rm.backbone,
        prompts,
        responses,
        rm.recipe.views,
        open_store(cache, rm.recipe),
        token_budget=token_budget,
        label="encode" if show_progress else None,
        cost=cost,
        rows=numbers,
    )
    found = evaluate_benchmark(benchmark, rows.items, rm.head.score(latents), seed=seed)
    return {
        "benchmark": {**found, "data": name, "skipped": rows.skipped},
        "recipe": rm.recipe.to_dict(),
        "backbone": backbone_facts(rm.backbone),
        "head": rm.facts.get("head", {}),
        "cost": cost.to_dict(),
        "seed": seed,
    }


def benchmark_summary(metrics: dict[str, Any]) -> str:
    """The figures with their intervals beside the longer text's, the sum of them last."""
    found = metrics["benchmark"]
    rows = [("", "score", "95% interval", "longer text", "rows")]
    for name, f in found["figures"].items():
        rows.append(
            (name, f"{100 * f['value']:.1f}", ends(f, ".1f"), f"{100 * f['longer']['value']:.1f}", f"{f['n']:,}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found['name']}: {found['rows']:,} rows, {found['prompts']:,} prompts"]
    lines += [
        "  "
        + "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    over = found["figures"][found["overall"]]["over_longer"]
    lines.append(f"{found['overall']} minus that of the longer text: {100 * over['value']:+.1f} ({ends(over, '+.1f')})")
    if found["ties"]:
        lines.append(f"{found['ties']:,} rows have a chosen and a rejected response with the same score")
    lines += [f"skipped {count:,} rows because {what}" for what, count in found["skipped"].items()]
    return "\n".join(lines)


def ends(figure: dict[str, Any], form: str) -> str:
    """The interval of a figure in percent, where it has one."""
    if figure["low"] is None:
        return "too few prompts"
    return f"{100 * figure['low']:{form}} to {100 * figure['high']:{form}}"
