"""A ridge head whose taste varies with the prompt: nearby prompts share it, and unlabelled prompts say what is near."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_finite, check_latents, check_pairs, prompt_folds
from penchant.heads.linear import STRENGTHS, TOLERANCE, BradleyTerryLoss, Spectrum, pick_strength, solve
from penchant.latents import LatentPairs, Recipe

if TYPE_CHECKING:
    from penchant.backbone import Backbone

Array = NDArray[Any]

MOST_PAIRS = 5000
"""The Gram matrix of all pairs is decomposed: memory grows with the square of their number, time with the cube."""
SCORED_ROWS = 4096
"""Responses whose features are held at once."""
PCA_ROWS = 4000
"""Prompts from which the directions of context are taken, at most."""


class ContextHead(Head, kind="context"):
    """score(x, p) = w . f(x) + sum_j z_j(p) (w_j . f(x)), fitted by ridge Bradley-Terry on pairs.

    f(x) holds the response's latent, centered, and its squashed form tanh((x - center) / scale), each view of each
    scaled to unit mean square difference. z(p) in R^k are the leading principal coordinates of the prompt's latent,
    each divided by the square root of its deviation (half whitened) and all together scaled to mean |z|^2 = 1; a
    prompt of no tokens has z = 0. With a Gaussian prior of variance 1 on w and `context` on each w_j this is a Gaussian
    process over pairs with covariance

        k(i, l) = (f(chosen_i) - f(rejected_i)) . (f(chosen_l) - f(rejected_l)) (1 + context z_i . z_l):

    a pair says much about pairs with a like prompt and little about others. What is near is learned from unlabelled
    latents: they give center, scale and z. context = 0 is a ridge head on f. Swapping chosen and rejected flips every
    weight's sign.

    Needs latents with one view "LAYER:prompt" or more, beside views of the response.

    Args:
        context: prior variance of the prompt-dependent weights, relative to that of the shared ones.
        components: k, the most directions of context.
        strengths: ridge penalties tried by cross-validation with whole prompts held out.
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, and which are taken where there are more than 4,000.

    Attributes:
        weight_, center_, scale_, prompt_center_, prompt_axes_: float64 [1 + k, f], [d], [d], [p] and [p, k], with d
            columns of response views and f = 2 d.
        strength_, cv_accuracy_, cv_margins_: as in LinearHead.
    """

    tensors = ("weight_", "center_", "scale_", "prompt_center_", "prompt_axes_")
    facts = ("strength_", "cv_accuracy_", "recipe_")
    takes_unlabelled = True

    weight_: Array
    center_: Array
    scale_: Array
    prompt_center_: Array
    prompt_axes_: Array
    strength_: float
    cv_accuracy_: float | None
    cv_margins_: Array | None
    recipe_: dict[str, Any]

    def __init__(
        self,
        context: float = 1.0,
        components: int = 64,
        strengths: tuple[float, ...] = STRENGTHS,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.context = context
        self.components = components
        self.strengths = strengths
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs, unlabelled: Array | None = None) -> Self:
        """Learn from pairs, and from `unlabelled` latents [m, recipe.dim] of any responses to any prompts.

        Raises InputError for fewer than 2 or more than 5,000 pairs, latents without a prompt view or a response view,
        NaN or inf, or arguments out of range.
        """
        self.check_arguments()
        pairs = pairs.in_memory()
        check_pairs(pairs)
        recipe = pairs.recipe
        if not (recipe.prompt_views and recipe.response_views):
            given = ", ".join(recipe.views)
            raise InputError(
                f"the context head needs a view of the prompt and one of the response, got {given};"
                " add one such as 24:prompt"
            )
        if len(pairs) > MOST_PAIRS:
            raise InputError(
                f"the context head takes at most {MOST_PAIRS} pairs, got {len(pairs)}; use fewer or the linear head"
            )
        self.recipe_ = recipe.to_dict()
        pool = np.concatenate([pairs.chosen, pairs.rejected])
        if unlabelled is not None:
            check_finite(check_latents(unlabelled, recipe.dim), "unlabelled latent in row")
            pool = np.concatenate([pool, unlabelled])
        response, prompt = self._columns()
        self.center_ = pool[:, response].mean(axis=0, dtype=np.float64)
        self.scale_ = deviation_of(pool[:, response])
        self._fit_context(np.unique(pool[:, prompt], axis=0))

        features = self._features(pairs.chosen) - self._features(pairs.rejected)
        gain = view_gain(features, recipe.width)
        features *= gain
        gates = self._gates(pairs.chosen)
        alpha = self._solve(features @ features.T * (gates @ gates.T), pairs.group)
        self.weight_ = (gates.T * alpha) @ features * gain
        return self

    def score(self, latents: Array) -> Array:
        self._check_fitted()
        latents = check_latents(latents, len(self._columns()[0]) + len(self._columns()[1]))
        scores = np.empty(len(latents), np.float32)
        for start in range(0, len(latents), SCORED_ROWS):
            block = latents[start : start + SCORED_ROWS]
            scores[start : start + SCORED_ROWS] = (self._features(block) @ self.weight_.T * self._gates(block)).sum(1)
        return scores

    @property
    def parameters(self) -> int:
        return int(self.weight_.size)

    def _columns(self) -> tuple[Array, Array]:
        recipe = Recipe.from_dict(self.recipe_)
        return recipe.columns(recipe.response_views), recipe.columns(recipe.prompt_views)

    def _features(self, latents: Array) -> Array:
        """f(x) [n, 2 d] before the views are scaled; the scale is folded into the weights."""
        x = latents[:, self._columns()[0]] - self.center_
        return np.concatenate([x, np.tanh(x / self.scale_)], axis=1)

    def _gates(self, latents: Array) -> Array:
        """[n, 1 + k]: one, and the square root of `context` times z."""
        prompts = latents[:, self._columns()[1]]
        z = (prompts - self.prompt_center_) @ self.prompt_axes_ * prompts.any(axis=1, keepdims=True)
        return np.concatenate([np.ones((len(z), 1)), np.sqrt(self.context) * z], axis=1)

    def _fit_context(self, prompts: Array) -> None:
        """Principal axes of the standardised prompts [m, p], half whitened."""
        if len(prompts) > PCA_ROWS:
            prompts = prompts[np.random.default_rng(self.random_state).choice(len(prompts), PCA_ROWS, replace=False)]
        deviation = deviation_of(prompts)
        self.prompt_center_ = prompts.mean(axis=0, dtype=np.float64)
        z = (prompts - self.prompt_center_) / deviation
        _, size, axes = np.linalg.svd(z, full_matrices=False)
        kept = int(min(self.components, (size > 1e-6 * max(size[0], 1e-300)).sum()))
        axes = axes[:kept].T / np.sqrt(size[:kept])
        total = np.sqrt(np.square(z @ axes).sum(axis=1).mean()) if kept else 1.0
        self.prompt_axes_ = axes / deviation[:, None] / total

    def _solve(self, gram: Array, group: Array) -> Array:
        """The dual weights alpha [n] of the pairs: each pair's score difference is gram @ alpha."""
        size = np.trace(gram) / len(gram)
        spectrum = Spectrum.of_gram(gram / size)
        loss = BradleyTerryLoss(np.zeros((len(gram), 1)), 0.0)
        fold = prompt_folds(group, self.folds, self.random_state)
        self.strength_, self.cv_accuracy_, self.cv_margins_ = pick_strength(spectrum, loss, fold, self.strengths)
        v = solve(spectrum, loss, np.ones((len(gram), 1)), np.array([self.strength_]), TOLERANCE)[:, 0]
        alpha: Array = spectrum.axes @ v / size
        return alpha

    def check_encoding(self, backbone: Backbone, recipe: Recipe, pairs: int) -> None:
        if not recipe.prompt_views:
            layer = recipe.layers[-1]
            raise InputError(
                f"the context head needs a view of the prompt, and {', '.join(recipe.views)} has none;"
                f" add {layer}:prompt"
            )
        if pairs > MOST_PAIRS:
            raise InputError(
                f"the context head takes at most {MOST_PAIRS} pairs, got {pairs}; use fewer or another head"
            )

    def check_arguments(self) -> None:
        if not 0 <= self.context < np.inf:
            raise InputError(f"context is {self.context}; give a finite number of 0 or more")
        if self.components < 1 or self.folds < 2:
            raise InputError(
                f"components is {self.components} and folds is {self.folds}; give at least 1 component and 2 folds"
            )
        if bad := [s for s in self.strengths if not 0 < s < np.inf]:
            raise InputError(f"strength is {bad[0]}; give a finite number above 0")


def deviation_of(rows: Array) -> Array:
    """Standard deviation [d] of each column, 1 where it is constant."""
    deviation = rows.std(axis=0, dtype=np.float64)
    return np.where(deviation > 0, deviation, 1.0)


def view_gain(features: Array, width: int) -> Array:
    """What each column [f] is multiplied by, so that each view of each form has mean square difference 1."""
    square = np.square(features).mean(axis=0).reshape(-1, width).sum(axis=1)
    return np.repeat(1 / np.sqrt(np.where(square > 0, square, 1.0)), width)
