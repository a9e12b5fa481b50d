"""Does "70% sure" mean right 70% of the time? Temperature scaling, and the errors that remain after it.

P(chosen better) = sigmoid((s_chosen - s_rejected) / T)                  (Bradley-Terry; Guo et al. 2017 for T)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from penchant.errors import InputError
from penchant.evaluate.accuracy import correctness
from penchant.latents import Array

BINS = 10


def log_loss(margins: Array, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the choices, log(1 + exp(-m / T)), for margins m = s_chosen - s_rejected [n]."""
    return float(np.mean(np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64) / temperature)))


def fit_temperature(margins: Array) -> float:
    """The T > 0 that makes held-out margins [n] most likely. Give it out-of-fold margins: fitted ones are too large.

    The label is (n + 1) / (n + 2) in place of 1 (Platt 1999), so margins that are all right give a finite confidence
    instead of T = 0; with many pairs the difference vanishes. Margins that are right half the time or less know
    nothing, and T ends at its upper bound, a thousand times their size; margins that are all zero give 1.
    """
    m = np.asarray(margins, dtype=np.float64)
    if len(m) == 0 or not np.isfinite(m).all():
        raise InputError("the temperature needs at least one margin, and only finite ones; check the scores")
    size = float(np.sqrt(np.mean(m**2)))
    if size == 0.0:
        return 1.0
    m = m / size
    label = (len(m) + 1) / (len(m) + 2)

    def loss(log_beta: float) -> float:
        z = np.exp(log_beta) * m
        return float(np.mean(label * np.logaddexp(0.0, -z) + (1 - label) * np.logaddexp(0.0, z)))

    # Convex in beta = 1 / T, so it has one minimum in log(beta) as well.
    best = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e3)), method="bounded", options={"xatol": 1e-6})
    return float(size / np.exp(best.x))


def reliability_curve(margins: Array, temperature: float = 1.0, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean confidence max(p, 1 - p) and accuracy in bins of equal count, ascending.

    Equal count, because reward models are rarely sure: bins of equal width would leave most of [0.5, 1] empty and put
    nearly all pairs in one. Equal confidences always share a bin, so the order of the pairs does not matter.
    """
    m = np.asarray(margins, dtype=np.float64)
    correct = correctness(m, np.zeros_like(m))
    confidence = expit(np.abs(m) / temperature)
    edges = np.unique(np.quantile(confidence, np.arange(1, bins) / bins, method="inverted_cdf"))
    which = np.searchsorted(edges, confidence, side="left")
    members = [which == b for b in np.unique(which)]
    return [
        {"confidence": float(confidence[i].mean()), "accuracy": float(correct[i].mean()), "n": int(i.sum())}
        for i in members
    ]


def calibration_error(curve: list[dict[str, Any]]) -> float:
    """ECE = sum over bins of n_b / n * |accuracy_b - confidence_b|."""
    n = sum(b["n"] for b in curve)
    return float(sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / n)


def expected_error_if_perfect(curve: list[dict[str, Any]], draws: int = 1000, seed: int = 0) -> float:
    """The ECE that chance alone gives a perfectly calibrated model on as many pairs: the floor to judge an ECE by."""
    rng = np.random.default_rng(seed)
    n = np.array([b["n"] for b in curve])
    confidence = np.array([b["confidence"] for b in curve])
    right = rng.binomial(n, confidence, size=(draws, len(n)))
    return float(np.mean(np.abs(right - n * confidence).sum(axis=1) / n.sum()))


def calibration(score_chosen: Array, score_rejected: Array, temperature: float = 1.0) -> dict[str, Any]:
    """Errors of P(chosen better) on test scores [n] at a temperature fitted elsewhere; `ece_before` is that of T = 1.

    The Brier score is the mean of (1 - p)^2; 0.25 and log(2) = 0.693 are what a coin gets for Brier and NLL.
    """
    margins = np.asarray(score_chosen, dtype=np.float64) - np.asarray(score_rejected, dtype=np.float64)
    curve = reliability_curve(margins, temperature)
    return {
        "temperature": float(temperature),
        "ece": calibration_error(curve),
        "ece_if_perfect": expected_error_if_perfect(curve),
        "ece_before": calibration_error(reliability_curve(margins)),
        "brier": float(np.mean((1 - expit(margins / temperature)) ** 2)),
        "nll": log_loss(margins, temperature),
        "curve": curve,
    }
