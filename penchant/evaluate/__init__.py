"""Evaluation of a reward model from its scores: accuracy with intervals, baselines, calibration, length, best-of-n."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from penchant.errors import InputError
from penchant.evaluate.accuracy import (
    DRAWS,
    Interval,
    accuracy,
    accuracy_interval,
    bootstrap_mean,
    correctness,
    paired_difference,
)
from penchant.evaluate.baselines import NgramLength, baselines, lengths, texts
from penchant.evaluate.best_of_n import best_of_n, candidates
from penchant.evaluate.calibration import calibration, fit_temperature
from penchant.evaluate.learning_curve import learning_curve
from penchant.evaluate.length import length_bias
from penchant.evaluate.mistakes import mistakes
from penchant.latents import Array
from penchant.pairs import prompt_groups

__all__ = [
    "Gold",
    "Interval",
    "NgramLength",
    "accuracy",
    "accuracy_interval",
    "baselines",
    "best_of_n",
    "bootstrap_mean",
    "calibration",
    "candidates",
    "correctness",
    "evaluate_scores",
    "fit_temperature",
    "learning_curve",
    "length_bias",
    "mistakes",
    "paired_difference",
]


class Gold(NamedTuple):
    """A judgement of each response that the model has not seen, for best-of-n."""

    name: str
    chosen: Array
    """Float [n], one a test pair."""
    rejected: Array


def evaluate_scores(
    test: Dataset,
    score_chosen: Array,
    score_rejected: Array,
    *,
    train: Dataset | None = None,
    temperature: float = 1.0,
    gold: Gold | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The parts of metrics.json that come from scores [n] of the test pairs, ready for JSON.

    `train` lets the n-gram baseline learn from the same pairs as the model; `temperature` is the one fitted on
    out-of-fold training margins. Raises InputError on scores that are not finite or not one a pair.

    - accuracy: {"overall": {value, low, high, n, ties}, "by_source": {source: same}}
    - baselines: {name: {value, low, high, n}} for chance, longer text, n-gram + length
    - over_baseline: {"name": the best baseline, value, low, high, n}, the model's accuracy minus that baseline's,
      pair by pair
    - calibration, length_bias, best_of_n (None without gold), mistakes: see the functions of those names
    """
    chosen, rejected = np.asarray(score_chosen, dtype=np.float64), np.asarray(score_rejected, dtype=np.float64)
    if len(chosen) != len(test) or len(test) == 0:
        raise InputError(
            f"there are {len(chosen)} scores for {len(test)} test pairs; give one a pair, and at least one"
        )
    groups = prompt_groups(test)
    correct = correctness(chosen, rejected)
    simple, simple_correct = baselines(train, test, draws, seed)
    best = max(simple, key=lambda name: simple[name].value)
    over = paired_difference(correct, simple_correct[best], groups, draws, seed)
    source = np.array(test["source"], dtype=object) if "source" in test.column_names else None
    length_chosen, length_rejected = lengths(test, "chosen"), lengths(test, "rejected")

    picked = None
    if gold is not None:
        both = np.concatenate([groups, groups])
        responses = texts(test, "chosen") + texts(test, "rejected")
        pool = candidates(
            both, responses, np.concatenate([chosen, rejected]), np.concatenate([gold.chosen, gold.rejected])
        )
        picked = best_of_n(pool[1], pool[2], pool[0], gold.name, draws, seed)

    return {
        "accuracy": accuracy(chosen, rejected, groups, source, draws, seed),
        "baselines": {name: interval._asdict() for name, interval in simple.items()},
        "over_baseline": {"name": best, **over._asdict()},
        "calibration": calibration(chosen, rejected, temperature),
        "length_bias": length_bias(chosen, rejected, length_chosen, length_rejected, groups, draws, seed),
        "best_of_n": picked,
        "mistakes": mistakes(test, chosen, rejected),
    }
