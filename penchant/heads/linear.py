"""Bradley-Terry with a linear score and a ridge penalty, solved to convergence; strength by cross-validation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, pair_accuracy, prompt_folds
from penchant.latents import LatentPairs

Array = NDArray[Any]

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-4, 5))
DEFAULT_STRENGTH = 10.0
"""Used where cross-validation is impossible: all pairs share one prompt."""
TOLERANCE = 1e-10
"""A fit stops when the mean gradient's norm is below this; features have unit mean square norm then."""
CV_TOLERANCE = 1e-4
MAX_NEWTON_STEPS = 100


@dataclass(frozen=True)
class BradleyTerryLoss:
    """l(s) = -(1 - eps) log sigmoid(s - m) - eps log sigmoid(-s - m) of a score difference s [n, k].

    m >= 0 is the pair's margin (the chosen must win by m), eps the label smoothing (the share of pairs taken to be
    labelled the wrong way round). With m = 0 and eps = 0 it is the plain Bradley-Terry loss.
    """

    margin: Array  # [n, 1]
    smoothing: float

    def value(self, s: Array) -> Array:
        eps, m = self.smoothing, self.margin
        value: Array = (1 - eps) * np.logaddexp(0, m - s) + eps * np.logaddexp(0, m + s)
        return value

    def slope(self, s: Array) -> Array:
        eps, m = self.smoothing, self.margin
        slope: Array = -(1 - eps) * expit(m - s) + eps * expit(m + s)
        return slope

    def curvature(self, s: Array) -> Array:
        eps, p, q = self.smoothing, expit(self.margin - s), expit(self.margin + s)
        curvature: Array = (1 - eps) * p * (1 - p) + eps * q * (1 - q)
        return curvature


class Spectrum(NamedTuple):
    """Differences [n, d] turned onto their r <= min(n, d) principal axes; the ridge penalty does not see the turn."""

    rows: Array
    """[n, r], with rows' rows = diag(values)."""
    values: Array
    """[r]"""
    axes: Array
    """[d, r], orthonormal."""

    @classmethod
    def of(cls, difference: Array) -> Spectrum:
        n, d = difference.shape
        # The smaller of the two Gram matrices has the same eigenvalues.
        values, vectors = np.linalg.eigh(difference @ difference.T if n < d else difference.T @ difference)
        keep = values > 1e-12 * values[-1]
        values, vectors = values[keep], vectors[:, keep]
        if n < d:
            return cls(vectors * np.sqrt(values), values, difference.T @ (vectors / np.sqrt(values)))
        return cls(difference @ vectors, values, vectors)

    @classmethod
    def of_gram(cls, gram: Array) -> Spectrum:
        """From inner products [n, n] of differences that are not written out; `axes` [n, r] weigh the pairs instead."""
        values, vectors = np.linalg.eigh(gram)
        keep = values > 1e-9 * values[-1]
        values, vectors = values[keep], vectors[:, keep]
        return cls(vectors * np.sqrt(values), values, vectors / np.sqrt(values))


def solve(spectrum: Spectrum, loss: BradleyTerryLoss, use: Array, strength: Array, tolerance: float) -> Array:
    """Minimise sum_i use_ij l(z_i . v_j) + strength_j / 2 |v_j|^2 for k problems j at once; returns v [r, k].

    Newton's method; each step by conjugate gradients, preconditioned with the Hessian that equal curvatures would give
    (diagonal on the principal axes). `use` [n, k] is how often pair i counts in problem j, mostly 0 or 1. Stops when
    every gradient's norm is at most `tolerance` times n.
    """
    rows, values = spectrum.rows, spectrum.values[:, None]
    v = np.zeros((rows.shape[1], len(strength)))
    s = np.zeros((rows.shape[0], len(strength)))

    def objective(s: Array, v: Array) -> Array:
        total: Array = (use * loss.value(s)).sum(0) + strength / 2 * (v * v).sum(0)
        return total

    for _ in range(MAX_NEWTON_STEPS):
        gradient = rows.T @ (use * loss.slope(s)) + strength * v
        size = np.linalg.norm(gradient, axis=0)
        if (size <= tolerance * rows.shape[0]).all():
            return v
        curvature = use * loss.curvature(s)
        diagonal = values * curvature.mean(0) + strength
        step = _conjugate_gradients(rows, curvature, strength, diagonal, -gradient, tolerance * rows.shape[0])
        ahead, slope = rows @ step, (gradient * step).sum(0)
        # Halve the step of each problem until it descends; slack for rounding close to the minimum.
        length, start = np.ones(len(strength)), objective(s, v)
        slack = 1e-13 * np.abs(start)
        for _ in range(30):
            short = objective(s + length * ahead, v + length * step) > start + 1e-4 * length * slope + slack
            if not short.any():
                break
            length[short] /= 2
        v, s = v + length * step, s + length * ahead
    warnings.warn("the linear head did not converge; give a larger strength", RuntimeWarning, stacklevel=2)
    return v


def _conjugate_gradients(
    rows: Array, curvature: Array, strength: Array, diagonal: Array, target: Array, floor: float
) -> Array:
    """x [r, k] with (rows' diag(curvature_j) rows + strength_j) x_j = target_j, loosely far from the minimum."""
    x, residual = np.zeros_like(target), target.copy()
    size = np.linalg.norm(target, axis=0)
    goal = np.maximum(np.minimum(0.1, size / rows.shape[0]) * size, floor / 10)
    direction = residual / diagonal
    rho = (residual * direction).sum(0)
    for _ in range(200):
        if (np.linalg.norm(residual, axis=0) <= goal).all():
            break
        image = rows.T @ (curvature * (rows @ direction)) + strength * direction
        bend = (direction * image).sum(0)
        alpha = np.divide(rho, bend, out=np.zeros_like(rho), where=bend > 0)
        x, residual = x + alpha * direction, residual - alpha * image
        scaled = residual / diagonal
        previous, rho = rho, (residual * scaled).sum(0)
        direction = scaled + np.divide(rho, previous, out=np.zeros_like(rho), where=previous > 0) * direction
    return x


class LinearHead(Head, kind="linear"):
    """score(x) = w . x, with w minimising sum_i l(w . (chosen_i - rejected_i)) + strength / 2 |scale * w|^2.

    l is the Bradley-Terry loss (`BradleyTerryLoss`) and scale [d] (`column_scale`) makes strength mean the same for
    every backbone, layer and width. There is no intercept, as it would cancel in every difference; so swapping chosen
    and rejected flips w's sign exactly.

    Args:
        strength: ridge penalty; None picks it from `strengths` by cross-validation with whole prompts held out.
        strengths: the grid tried then.
        margin: use pairs.margin in the loss (a missing or NaN margin is 0).
        label_smoothing: share of pairs, in [0, 0.5), taken to be labelled the wrong way round.
        folds: parts of the cross-validation.
        random_state: which prompts share a fold.

    Attributes:
        weight_: float64 [d].
        strength_: the penalty used.
        cv_accuracy_: out-of-fold accuracy at that strength, None where no cross-validation was made.
        cv_margins_: out-of-fold score differences [n] at that strength, or None; not saved.
    """

    tensors = ("weight_",)
    facts = ("strength_", "cv_accuracy_")
    streams = True

    weight_: Array
    strength_: float
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(
        self,
        strength: float | None = None,
        strengths: tuple[float, ...] = STRENGTHS,
        margin: bool = False,
        label_smoothing: float = 0.0,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.strength = strength
        self.strengths = strengths
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, or arguments out of range."""
        self.check_arguments()
        if pairs.mapped:
            return self._fit_streamed(pairs)
        check_pairs(pairs)
        loss = BradleyTerryLoss(self._margins(pairs), self.label_smoothing)
        difference = pairs.chosen.astype(np.float64) - pairs.rejected
        scale = column_scale(difference, pairs.recipe.width)
        spectrum = Spectrum.of(difference / scale)

        if self.strength is not None:
            self.strength_, self.cv_accuracy_, self.cv_margins_ = self.strength, None, None
        else:
            fold = prompt_folds(pairs.group, self.folds, self.random_state)
            self.strength_, self.cv_accuracy_, self.cv_margins_ = pick_strength(spectrum, loss, fold, self.strengths)
        everything = np.ones((len(pairs), 1))
        v = solve(spectrum, loss, everything, np.array([self.strength_]), TOLERANCE)[:, 0]
        self.weight_ = spectrum.axes @ v / scale
        return self

    def _fit_streamed(self, pairs: LatentPairs) -> Self:
        """`fit` on pairs in files: the same numbers up to rounding."""
        from penchant.heads.streamed import fit_streamed  # which stands on this file

        fold = prompt_folds(pairs.group, self.folds, self.random_state)
        found = fit_streamed(pairs, self._margins(pairs), self.label_smoothing, fold, self.strengths, self.strength)
        self.weight_, self.strength_, self.cv_margins_ = found.weight, found.strength, found.margins
        self.cv_accuracy_ = None if found.margins is None else pair_accuracy(found.margins)
        return self

    def score(self, latents: Array) -> Array:
        # Summed in float64, so that a score does not depend on its batch and near ties survive.
        self._check_fitted()
        latents = check_latents(latents, len(self.weight_))
        return (latents.astype(np.float64) @ self.weight_).astype(np.float32)

    @property
    def parameters(self) -> int:
        return len(self.weight_)

    def _margins(self, pairs: LatentPairs) -> Array:
        if not self.margin or pairs.margin is None:
            return np.zeros((len(pairs), 1))
        margin = np.nan_to_num(pairs.margin.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
        bad = (margin < 0) | np.isinf(margin)
        if bad.any():
            row = int(bad.argmax())
            raise InputError(f"the margin of pair {row} is {margin[row]}; give 0 or more, or NaN where it is unknown")
        return margin[:, None]

    def check_arguments(self) -> None:
        for strength in self.strengths if self.strength is None else (self.strength,):
            if not 0 < strength < np.inf:
                raise InputError(f"strength is {strength}; give a finite number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"label_smoothing is {self.label_smoothing}; give at least 0 and less than 0.5")
        if self.folds < 2:
            raise InputError(f"folds is {self.folds}; give at least 2")


def column_scale(difference: Array, width: int) -> Array:
    """What each column [d] is divided by: its view's root mean square, times sqrt(d), so that mean |z_i|^2 = 1.

    One number a view keeps the directions in which a backbone's latents vary most, and yet no layer drowns another.
    """
    return view_scale(np.square(difference).mean(axis=0), width)


def view_scale(square: Array, width: int) -> Array:
    """`column_scale` from the columns' mean squares [d]."""
    square = square.reshape(-1, width).mean(axis=1)
    views = np.count_nonzero(square)
    return np.repeat(np.sqrt(np.where(square > 0, square, 1.0) * width * views), width)


def pick_strength(
    spectrum: Spectrum, loss: BradleyTerryLoss, fold: Array, strengths: tuple[float, ...], weight: Array | None = None
) -> tuple[float, float | None, Array | None]:
    """The strength with the least out-of-fold loss, its out-of-fold accuracy and its score differences [n].

    `weight` [n] says how often each pair counts in fits and loss; once where it is None. With one fold only, which one
    prompt gives, a warning and (DEFAULT_STRENGTH, None, None).
    """
    if fold.max() == 0:
        warn_of_one_prompt()
        return DEFAULT_STRENGTH, None, None
    margins = cross_validate(spectrum, loss, fold, np.array(strengths), weight)
    best = int(np.argmin(np.average(loss.value(margins), 0, weight)))
    return strengths[best], pair_accuracy(margins[:, best]), margins[:, best]


def warn_of_one_prompt() -> None:
    warnings.warn(
        f"all pairs share one prompt, so no strength can be cross-validated; using {DEFAULT_STRENGTH}",
        UserWarning,
        stacklevel=4,
    )


def cross_validate(
    spectrum: Spectrum, loss: BradleyTerryLoss, fold: Array, strengths: Array, weight: Array | None = None
) -> Array:
    """Out-of-fold score differences [n, len(strengths)]: each pair scored by fits that saw no pair of its fold.

    All folds and strengths are solved together, on the principal axes of all pairs' differences (labels unseen).
    """
    folds = int(fold.max()) + 1
    use = np.repeat(fold[:, None] != np.arange(folds), len(strengths), axis=1).astype(np.float64)
    if weight is not None:
        use *= weight[:, None]
    v = solve(spectrum, loss, use, np.tile(strengths, folds), CV_TOLERANCE)
    margins = (spectrum.rows @ v).reshape(len(fold), folds, len(strengths))
    return margins[np.arange(len(fold)), fold]
