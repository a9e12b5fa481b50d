"""Best-of-n: sample n responses, keep the one that scores highest. How good is it by a gold judgement?"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammaln

from penchant.errors import InputError
from penchant.evaluate.accuracy import DRAWS, bootstrap_mean
from penchant.latents import Array


def expected_best(scores: Array, gold: Array, n: int) -> float:
    """Expected gold of the highest-scoring of n distinct candidates drawn from k, exactly (no sampling).

    With candidates in ascending order of score, E = sum over i of gold_i * C(i - 1, n - 1) / C(k, n): the i-th wins
    when it is drawn and the other n - 1 come from the i - 1 below it. Tied candidates win equally often, so each
    takes the mean gold of its tie.
    """
    k = len(scores)
    _, tie, size = np.unique(scores, return_inverse=True, return_counts=True)
    ascending = np.repeat(np.bincount(tie, weights=gold) / size, size)
    i = np.arange(n, k + 1)
    log_choose = gammaln(i) - gammaln(n) - gammaln(i - n + 1)
    wins = np.exp(log_choose - (gammaln(k + 1) - gammaln(n + 1) - gammaln(k - n + 1)))
    return float(ascending[n - 1 :] @ wins)


def candidates(groups: Array, responses: list[str], scores: Array, gold: Array) -> tuple[Array, Array, Array]:
    """Groups, scores and gold [m] of the distinct responses to each prompt, out of the responses [n] of all pairs."""
    first = {(g, text): i for i, (g, text) in reversed(list(enumerate(zip(groups.tolist(), responses, strict=True))))}
    rows = np.sort(np.array(list(first.values()), dtype=np.int64))
    return groups[rows], np.asarray(scores)[rows], np.asarray(gold)[rows]


def best_of_n(
    scores: Array, gold: Array, groups: Array, gold_name: str = "gold", draws: int = DRAWS, seed: int = 0
) -> dict[str, Any] | None:
    """Mean gold over prompts of the candidate picked among n = 1, 2, 4, ..., with its interval over prompts.

    One entry of scores, gold and groups [m] a candidate. n goes up to the power of two that at least half of the
    prompts (of those with two candidates or more) can fill, and only prompts that fill it count, so every n is
    measured on the same prompts. "random" is one candidate at random, "oracle" the best of n by gold itself. None
    where no prompt has two candidates.
    """
    scores, gold, groups = (np.asarray(a) for a in (scores, gold, groups))
    if not (np.isfinite(scores).all() and np.isfinite(gold).all()):
        raise InputError(f"scores and the gold column '{gold_name}' must be finite numbers; remove rows without gold")
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    members = [rows for rows in np.split(order, starts) if len(rows) > 1]
    if not members:
        return None
    largest = 2 ** int(np.log2(np.median([len(rows) for rows in members])))
    members = [rows for rows in members if len(rows) >= largest]
    ns = [2**i for i in range(int(np.log2(largest)) + 1)]
    prompts = np.arange(len(members))

    def mean(values: list[float]) -> dict[str, float]:
        value, low, high, _ = bootstrap_mean(np.array(values), prompts, draws, seed)
        return {"value": value, "low": low, "high": high}

    return {
        "gold": gold_name,
        "prompts": len(members),
        "n": ns,
        "picked": [mean([expected_best(scores[r], gold[r], n) for r in members]) for n in ns],
        "random": [float(np.mean([gold[r].mean() for r in members]))] * len(ns),
        "oracle": [float(np.mean([expected_best(gold[r], gold[r], n) for r in members])) for n in ns],
    }
