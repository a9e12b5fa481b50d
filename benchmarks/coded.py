"""Coded reward heads where two standards are mixed: how much of the conflict is recovered, with and without sources?

    python benchmarks/coded.py --quick     # hh, 300 pairs, 2 draws of them
    python benchmarks/coded.py             # hh and science, 300, 1,000 and 1,500 pairs, 10 seeds

hh holds helpful and harmless pairs, science pairs judged for novelty and for feasibility, often the same two texts with
opposite answers; folds, draws and intervals keep a context whole, both questions about it included. Tested on the test
parts. All rows have the same features of the response (its means at three layers); they were designed on held-out
training pairs of both sets, with hidden sources looked at there to see why a gate fails.

    ridge               LinearHead on the means
    pooled              CodedHead(codes=1): the same with squashed features beside them, one taste for all
    context             ContextHead on the means and the prompt's means
    coded_unsupervised  CodedHead(): two codes, no source
    coded_with_source   CodedHead(use_source=True): sources in training only
    coded_shuffled      the same with shuffled sources (control)
    predicted_source    a head for each source, chosen by a logistic regression on the prompt's views
    oracle_source       the same heads, chosen by the true source of the test pair

gap_recovered is (row - pooled) / (oracle_source - pooled); gate_auc says how well the codes tell the sources apart.
Every (data set, size, seed) is kept in --work as it is done, so that a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, data_file, finish, table
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate import Interval, correctness
from penchant.evaluate.learning_curve import nested_order, seeds_and_prompts_interval
from penchant.heads import CodedHead, ContextHead, Head, LinearHead
from penchant.latents import PROMPT, LatentPairs
from penchant.pairs import load_pairs, to_text
from penchant.store_views import open_store

Array = NDArray[Any]
FILES = {
    "hh": (("hh/train",), ("hh/test",)),
    "science": (
        ("science/novelty.train", "science/feasibility.train"),
        ("science/novelty.test", "science/feasibility.test"),
    ),
}
SIZES = (300, 1000, 1500)
QUESTION = "\nWhich hypothesis"
"""What the two standards of science ask about one context; the context alone is what may not be shared."""
METHODS = ("coded_unsupervised", "coded_with_source", "coded_shuffled", "predicted_source", "context", "ridge")


def load(name: str, backbone: Backbone, cache: str | None) -> tuple[LatentPairs, LatentPairs]:
    """Training and test pairs; pairs with one context share their group, and no context is in both parts."""
    views = CodedHead().default_views(backbone)
    parts, contexts = [], []
    for files in FILES[name]:
        latents = []
        for file in files:
            pairs = load_pairs(data_file(file))
            store = open_store(cache, backbone.recipe(views))
            latents.append(encode_pairs(backbone, pairs, views, store, label=f"encode {file}"))
            contexts.append([to_text(prompt).rsplit(QUESTION, 1)[0] for prompt in pairs["prompt"]])
        parts.append(LatentPairs.concatenate(latents))
    texts = [text for part in contexts for text in part]
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    group = np.array([number[text] for text in texts])
    train, test = (replace(part, group=ids) for part, ids in zip(parts, np.split(group, [len(parts[0])]), strict=True))
    return train.take(~np.isin(train.group, test.group)), test


def margins(head: Head, test: LatentPairs) -> Array:
    columns = test.recipe.columns
    views = head.recipe_["views"] if isinstance(head, (CodedHead, ContextHead)) else means(test)
    keep = columns(tuple(views))
    found: Array = head.score(test.chosen[:, keep]).astype(np.float64) - head.score(test.rejected[:, keep])
    return found


def means(pairs: LatentPairs) -> tuple[str, ...]:
    return tuple(view for view in pairs.recipe.response_views if view.endswith(":mean"))


def run_cell(train: LatentPairs, test: LatentPairs, seed: int, file: Path) -> None:
    """Fit all methods on one draw of pairs and keep what they got right."""
    assert train.source is not None
    assert test.source is not None
    names = np.unique(test.source.astype(str))
    shuffled = replace(train, source=np.random.default_rng(seed).permutation(train.source))
    own = means(train)
    with_prompt = train.select((*own, *(view for view in train.recipe.prompt_views if view.endswith(f":{PROMPT}"))))
    heads: dict[str, Callable[[], Head]] = {
        "ridge": lambda: LinearHead(random_state=seed).fit(train.select(own)),
        "pooled": lambda: CodedHead(codes=1, random_state=seed).fit(train),
        "context": lambda: ContextHead(random_state=seed).fit(with_prompt),
        "coded_unsupervised": lambda: CodedHead(random_state=seed).fit(train),
        "coded_with_source": lambda: CodedHead(use_source=True, random_state=seed).fit(train),
        "coded_shuffled": lambda: CodedHead(use_source=True, random_state=seed).fit(shuffled),
    }
    kept: dict[str, Array] = {}
    for name, fit in heads.items():
        start = time.perf_counter()
        head = fit()
        kept[f"seconds:{name}"] = np.array(time.perf_counter() - start)
        kept[f"right:{name}"] = right(margins(head, test))
        if isinstance(head, CodedHead) and len(head.gate_bias_) == 2:
            auc = roc_auc_score(test.source == names[0], head.prior(test.chosen)[:, 0])
            kept[f"auc:{name}"] = np.array(max(auc, 1 - auc))
    each = []
    start = time.perf_counter()
    for name in names:
        each.append(margins(CodedHead(codes=1, random_state=seed).fit(train.take(train.source == name)), test))
    kept["seconds:oracle_source"] = kept["seconds:predicted_source"] = np.array(time.perf_counter() - start)
    prompt = train.recipe.columns(train.recipe.prompt_views)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
    found = model.fit(train.chosen[:, prompt], train.source.astype(str)).predict(test.chosen[:, prompt])
    kept["right:oracle_source"] = right(np.where(test.source == names[0], each[0], each[1]))
    kept["right:predicted_source"] = right(np.where(found == names[0], each[0], each[1]))
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **kept)
    os.replace(partial, file)


def right(margin: Array) -> Array:
    return correctness(margin, np.zeros_like(margin)).astype(np.float32)


def merge(files: list[Path], groups: Array) -> dict[str, Any]:
    """Every row: accuracy and its difference from pooled, with intervals; seconds, share of the gap, gate."""
    cells = [dict(np.load(file)) for file in files]
    names = [key.split(":")[1] for key in cells[0] if key.startswith("right:")]
    correct = {name: np.stack([cell[f"right:{name}"] for cell in cells]).astype(np.float64) for name in names}
    gap = correct["oracle_source"].mean() - correct["pooled"].mean()
    found: dict[str, Any] = {}
    for name in names:
        delta = figure(seeds_and_prompts_interval(correct[name] - correct["pooled"], groups))
        found[name] = {
            **figure(seeds_and_prompts_interval(correct[name], groups)),
            "delta": delta,
            "gap_recovered": round(float((correct[name].mean() - correct["pooled"].mean()) / gap), 3),
            "seconds": round(float(np.median([cell[f"seconds:{name}"] for cell in cells])), 2),
        }
        if f"auc:{name}" in cells[0]:
            found[name]["gate_auc"] = round(float(np.mean([cell[f"auc:{name}"] for cell in cells])), 3)
    return found


def figure(found: Interval) -> dict[str, float]:
    return {name: round(getattr(found, name), 4) for name in ("value", "low", "high")}


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The stable keys of one data set and size."""
    keys: dict[str, Any] = {name: found[name]["value"] for name in ("pooled", "oracle_source", *METHODS)}
    for name in ("coded_unsupervised", "coded_with_source", "oracle_source"):
        delta = found[name]["delta"]
        keys |= {f"{name}_delta": delta["value"], f"{name}_delta_ci": [delta["low"], delta["high"]]}
    keys["gap_recovered"] = {
        "coded_unsupervised": found["coded_unsupervised"]["gap_recovered"],
        "coded_with_source": found["coded_with_source"]["gap_recovered"],
    }
    return keys


def shown(name: str, row: dict[str, Any]) -> list[str]:
    delta = row["delta"]
    return [
        name,
        f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
        f"{delta['value']:+.3f} ({delta['low']:+.3f} to {delta['high']:+.3f})",
        f"{row['gap_recovered']:.2f}",
        f"{row['gate_auc']:.3f}" if "gate_auc" in row else "",
        f"{row['seconds']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute from cached latents")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--cache", help="folder of the latents' cache")
    parser.add_argument("--work", default=str(HERE.parent / "runs" / "coded"), help="folder of unfinished work")
    options = parser.parse_args()
    sets, sizes, seeds = options.sets, options.sizes, range(options.seeds)
    if options.quick:
        sets, sizes, seeds = ["hh"], [300], range(2)
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    backbone = Backbone.load()
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for name in sets:
        train, test = load(name, backbone, options.cache)
        figures[name], details[name] = {}, {"train": len(train), "test": len(test)}
        for size in sizes:
            files = [work / f"{name}-{size}-{seed}.npz" for seed in seeds]
            for seed, file in zip(seeds, files, strict=True):
                if not file.exists():
                    run_cell(train.take(nested_order(train.group, seed)[:size]), test, seed, file)
                    print(f"{file.stem}: done", flush=True)
            found = details[name][str(size)] = merge(files, test.group)
            figures[name][str(size)] = headline(found)
            header = ["", "accuracy", "minus pooled", "gap recovered", "gate AUC", "seconds"]
            print(f"\n{name}, {size} pairs, {len(files)} seeds, {len(test)} test pairs")
            print(table([header, *(shown(method, row) for method, row in found.items())]), flush=True)
    full = not options.quick and set(sets) == set(FILES) and set(sizes) == set(SIZES) and len(seeds) >= 10
    finish("coded", figures, full=full, details=details, seeds=list(seeds))


if __name__ == "__main__":
    main()
