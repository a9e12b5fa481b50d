"""Does the model reward length? Accuracy where the better response is the longer and where it is the shorter one."""

from __future__ import annotations

from typing import Any

import numpy as np

from penchant.evaluate.accuracy import DRAWS, accuracy_interval, correctness
from penchant.latents import Array


def correlation(x: Array, y: Array) -> float:
    """Pearson correlation of x [n] and y [n]; 0 where either is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def length_bias(
    score_chosen: Array,
    score_rejected: Array,
    length_chosen: Array,
    length_rejected: Array,
    groups: Array,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy by which response is longer, and the correlation of score and length over all single responses.

    Lengths [n] in any unit (characters or tokens). Pairs of equal length are in neither part; a part without pairs
    is None. A model without a bias of its own has the same accuracy in both parts.
    """
    correct = correctness(score_chosen, score_rejected)
    longer = np.asarray(length_chosen) > np.asarray(length_rejected)
    shorter = np.asarray(length_chosen) < np.asarray(length_rejected)
    groups = np.asarray(groups)

    def figure(rows: Array) -> dict[str, Any] | None:
        return accuracy_interval(correct[rows], groups[rows], draws, seed)._asdict() if rows.any() else None

    scores = np.concatenate([score_chosen, score_rejected])
    lengths = np.concatenate([length_chosen, length_rejected])
    return {
        "chosen_longer": figure(longer),
        "chosen_shorter": figure(shorter),
        "correlation": correlation(scores, lengths),
        "share_chosen_longer": float(longer.mean()),
    }
