"""Tables of latent codes, in heads and in the policy."""

from __future__ import annotations

from typing import Any

from table_cells import made, markdown, percent, points


def coded(record: dict[str, Any]) -> str:
    names = {
        "pooled": "one taste",
        "context": "context head",
        "coded_unsupervised": "two codes, no source",
        "coded_with_source": "codes, sources in training",
        "coded_shuffled": "the same, shuffled",
        "predicted_source": "two heads, source predicted",
        "oracle_source": "two heads, true source",
    }
    ways = ("coded_unsupervised", "coded_with_source")
    rows = [["data", "pairs", *names.values(), *(f"gap recovered, {names[way]}" for way in ways)]]
    for data, sizes in record["details"].items():
        for size, cell in sizes.items():
            if size.isdigit():
                shares = [f"{cell[way]['gap_recovered']:.2f}" for way in ways]
                rows.append([data, size, *(f"{100 * cell[name]['value']:.1f}" for name in names), *shares])
    return f"{markdown(rows)}\n\nAccuracy in %, {len(record['seeds'])} seeds. {made(record)}"


def coded_people(record: dict[str, Any]) -> str:
    rows = [["demo data, mean over annotators' test pairs", "accuracy, %", "minus one taste for all"]]
    told = {
        "pooled": "one taste for all",
        "prior": "a taste an annotator, nothing known of who judges",
        "own_head_8": "a head fitted on the 8 pairs alone",
        "true_annotator": "the annotator known",
    }
    for name, figure in record["figures"].items():
        n = name.removeprefix("posterior_")
        known = f"the code inferred from {n} pair{'s' if n != '1' else ''}"
        rows.append([told.get(name, known), percent(figure), points(figure["minus_pooled"])])
    return f"{markdown(rows)}\n\n{len(record['seeds'])} seeds. {made(record)}"


def lpc(record: dict[str, Any]) -> str:
    """Every run, with the seeds it has."""
    heads = ["data / loss / before the LM head", "seeds", "accuracy, %", "minus plain", "posterior minus prior"]
    rows = [[*heads, "KL, nats", "codes in use", "share of the top code"]]
    for name, cell in sorted(record["details"]["cells"].items()):
        rows.append(
            [
                name.replace("/", " / "),
                str(cell["seeds"]),
                percent(cell["accuracy"]),
                points(cell["delta"]) if "delta" in cell else "",
                points(cell["posterior_delta"]) if "posterior_delta" in cell else "",
                *(f"{cell[k]:.2g}" if k in cell else "" for k in ("kl", "perplexity", "top_share")),
            ]
        )
    for name, one in record["details"]["ridge"].items():
        rows.append([f"{name} / ridge head on the same pairs", str(len(record["seeds"])), percent(one), *[""] * 5])
    return f"{markdown(rows)}\n\nOf the implicit reward on held-out prompts. {made(record)}"


def lpc_people(record: dict[str, Any]) -> str:
    heads = ["policy on the demo data", "z from", "accuracy, %", "minus its prior's", "minus a plain policy's"]
    rows = [heads]
    ways = {
        "known": "the training pairs of whoever judged",
        "likelihood": "8 pairs of theirs",
        "other": "8 pairs of another annotator",
        "posterior": "the posterior's network on 8 pairs",
    }
    for name, cell in sorted(record["details"]["cells"].items()):
        for way, what in ways.items():
            if way in cell.get("people", {}):
                of = cell["people"]
                told = [percent(of[f"{way}_all"]), points(of[f"{way}_delta"]), points(of[f"{way}_minus_plain"])]
                rows.append([name.removeprefix("demo/").replace("/", " / "), what, *told])
    return f"{markdown(rows)}\n\n{made(record)}"


def lpc_cost(record: dict[str, Any]) -> str:
    cost, exact = record["details"]["cost"], record["details"]["exact"]
    seconds, grown = cost["step_seconds"], cost["grown_mb"]
    told = {"plain": "plain", "codes": "64 codes", "people": "who judged", "top": "top two layers", "trl": "TRL"}
    names = ", ".join(told.get(name, "TRL with the reference known") for name in seconds)
    rows = [
        ["figure", "measured", "goal"],
        ["64 codes / plain DPO, seconds a step", f"{cost['overhead_ratio']:.2f}", "1.05"],
        ["64 codes / plain DPO, memory above the loaded model", f"{cost['overhead_memory']:.2f}", "1.05"],
        ["TRL's DPOTrainer / Penchant with 64 codes, seconds a step", f"{cost['speed_vs_trl']:.1f}", "1.5"],
        ["TRL's DPOTrainer / Penchant training the top two layers", f"{cost['speed_vs_trl_top_layers']:.1f}", ""],
        [f"seconds a step: {names}", ", ".join(f"{v:.1f}" for v in seconds.values()), ""],
        ["MiB above the loaded model, in that order", ", ".join(f"{v:,.0f}" for v in grown.values()), ""],
        ["largest difference of a loss to TRL's, without codes, float32", f"{exact['trl_difference']:.1e}", "1e-4"],
        ["one code of zeros to no codes", f"{exact['zero_code_difference']:.1g}", "0"],
    ]
    if "speed_vs_trl_known" in cost:
        rows.insert(4, ["the same, TRL too knowing the reference beforehand", f"{cost['speed_vs_trl_known']:.1f}", ""])
        rows.insert(2, ["64 codes and who judged / plain DPO, seconds a step", f"{cost['overhead_people']:.2f}", ""])
    return f"{markdown(rows)}\n\n{made(record)}"
