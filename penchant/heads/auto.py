"""Picks views, kind of head and strength by cross-validation on the training pairs, and says what it tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, head_of, pair_accuracy, prompt_folds
from penchant.heads.context import ContextHead
from penchant.heads.linear import LinearHead
from penchant.heads.mlp import MLPHead
from penchant.latents import SAMPLE_PAIRS, LatentPairs, Recipe

Array = NDArray[Any]
Views = tuple[str, ...]

CLEARLY = 1.5
"""Standard errors of the mean loss difference by which a candidate must beat the default."""
MLP_FROM = 500
"""Training pairs in every fold from which the MLP is worth its time; below, it loses to a linear head."""
CONTEXT_TO = 2500
"""Pairs up to which a context head takes seconds; its time grows with their cube."""


def candidate_views(views: Views) -> list[Views]:
    """Every single view, every layer's poolings side by side, every pooling's layers side by side, and all views."""
    single: list[Views] = [(view,) for view in views]
    layers = dict.fromkeys(view.split(":")[0] for view in views)
    poolings = dict.fromkeys(view.split(":")[1] for view in views)
    by_layer = [tuple(v for v in views if v.split(":")[0] == layer) for layer in layers]
    by_pooling = [tuple(v for v in views if v.split(":")[1] == pooling) for pooling in poolings]
    return list(dict.fromkeys([*single, *by_layer, *by_pooling, views]))


@dataclass(frozen=True)
class Candidate:
    views: Views
    head: Head
    """Not fitted on all pairs yet where it is an MLP."""
    margins: Array
    """Out-of-fold score differences [n]."""

    @property
    def losses(self) -> Array:
        """Out-of-fold Bradley-Terry losses [n]; far less noisy than accuracy as a criterion."""
        return np.logaddexp(0, -self.margins)


class AutoHead(Head, kind="auto"):
    """A context head, unless another candidate is clearly better in prompt-grouped cross-validation.

    The default is a context head on all views; without a view of the prompt, or with more than 2,500 pairs, a linear
    head on all views of the responses. The other candidates are a linear head on each of
    `candidate_views`, each with its own best strength, and from 500 pairs on an MLP on the best single view. The one
    with the lowest out-of-fold loss is taken if it beats the default by 1.5 standard errors (paired over pairs).
    Taking the lowest loss outright follows noise at a few hundred pairs.

    Where the latents lie in files, views and kind of head are chosen on 5,000 pairs at most, of random prompts, and the
    head chosen is then fitted on all of them, with the strength that their own cross-validation picks.

    Args:
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, and the MLP's seed.

    Attributes:
        views_: the views chosen.
        head_: the head fitted on `pairs.select(views_)`.
        tried_: one dict a candidate: views, head, strength (None for the MLP), cv_accuracy, cv_loss, chosen.
        cv_accuracy_: the chosen candidate's out-of-fold accuracy, or None with one prompt only. As one of several it
            can be a little too high; judge the head on other pairs.
        cv_margins_: the chosen candidate's out-of-fold score differences [n], or None; not saved.
        chosen_on_: the pairs on which the choice was made; not saved.
    """

    tensors = ("head_",)
    facts = ("views_", "recipe_", "tried_", "cv_accuracy_")
    streams = True
    takes_unlabelled = True

    views_: Views
    head_: Head
    recipe_: Recipe
    tried_: list[dict[str, Any]]
    cv_accuracy_: float | None
    cv_margins_: Array | None
    chosen_on_: int

    def __init__(self, folds: int = 5, random_state: int = 0) -> None:
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs, unlabelled: Array | None = None) -> Self:
        """Learn from n pairs; `unlabelled` latents [m, d] serve the context head.

        Raises InputError for fewer than 2 pairs, NaN or inf, or only equal latents.
        """
        if not pairs.mapped:
            return self._choose(pairs, unlabelled)
        some = pairs.sample(SAMPLE_PAIRS, self.random_state)
        self._choose(some, unlabelled)
        if len(some) < len(pairs):  # so no context head, which takes fewer than a sample
            head: Any = clone(self.head_)
            self.head_ = head.fit(pairs.select(self.views_))
            self.cv_margins_ = head.cv_margins_
            self.cv_accuracy_ = None if head.cv_margins_ is None else pair_accuracy(head.cv_margins_)
        return self

    def _choose(self, pairs: LatentPairs, unlabelled: Array | None) -> Self:
        """`fit` on pairs in memory."""
        check_pairs(pairs)
        self.recipe_, self.chosen_on_ = pairs.recipe, len(pairs)
        fold = prompt_folds(pairs.group, self.folds, self.random_state)
        if fold.max() == 0:
            self._fit_without_choice(pairs)
            return self

        recipe = pairs.recipe
        if not recipe.response_views:
            raise InputError(f"{', '.join(recipe.views)} is the same for every response; add a view such as 24:mean")
        candidates = [
            self._candidate(LinearHead(folds=self.folds, random_state=self.random_state), pairs, views)
            for views in candidate_views(recipe.response_views)
        ]
        if recipe.prompt_views and len(pairs) <= CONTEXT_TO:
            context = ContextHead(folds=self.folds, random_state=self.random_state)
            candidates.append(self._candidate(context, pairs, recipe.views, unlabelled))
        default = candidates[-1]
        if len(pairs) - np.bincount(fold).max() >= MLP_FROM:
            single = min((c for c in candidates if len(c.views) == 1), key=_mean_loss)
            candidates.append(self._mlp(pairs, single.views, fold))
        best = min(candidates, key=_mean_loss)
        chosen = best if clearly_better(best, default) else default

        self.views_, self.cv_margins_ = chosen.views, chosen.margins
        self.cv_accuracy_ = pair_accuracy(chosen.margins)
        self.head_ = chosen.head
        if isinstance(chosen.head, MLPHead):
            chosen.head.fit(pairs.select(chosen.views))
        self.tried_ = [
            {
                "views": list(c.views),
                "head": c.head.name,
                "strength": getattr(c.head, "strength_", None),
                "cv_accuracy": pair_accuracy(c.margins),
                "cv_loss": _mean_loss(c),
                "chosen": c is chosen,
            }
            for c in candidates
        ]
        return self

    def score(self, latents: Array) -> Array:
        """Float32 scores [n] of latents [n, d] of the whole recipe that `fit` saw."""
        self._check_fitted()
        latents = check_latents(latents, self.recipe_.dim)
        return self.head_.score(latents[:, self.recipe_.columns(self.views_)])

    def narrow(self) -> tuple[Head, Views]:
        """The inner head and the views it scores, which is all that scoring needs."""
        self._check_fitted()
        return self.head_, self.views_

    @property
    def parameters(self) -> int:
        return self.head_.parameters

    def _candidate(self, head: LinearHead | ContextHead, pairs: LatentPairs, views: Views, *others: Any) -> Candidate:
        """The head fitted on these views, with the margins of its own cross-validation."""
        head.fit(pairs.select(views), *others)
        assert head.cv_margins_ is not None  # there are two prompts or more
        return Candidate(views, head, head.cv_margins_)

    def _mlp(self, pairs: LatentPairs, views: Views, fold: Array) -> Candidate:
        narrow, margins = pairs.select(views), np.empty(len(pairs))
        for k in range(fold.max() + 1):
            head = MLPHead(random_state=self.random_state).fit(narrow.take(fold != k))
            held_out = narrow.take(fold == k)
            margins[fold == k] = head.score(held_out.chosen) - head.score(held_out.rejected)
        return Candidate(views, MLPHead(random_state=self.random_state), margins)

    def _fit_without_choice(self, pairs: LatentPairs) -> None:
        views = pairs.recipe.response_views
        head = LinearHead(random_state=self.random_state).fit(pairs.select(views))  # warns
        self.views_, self.head_, self.cv_accuracy_, self.cv_margins_ = views, head, None, None
        row = {"views": list(self.views_), "head": head.name, "strength": head.strength_}
        self.tried_ = [{**row, "cv_accuracy": None, "cv_loss": None, "chosen": True}]

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        self._check_fitted()
        inner, tensors = self.head_.state()
        learned = {name: getattr(self, name) for name in ("tried_", "cv_accuracy_")}
        learned |= {"views_": list(self.views_), "recipe_": self.recipe_.to_dict(), "head_": inner}
        return {"head": self.name, **self.get_params(), "learned": learned}, tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        learned = config["learned"]
        head = cls(**{k: v for k, v in config.items() if k not in ("head", "learned")})
        head.views_, head.recipe_ = tuple(learned["views_"]), Recipe.from_dict(learned["recipe_"])
        head.tried_, head.cv_accuracy_ = learned["tried_"], learned["cv_accuracy_"]
        head.head_ = head_of(learned["head_"], tensors)
        return head


def clearly_better(candidate: Candidate, default: Candidate) -> bool:
    """Whether the mean loss is lower by more than CLEARLY standard errors of the paired differences."""
    gain = default.losses - candidate.losses
    return bool(gain.mean() > CLEARLY * gain.std() / np.sqrt(len(gain)))


def _mean_loss(candidate: Candidate) -> float:
    return float(candidate.losses.mean())
