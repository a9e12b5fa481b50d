"""LENS and what it has to beat: accuracy from 100, 300 and 1,000 seed pairs, best-of-16, cost, scale, order kept.

    python benchmarks/lens.py --quick     # hh and demo, 100 and 300 seed pairs, 2 draws of them, no text
    python benchmarks/lens.py             # everything; 10 seeds

hh and novelty are tested on their own test parts. ultrafeedback (1,193 pairs) and the demo data (1,000) have test
parts too small to show a difference, so their seeds and test pairs (40%, or what the seeds leave) are drawn anew at
each seed, by whole prompts. Whatever the seeds leave of the training pairs is unlabelled. Nothing is tuned on a test
pair: the search for `lens_best` (lens_search.py) was made on held-out parts of the training pairs of hh, novelty and
feasibility, and neither ultrafeedback nor the demo data were looked at. The rows are described in lens_methods.py.

Every (data set, size, seed) is kept in --work as it is done: a run that was killed goes on, and several processes can
share the work (--part 0/2, --part 1/2, then once without).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lens_cost
import lens_data
import numpy as np
from common import HERE, finish, table
from lens_methods import Fitted, fitted, methods
from numpy.typing import NDArray

from penchant.evaluate import Interval, correctness
from penchant.evaluate.best_of_n import expected_best
from penchant.evaluate.learning_curve import seeds_and_prompts_interval
from penchant.generation import Generator

RIDGES = ("ridge", "ridge_24", "ridge_all")
RIVALS = (*RIDGES, "mlp")
N = 16


def best_of_16(fit: Fitted, source: lens_data.Source, prompts: NDArray[Any]) -> NDArray[Any]:
    """Mean gold [P] of the candidate with the highest score, NaN for prompts that are not tested."""
    assert source.candidates is not None
    gold = np.full(len(source.candidates.groups), np.nan)
    columns = source.pairs.recipe.columns(fit.views)
    for row in np.flatnonzero(np.isin(source.candidates.groups, prompts)):
        scores = fit.head.score(source.candidates.latents[row][:, columns])
        gold[row] = expected_best(scores, source.candidates.gold[row], N)
    return gold


def run_cell(source: lens_data.Source, size: int, seed: int, quick: bool, kind: str, file: Path) -> None:
    """Fit the methods of one kind on one draw of seeds and keep what they got right."""
    seeds, rows = source.draw(size, seed)
    test = source.tested.take(rows)
    kept: dict[str, NDArray[Any]] = {"rows": rows}
    for name, fit in fitted(seeds, quick, kind):
        columns = test.recipe.columns(fit.views)
        right = correctness(fit.head.score(test.chosen[:, columns]), fit.head.score(test.rejected[:, columns]))
        kept[f"right:{name}"] = right.astype(np.float32)
        kept[f"seconds:{name}"] = np.array(fit.seconds)
        if source.candidates is not None:
            kept[f"gold:{name}"] = best_of_16(fit, source, np.unique(test.group))
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **kept)
    os.replace(partial, file)


def merge(source: lens_data.Source, files: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """All rows of one data set and size: accuracy, seconds, best-of-16 and differences, each with its interval.

    `files` holds one list a seed, a file a kind of method.
    """
    cells: list[dict[str, NDArray[Any]]] = [{} for _ in files]
    for cell, each in zip(cells, files, strict=True):
        for file in each:
            found_here = dict(np.load(file))
            rows = found_here["rows"]
            assert np.array_equal(cell.get("rows", rows), rows), f"{file} tests other pairs; empty --work"
            cell |= found_here
    groups, n = source.tested.group, len(source.tested)
    names = [key.split(":")[1] for key in cells[0] if key.startswith("right:")]
    right = {name: np.full((len(cells), n), np.nan) for name in names}
    for name in names:
        for i, cell in enumerate(cells):
            right[name][i, cell["rows"]] = cell[f"right:{name}"]
    found: dict[str, Any] = {}
    for name in names:
        seconds = float(np.median([cell[f"seconds:{name}"] for cell in cells]))
        found[name] = {**figure(seeds_and_prompts_interval(right[name], groups)), "seconds": round(seconds, 3)}
        for rival in RIVALS:
            found[name][f"minus_{rival}"] = figure(seeds_and_prompts_interval(right[name] - right[rival], groups))
        if source.candidates is not None:
            gold = np.stack([cell[f"gold:{name}"] for cell in cells])
            ridge = np.stack([cell["gold:ridge"] for cell in cells])
            found[name]["best_of_16"] = figure(seeds_and_prompts_interval(gold, source.candidates.groups))
            found[name]["best_of_16_minus_ridge"] = figure(
                seeds_and_prompts_interval(gold - ridge, source.candidates.groups)
            )
    return found


def figure(found: Interval) -> dict[str, float]:
    return {name: round(getattr(found, name), 4) for name in ("value", "low", "high")}


def headline(found: dict[str, Any]) -> dict[str, float]:
    """The stable keys of one data set and size.

    `ridge` reads the same views of the response as lens_best; `best_ridge` is the strongest of the three ridge heads,
    picked on the test pairs, in the baseline's favour.
    """
    printed, best = found["lens_printed_8x"], found["lens_best"]
    strongest = max(RIDGES, key=lambda name: float(found[name]["value"]))
    keys = {
        "ridge": found["ridge"]["value"],
        "mlp": found["mlp"]["value"],
        "lens_printed": printed["value"],
        "lens_best": best["value"],
        "delta_vs_ridge": best["minus_ridge"]["value"],
        "delta_ci_low": best["minus_ridge"]["low"],
        "best_ridge": found[strongest]["value"],
        "delta_vs_best_ridge": best[f"minus_{strongest}"]["value"],
        "delta_best_ridge_ci_low": best[f"minus_{strongest}"]["low"],
        "printed_delta_vs_ridge": printed["minus_ridge"]["value"],
        "printed_delta_ci_high": printed["minus_ridge"]["high"],
    }
    if "best_of_16" in best:
        keys |= {
            "best_of_16_ridge": found["ridge"]["best_of_16"]["value"],
            "best_of_16_lens_printed": printed["best_of_16"]["value"],
            "best_of_16_lens_best": best["best_of_16"]["value"],
        }
    return keys


def shown(found: dict[str, Any], name: str) -> list[str]:
    row, delta = found[name], found[name]["minus_ridge"]
    cells = [
        f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
        f"{delta['value']:+.3f} ({delta['low']:+.3f} to {delta['high']:+.3f})",
        f"{row['seconds']:.2f}",
    ]
    if "best_of_16" in row:
        cells.append(f"{row['best_of_16']['value']:+.3f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under five minutes from cached latents")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", nargs="+", choices=lens_data.FILES, default=list(lens_data.FILES))
    parser.add_argument("--cache", help="folder of the latents' cache")
    parser.add_argument("--answers", help="folder of the LLM's answers (default: lens in the latents' cache)")
    parser.add_argument("--work", default=str(HERE.parent / "runs" / "lens"), help="folder of unfinished work")
    parser.add_argument("--part", default="0/1", help="i/k: do every k-th cell only, and print no table")
    parser.add_argument("--no-text", action="store_true", help="leave the text rival out (it samples for an hour)")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    names = ["hh", "demo"] if options.quick else options.sets
    seeds = range(2 if options.quick else options.seeds)
    text = not (options.no_text or options.quick)
    work = Path(options.work) / ("quick" if options.quick else "full")
    work.mkdir(parents=True, exist_ok=True)

    generator = Generator.load()
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"methods": list(methods(options.quick))}
    number = 0
    for name in names:
        judged = text and name in lens_data.JUDGED
        source = lens_data.load(name, generator, options.cache, options.answers, text, judged)
        figures[name], details[name] = {}, {}
        for size in source.sizes()[: 2 if options.quick else None]:
            kinds = ["latents", "ridge", "views"] + ["text"] * text + ["judged"] * judged
            files = [[work / f"{name}-{size}-{seed}-{kind}.npz" for kind in kinds] for seed in seeds]
            for seed, each in zip(seeds, files, strict=True):
                number += 1
                for file, kind in zip(each, kinds, strict=True):
                    if number % parts == part and not file.exists():
                        run_cell(source, size, seed, options.quick, kind, file)
                        print(f"{file.stem}: done", flush=True)
            if parts > 1:
                continue
            found = details[name][str(size)] = merge(source, files)
            figures[name][str(size)] = headline(found)
            header = ["", "accuracy", "minus ridge", "seconds", "best of 16"]
            rows = [[method, *shown(found, method)] for method in found]
            print(f"\n{name}, {size} seed pairs, {len(files)} seeds")
            print(table([header[: len(rows[0])], *rows]), flush=True)
        if name == "hh" and parts == 1:
            details["theory"] = lens_cost.theory(source)
    if parts > 1:
        print(json.dumps({"part": options.part, "cells": number}))
        return
    figures["lens_best_is"] = "ContextHead on the means of three layers and the prompt; no synthesis"
    figures |= lens_cost.measure(generator, quick=options.quick)
    for key in lens_cost.SHOWN:
        print(f"{key}: {figures[key]:,.4g}")
    full = not options.quick and text and set(names) == set(lens_data.FILES)
    finish("lens", figures, full=full, details=details, seeds=list(seeds))


if __name__ == "__main__":
    main()
