"""Tables of rewards on sparse features."""

from __future__ import annotations

from typing import Any

from table_cells import made, markdown, percent, points


def sparse(record: dict[str, Any]) -> str:
    methods = {
        "ridge": "ridge, layer 24",
        "ridge_15": "ridge, layer 15",
        "mlp": "MLP, layer 24",
        "sparse_printed": "SparseRM, as published",
        "random_printed": "its random directions",
        "random_sae_printed": "its random SAE",
        "sparse": "SparseHead",
        "random": "its random directions",
        "random_sae": "its random SAE",
        "sparse_16": "SparseHead, k 16",
        "random_16": "its random directions",
        "sae_activations": "SARM, light",
        "drm": "DRM",
    }
    deltas = {
        ("sparse", "minus_random"): "SparseHead - random directions",
        ("sparse_16", "minus_random_16"): "k 16 - random directions",
        ("sparse", "minus_ridge"): "SparseHead - ridge, layer 24",
    }
    rows = [["data", "pairs", *methods.values(), *deltas.values()]]
    for name, sizes in record["details"]["sets"].items():
        for size, found in sizes.items():
            cells = [f"{100 * found['rows'][method]['value']:.1f}" for method in methods]
            rows.append([name, size, *cells, *(points(found["rows"][row][delta]) for row, delta in deltas)])
    return f"{markdown(rows)}\n\nAccuracy in %, {len(record['seeds'])} seeds. {made(record)}"


def sparse_checks(record: dict[str, Any]) -> str:
    head = ["all features", "without the top 10", "without 10 at random", "gap", "stability", "labels shuffled"]
    rows = [["data", "pairs", "SparseHead", *head]]
    for name, sizes in record["details"]["sets"].items():
        for size, found in sizes.items():
            for row, title in (("sparse", "k 64"), ("sparse_16", "k 16"), ("sparse_active", "k 16, activations")):
                checks = found["checks"][row]
                cells = [f"{100 * checks[key]['value']:.1f}" for key in ("all", "without_top", "without_random")]
                shares = [f"{checks[key]:.2f}" for key in ("jaccard", "chance")]
                rows.append([name, size, title, *cells, points(checks["deletion_gap"]), *shares])
    return f"{markdown(rows)}\n\nAccuracy in %, stability as the Jaccard index. {made(record)}"


def sparse_sae(record: dict[str, Any]) -> str:
    figures, loss = record["figures"], record["details"]["sae"]["loss"]
    rows = [
        ["the SAE: 9,216 latents, TopK 32, layer 15", "measured", "goal"],
        ["distinct training tokens", f"{figures['sae_training_tokens']:,}", "2,000,000"],
        ["variance explained, held-out prompts", f"{figures['sae_variance_explained']:.3f}", ""],
        ["active latents a state (L0)", f"{figures['sae_l0']:.1f}", ""],
        ["dead latents", f"{figures['sae_dead_share']:.1%}", "10%"],
        [
            "the LLM's loss a token: own states, reconstructions, mean state, zeros",
            ", ".join(f"{loss[key]:.2f}" for key in ("plain", "spliced", "mean", "zero")),
            "",
        ],
        [
            "loss recovered, of zeros'; of the mean state's",
            f"{loss['recovered']:.3f}; {loss['recovered_of_mean']:.3f}",
            "",
        ],
        ["states a second in training", f"{figures['sae_ours_tokens_per_second']:,.0f}", ""],
        ["sae-lens' seconds a step, at its fastest / Penchant's", f"{figures['sae_speed_ratio']:.1f}", "1.5"],
    ]
    return f"{markdown(rows)}\n\n{made(record)}"


def sparse_people(record: dict[str, Any]) -> str:
    found = record["details"]["people"]["rows"]
    names = {
        "longer_text": "the longer text",
        "ridge_pooled": "ridge, other workers' pairs",
        "drm_pooled": "DRM, other workers' pairs",
        "pooled": "PCAHead, other workers' pairs",
    }
    for n in (5, 15, 50):
        names |= {
            f"random_heads_{n}": f"{n} own pairs: uniform random heads",
            f"drm_{n}": f"{n} own pairs: DRM",
            f"adapted_{n}": f"{n} own pairs: PCAHead, adapted",
        }
    names["own_pairs_only"] = "ridge, all own pairs alone"
    rows = [["convarg, mean over workers", "accuracy, %", "minus PCAHead before adapting"]]
    rows += [[text, percent(found[key]), points(found[key]["minus_pooled"])] for key, text in names.items()]
    workers = record["details"]["people"]["people"]
    return f"{markdown(rows)}\n\n{workers} workers, 5 seeds. {made(record)}"
