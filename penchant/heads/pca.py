"""DRM: principal directions of chosen - rejected as heads, and a person's weights for them from a handful of pairs."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import softmax
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, pair_accuracy, prompt_folds
from penchant.heads.linear import (
    STRENGTHS,
    TOLERANCE,
    BradleyTerryLoss,
    Spectrum,
    column_scale,
    pick_strength,
    solve,
)
from penchant.latents import LatentPairs

Array = NDArray[Any]

FLOOR = 0.1
"""Least spread of a direction on a person's pairs, relative to its spread on all pairs."""


class PCAHead(Head, kind="pca"):
    """score(x) = sum_j taste_j c_j(x), c_j(x) = u_j . (x / scale): a weight for each of k shared directions.

    The directions u_j are the leading principal axes of the differences (chosen - rejected) / scale, scale as in
    LinearHead (`column_scale`). They are taken about zero and not about the mean, so that they do not depend on which
    response was chosen: with labels unseen, a held-out pair stays held out, and no number of pairs is too few. They
    are fitted once; a person's taste is then found by `adapt` from 5 to 50 pairs of theirs. `weighting` says how:

    - "map": Bradley-Terry with a ridge penalty. `fit` shrinks the taste towards 0 with a cross-validated strength,
      `adapt` towards that pooled taste with strength `prior`: the mode of the posterior under the Gaussian prior
      N(pooled taste, 1 / prior). Adapting moves no further from the pooled head than the pairs give reason to.
    - "softmax", DRM: u_j and -u_j are 2 k heads; each one's scores are z-scored (mean and standard deviation over the
      2 n responses of the very set); weights = softmax(-sum_i log(1 + exp(-margin_i)) / temperature) over the heads.
      At temperature 1 that is the posterior over the heads under a uniform prior. `adapt` knows nothing of the pooled
      taste.
    - "uniform", a control: every z-scored direction counts alike, with the sign of its mean margin.

    PCAHead(weighting="softmax", center=True) is DRM as published (its `fit` then weighs by all pairs at once).
    Swapping chosen and rejected flips every score.

    Args:
        components: k, the most directions; fewer where the differences span fewer.
        weighting: "map", "softmax" or "uniform".
        directions: "pca", or "random" for k random unit vectors in their place: the other control.
        center: principal axes about the mean difference.
        prior: strength of the pull towards the pooled taste in `adapt`, in LinearHead's units ("map"); None is 1, or
            what `fit` found for the pooled taste where that is less: where tastes are clear, so may be differences.
        temperature: of the softmax.
        strengths: ridge penalties that `fit` tries ("map").
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, and the random directions.

    Attributes:
        components_: float64 [k, d], u_j / scale, the widest first.
        spread_: float64 [k], standard deviation of c_j over the responses seen by `fit`.
        pooled_: float64 [k], taste of all pairs; taste_: float64 [k], that in use.
        adapted_: how many pairs `adapt` saw, 0 after `fit`.
        strength_: the penalty `fit` used, or None; cv_accuracy_, cv_margins_: as in LinearHead, None after `adapt`.
    """

    tensors = ("components_", "spread_", "pooled_", "taste_")
    facts = ("strength_", "cv_accuracy_", "adapted_")

    components_: Array
    spread_: Array
    pooled_: Array
    taste_: Array
    adapted_: int
    strength_: float | None
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(
        self,
        components: int = 50,
        weighting: Literal["map", "softmax", "uniform"] = "map",
        directions: Literal["pca", "random"] = "pca",
        center: bool = False,
        prior: float | None = None,
        temperature: float = 1.0,
        strengths: tuple[float, ...] = STRENGTHS,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.components = components
        self.weighting = weighting
        self.directions = directions
        self.center = center
        self.prior = prior
        self.temperature = temperature
        self.strengths = strengths
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Directions and pooled taste from all pairs.

        Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, or arguments out of range.
        """
        return self.fit_weighted(pairs, np.ones(len(pairs)))

    def fit_weighted(self, pairs: LatentPairs, weight: Array) -> Self:
        """`fit` where pair i counts weight[i] times, in the directions and, with "map", in the taste."""
        self.check_arguments()
        pairs = pairs.in_memory()
        check_pairs(pairs)
        difference = (pairs.chosen.astype(np.float64) - pairs.rejected) * np.sqrt(weight)[:, None]
        scale = column_scale(difference, pairs.recipe.width)
        self.components_ = self._directions(difference / scale) / scale
        chosen, rejected = self._features(pairs)
        self.spread_ = _deviation(chosen, rejected)
        self.adapted_, self.strength_, self.cv_margins_ = 0, None, None
        fold = prompt_folds(pairs.group, self.folds, self.random_state)
        if self.weighting == "map":
            margins = chosen - rejected
            plain = BradleyTerryLoss(np.zeros((len(pairs), 1)), 0.0)
            self.strength_, _, self.cv_margins_ = pick_strength(
                Spectrum.of(margins), plain, fold, self.strengths, weight
            )
            self.pooled_ = ridge_taste(margins, np.zeros(margins.shape[1]), self.strength_, weight)
        else:
            self.pooled_ = self._weigh(chosen, rejected)
            if fold.max() > 0:
                self.cv_margins_ = self._held_out(pairs, scale, fold)
        self.cv_accuracy_ = None if self.cv_margins_ is None else pair_accuracy(self.cv_margins_)
        self.taste_ = self.pooled_
        return self

    def adapt(self, pairs: LatentPairs) -> Self:
        """A copy with the taste of one person or subset, from n pairs of theirs; directions and pooled taste stay.

        Judge it on other pairs than these; `adaptation_split` sets some aside. Raises InputError as `fit` does, and
        RecipeMismatch for latents of another width.
        """
        self._check_fitted()
        check_latents(pairs.chosen, self.components_.shape[1])
        check_pairs(pairs)
        chosen, rejected = self._features(pairs)
        head = copy.copy(self)
        if self.weighting == "map":
            prior = min(1.0, self.strength_ or 1.0) if self.prior is None else self.prior
            head.taste_ = ridge_taste(chosen - rejected, self.pooled_, prior)
        else:
            head.taste_ = self._weigh(chosen, rejected)
        head.adapted_, head.cv_accuracy_, head.cv_margins_ = len(pairs), None, None
        return head

    def score(self, latents: Array) -> Array:
        self._check_fitted()
        latents = check_latents(latents, self.components_.shape[1])
        return (latents.astype(np.float64) @ self.weight_).astype(np.float32)

    @property
    def weight_(self) -> Array:
        """Float64 [d] with score(x) = weight_ . x."""
        weight: Array = self.taste_ @ self.components_
        return weight

    @property
    def parameters(self) -> int:
        return int(self.components_.shape[1])

    def _directions(self, difference: Array) -> Array:
        """[k, d] of unit length, orthogonal where they are principal axes."""
        if self.directions == "random":
            rows = np.random.default_rng(self.random_state).normal(size=(self.components, difference.shape[1]))
            rows *= difference.any(axis=0)  # a prompt's view is equal on both sides
            unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            return unit
        return principal_axes(difference - difference.mean(axis=0) if self.center else difference, self.components)

    def _features(self, pairs: LatentPairs) -> tuple[Array, Array]:
        """c [n, k] of the chosen and of the rejected responses."""
        return pairs.chosen @ self.components_.T, pairs.rejected @ self.components_.T

    def _weigh(self, chosen: Array, rejected: Array) -> Array:
        """Taste [k] by softmax or uniform weights of the z-scored directions; the mean of a z-score cancels."""
        spread = np.maximum(_deviation(chosen, rejected), FLOOR * self.spread_)
        margins = (chosen - rejected) / spread
        if self.weighting == "uniform":
            votes: Array = np.sign(margins.mean(axis=0)) / spread / len(spread)
            return votes
        both = np.concatenate([margins, -margins], axis=1)  # the heads and their negatives
        positive, negative = np.split(softmax(-np.logaddexp(0, -both).sum(axis=0) / self.temperature), 2)
        taste: Array = (positive - negative) / spread
        return taste

    def _held_out(self, pairs: LatentPairs, scale: Array, fold: Array) -> Array:
        """Out-of-fold margins [n]; centred axes know the labels, so they are found anew in each fold."""
        margins = np.empty(len(fold))
        for part in range(int(fold.max()) + 1):
            own, head = fold == part, copy.copy(self)
            seen = pairs.take(~own)
            if self.center:
                difference = (seen.chosen.astype(np.float64) - seen.rejected) / scale
                head.components_ = self._directions(difference) / scale
                head.spread_ = _deviation(*head._features(seen))
            chosen, rejected = head._features(pairs.take(own))
            margins[own] = (chosen - rejected) @ head._weigh(*head._features(seen))
        return margins

    def check_arguments(self) -> None:
        if self.components < 1 or self.folds < 2:
            raise InputError(
                f"components is {self.components} and folds is {self.folds}; give at least 1 component and 2 folds"
            )
        if self.weighting not in ("map", "softmax", "uniform"):
            raise InputError(f"weighting is {self.weighting!r}; give map, softmax or uniform")
        if self.directions not in ("pca", "random"):
            raise InputError(f"directions is {self.directions!r}; give pca or random")
        if self.center and self.weighting == "map":
            raise InputError('center=True is for DRM as published; give weighting="softmax", or center=False')
        for name, values in (
            ("prior", [] if self.prior is None else [self.prior]),
            ("temperature", [self.temperature]),
            ("strength", self.strengths),
        ):
            if bad := [value for value in values if not 0 < value < np.inf]:
                raise InputError(f"{name} is {bad[0]}; give a finite number above 0")


def principal_axes(rows: Array, most: int) -> Array:
    """The leading right singular vectors [k, d] of rows [n, d], k <= most, the largest entry of each positive."""
    n, d = rows.shape
    gram = rows @ rows.T if n < d else rows.T @ rows  # the smaller of the two has the same eigenvalues
    size = len(gram)
    values, vectors = eigh(gram, subset_by_index=[max(0, size - most), size - 1])
    keep = values > 1e-12 * np.trace(gram)
    if not keep.any():
        raise InputError(
            "all differences of chosen and rejected are equal, and nothing is left of them; use center=False"
        )
    axes = vectors[:, keep][:, ::-1].T
    if n < d:
        axes = axes @ rows / np.sqrt(values[keep][::-1, None])
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    turned: Array = axes * np.sign(largest)
    return turned


def adaptation_split(pairs: LatentPairs, n: int, random_state: int = 0) -> tuple[LatentPairs, LatentPairs]:
    """n pairs of one person to `adapt` from, and the rest to judge by: every pair whose prompt is not among those n.

    The n are drawn at random from about half of the prompts, so that both parts hold many; the first 5 of 15 are the 5
    that n = 5 draws. Raises InputError where half of the prompts do not have n pairs.
    """
    pool = np.flatnonzero(prompt_folds(pairs.group, 2, random_state) == 0)
    if len(pool) == len(pairs):
        raise InputError("all pairs share one prompt, so none are left to judge by; give pairs of more prompts")
    if not 1 <= n <= len(pool):
        raise InputError(f"n is {n}, and half of the prompts have {len(pool)} pairs; give a number from 1 to that")
    drawn = np.random.default_rng(random_state).permutation(pool)[:n]
    return pairs.take(drawn), pairs.take(~np.isin(pairs.group, pairs.group[drawn]))


def ridge_taste(margins: Array, center: Array, strength: float, weight: Array | None = None) -> Array:
    """The taste [k] that minimises sum_i weight_i log(1 + exp(-margins_i . taste)) + strength / 2 |taste - center|^2;
    every weight is 1 where it is None."""
    # Written for the step away from the center, whose margins are then a given advantage of the chosen one.
    spectrum, loss = Spectrum.of(margins), BradleyTerryLoss(-(margins @ center)[:, None], 0.0)
    use = np.ones((len(margins), 1)) if weight is None else weight[:, None]
    step = solve(spectrum, loss, use, np.array([strength]), TOLERANCE)[:, 0]
    taste: Array = center + spectrum.axes @ step
    return taste


def _deviation(chosen: Array, rejected: Array) -> Array:
    """Standard deviation [k] over all 2 n responses; 1 where there is none."""
    deviation = np.concatenate([chosen, rejected]).std(axis=0, ddof=1)
    return np.where(deviation > 0, deviation, 1.0)
