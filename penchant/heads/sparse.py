"""SparseRM: a small head on the few SAE directions that tell chosen from rejected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import pair_accuracy, prompt_folds
from penchant.heads.linear import (
    CV_TOLERANCE,
    STRENGTHS,
    BradleyTerryLoss,
    LinearHead,
    Spectrum,
    column_scale,
    solve,
)
from penchant.heads.mlp import MLPHead, pair_margins
from penchant.heads.sae_features import SAEHead, encode_views, keep_encoder
from penchant.heads.selection import CRITERIA, Selection, random_directions, select_latents
from penchant.latents import LatentPairs
from penchant.sae.autoencoder import SparseAutoencoder

Array = NDArray[Any]


class SparseHead(SAEHead, kind="sparse"):
    """score(x) = g(V z), or g(a_S(z)): z the hidden state [d] at the SAE's layer, g a small head.

    S are the SAE latents that tell chosen from rejected states, the k that point most to chosen and the k that point
    most to rejected (see `select_latents`); V [f, d] are their decoder rows, of unit length, and a_S their activations.
    There may be fewer than 2 k. With several views, a latent in one and the same in another are two.

    Everything is cross-validated with whole prompts held out, the selection included: a held-out pair is scored by
    latents and a head that know nothing of its prompt. The strength (linear) or the number of epochs (mlp) with the
    least out-of-fold loss is used for the fit on all pairs.

    The paper's setting is SparseHead(sae, k=128, selection="frequency", features="projection", inner="mlp",
    loss="margin").

    Args:
        sae: folder or hub name of a sparse autoencoder, or the object.
        k: latents kept of each kind.
        selection: "frequency" compares how often a latent is active, "activation" how strongly.
        features: what g sees, "projection" V z or "activation" a_S(z).
        directions: "selected", or "random": V is 2 k random unit directions, and what g sees V z. A control.
        inner: g, "linear", a ridge Bradley-Terry head, or "mlp", one hidden layer.
        loss: of the mlp: "bradley-terry" or "margin", max(0, margin - (score+ - score-)).
        margin: of the margin loss.
        hidden: width of the mlp's hidden layer.
        strengths: ridge penalties that the linear head tries.
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, random directions, the mlp's start, order and dropout.

    Attributes:
        features_, feature_view_, encoder_: see SAEHead; features_ is -1 for random directions.
        directions_: float32 [f, d], the rows of V.
        frequencies_: float64 [f, 2], the shares of all chosen and of all rejected training states in which each latent
            is active; NaN for random directions.
        center_: float64 [f], from where contributions are counted: what g sees of the mean training state, or, where g
            is linear in activations, none (0).
        head_: g, a fitted LinearHead or MLPHead.
        cv_accuracy_, cv_margins_: as in LinearHead.
    """

    tensors = ("directions_", "features_", "feature_view_", "frequencies_", "center_")
    facts = ("recipe_", "cv_accuracy_")

    directions_: Array
    frequencies_: Array
    center_: Array
    head_: LinearHead | MLPHead
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(
        self,
        sae: str | Path | SparseAutoencoder,
        k: int = 64,
        selection: str = "frequency",
        features: str = "projection",
        directions: str = "selected",
        inner: str = "linear",
        loss: str = "bradley-terry",
        margin: float = 1.0,
        hidden: int = 512,
        strengths: tuple[float, ...] = STRENGTHS,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.sae = sae
        self.k = k
        self.selection = selection
        self.features = features
        self.directions = directions
        self.inner = inner
        self.loss = loss
        self.margin = margin
        self.hidden = hidden
        self.strengths = strengths
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, views that the SAE does not read,
        no latent that tells chosen from rejected states, or arguments out of range."""
        pairs = pairs.in_memory()
        sae = self.start(pairs)
        fold = prompt_folds(pairs.group, self.folds, self.random_state)
        sides = self.states(pairs.chosen), self.states(pairs.rejected)
        if self.directions == "random":
            selections = [random_directions(sae, len(self.views_), self.k, self.random_state)] * (fold.max() + 2)
        else:
            encoder = keep_encoder(sae)
            codes = encode_views(encoder, sides[0]), encode_views(encoder, sides[1])
            selections = select_latents(sae, *codes, fold, self.k, self.selection)
        if not all(len(selection.features) for selection in selections):
            raise InputError(f"no latent of the SAE {sae.source!r} tells chosen from rejected states; give more pairs")

        def seen(selection: Selection) -> LatentPairs:
            """The pairs as g sees them: one view of f numbers."""
            if self._projects:
                chosen, rejected = selection.project(sides[0]), selection.project(sides[1])
            else:
                columns = selection.view * sae.config.d_sae + selection.features
                chosen, rejected = (side[:, columns].toarray() for side in codes)
            recipe = replace(pairs.recipe, views=self.views_[:1], width=len(selection.features))
            return replace(pairs, chosen=chosen, rejected=rejected, prompt=np.zeros_like(chosen), recipe=recipe)

        *others, kept = selections
        self.features_, self.feature_view_, self.directions_, self.frequencies_ = kept
        self.encoder_ = None if self._projects else encoder
        everything = seen(kept)
        self.center_ = np.concatenate([everything.chosen, everything.rejected]).mean(axis=0, dtype=np.float64)
        if self.inner == "linear" and not self._projects:
            self.center_[:] = 0
        fit = self._fit_linear if self.inner == "linear" else self._fit_mlp
        self.cv_margins_ = fit(everything, map(seen, others), fold)
        self.cv_accuracy_ = None if self.cv_margins_ is None else pair_accuracy(self.cv_margins_)
        return self

    def score(self, latents: Array) -> Array:
        return self.head_.score(self.activations(latents))

    def activations(self, latents: Array) -> Array:
        """What g sees of latents [n, recipe.dim]: projections or activations [n, f]."""
        self._check_fitted()
        if not self._projects:
            dense: Array = self.codes(latents).toarray()
            return dense
        kept = Selection(self.features_, self.feature_view_, self.directions_, self.frequencies_)
        return kept.project(self.states(latents))

    def contributions(self, latents: Array) -> Array:
        """Float64 [n, f]: what each feature adds to `base_`; the sums are the scores.

        For the linear head a weight times what differs from `center_`; for the mlp integrated gradients from there.
        """
        found = self.activations(latents)
        if isinstance(self.head_, MLPHead):
            return self.head_.contributions(found)
        shares: Array = (found - self.center_) * self.head_.weight_
        return shares

    @property
    def base_(self) -> float:
        """The score of `center_`."""
        self._check_fitted()
        return float(self.head_.score(self.center_[None])[0])

    @property
    def additive(self) -> bool:
        """Whether a feature's contribution depends on no other feature."""
        return self.inner == "linear"

    @property
    def parameters(self) -> int:
        return self.head_.parameters

    @property
    def strength_(self) -> float | None:
        """The linear head's ridge penalty."""
        return getattr(self.head_, "strength_", None)

    def _fit_linear(self, everything: LatentPairs, parts: Iterable[LatentPairs], fold: Array) -> Array | None:
        """Fit g on the projections of all pairs; the out-of-fold margins [n], each from its own part's projections."""
        if fold.max() == 0:
            self.head_ = self._linear().fit(everything)  # warns
            return None
        loss, grid = BradleyTerryLoss(np.zeros((len(fold), 1)), 0.0), np.array(self.strengths)
        margins = np.empty((len(fold), len(grid)))
        for number, part in zip(range(fold.max() + 1), parts, strict=False):
            held_out = fold == number
            difference = part.chosen - part.rejected
            spectrum = Spectrum.of(difference / column_scale(difference, part.recipe.width))
            use = np.repeat(~held_out[:, None], len(grid), axis=1).astype(np.float64)
            v = solve(spectrum, loss, use, grid, CV_TOLERANCE)
            margins[held_out] = spectrum.rows[held_out] @ v
        best = int(np.argmin(loss.value(margins).mean(axis=0)))
        self.head_ = LinearHead(strength=self.strengths[best]).fit(everything)
        return margins[:, best]

    def _fit_mlp(self, everything: LatentPairs, parts: Iterable[LatentPairs], fold: Array) -> Array | None:
        """As `_fit_linear`; the folds are trained side by side until their common loss has stopped falling."""
        mlp = self._mlp()
        if fold.max() == 0:
            self.head_ = mlp.fit(everything)
            return None
        runs = []
        for number, part in zip(range(fold.max() + 1), parts, strict=False):
            seen = part.take(fold != number)
            mlp.standardise_by(np.concatenate([seen.chosen, seen.rejected]))
            sides = mlp.sides(part.chosen, part.rejected)
            runs.append((fold == number, sides, mlp.training(sides[:, fold != number])))
        margins, kept = torch.empty(len(fold)), None
        best_loss, best_epoch = float("inf"), 0
        for epoch in range(1, mlp.epochs + 1):
            for held_out, sides, training in runs:
                margins[held_out] = pair_margins(sides[:, held_out], next(training))
            loss = float(mlp.loss_of(margins).mean())
            if epoch == 1 or loss < best_loss:
                best_loss, best_epoch, kept = loss, epoch, margins.numpy().copy()
            elif epoch - best_epoch >= mlp.patience:
                break
        self.head_ = mlp.fit_for(everything, best_epoch)
        return kept

    @property
    def _projects(self) -> bool:
        return self.features == "projection" or self.directions == "random"

    def _linear(self) -> LinearHead:
        return LinearHead(strengths=self.strengths, folds=self.folds, random_state=self.random_state)

    def _mlp(self) -> MLPHead:
        return MLPHead(hidden=self.hidden, loss=self.loss, margin=self.margin, random_state=self.random_state)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        config, tensors = super().state()
        config["learned"]["head_"], inner = self.head_.state()
        return config, tensors | {f"head.{name}": value for name, value in inner.items()}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        own = {name: value for name, value in tensors.items() if not name.startswith("head.")}
        inner = {name.removeprefix("head."): value for name, value in tensors.items() if name not in own}
        learned = {name: value for name, value in config["learned"].items() if name != "head_"}
        head = super().from_state({**config, "learned": learned}, own)
        kind = LinearHead if head.inner == "linear" else MLPHead
        head.head_ = kind.from_state(config["learned"]["head_"], inner)
        return head

    def check_arguments(self) -> None:
        choices = {
            "selection": CRITERIA,
            "features": ("projection", "activation"),
            "directions": ("selected", "random"),
            "inner": ("linear", "mlp"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(known)}")
        if self.k < 1 or self.folds < 2:
            raise InputError(f"k is {self.k} and folds is {self.folds}; give at least 1 latent and 2 folds")
        self._linear().check_arguments()
        self._mlp().check_arguments()
