"""Accuracy of reward models on latents, from 100 pairs to all of them, beside what is simpler.

For each data set, number of pairs and seed a subset of the training pairs is drawn by whole prompts; everything that is
chosen (views, strength, stopping) is chosen on it alone; accuracy is measured on the data set's own test pairs. The
interval resamples both seeds and test prompts.

    auto          AutoHead: views and strength by cross-validation
    linear_last   ridge Bradley-Terry head, strength by cross-validation, last token of layer 24
    linear_mean   the same on the mean over the response's tokens
    mlp           MLPHead on that mean
    longer        the longer text wins
    ngram         logistic model on word n-grams and length

llmbar has no training part: its models learn from hh and ultrafeedback together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import data_file, finish, table
from datasets import Dataset, Value, concatenate_datasets

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate import NgramLength, correctness, paired_difference
from penchant.evaluate.baselines import longer_text, texts
from penchant.evaluate.learning_curve import nested_order, seeds_and_prompts_interval
from penchant.heads import AutoHead, Head, LinearHead, MLPHead
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

SETS: dict[str, tuple[tuple[str, ...], str]] = {
    "hh": (("hh/train",), "hh/test"),
    "novelty": (("science/novelty.train",), "science/novelty.test"),
    "feasibility": (("science/feasibility.train",), "science/feasibility.test"),
    "ultrafeedback": (("ultrafeedback/train",), "ultrafeedback/eval"),
    "llmbar": (("hh/train", "ultrafeedback/train"), "llmbar/test"),
}
SIZES = (100, 300, 1000, None)
LAYER = 24
HEADS: dict[str, tuple[Callable[[int], Head], tuple[str, ...] | None]] = {
    "auto": (lambda seed: AutoHead(random_state=seed), None),
    "linear_last": (lambda seed: LinearHead(random_state=seed), (f"{LAYER}:last",)),
    "linear_mean": (lambda seed: LinearHead(random_state=seed), (f"{LAYER}:mean",)),
    "mlp": (lambda seed: MLPHead(random_state=seed), (f"{LAYER}:mean",)),
}
METHODS = (*HEADS, "longer", "ngram")


class Part:
    """Pairs with their latents."""

    def __init__(self, backbone: Backbone, names: tuple[str, ...], cache: str | None) -> None:
        loaded = [load_pairs(data_file(name)) for name in names]
        keep = ["prompt", "chosen", "rejected"]
        self.pairs: Dataset = concatenate_datasets([_messages(pairs.select_columns(keep)) for pairs in loaded])
        views = backbone.default_views()
        store = open_store(cache, backbone.recipe(views))
        self.latents: LatentPairs = encode_pairs(backbone, self.pairs, views, store, label=f"encode {'+'.join(names)}")


def _messages(pairs: Dataset) -> Dataset:
    """Texts as messages, so that sets of both forms can stand in one."""
    if not isinstance(pairs.features["prompt"], Value):
        return pairs
    turn = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return pairs.map(
        lambda row: {name: [{"role": role, "content": row[name]}] for name, role in turn.items()},
        load_from_cache_file=False,
    )


def correct_by_method(
    train: Part, test: Part, rows: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Correctness [n] on the test pairs of every method trained on `rows` of the training pairs, and its seconds."""
    found, seconds = {}, {}
    for name, (make, views) in HEADS.items():
        fit_on = train.latents.take(rows)
        fit_on, judge_on = (part.select(views) if views else part for part in (fit_on, test.latents))
        start = time.perf_counter()
        head = make(seed).fit(fit_on)
        seconds[name] = time.perf_counter() - start
        found[name] = correctness(head.score(judge_on.chosen), head.score(judge_on.rejected))
    found["longer"] = longer_text(test.pairs)
    start = time.perf_counter()
    ngram = NgramLength(seed).fit(train.pairs.select(rows))
    seconds["ngram"] = time.perf_counter() - start
    found["ngram"] = correctness(ngram.score(texts(test.pairs, "chosen")), ngram.score(texts(test.pairs, "rejected")))
    return found, seconds


def cell(train: Part, test: Part, size: int | None, seeds: range) -> dict[str, Any]:
    """All methods at one data set and size."""
    by_method: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in seeds:
        rows = nested_order(train.latents.group, seed)[:size]
        correct, spent = correct_by_method(train, test, rows, seed)
        for name in METHODS:
            by_method[name].append(correct[name])
            seconds[name].append(spent.get(name, 0.0))
    group = test.latents.group
    result: dict[str, Any] = {}
    for name in METHODS:
        interval = seeds_and_prompts_interval(np.stack(by_method[name]), group)
        result[name] = {
            "value": round(interval.value, 4),
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
            "seconds": round(float(np.median(seconds[name])), 2),
        }
    means = {name: np.mean(by_method[name], axis=0) for name in METHODS}
    for rival in ("linear_last", "linear_mean", "mlp", "ngram"):
        delta = paired_difference(means["auto"], means[rival], group)
        result[f"auto_minus_{rival}"] = {key: round(getattr(delta, key), 4) for key in ("value", "low", "high")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="hh alone, 100 and 300 pairs, 2 seeds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--cache", help="folder of the latents' cache")
    options = parser.parse_args()
    names = ["hh"] if options.quick else options.sets
    sizes = (100, 300) if options.quick else SIZES
    seeds = range(2 if options.quick else options.seeds)

    needed = dict.fromkeys(name for key in names for name in (*SETS[key][0], SETS[key][1]))
    for name in needed:
        data_file(name)
    backbone = Backbone.load()
    backbone.cut(max(backbone.recipe(backbone.default_views()).layers))
    figures: dict[str, dict[str, Any]] = {}
    rows = [["data", "pairs", *METHODS, "auto - linear_mean", "auto s"]]
    for key in names:
        train, test = (Part(backbone, files, options.cache) for files in (SETS[key][0], (SETS[key][1],)))
        figures[key] = {}
        for size in sizes:
            if size is not None and size >= len(train.pairs):
                continue
            label = str(size) if size else "all"
            found = figures[key][label] = cell(train, test, size, seeds)
            delta = found["auto_minus_linear_mean"]
            shown = [f"{found[m]['value']:.3f} ({found[m]['low']:.3f}-{found[m]['high']:.3f})" for m in METHODS]
            difference = f"{delta['value']:+.3f} ({delta['low']:+.3f} to {delta['high']:+.3f})"
            rows.append([key, str(size or len(train.pairs)), *shown, difference, f"{found['auto']['seconds']:.1f}"])
            print(f"{key} {label} done", flush=True)
    print(table(rows))
    full = not options.quick and set(names) == set(SETS)
    finish("reward_accuracy", figures, full=full, seeds=list(seeds))


if __name__ == "__main__":
    main()
