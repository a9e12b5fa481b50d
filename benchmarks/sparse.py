"""SparseRM and its kin against dense heads: accuracy, faithfulness, stability, steering, persons, the SAE itself.

    python benchmarks/sparse.py --quick     # hh_harmless and ultrafeedback, 300 pairs, 2 seeds; the SAE must be there
    python benchmarks/sparse.py             # everything; 10 seeds

The SAE is trained here (sparse_sae.py) on training texts, and kept in --work. Training pairs are drawn by whole
prompts at each seed; all choices (strength, selection, stopping) are made on them alone. ultrafeedback's training and
test pairs are drawn anew at each seed. Intervals are over seeds and test
prompts together. sparse_methods.py describes the rows.

Every (data set, size, seed) is kept in --work as it is done: a run that was killed goes on, and several processes can
share the work (--part 0/2, --part 1/2, then once without).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sparse_checks
import sparse_data
import sparse_people
import sparse_sae
import sparse_steering
from common import HERE, RESULTS, finish, skip, table
from numpy.typing import NDArray
from sparse_methods import METHODS, fitted

from penchant.backbone import Backbone
from penchant.evaluate import Interval, correctness
from penchant.evaluate.learning_curve import seeds_and_prompts_interval
from penchant.heads import SparseHead
from penchant.sae import SparseAutoencoder
from penchant.sae.formats import load_sae

LLM_PARAMETERS = 134_515_008
RIVALS = {
    "sparse": ("ridge", "random", "ridge_15", "random_sae"),
    "sparse_16": ("ridge", "random", "random_16"),
    "sparse_printed": ("ridge", "random", "random_printed", "random_sae_printed"),
}
"""Rows that differences are taken to; for every other row the first two."""
RECORDED = ("hh_harmless", "hh_helpful", "novelty", "ultrafeedback", "llmbar")
"""Sets of the recorded run."""
PEOPLE_SEEDS = 5
CHECKED = ("sparse", "sparse_16", "sparse_active")
"""Rows whose features are looked at."""
DELETED = ("all", "without_top", "without_random")


def run_cell(source: sparse_data.Source, sae: SparseAutoencoder, size: int, seed: int, file: Path) -> None:
    """Fit every row on one draw of training pairs and keep what it got right on the test pairs."""
    train, rows = source.draw(size, seed)
    test = source.tested.take(rows)
    kept: dict[str, Any] = {"rows": rows}
    for fit in fitted(train, sae, seed):
        part = test.select(fit.views)
        kept[f"right:{fit.name}"] = correctness(fit.head.score(part.chosen), fit.head.score(part.rejected))
        kept[f"seconds:{fit.name}"] = fit.seconds
        kept[f"parameters:{fit.name}"] = fit.head.parameters
        if fit.name in CHECKED:
            assert isinstance(fit.head, SparseHead)
            found = sparse_checks.deletion(fit.head, train.select(fit.views), part, seed)
            kept |= {f"{name}:{fit.name}": values for name, values in found.items()}
    save(kept, file)


def run_stability(source: sparse_data.Source, sae: SparseAutoencoder, size: int, seed: int, file: Path) -> None:
    save(sparse_checks.stability(sae, source.draw(size, seed)[0], seed), file)


def save(kept: Mapping[str, Any], file: Path) -> None:
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **{name: np.asarray(value) for name, value in kept.items()})
    os.replace(partial, file)


def digest(sae: Path) -> str:
    """Of the SAE and the rows: cells of others are not these."""
    made_of = (sae / "sae_weights.safetensors").read_bytes() + json.dumps(METHODS).encode()
    return hashlib.sha256(made_of).hexdigest()[:8]


def merge(source: sparse_data.Source, files: list[tuple[Path, Path]]) -> dict[str, Any]:
    """All rows of one data set and size, with intervals; `files` holds a seed's cell and its stability."""
    cells = [dict(np.load(cell)) | dict(np.load(stable)) for cell, stable in files]
    groups, n = source.tested.group, len(source.tested)

    def spread(key: str) -> NDArray[Any]:
        found = np.full((len(cells), n), np.nan)
        for i, cell in enumerate(cells):
            found[i, cell["rows"]] = cell[key]
        return found

    right = {name: spread(f"right:{name}") for name in METHODS}
    rows: dict[str, Any] = {}
    for name, correct in right.items():
        rows[name] = figure(seeds_and_prompts_interval(correct, groups))
        for rival in RIVALS.get(name, ("ridge", "random")):
            rows[name][f"minus_{rival}"] = figure(seeds_and_prompts_interval(correct - right[rival], groups))
        rows[name]["seconds"] = round(float(np.median([cell[f"seconds:{name}"] for cell in cells])), 3)
        rows[name]["parameters"] = int(np.median([cell[f"parameters:{name}"] for cell in cells]))
    checks: dict[str, Any] = {}
    for name in CHECKED:
        deleted = {kind: spread(f"{kind}:{name}") for kind in DELETED}
        found = {kind: figure(seeds_and_prompts_interval(value, groups)) for kind, value in deleted.items()}
        gap = deleted["without_random"] - deleted["without_top"]
        found["deletion_gap"] = figure(seeds_and_prompts_interval(gap, groups))
        for kind in ("jaccard", "chance"):
            found[kind] = mean(cells, f"{kind}:{name}")
        checks[name] = found
    return {"rows": rows, "checks": checks}


def mean(cells: list[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([cell[key] for cell in cells])), 4)


def figure(found: Interval) -> dict[str, Any]:
    return {name: round(getattr(found, name), 4) for name in ("value", "low", "high")}


def headline(found: dict[str, Any]) -> dict[str, float]:
    """The stable keys of one data set and size: `sparse` is our variant, `printed` the paper's."""
    rows, checks = found["rows"], found["checks"]
    return {
        "sparse_acc": rows["sparse"]["value"],
        "sparse_printed_acc": rows["sparse_printed"]["value"],
        "random_directions_acc": rows["random"]["value"],
        "random_printed_acc": rows["random_printed"]["value"],
        "ridge_acc": rows["ridge"]["value"],
        "delta_vs_random": rows["sparse"]["minus_random"]["value"],
        "delta_vs_random_ci_low": rows["sparse"]["minus_random"]["low"],
        "printed_delta_vs_random": rows["sparse_printed"]["minus_random_printed"]["value"],
        "printed_delta_vs_random_ci_low": rows["sparse_printed"]["minus_random_printed"]["low"],
        "sparse_16_acc": rows["sparse_16"]["value"],
        "random_16_acc": rows["random_16"]["value"],
        "delta_16_vs_random": rows["sparse_16"]["minus_random_16"]["value"],
        "delta_16_vs_random_ci_low": rows["sparse_16"]["minus_random_16"]["low"],
        "delta_vs_ridge": rows["sparse"]["minus_ridge"]["value"],
        "ridge_15_acc": rows["ridge_15"]["value"],
        "delta_vs_ridge_15": rows["sparse"]["minus_ridge_15"]["value"],
        "trainable_share": rows["sparse"]["parameters"] / LLM_PARAMETERS,
        "deletion_gap": checks["sparse"]["deletion_gap"]["value"],
        "deletion_gap_ci_low": checks["sparse"]["deletion_gap"]["low"],
        "stability": checks["sparse"]["jaccard"],
        "stability_by_chance": checks["sparse"]["chance"],
        "deletion_gap_16": checks["sparse_16"]["deletion_gap"]["value"],
        "deletion_gap_16_ci_low": checks["sparse_16"]["deletion_gap"]["low"],
        "stability_16": checks["sparse_16"]["jaccard"],
        "stability_16_by_chance": checks["sparse_16"]["chance"],
    }


def shown(rows: dict[str, Any], name: str) -> list[str]:
    row = rows[name]
    deltas = [row[f"minus_{rival}"] for rival in ("ridge", "random")]
    return [
        name,
        f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
        *(f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in deltas),
        f"{row['parameters']:,}",
        f"{row['seconds']:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under five minutes from cached latents and a trained SAE")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", nargs="+", choices=sparse_data.SETS, default=list(sparse_data.SETS))
    parser.add_argument("--cache", help="folder of the latents' cache")
    parser.add_argument("--work", default=str(HERE.parent / "runs" / "sparse"), help="folder of the SAE and cells")
    parser.add_argument("--part", default="0/1", help="i/k: do every k-th cell only, and print no table")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    names = ["hh_harmless", "ultrafeedback"] if options.quick else options.sets
    seeds = range(2 if options.quick else options.seeds)
    work = Path(options.work)
    if options.quick and not (work / "sae" / "cfg.json").is_file():
        skip(f"there is no SAE in {work}; a full run trains one there in about half an hour")
    backbone = Backbone.load()
    sae = load_sae(work / "sae") if options.quick else sparse_sae.trained(work, backbone)
    cells = work / f"cells-{digest(work / 'sae')}"
    cells.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"methods": METHODS, "sae": sae.facts, "sets": {}}
    speed = sparse_sae.speed(sparse_sae.a_block(work, backbone)) if parts == 1 else {}
    number = 0
    for name in names:
        source = sparse_data.load(name, backbone, options.cache)
        figures[name], details["sets"][name] = {}, {}
        for size in source.sizes()[: 1 if options.quick else None]:
            stems = [f"{name}-{size}-{seed}" for seed in seeds]
            files = [(cells / f"{stem}.npz", cells / f"{stem}.stable.npz") for stem in stems]
            for seed, each in zip(seeds, files, strict=True):
                number += 1
                for file, run in zip(each, (run_cell, run_stability), strict=True):
                    if number % parts == part and not file.exists():
                        run(source, sae, size, seed, file)
                        print(f"{file.stem}: done", flush=True)
            if parts > 1:
                continue
            found = details["sets"][name][str(size)] = merge(source, files)
            figures[name][str(size)] = headline(found)
            header = ["", "accuracy", "minus ridge", "minus random directions", "parameters", "seconds"]
            print(f"\n{name}, {size} training pairs, {len(files)} seeds")
            print(table([header, *(shown(found["rows"], row) for row in METHODS)]))
            for row, checks in found["checks"].items():
                said = (f"{k} {v['value'] if isinstance(v, dict) else v}" for k, v in checks.items())
                print(row, "  ".join(said))
        if name == "hh_harmless" and parts == 1:
            assert source.test is not None
            details["steering"] = sparse_steering.measure(sae, source.pairs, source.test)
            if not options.quick:
                sparse_steering.plot(details["steering"], RESULTS / "sparse_steering.html")
    if parts > 1:
        print(json.dumps({"part": options.part, "cells": number}))
        return
    print("\nsteering", json.dumps(details.get("steering")))
    people = sparse_people.measure(backbone, options.cache, range(1 if options.quick else PEOPLE_SEEDS))
    print(f"\nconvarg, {people['people']} persons")
    columns = [["", "accuracy", "minus pooled"]]
    for name, row in people["rows"].items():
        low = row["minus_pooled"]
        columns.append([name, f"{row['value']:.3f}", f"{low['value']:+.3f} ({low['low']:+.3f} to {low['high']:+.3f})"])
    print(table(columns))
    details["people"] = people
    figures |= {f"convarg_{name}": row["value"] for name, row in people["rows"].items()}
    figures |= {f"sae_{name}": value for name, value in sae.facts["quality"].items()}
    figures["sae_loss_recovered"] = sae.facts["loss"]["recovered"]
    figures["sae_parameters_share"] = sum(p.numel() for p in sae.parameters()) / LLM_PARAMETERS
    figures["sae_training_tokens"] = sae.facts["tokens"]
    figures |= speed
    for name in ("sae_variance_explained", "sae_l0", "sae_dead_share", "sae_loss_recovered", "sae_speed_ratio"):
        print(f"{name}: {figures.get(name)}")
    full = not options.quick and set(names) >= set(RECORDED)
    finish("sparse", figures, full=full, details=details, seeds=list(seeds))


if __name__ == "__main__":
    main()
