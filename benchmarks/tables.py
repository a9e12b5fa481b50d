"""Puts the figures of benchmarks/results/ into the README: `python benchmarks/tables.py`, or `--check` to compare."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def made(record: dict[str, Any]) -> str:
    return f"Measured {record['date']} on {record['machine']}; torch {record['versions']['torch']}."


def percent(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def reward_accuracy(record: dict[str, Any]) -> str:
    methods = {
        "auto": "auto",
        "linear_mean": "linear, mean",
        "linear_last": "linear, last",
        "mlp": "MLP",
        "ngram": "n-gram + length",
        "longer": "longer text",
    }
    rows = [["data", "pairs", *methods.values(), "auto - linear, mean"]]
    for name, sizes in record["figures"].items():
        for size, cell in sizes.items():
            delta = cell["auto_minus_linear_mean"]
            low, high = 100 * delta["low"], 100 * delta["high"]
            difference = f"{100 * delta['value']:+.1f} ({low:+.1f} to {high:+.1f})"
            rows.append([name, size, *(percent(cell[m]) for m in methods), difference])
    return f"{markdown(rows)}\n\nAccuracy in %, {len(record['seeds'])} seeds. {made(record)}"


def encode(record: dict[str, Any]) -> str:
    figures = record["figures"]
    rows = [
        ["figure", "measured", "goal"],
        [
            "seconds of length-sorted right-padded batches / Penchant's",
            f"{figures['ratio_vs_sorted_padding']:.2f}",
            "2.5",
        ],
        ["seconds of one sequence at a time / Penchant's", f"{figures['ratio_vs_one_by_one']:.2f}", ""],
        ["share of the matrix-product rate reached", f"{figures['matmul_fraction']:.2f}", "0.6"],
        ["largest relative error of an fp32 latent", f"{figures['max_rel_error_fp32']:.1e}", "1e-4"],
        ["unique tokens a second", f"{figures['tokens_per_second']:,}", ""],
    ]
    return f"{markdown(rows)}\n\n{record['details']['pairs']} hh pairs, bf16, 20 of 30 layers. {made(record)}"


def vs_trl(record: dict[str, Any]) -> str:
    figures = record["figures"]
    rows = [["method", "accuracy, %", "seconds", "CPU seconds", "peak MiB", "Penchant's accuracy minus its"]]
    names = {"penchant": "Penchant, AutoHead", "lora": "TRL RewardTrainer, LoRA", "full": "TRL RewardTrainer, full"}
    for key, name in names.items():
        if figures.get(f"{key}_acc") is None:
            continue
        delta = ""
        if figures.get(f"delta_vs_{key}") is not None:
            low, high = 100 * figures[f"delta_vs_{key}_ci_low"], 100 * figures[f"delta_vs_{key}_ci_high"]
            delta = f"{100 * figures[f'delta_vs_{key}']:+.1f} ({low:+.1f} to {high:+.1f})"
        accuracy = f"{100 * figures[f'{key}_acc']:.1f}"
        costs = [f"{figures[f'{key}_{cost}']:,.0f}" for cost in ("seconds", "cpu_seconds", "peak_mb")]
        rows.append([name, accuracy, *costs, delta])
    details = record["details"]
    about = f"{details['train']}, tested on {details['test']}; one epoch; {details['threads']}"
    about += " thread each on a machine shared with other work, so compare CPU seconds rather than seconds."
    return f"{markdown(rows)}\n\nTrained on {about} {made(record)}"


TABLES = {"reward_accuracy": reward_accuracy, "encode": encode, "vs_trl": vs_trl}


def filled(text: str) -> str:
    """The README with each table made from its result, or with a sentence where there is none."""
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            content = make(json.loads(path.read_text(encoding="utf-8")))
        else:
            content = f"*No full run of `benchmarks/{name}.py` is recorded yet.*"
        block = f"<!-- table:{name} -->\n{content}\n<!-- end -->"
        text = re.sub(rf"<!-- table:{name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.S)
    return text


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        sys.exit(0 if filled(text) == text else "README.md is not up to date: run python benchmarks/tables.py")
    README.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
