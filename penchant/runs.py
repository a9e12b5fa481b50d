"""A run: train, evaluate, and a folder that says exactly what was done (config.yaml, metrics.json, report.html)."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.encode import TOKEN_BUDGET, Cost, encode_pairs, encode_texts
from penchant.errors import InputError
from penchant.evaluate import Gold, evaluate_scores, learning_curve
from penchant.heads import AutoHead, CommitteeHead, Head
from penchant.heads.base import check_memory, score_rows
from penchant.latents import SAMPLE_PAIRS, LatentPairs
from penchant.pairs import describe
from penchant.processes import is_main, told
from penchant.report import write_report
from penchant.responses import Responses
from penchant.reward_model import RewardModel, backbone_facts
from penchant.spooled import Spool
from penchant.store_views import open_store
from penchant.synthesis import Synthesizer
from penchant.synthesis.augmented import Augmented
from penchant.synthesis.training import order_facts
from penchant.writing import write_text, writing

PACKAGES = ("penchant", "torch", "transformers", "datasets", "scikit-learn", "numpy")
CURVE_SIZES = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)
CURVE_SEEDS = 5
SYNTHESIS_CURVE = (3, 2)
"""The learning curve's largest sizes and its seeds where a synthesizer is fitted at each point."""


class Run:
    """The folder of one run. Created at once, so that a folder that cannot be written is known before the work.

    Processes that run together have one folder, and the main one alone writes into it.
    """

    def __init__(self, out: str | Path | None, verb: str, config: dict[str, Any]) -> None:
        stamp = datetime.now(timezone.utc).astimezone()
        self.folder = Path(out) if out else Path(told(f"runs/{stamp:%Y%m%d-%H%M%S}-{verb}"))
        if config.get("seed", 0) < 0:
            raise InputError(f"the seed is {config['seed']}; give 0 or more.")
        self.created, self.start = stamp.isoformat(timespec="seconds"), time.perf_counter()
        if not is_main():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write into {self.folder}: {error.strerror}; choose another --out.") from error

    def finish(self, metrics: dict[str, Any], write: Callable[[dict[str, Any], Path], Path] = write_report) -> Path:
        """Write metrics.json and, with `write`, report.html; returns the report's path."""
        spent = metrics.setdefault("cost", {})
        spent |= {"total_seconds": time.perf_counter() - self.start, "peak_memory_mb": peak_memory_mb()}
        metrics = {"created": self.created, "versions": versions(), **metrics}
        text = json.dumps(metrics, indent=2, allow_nan=False)
        write_text(self.folder / "metrics.json", text + "\n")
        with writing(self.folder):
            return write(metrics, self.folder / "report.html")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "unknown"
    return found


def peak_memory_mb() -> float:
    """Most memory this process has held so far, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def gold_of(pairs: Dataset, gold: str | None) -> Gold | None:
    """The gold scores in the columns `{gold}_chosen` and `{gold}_rejected`, if they are asked for."""
    if gold is None:
        return None
    columns = [f"{gold}_chosen", f"{gold}_rejected"]
    missing = [name for name in columns if name not in pairs.column_names]
    if missing:
        raise InputError(f"there is no column {missing[0]!r} for --gold {gold}; there are {pairs.column_names}.")
    return Gold(gold, *(np.array(pairs[name], np.float64) for name in columns))


def train_run(
    train: Dataset,
    test: Dataset,
    names: tuple[str, str],
    backbone: Backbone,
    *,
    head: Head | None = None,
    views: tuple[str, ...] | None = None,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    gold: str | None = None,
    curve: bool = True,
    seed: int = 0,
    synthesis: str | Synthesizer | None = None,
    factor: int = 8,
    unlabelled: Responses | None = None,
    memory_gb: float | None = None,
    show_progress: bool = True,
) -> tuple[RewardModel, dict[str, Any]]:
    """Train on one set of pairs, evaluate on another; returns the model and its metrics.

    The backbone is cut above the highest layer of `views`. synthesis, factor, unlabelled and memory_gb are as in
    `RewardModel.train`; of training pairs in files the learning curve stops at the largest size that 5,000 pairs give.
    """
    head = head or AutoHead()
    views = views or head.default_views(backbone)
    recipe = backbone.recipe(views)
    golden = gold_of(test, gold)
    head.check_encoding(backbone, recipe, len(train))
    spool = Spool.beside(cache, memory_gb)
    check_memory(head, recipe, len(train), spool.limit)
    backbone.cut(max(recipe.layers))
    store = open_store(cache, recipe)

    def encoded(pairs: Dataset, label: str) -> LatentPairs:
        return encode_pairs(
            backbone,
            pairs,
            views,
            store,
            token_budget=token_budget,
            show_progress=show_progress,
            label=label,
            spool=spool,
        )

    wide = encoded(train, "encode training pairs"), encoded(test, "encode test pairs")
    others, spent = None, Cost()
    if unlabelled is not None:
        label = "encode unlabelled responses" if show_progress else None
        others = encode_texts(backbone, *unlabelled, views, store, token_budget=token_budget, label=label, cost=spent)
    rm = RewardModel.fit(wide[0], head, backbone, synthesis=synthesis, factor=factor, unlabelled=others)
    narrow = [part.select(rm.recipe.views) for part in wide]
    metrics = evaluation(rm, test, narrow[1], train=train, gold=golden, seed=seed)
    if curve:
        plain = None if others is None else others[:, recipe.columns(rm.recipe.views)]
        metrics["learning_curve"] = _curve(rm, narrow[0], narrow[1], plain)
    if "synthesis" in rm.facts:
        made = rm.augmented.synthesizer_ if rm.augmented is not None else None
        rm.facts["synthesis"] |= order_facts(made, narrow[0], seed) if made is not None else {}
        metrics["synthesis"] = rm.facts["synthesis"]
    if "memory" in rm.facts:
        if curve and len(train) > SAMPLE_PAIRS:
            rm.facts["memory"]["says"] += f" The learning curve stops at {SAMPLE_PAIRS:,}."
        metrics["memory"] = rm.facts["memory"]
    metrics["data"] = {
        "train": {"name": names[0], **describe(train)},
        "test": {"name": names[1], **describe(test)},
    }
    metrics["cost"] = _summed(wide[0].meta, wide[1].meta, spent.to_dict()) | {
        "fit_seconds": rm.facts["cost"]["fit_seconds"]
    }
    metrics |= {"head": rm.facts["head"], "seed": seed}
    kept = ("data", "accuracy", "baselines", "calibration", "cost")
    rm.facts |= {name: metrics[name] for name in kept}
    return rm, metrics


def evaluation(
    rm: RewardModel,
    test: Dataset,
    latents: LatentPairs,
    *,
    train: Dataset | None = None,
    gold: Gold | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What metrics.json says of a model on test pairs whose latents have the model's own views."""
    chosen, rejected = score_rows(rm.head, latents.chosen), score_rows(rm.head, latents.rejected)
    scores = evaluate_scores(test, chosen, rejected, train=train, temperature=rm.temperature, gold=gold, seed=seed)
    return {**scores, "recipe": rm.recipe.to_dict(), "backbone": backbone_facts(rm.backbone), "seed": seed}


def evaluate_run(
    rm: RewardModel,
    test: Dataset,
    name: str,
    *,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    gold: str | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Metrics of a trained model on other pairs."""
    golden = gold_of(test, gold)
    store = open_store(cache, rm.recipe)
    latents = encode_pairs(
        rm.backbone,
        test,
        rm.recipe.views,
        store,
        token_budget=token_budget,
        show_progress=show_progress,
        spool=Spool.beside(cache),
    )
    metrics = evaluation(rm, test, latents, gold=golden, seed=seed)
    return metrics | {
        "data": {"test": {"name": name, **describe(test)}},
        "cost": latents.meta,
        "head": rm.facts.get("head", {}),
    }


def summary(metrics: dict[str, Any]) -> str:
    """Accuracy with its interval beside the baselines, and what it cost, in a few lines."""
    overall = metrics["accuracy"]["overall"]
    figures = {"reward model": overall, **metrics["baselines"]}
    width = max(map(len, figures))
    lines = [f"accuracy on {overall['n']:,} held-out pairs (95% interval over prompts)"]
    lines += [
        f"  {name:<{width}}  {f['value']:.1%}  ({f['low']:.1%} to {f['high']:.1%})" for name, f in figures.items()
    ]
    cost = metrics["cost"]
    if cost.get("unique_tokens"):
        lines.append(
            f"encoded {cost['unique_tokens']:,} tokens in {cost['encode_seconds']:.0f} s"
            f" ({cost['tokens_per_second']:,.0f} tokens/s); {cost['cached_sequences']:,} sequences cached or repeated"
        )
    else:
        lines.append(f"all {cost['cached_sequences']:,} sequences were cached, no LLM pass was needed")
    if "fit_seconds" in cost:
        lines.append(f"fitted the head in {cost['fit_seconds']:.1f} s")
    if cost.get("truncated"):
        lines.append(f"{cost['truncated']:,} of {cost['sequences']:,} sequences were cut at the start (max_length)")
    if metrics.get("memory"):
        lines.append(f"memory: {metrics['memory']['says']}")
    if metrics.get("synthesis"):
        lines.append(f"synthesis: {metrics['synthesis']['says']}")
    return "\n".join(lines)


def _curve(
    rm: RewardModel, train: LatentPairs, test: LatentPairs, unlabelled: NDArray[np.float32] | None
) -> list[dict[str, Any]]:
    """The learning curve of this kind of head (of a committee: of one member), its synthesizer fitted anew at every
    point."""
    most = min(len(train), SAMPLE_PAIRS) if train.mapped else len(train)
    sizes, seeds = [size for size in CURVE_SIZES if size < most] + [most], CURVE_SEEDS
    if rm.augmented is None:
        head = rm.head.head if isinstance(rm.head, CommitteeHead) else rm.head
        alone = Augmented(head, None, 1, unlabelled)
        return learning_curve(alone.seeded, train, test, sizes, range(seeds))
    points, seeds = SYNTHESIS_CURVE
    return learning_curve(rm.augmented.seeded, train, test, sizes[-points:], range(seeds))


def _summed(*parts: dict[str, Any]) -> dict[str, Any]:
    both = {name: sum(part[name] for part in parts) for name in parts[0] if name != "tokens_per_second"}
    seconds = both["encode_seconds"]
    return {**both, "tokens_per_second": both["unique_tokens"] / seconds if seconds else 0.0}
