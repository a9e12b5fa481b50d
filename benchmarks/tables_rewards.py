"""Tables of reward heads: accuracy, encoding, against TRL, synthesis."""

from __future__ import annotations

from typing import Any

from table_cells import made, markdown, percent, points


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
            rows.append([name, size, *(percent(cell[m]) for m in methods), points(cell["auto_minus_linear_mean"])])
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


def lens(record: dict[str, Any]) -> str:
    methods = {
        "ridge": "ridge, means",
        "ridge_all": "ridge, all views",
        "mlp": "MLP, tuned",
        "lens_printed_8x": "LENS 8x, as printed",
        "lens_8x": "LENS 8x, same prompt",
        "lens_ridge_8x": "LENS 8x, ridge head",
        "noise_8x": "noise 8x",
        "gaussian_8x": "Gaussian 8x",
        "cross_8x": "real pairs crossed, 8x",
        "pca16_8x": "PCA-16 8x",
        "text_8x": "text by the LLM, 7x",
        "lens_best": "context, means",
        "context_all": "context, all views",
    }
    rivals = {"minus_ridge": "context, means - ridge, means", "minus_ridge_all": "context - ridge, all views"}
    rows = [["data", "seed pairs", *methods.values(), *rivals.values()]]
    for name in ("hh", "novelty", "ultrafeedback", "demo"):
        for size in record["figures"][name]:
            found = record["details"][name][size]
            deltas = [found[m][minus] for m, minus in zip(("lens_best", "context_all"), rivals, strict=True)]
            rows.append([name, size, *(f"{100 * found[m]['value']:.1f}" for m in methods), *map(points, deltas)])
    return f"{markdown(rows)}\n\nAccuracy in %, {len(record['seeds'])} seeds. {made(record)}"


def lens_cost(record: dict[str, Any]) -> str:
    figures = record["figures"]
    large = figures["scale"]
    rows = [
        ["7,000 synthetic pairs from 1,000 seeds (8x)", "measured", "the paper"],
        ["seconds, LENS, the VAE's training included", f"{figures['lens_seconds_8x']:.2f}", ""],
        ["seconds, text by the same LLM (sampled, encoded, judged)", f"{figures['text_seconds_8x']:,.0f}", ""],
        ["text / LENS", f"{figures['generation_speedup']:,.0f}", "18"],
        ["the LLM's parameters / the VAE's", f"{figures['size_ratio']:,.0f}", "16,000"],
        ["synthetic pairs a second, d = 576", f"{figures['pairs_per_second_576']:,}", ""],
        ["synthetic pairs a second, d = 4,096", f"{figures['pairs_per_second_4096']:,}", ""],
        [
            "100,000 seeds, d = 4,096: seconds for fit and 8x; MiB beyond the seeds",
            f"{large['seconds']:,.0f}; {large['peak_mib'] - large['seeds_mib']:,}",
            "",
        ],
    ]
    return f"{markdown(rows)}\n\n{made(record)}"
