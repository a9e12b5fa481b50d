"""Which prompts call for which taste, learned from preferences alone: a gate of greatest marginal likelihood."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import spotri
from scipy.optimize import minimize
from scipy.special import softmax

Array = NDArray[Any]

STEPS = 25
"""L-BFGS steps; on human pairs the gate's agreement with the hidden source no longer moves after about 20."""
PRIOR = 0.25
"""Half the precision of a gate's weights: with two codes, half the difference of their weights has variance 1."""
START = 0.06
"""Prior variances of the shared and the own tastes where the search begins."""
BOUNDS = (-8.0, 3.0)
"""Of their logarithms."""


class Gate(NamedTuple):
    """pi(z) = softmax(z @ weight + bias), and what it says of the pairs."""

    weight: Array
    """[k, K]"""
    bias: Array
    """[K]"""
    shared: float
    """Prior variance of the taste that all codes share, with |difference|^2 = 1 in the mean and noise of variance 1."""
    own: float
    """Prior variance of what a code adds to it."""
    log_prior: float
    """Log density of the gate's weights under their own prior, up to a constant."""


class Sides(NamedTuple):
    """Features [n, f] of both responses and their inner products [n, n]."""

    chosen: Array
    rejected: Array
    both_chosen: Array
    chosen_rejected: Array
    both_rejected: Array

    @classmethod
    def of(cls, chosen: Array, rejected: Array) -> Sides:
        return cls(chosen, rejected, chosen @ chosen.T, chosen @ rejected.T, rejected @ rejected.T)

    def gram(self) -> Array:
        """Inner products [n, n] of the differences chosen - rejected."""
        gram: Array = self.both_chosen - self.chosen_rejected - self.chosen_rejected.T + self.both_rejected
        return gram


class Codes(NamedTuple):
    """What the codes say of n pairs: prior variances of the tastes, and the codes' weights less 1 / K."""

    shared: float
    own: float
    chosen: Array
    """[n, K]"""
    rejected: Array
    """[n, K]"""

    def gram(self, sides: Sides) -> Array:
        """Prior covariance [n, n] of the pairs' score differences."""
        across = sides.chosen_rejected * (self.chosen @ self.rejected.T)
        own = sides.both_chosen * (self.chosen @ self.chosen.T) + sides.both_rejected * (
            self.rejected @ self.rejected.T
        )
        gram: Array = self.shared * sides.gram() + self.own * (own - across - across.T)
        return gram

    def codebook(self, sides: Sides, alpha: Array) -> Array:
        """The tastes e_k [K, f] whose score differences are gram @ alpha."""
        shared = self.shared * (alpha @ sides.chosen - alpha @ sides.rejected)
        own = (self.chosen.T * alpha) @ sides.chosen - (self.rejected.T * alpha) @ sides.rejected
        codebook: Array = shared + self.own * own  # own sums to zero over the codes, as their weights do
        return codebook


def fit_gate(gram: Array, z: Array, codes: int) -> Gate:
    """The gate of greatest log marginal likelihood of n pairs, tastes integrated out.

    Pair i is won with a margin near 1, up to Gaussian noise of variance 1: 1 = sum_k pi_k(z_i) e_k . x_i + noise, with
    e_k = w_0 + w_k - mean w and Gaussian priors of variance `shared` on w_0 and `own` on each w_k. Over the tastes the
    margins have covariance

        C(i, l) = x_i . x_l (shared + own sum_k (pi_k(z_i) - 1/K) (pi_k(z_l) - 1/K)) + (i = l)

    and the gate, with both variances, minimises 1' C^-1 1 / 2 + log det C / 2, plus a Gaussian prior on its weights.
    Preferences between close answers are near coin tosses, where this is close to Bradley-Terry, and it can be
    differentiated in closed form. No responsibilities are alternated with heads, so there is no bad split to be stuck
    in: on helpful and harmless pairs six starts led to the same gate.

    Args:
        gram: x_i . x_l [n, n] of the pairs' differences.
        z: coordinates [n, k] of the prompts, the most telling first, with mean |z|^2 = 1.
        codes: K, at most k + 1.
    """
    n, k = z.shape
    # Single precision halves the time of the two cubic steps; the gate moves by less than 1e-3.
    inner = (gram * (n / np.trace(gram))).astype(np.float32)
    inputs = np.concatenate([z, np.ones((n, 1))], axis=1)
    start = np.zeros((k + 1, codes))
    corners = np.linalg.svd(np.eye(codes) - 1 / codes)[0][:, : codes - 1]  # of a simplex around zero
    start[: codes - 1] = np.sqrt(2) * corners.T / z.std(axis=0)[: codes - 1, None]

    def objective(theta: Array) -> tuple[float, Array]:
        weight = theta[:-2].reshape(k + 1, codes)
        shared, own = np.exp(theta[-2:])
        prior = softmax(inputs @ weight, axis=1)
        spread = (prior - 1 / codes).astype(np.float32)
        covariance = inner * (np.float32(shared) + np.float32(own) * (spread @ spread.T))
        covariance.flat[:: n + 1] += 1
        lower = cho_factor(covariance.T, lower=True, overwrite_a=True, check_finite=False)
        alpha = cho_solve(lower, np.ones(n, np.float32), check_finite=False)
        value = alpha.sum(dtype=np.float64) / 2 + np.log(np.diag(lower[0]).astype(np.float64)).sum()
        inverse = np.tril(spotri(lower[0], lower=1, overwrite_c=1)[0]) * inner

        def slope(columns: Array) -> Array:
            """(dvalue / dcovariance * inner) @ columns, from the lower triangle of the inverse."""
            whole = inverse @ columns + inverse.T @ columns - np.diag(inverse)[:, None] * columns
            product: Array = (whole - alpha[:, None] * (inner @ (alpha[:, None] * columns))) / 2
            return product.astype(np.float64)

        towards = slope(np.concatenate([spread, np.ones((n, 1), np.float32)], axis=1))
        by_prior = 2 * own * towards[:, :codes]
        by_logits = prior * (by_prior - (prior * by_prior).sum(axis=1, keepdims=True))
        by_weight = inputs.T @ by_logits + 2 * PRIOR * weight
        by_variances = [shared * towards[:, codes].sum(), own * (spread * towards[:, :codes]).sum()]
        return float(value + PRIOR * np.square(weight).sum()), np.concatenate([by_weight.ravel(), by_variances])

    found = minimize(
        objective,
        np.concatenate([start.ravel(), np.log([START, START])]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * start.size + [BOUNDS] * 2,
        options={"maxiter": STEPS},
    ).x
    weight = found[:-2].reshape(k + 1, codes)
    shared, own = np.exp(found[-2:])
    return Gate(weight[:-1], weight[-1], float(shared), float(own), -PRIOR * float(np.square(weight).sum()))


def log_evidence(gram: Array) -> float:
    """Log marginal likelihood, up to a constant, of margins of 1 between n pairs with prior covariance `gram` [n, n]
    and noise of variance 1.
    """
    lower = cho_factor(gram + np.eye(len(gram)), lower=True, overwrite_a=True)
    alpha = cho_solve(lower, np.ones(len(gram)))
    return float(-alpha.sum() / 2 - np.log(np.diag(lower[0])).sum())
