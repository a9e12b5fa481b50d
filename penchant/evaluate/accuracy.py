"""How often the chosen response scores higher, and how sure that figure is: intervals resample prompts, not pairs.

Pairs that share a prompt are not independent, so a bootstrap over pairs gives intervals that are too narrow. Here
whole prompts are drawn with replacement (the cluster bootstrap), and an interval is the 2.5th to 97.5th percentile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta

from penchant.errors import InputError
from penchant.latents import Array

DRAWS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float
    n: int
    """Pairs the figure rests on."""


def correctness(chosen: Array, rejected: Array) -> Array:
    """Float [n]: 1 where the chosen response scores higher, 0 where lower, one half where the scores tie.

    Raises InputError on a score that is not a number, which would otherwise count as wrong in silence.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if chosen.shape != rejected.shape or chosen.ndim != 1:
        raise InputError(f"scores must be two vectors of one length, got {chosen.shape} and {rejected.shape}")
    for name, scores in (("chosen", chosen), ("rejected", rejected)):
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise InputError(f"the score of {name} in row {row} is {scores[row]}; scores must be finite numbers")
    return np.where(chosen == rejected, 0.5, chosen > rejected)


def prompt_weights(prompts: int, draws: int, seed: int) -> Iterator[Array]:
    """Blocks [b, prompts] of multinomial counts, `draws` rows in all: how often each draw contains each prompt."""
    rng = np.random.default_rng(seed)
    block = max(1, min(draws, 4_000_000 // prompts))  # about 100 MB at a time, however many prompts
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = rng.integers(prompts, size=(rows, prompts)) + np.arange(rows)[:, None] * prompts
        yield np.bincount(drawn.ravel(), minlength=rows * prompts).reshape(rows, prompts).astype(np.float64)


def group_sums(values: Array, groups: Array) -> tuple[Array, Array]:
    """Sums [..., G] of `values` [..., n] within each prompt, and how many pairs [G] each prompt has."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(np.asarray(values, dtype=np.float64)[..., order], starts, axis=-1), counts


def bootstrap_mean(values: Array, groups: Array, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of `values` [n] with the percentile interval over prompts; `groups` [n] numbers the prompts."""
    if len(values) == 0:
        raise InputError("there are no pairs to evaluate")
    sums, counts = group_sums(values, groups)
    means = np.concatenate([w @ sums / (w @ counts) for w in prompt_weights(len(counts), draws, seed)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def accuracy_interval(correct: Array, groups: Array, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Accuracy of `correctness` [n] with its interval over prompts.

    When every pair is right, or every pair wrong, resampling has nothing to vary and would claim certainty; then the
    exact binomial (Clopper-Pearson) bound is used, with each prompt as one trial.
    """
    interval = bootstrap_mean(correct, groups, draws, seed)
    prompts = len(np.unique(groups))
    if interval.value == 1.0:
        return interval._replace(low=float(beta.ppf((1 - LEVEL) / 2, prompts, 1)))
    if interval.value == 0.0:
        return interval._replace(high=float(beta.ppf((1 + LEVEL) / 2, 1, prompts)))
    return interval


def paired_difference(correct_a: Array, correct_b: Array, groups: Array, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Accuracy of a minus that of b on the same pairs, resampled together, so much narrower than two intervals."""
    return bootstrap_mean(np.asarray(correct_a) - np.asarray(correct_b), groups, draws, seed)


def accuracy(
    chosen: Array,
    rejected: Array,
    groups: Array,
    source: Array | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Pairwise accuracy of scores [n]: {"overall": figure, "by_source": {source: figure}}, ties counted beside it."""
    correct = correctness(chosen, rejected)
    groups = np.asarray(groups)

    def figure(rows: Array) -> dict[str, Any]:
        interval = accuracy_interval(correct[rows], groups[rows], draws, seed)
        return {**interval._asdict(), "ties": int(np.sum(correct[rows] == 0.5))}

    names = np.array(["unknown" if name is None else str(name) for name in source], str) if source is not None else None
    by_source = {} if names is None else {str(name): figure(names == name) for name in np.unique(names)}
    return {"overall": figure(np.ones(len(correct), bool)), "by_source": by_source}
