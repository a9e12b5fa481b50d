"""How often the chosen response scores higher, and how sure that figure is: intervals resample prompts, not pairs.

Pairs that share a prompt are not independent, so a bootstrap over pairs gives intervals that are too narrow. Here
whole prompts are drawn with replacement (the cluster bootstrap), and an interval is the 2.5th to 97.5th percentile.
Where a figure is to hold for other people too, people are drawn as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
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


def prompt_weights(prompts: int, draws: int, seed: int, width: int = 0) -> Iterator[Array]:
    """Blocks [b, prompts] of multinomial counts, `draws` rows in all: how often each draw contains each prompt.

    A block is small enough for arrays [b, width], too.
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(draws, 4_000_000 // max(prompts, width)))  # about 100 MB at a time, however many prompts
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
    """Accuracy of `correctness` [n] with its interval over prompts."""
    return not_certain(bootstrap_mean(correct, groups, draws, seed), len(np.unique(groups)))


def not_certain(interval: Interval, prompts: int) -> Interval:
    """The interval of an accuracy, wider where every pair was right, or every pair wrong.

    Resampling has nothing to vary then and would claim certainty; the exact binomial (Clopper-Pearson) bound is used,
    with each prompt as one trial.
    """
    if interval.value == 1.0:
        return interval._replace(low=float(beta.ppf((1 - LEVEL) / 2, prompts, 1)))
    if interval.value == 0.0:
        return interval._replace(high=float(beta.ppf((1 + LEVEL) / 2, 1, prompts)))
    return interval


def crossed_mean(values: Array, people: Array, groups: Array, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of `values` [n] with the percentile interval over people and prompts, which may be crossed or nested.

    `people` [n] and `groups` [n] number who judged and what. Both are drawn with replacement, and a pair counts as
    often as its person times as often as its prompt (Owen 2007, the pigeonhole bootstrap). With one person it is
    `bootstrap_mean`.
    """
    if len(values) == 0:
        raise InputError("there are no pairs to evaluate")
    (asked, prompt), (who, person) = (np.unique(part, return_inverse=True) for part in (groups, people))
    shape = len(asked), len(who)
    sums, counts = (
        csr_matrix((np.asarray(v, np.float64), (prompt, person)), shape) for v in (values, np.ones(len(values)))
    )
    means = []
    drawn = (prompt_weights(n, draws, seed + k, max(shape)) for k, n in enumerate(shape))
    for of_prompts, of_people in zip(*drawn, strict=True):
        total, n = (((of_prompts @ part) * of_people).sum(axis=1) for part in (sums, counts))
        means.append(total[n > 0] / n[n > 0])  # few people with prompts of their own: a draw may hold none of both
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


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
