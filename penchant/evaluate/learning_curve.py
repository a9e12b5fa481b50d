"""Accuracy against the number of training pairs: would more pairs help?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from penchant.errors import InputError
from penchant.evaluate.accuracy import DRAWS, LEVEL, Interval, correctness, group_sums, prompt_weights
from penchant.heads.base import score_rows
from penchant.latents import Array, LatentPairs


class Fittable(Protocol):
    """What the curve needs of a head."""

    def fit(self, pairs: LatentPairs) -> Any: ...
    def score(self, latents: Array) -> Array: ...


def nested_order(groups: Array, seed: int) -> Array:
    """An order [n] of the pairs, shuffled by whole prompts; its first k pairs are the subset of size k."""
    _, index = np.unique(groups, return_inverse=True)
    place = np.random.default_rng(seed).permutation(index.max() + 1)
    return np.argsort(place[index], kind="stable")


def seeds_and_prompts_interval(correct: Array, groups: Array, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of correctness [seeds, n], NaN where a seed did not test a pair, with an interval over seeds and prompts.

    Each draw resamples the seeds and, independently, the test prompts (the pigeonhole bootstrap, Owen 2007), so the
    interval covers both the luck of the training subset and the luck of the test pairs; it errs on the wide side.
    """
    there = np.isfinite(correct)
    sums, _ = group_sums(np.where(there, correct, 0.0), groups)
    counts, _ = group_sums(there.astype(np.float64), groups)
    runs = len(correct)
    rng = np.random.default_rng([seed, 1])
    means = []
    for w in prompt_weights(sums.shape[1], draws, seed):
        picked = rng.multinomial(runs, np.full(runs, 1 / runs), size=len(w))
        tested = ((picked @ counts) * w).sum(axis=1)
        means.append(((picked @ sums) * w).sum(axis=1) / np.where(tested > 0, tested, np.nan))
    # A draw may meet no pair that its seeds tested, where they tested few.
    low, high = np.nanquantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), int(there.any(axis=0).sum()))


def learning_curve(
    make_head: Callable[[int], Fittable],
    train: LatentPairs,
    test: LatentPairs,
    sizes: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    draws: int = DRAWS,
) -> list[dict[str, Any]]:
    """Accuracy on the whole test set after fitting on subsets of the training pairs, ascending in size.

    `make_head(seed)` gives an unfitted head. For one seed the subsets are nested, and prompts enter whole, except
    the last, which is cut to meet the size. Sizes beyond the training set become the whole of it.
    """
    if not sizes or not seeds or min(sizes) < 1:
        raise InputError("a learning curve needs at least one seed and sizes of one pair or more")
    orders = {seed: nested_order(train.group, seed) for seed in seeds}
    points = []
    for size in sorted({min(size, len(train)) for size in sizes}):
        correct = []
        for seed, order in orders.items():
            head = make_head(seed)
            head.fit(train.take(order[:size]).loaded())
            correct.append(correctness(score_rows(head, test.chosen), score_rows(head, test.rejected)))
        interval = seeds_and_prompts_interval(np.stack(correct), test.group, draws)
        points.append(
            {"n": size, "value": interval.value, "low": interval.low, "high": interval.high, "seeds": len(seeds)}
        )
    return points
