"""The linear head on latents in files: the same optimum, from a few passes over them, a block of rows at a time.

One pass gives loss and gradient of all problems (folds x strengths) at once; nothing of size n x problems is kept.
Preconditioned L-BFGS needs one pass a step, and about as few steps as Newton's method, whose every step takes several.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penchant.heads.base import check_block, check_differ
from penchant.heads.linear import (
    DEFAULT_STRENGTH,
    TOLERANCE,
    BradleyTerryLoss,
    view_scale,
    warn_of_one_prompt,
)
from penchant.latents import LatentPairs
from penchant.mapped import read_blocks

Array = NDArray[Any]

MEMORY = 8
"""Steps that L-BFGS remembers."""
MAX_PASSES = 300
GRAM_ROWS = 50
"""Pairs a column from which the preconditioner is made, at most: more cost operations and save no pass."""
GRAM_COLUMNS = 8192
"""Columns whose Gram matrix is decomposed at once; beyond, parts of the latent are taken to be uncorrelated."""
CV_TOLERANCE = 1e-5
"""Lower than in memory, where a Newton step that meets the goal goes far beyond it."""
SLACK = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-13}
"""Rise of a loss, as a share of it, that rounding explains."""


class Terms(NamedTuple):
    """Of k problems at v [d, k]."""

    value: Array
    """Penalised losses [k]."""
    gradient: Array
    """[d, k]"""
    curvature: Array
    """Mean over all pairs of l''(s), 0 for those left out: [k]."""
    left_out: Array
    """Sum of the losses of the pairs left out: [k]."""

    def put(self, problems: Array, new: Terms) -> None:
        """Take over the terms of these problems."""
        for mine, theirs in zip(self, new, strict=True):
            mine[..., problems] = theirs


class Fitted(NamedTuple):
    weight: Array
    """[d]"""
    strength: float
    margins: Array | None
    """Out-of-fold score differences [n], None where no cross-validation was made."""


def fit_streamed(
    pairs: LatentPairs,
    margin: Array,
    smoothing: float,
    fold: Array,
    strengths: tuple[float, ...],
    strength: float | None = None,
) -> Fitted:
    """What `LinearHead.fit` finds, of pairs in files; a strength of None is picked from `strengths`.

    Cross-validation goes in float32, the fit that is kept in float64; it starts from the folds' mean.
    """
    problems = Problems(pairs, margin, smoothing, fold)
    alone = np.array([-1])
    margins = None
    if strength is None and fold.max() > 0:
        folds = int(fold.max()) + 1
        grid, out = np.tile(strengths, folds), np.repeat(np.arange(folds), len(strengths))
        at = problems.survey(grid, out, np.float32)
        v = problems.minimise(np.zeros_like(at.gradient), at, grid, out, CV_TOLERANCE, np.float32)
        best = int(np.argmin(at.left_out.reshape(folds, -1).sum(axis=0)))
        strength, v = strengths[best], v[:, best :: len(strengths)]
        margins, at = problems.held_out(v, np.array([strength]))
        v = v.mean(axis=1, keepdims=True)
    else:
        if strength is None:
            warn_of_one_prompt()
            strength = DEFAULT_STRENGTH
        at = problems.survey(np.array([strength]), alone, np.float64)
        v = np.zeros_like(at.gradient)
    v = problems.minimise(v, at, np.array([strength]), alone, TOLERANCE, np.float64)
    return Fitted(v[:, 0] / problems.scale, strength, margins)


@dataclass
class Problems:
    """sum over pairs i that problem j does not leave out of l(z_i . v_j) + strength_j / 2 |v_j|^2, z_i = x_i / scale.

    x_i = chosen_i - rejected_i lies in files. `out` is the number of the fold left out, -1 for none.
    """

    pairs: LatentPairs
    margin: Array
    """[n, 1]"""
    smoothing: float
    fold: Array
    """Fold number [n]."""
    scale: Array = field(init=False)
    """[d]"""
    preconditioner: Preconditioner = field(init=False)

    def survey(self, strength: Array, out: Array, dtype: Any) -> Terms:
        """The first pass: checks the pairs, finds scale and preconditioner, and gives the terms at v = 0."""
        n, d = len(self.pairs), self.pairs.recipe.dim
        terms, square, differ = _no_terms(d, len(strength)), np.zeros(d), []
        gram = Gram(n, d)
        zero = np.zeros((d, len(strength)), dtype)
        for rows, chosen, rejected in self._blocks():
            differ.append(check_block(rows, chosen, rejected))
            x = chosen - rejected
            exact = np.subtract(chosen, rejected, dtype=np.float64)
            square += np.einsum("ij,ij->j", exact, exact)
            gram.add(rows, x)
            self._add(terms, rows, x if dtype == np.float32 else exact, zero, out)
        check_differ(differ, n)
        self.scale = view_scale(square / n, self.pairs.recipe.width)
        self.preconditioner = gram.preconditioner(self.scale)
        return self._penalised(terms, zero, strength)

    def terms(self, v: Array, strength: Array, out: Array, dtype: Any) -> Terms:
        """One pass. Products in `dtype`, sums over blocks in float64."""
        terms, weight = _no_terms(*v.shape), (v / self.scale[:, None]).astype(dtype)
        for rows, chosen, rejected in self._blocks():
            self._add(terms, rows, np.subtract(chosen, rejected, dtype=dtype), weight, out)
        return self._penalised(terms, v, strength)

    def held_out(self, v: Array, strength: Array) -> tuple[Array, Terms]:
        """One pass: score differences [n] of each pair by the column of v [d, folds] that left it out, and the terms
        of one problem that leaves out none, at the columns' mean."""
        mean = v.mean(axis=1, keepdims=True)
        margins, weight, start = np.empty(len(self.pairs)), v / self.scale[:, None], mean / self.scale[:, None]
        terms = _no_terms(len(v), 1)
        for rows, chosen, rejected in self._blocks():
            x = np.subtract(chosen, rejected, dtype=np.float64)
            margins[rows] = (x @ weight)[np.arange(len(x)), self.fold[rows]]
            self._add(terms, rows, x, start, np.array([-1]))
        return margins, self._penalised(terms, mean, strength)

    def minimise(self, v: Array, at: Terms, strength: Array, out: Array, tolerance: float, dtype: Any) -> Array:
        """v [d, k] where every gradient's norm is at most tolerance times n, from a start v whose terms are `at`.

        Each problem has steps of its own: one that does not descend is halved, and read again with the others' next.
        `at` holds the terms of the result afterwards.
        """
        n, k = len(self.pairs), len(strength)
        past: list[tuple[Array, Array, Array]] = []
        direction, length = -self.preconditioner.solve(at.gradient, at.curvature, strength), np.ones(k)
        for _ in range(MAX_PASSES):
            open_ = np.flatnonzero(np.linalg.norm(at.gradient, axis=0) > tolerance * n)
            if not len(open_):
                return v
            step = length[open_] * direction[:, open_]
            new = self.terms(v[:, open_] + step, strength[open_], out[open_], dtype)
            promised = (at.gradient[:, open_] * step).sum(0)
            slack = SLACK[np.dtype(dtype)] * np.abs(at.value[open_])
            good = new.value <= at.value[open_] + 1e-4 * promised + slack
            length[open_] = np.where(good, 1.0, length[open_] / 2)

            moved = open_[good]
            change = np.zeros_like(v)
            change[:, moved] = new.gradient[:, good] - at.gradient[:, moved]
            went = np.zeros_like(v)
            went[:, moved] = step[:, good]
            bend = (went * change).sum(0)
            past = [*past[-MEMORY + 1 :], (went, change, np.divide(1, bend, out=np.zeros(k), where=bend > 0))]
            v = v + went
            at.put(moved, Terms(*(part[..., good] for part in new)))
            ahead = -self._quasi_newton(at, strength, past)
            direction[:, moved] = ahead[:, moved]
        warnings.warn("the linear head did not converge; give a larger strength", RuntimeWarning, stacklevel=4)
        return v

    def _quasi_newton(self, at: Terms, strength: Array, past: list[tuple[Array, Array, Array]]) -> Array:
        """About the inverse Hessian times the gradient [d, k] (Nocedal 1980), the preconditioner being its start."""
        q, shares = at.gradient, []
        for went, change, rho in reversed(past):
            shares.append(rho * (went * q).sum(0))
            q = q - shares[-1] * change
        q = self.preconditioner.solve(q, at.curvature, strength)
        for (went, change, rho), share in zip(past, reversed(shares), strict=True):
            q = q + (share - rho * (change * q).sum(0)) * went
        return q

    def _add(self, terms: Terms, rows: slice, x: Array, weight: Array, out: Array) -> None:
        """Add what these rows' differences x [b, d] give at scores x @ weight."""
        loss = BradleyTerryLoss(self.margin[rows], self.smoothing)
        s, use = (x @ weight).astype(np.float64), self.fold[rows, None] != out
        value = loss.value(s)
        terms.value[:] += (use * value).sum(0)
        terms.left_out[:] += (~use * value).sum(0)
        terms.gradient[:] += x.T @ (use * loss.slope(s)).astype(x.dtype)
        terms.curvature[:] += (use * loss.curvature(s)).sum(0)

    def _penalised(self, sums: Terms, v: Array, strength: Array) -> Terms:
        """The terms at v [d, k] from the sums over all pairs, whose gradients are in the latents' own units."""
        gradient = sums.gradient / self.scale[:, None] + strength * v
        value = sums.value + strength / 2 * (v * v).sum(0)
        return Terms(value, gradient, sums.curvature / len(self.pairs), sums.left_out)

    def _blocks(self) -> Iterator[tuple[slice, Array, Array]]:
        return read_blocks(self.pairs.chosen, self.pairs.rejected)


class Preconditioner(NamedTuple):
    """The Hessian that equal curvatures would give, by parts of the columns and the principal axes of each."""

    parts: list[tuple[slice, Array, Array]]
    """Columns, eigenvalues [r] of their Gram matrix of all pairs, and axes [r, r]."""

    def solve(self, gradient: Array, curvature: Array, strength: Array) -> Array:
        """(curvature_j Gram + strength_j)^-1 gradient_j, [d, k]."""
        found = np.empty_like(gradient)
        for columns, values, axes in self.parts:
            found[columns] = axes @ ((axes.T @ gradient[columns]) / (values[:, None] * curvature + strength))
        return found


class Gram:
    """Inner products of the columns of n differences [n, d], from at most `GRAM_ROWS` d of them, spread evenly."""

    def __init__(self, n: int, d: int) -> None:
        self.n, self.share, self.seen = n, min(1.0, GRAM_ROWS * d / n), 0
        edges = np.linspace(0, d, -(-d // GRAM_COLUMNS) + 1).astype(int).tolist()
        self.columns = [slice(a, b) for a, b in pairwise(edges)]
        self.sums = [np.zeros((c.stop - c.start,) * 2) for c in self.columns]

    def add(self, rows: slice, x: Array) -> None:
        """Count these rows' differences [b, d], or leave them out where enough of the rows before were counted."""
        if self.seen > self.share * rows.start:
            return
        self.seen += len(x)
        for columns, total in zip(self.columns, self.sums, strict=True):
            total += x[:, columns].T @ x[:, columns]

    def preconditioner(self, scale: Array) -> Preconditioner:
        parts = []
        for columns, total in zip(self.columns, self.sums, strict=True):
            total *= self.n / self.seen
            total /= scale[columns, None] * scale[columns]
            values, axes = np.linalg.eigh(total)
            parts.append((columns, np.maximum(values, 0), axes))
        self.sums = []
        return Preconditioner(parts)


def _no_terms(d: int, k: int) -> Terms:
    return Terms(np.zeros(k), np.zeros((d, k)), np.zeros(k), np.zeros(k))
