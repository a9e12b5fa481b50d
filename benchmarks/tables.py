"""Puts the figures of benchmarks/results/ into the README and the page that says which method to use.

`python benchmarks/tables.py` writes them, `--check` compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "which-method.md")


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def made(record: dict[str, Any]) -> str:
    return f"Measured {record['date']} on {record['machine']}; torch {record['versions']['torch']}."


def percent(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def points(delta: dict[str, float]) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{100 * delta['value']:+.1f} ({100 * delta['low']:+.1f} to {100 * delta['high']:+.1f})"


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


def personal_sentiment(record: dict[str, Any]) -> str:
    found = record["details"]["sentiment"]
    names = {
        "latent": "**Latent DPO, one vector a person**",
        "latent / full": "Latent DPO, an encoder a person",
        "latent / adapter positions": "as published: virtual positions, CLaP from nothing",
        "lora": "DPO, LoRA",
        "ptuning": "DPO, P-tuning",
        "full": "DPO, all weights",
    }
    names["latent / limit 1.25"] = "Latent DPO, perplexity may grow by a quarter"
    names["latent / read encoder"] = "Latent DPO, all texts read by the encoder"
    names |= {f"latent / latent {size}": f"Latent DPO, z of {size}" for size in (8, 64, 128)}
    names |= {f"latent / flips {share}": f"Latent DPO, {share:.0%} of feedback turned round" for share in (0.2, 0.4)}
    names["latent / domain demo"] = "Latent DPO, prompts of another domain"
    people = ("positive", "negative", "neutral")
    rows = [["method", "seeds", "win rate, %", *people, "perplexity, times the LLM's", "seconds a person"]]
    for key, name in names.items():
        if (row := found["methods"].get(key)) is None:
            continue
        each = [
            f"{100 * own['win']['value']:.0f} ({own['perplexity_ratio']:.2f})" if (own := row.get(who)) else ""
            for who in people
        ]
        win, ratio = (percent(row["win"]), f"{row['perplexity_ratio']:.2f}") if "win" in row else ("", "")
        rows.append([name, str(row["seeds"]), win, *each, ratio, f"{row['seconds']:.1f}"])
    about = ["Answers that win over the unadapted LLM's under the person's score; in brackets the perplexity."]
    for name, rivals in {"latent": found["compared"], **found["compared_farther"]}.items():
        if "lora" in rivals:
            about.append(f"{names[name].strip('*')}, minus LoRA: {points(rivals['lora'])}.")
    if sizes := {z.get("latent", 32): z for z in found["z"] if z["adapter"] == "shift"}:
        told = (f"{z['contrastive_accuracy']:.0%} (size {size})" for size, z in sorted(sizes.items()))
        about.append(f"Unseen answers told apart from the others to their prompt by their z: {', '.join(told)}.")
    if found["reward"]:
        about.append(f"Rank correlation of r(x, z) with the gold score of answers: {_correlations(found['reward'])}.")
    return f"{markdown(rows)}\n\n{' '.join([*about, made(record)])}"


def _correlations(reward: dict[str, list[float]]) -> str:
    return ", ".join(f"{who} {sum(values) / len(values):+.2f}" for who, values in reward.items())


def personal_many(record: dict[str, Any]) -> str:
    details = record["details"]
    store, files, compact = details["store"]["users"], details["store"]["files"], details["compact"]

    def ms(cell: dict[str, float]) -> str:
        return f"{cell['p50']:.3g}; {cell['p99']:.3g}"

    def on_disk(cell: dict[str, Any], size: str) -> list[str]:
        return [f"{cell[size]:,.0f}", f"{cell['put_per_second']:,.0f}", ms(cell["lookup"]), ms(cell["forget_100"])]

    fitted = [["people of 8 pairs, fitted together", "z, CPU seconds", "taste", "people a CPU second"]]
    for people, cell in details["fit"].items():
        seconds = [f"{cell[part]['cpu_seconds']:.2g}" for part in ("z", "taste")]
        fitted.append([f"{int(people):,}", *seconds, f"{cell['users_per_second']:,.0f}"])
    head = ["bytes a person", "people written a second", "lookup, ms", "forget 100, ms"]
    kept = [["medians; 99% of calls", *head]]
    kept.append([f"one file, {store['people']:,} people", *on_disk(store, "file_bytes_per_user")])
    kept.append([f"a safetensors file a person, {files['people']:,} people", *on_disk(files, "bytes_on_disk")])
    alone, eight = (details["generation"][f"prompts_{n}"]["ratio"] for n in (1, 8))
    texts = details["text"]
    seconds_a_person = "; ".join(f"{texts[name]['cpu_seconds_a_person']:.2f}" for name in ("z", "with_rewards"))
    ratios = "; ".join(f"{cell['p50']:.2f} ({cell['p25']:.2f}-{cell['p75']:.2f})" for cell in (alone, eight))
    same = "; ".join(f"{100 * compact[name]['same_order']:.2f}%" for name in ("z", "taste_after_8_more"))
    memory = f"{store['peak_mib_at_a_tenth']:.0f}; {store['peak_mib_at_the_end']:.0f}"
    calls = f"{store['forget_1']['p50']:.0f}; {store['lookup_on_opening']['p50']:.2g}"
    rows = [
        ["figure", "measured"],
        ["from text, CPU seconds a person: z; z and taste", seconds_a_person],
        ["answers in a person's z / without z, seconds (quartiles): 1 prompt; 8 prompts", ratios],
        ["that file, ms: forget one person; open it and look one up", calls],
        ["MiB that writing it took at most: the first tenth; all of it", memory],
        ["pairs in the order of full precision: z; taste", same],
    ]
    return "\n\n".join([*map(markdown, (fitted, kept, rows)), made(record)])


def personal_tastes(record: dict[str, Any]) -> str:
    shots = {"5": "5 own pairs", "15": "15", "50": "50", "all": "all"}
    names = {"longer": "the longer text", "pooled": "ridge, other people's pairs"}
    names |= {f"pooled_with_own_{n}": f"ridge, other people's and {text}" for n, text in shots.items()}
    names["personal_0"] = "**taste**, nothing known of the person"
    names |= {f"personal_{n}": f"**taste**, {text}" for n, text in shots.items()}
    names |= {f"flips_{share}": f"taste, 50, {share:.0%} of them turned round" for share in (0.2, 0.4)}
    names |= {f"adversarial_{n}": f"taste, {n}, 2 liars in the population" for n in (0, 50)}
    names["known_all"] = "taste, all, the person in the population"
    names |= {f"alone_{n}": f"ridge, {text} alone" for n, text in shots.items()}
    names["ceiling"] = "ridge, all own and the very arguments"
    found = record["details"]
    heads = [f"{data}, {what}" for data in found for what in ("accuracy, %", "minus ridge, minus nothing known")]
    rows = [["fitted on", *heads]]
    for key, name in names.items():
        row = [name]
        for one in found.values():
            if key in one:
                deltas = (one[key][f"minus_{base}"] for base in ("pooled", "population"))
                row += [percent(one[key]), "; ".join(points(delta) for delta in deltas)]
            else:
                row += ["", ""]
        rows.append(row)
    return f"{markdown(rows)}\n\nMean over people, {len(record['seeds'])} seeds. {made(record)}"


def result(name: str) -> dict[str, Any]:
    """The recorded full run of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def spread(deltas: list[dict[str, float]]) -> str:
    """The least and the largest of several differences, and how many are clearly above and below 0."""
    values = [100 * delta["value"] for delta in deltas]
    above, below = sum(delta["low"] > 0 for delta in deltas), sum(delta["high"] < 0 for delta in deltas)
    return f"{min(values):+.1f} to {max(values):+.1f}; of {len(deltas)} cells {above} clearly above 0, {below} below"


def which(_: dict[str, Any]) -> str:
    """Each method beside what is simpler: one line a method, from the records of their own benchmarks."""
    rewards, trl, people = (result(name) for name in ("reward_accuracy", "vs_trl", "coded_people"))
    hh = rewards["figures"]["hh"]["all"]["auto_minus_linear_mean"]
    others = [
        cell["auto_minus_linear_mean"]
        for name, sizes in rewards["figures"].items()
        if name != "hh"
        for cell in sizes.values()
    ]
    sets = {name: sizes for name, sizes in result("lens")["details"].items() if name not in ("methods", "theory")}
    synthetic = [cell["lens_8x"]["minus_ridge"] for sizes in sets.values() for cell in sizes.values()]
    sparse_cells = [
        cell["rows"]["sparse"]["minus_ridge"]
        for sizes in result("sparse")["details"]["sets"].values()
        for cell in sizes.values()
    ]
    cells = result("lpc")["details"]["cells"]
    coded = [cell["delta"] for name, cell in cells.items() if re.fullmatch(r"\w+/\w+/codes 64", name)]
    judged = cells["demo/dpo/codes 64/people"]["people"]
    persons = result("personal")["details"]["sentiment"]["methods"]
    tastes = result("personal_tastes")["details"]["convarg"]["personal_50"]["minus_pooled"]
    faster = trl["figures"]["lora_cpu_seconds"] / trl["figures"]["penchant_cpu_seconds"]
    against = {
        "value": trl["figures"]["delta_vs_lora"],
        "low": trl["figures"]["delta_vs_lora_ci_low"],
        "high": trl["figures"]["delta_vs_lora_ci_high"],
    }
    rows = [
        ["method", "against", "data", "difference, points"],
        ["`auto` head, all pairs", "ridge head", "hh, two standards mixed", points(hh)],
        ["`auto` head", "ridge head", "the other sets", spread(others)],
        [f"`auto` head, {faster:.0f} times less CPU time", "TRL RewardTrainer, LoRA", "harmless", points(against)],
        ["LENS, 8x, same prompt", "ridge head", "four sets", spread(synthetic)],
        ["SparseRM (`sparse` head)", "ridge head, layer 24", "five sets", spread(sparse_cells)],
        [
            "`coded` head, 8 pairs of the person",
            "one taste for all",
            "demo, annotators who disagree",
            points(people["figures"]["posterior_8"]["minus_pooled"]),
        ],
        ["policy, 64 codes from the prompt", "the same loss, no codes", "four sets, three losses", spread(coded)],
        ["policy, 64 codes, known who judged", "plain DPO", "demo", points(judged["known_minus_plain"])],
        ["policy, 64 codes, 8 new pairs", "plain DPO", "demo", points(judged["likelihood_minus_plain"])],
        ["a taste a person, 50 pairs", "ridge on other people's pairs", "convarg", points(tastes)],
    ]
    won = [["a person's answers win over the LLM's own", "win rate, %", "seconds a person"]]
    for key, name in {"latent": "Latent DPO, one vector", "lora": "DPO, LoRA", "full": "DPO, all weights"}.items():
        won.append([name, percent(persons[key]["win"]), f"{persons[key]['seconds']:.1f}"])
    return f"{markdown(rows)}\n\n{markdown(won)}"


TABLES = {
    "which": which,
    "reward_accuracy": reward_accuracy,
    "encode": encode,
    "vs_trl": vs_trl,
    "lens": lens,
    "lens_cost": lens_cost,
    "sparse": sparse,
    "sparse_checks": sparse_checks,
    "sparse_sae": sparse_sae,
    "sparse_people": sparse_people,
    "coded": coded,
    "coded_people": coded_people,
    "lpc": lpc,
    "lpc_people": lpc_people,
    "lpc_cost": lpc_cost,
    "personal_sentiment": personal_sentiment,
    "personal_many": personal_many,
    "personal_tastes": personal_tastes,
}
SOURCE = {
    "which": "reward_accuracy",
    "lens_cost": "lens",
    **dict.fromkeys(("sparse_checks", "sparse_sae", "sparse_people"), "sparse"),
    **dict.fromkeys(("lpc_people", "lpc_cost"), "lpc"),
    "personal_sentiment": "personal",
}
"""The result a table is made from, where it is not its namesake."""


def filled(text: str) -> str:
    """A page with each table made from its result, or with a sentence where there is none."""
    for name, make in TABLES.items():
        source = SOURCE.get(name, name)
        path = RESULTS / f"{source}.json"
        if path.is_file():
            content = make(json.loads(path.read_text(encoding="utf-8")))
        else:
            content = f"*No full run of `benchmarks/{source}.py` is recorded yet.*"
        block = f"<!-- table:{name} -->\n{content}\n<!-- end -->"
        text = re.sub(rf"<!-- table:{name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.S)
    return text


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if "--check" not in sys.argv[1:]:
            page.write_text(filled(text), encoding="utf-8")
        elif filled(text) != text:
            sys.exit(f"{page.relative_to(ROOT)} is not up to date: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
