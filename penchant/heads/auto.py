"""Picks views, kind of head and strength by cross-validation on the training pairs, and says what it tried."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from penchant.heads.base import HEADS, Head, check_latents, check_pairs, pair_accuracy, prompt_folds
from penchant.heads.linear import LinearHead
from penchant.latents import LatentPairs, Recipe

Array = NDArray[Any]
Views = tuple[str, ...]


def candidate_views(views: Views) -> list[Views]:
    """Every single view, every layer's poolings side by side, every pooling's layers side by side, and all views."""
    single: list[Views] = [(view,) for view in views]
    layers = dict.fromkeys(view.split(":")[0] for view in views)
    poolings = dict.fromkeys(view.split(":")[1] for view in views)
    by_layer = [tuple(v for v in views if v.split(":")[0] == layer) for layer in layers]
    by_pooling = [tuple(v for v in views if v.split(":")[1] == pooling) for pooling in poolings]
    return list(dict.fromkeys([*single, *by_layer, *by_pooling, views]))


class AutoHead(Head, name="auto"):
    """The best of the linear heads on `candidate_views`, judged by prompt-grouped cross-validation.

    Args:
        folds: parts of the cross-validation.
        random_state: which prompts share a fold.

    Attributes:
        views_: the views chosen.
        head_: the head fitted on `pairs.select(views_)`.
        tried_: one dict a candidate: views, head, strength, cv_accuracy, chosen.
        cv_accuracy_: the chosen candidate's out-of-fold accuracy, or None with one prompt only. As the best of several
            it is a little too high; judge the head on other pairs.
        cv_margins_: the chosen candidate's out-of-fold score differences [n], or None; not saved.
    """

    tensors = ("head_",)
    facts = ("views_", "recipe_", "tried_", "cv_accuracy_")

    views_: Views
    head_: Head
    recipe_: Recipe
    tried_: list[dict[str, Any]]
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(self, folds: int = 5, random_state: int = 0) -> None:
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, or only equal latents."""
        check_pairs(pairs)
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
        head.head_ = HEADS[learned["head_"]["head"]].from_state(learned["head_"], tensors)
        return head
