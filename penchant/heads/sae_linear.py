"""SARM's light mode: a linear head on sparse activations, whose features can be read and turned up or down."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import prompt_folds
from penchant.heads.linear import STRENGTHS, TOLERANCE, BradleyTerryLoss, LinearHead, Spectrum, pick_strength, solve
from penchant.heads.sae_features import SAEHead, encode_views, keep_encoder
from penchant.latents import LatentPairs
from penchant.sae.autoencoder import SparseAutoencoder

Array = NDArray[Any]

STRENGTH_PAIRS = 2000
"""Pairs by which the strength is chosen, at most: the time for it grows with their cube."""


class SAELinearHead(SAEHead, kind="sae"):
    """score(x) = sum_j w_j a_j(z), with a(z) >= 0 the SAE's activations of the hidden state z, mostly 0.

    w minimises sum_i l(w . (a(chosen_i) - a(rejected_i))) + strength / 2 |scale * w|^2, l the Bradley-Terry loss and
    scale one number a view, as in LinearHead; there is no intercept. A feature is a latent in one view that is active
    in some training state; every other latent has weight 0.

    Args:
        sae: folder or hub name of a sparse autoencoder, or the object.
        strength: ridge penalty; None picks it from `strengths` by cross-validation with whole prompts held out, among
            at most 2,000 pairs.
        strengths: the grid tried then.
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, and which are taken where there are more than 2,000 pairs.

    Attributes:
        features_, feature_view_, encoder_: see SAEHead.
        weight_: float64 [f], as learned; steering leaves it alone.
        steering_: {latent: factor} of the latents that are steered.
        strength_, cv_accuracy_, cv_margins_: as in LinearHead.
    """

    tensors = ("weight_", "features_", "feature_view_")
    facts = ("recipe_", "steering_", "strength_", "cv_accuracy_")

    weight_: Array
    steering_: dict[int, float]
    strength_: float
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(
        self,
        sae: str | Path | SparseAutoencoder,
        strength: float | None = None,
        strengths: tuple[float, ...] = STRENGTHS,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.sae = sae
        self.strength = strength
        self.strengths = strengths
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, views that the SAE does not read,
        activations that are equal in all pairs, or arguments out of range."""
        pairs = pairs.in_memory()
        sae = self.start(pairs)
        encoder = keep_encoder(sae)
        chosen, rejected = (encode_views(encoder, self.states(side)) for side in (pairs.chosen, pairs.rejected))
        active = np.flatnonzero((chosen + rejected).sum(axis=0))
        self.feature_view_, self.features_ = np.divmod(active, sae.config.d_sae)
        difference = (chosen - rejected)[:, active].astype(np.float64)
        values = difference.multiply(difference).sum(axis=0)
        if not values.any():
            raise InputError(f"the SAE {sae.source!r} is equally active in chosen and rejected states of all pairs")
        # Each view's root mean square times the square root of their number, so that a row's mean square is 1.
        square = np.bincount(self.feature_view_, values) / len(pairs)
        scale = np.sqrt(np.where(square > 0, square, 1.0) * np.count_nonzero(square))[self.feature_view_]
        rows = difference.multiply(1 / scale).tocsr()

        self._pick_strength(rows, pairs.group)
        spectrum = Spectrum(rows, values / scale**2, np.eye(0))
        loss, everything = BradleyTerryLoss(np.zeros((len(pairs), 1)), 0.0), np.ones((len(pairs), 1))
        v = solve(spectrum, loss, everything, np.array([self.strength_]), TOLERANCE)[:, 0]
        self.weight_, self.steering_, self.encoder_ = v / scale, {}, encoder
        return self

    def score(self, latents: Array) -> Array:
        """Float32 scores [n]; a feature that is silent in a response adds nothing to its score, whatever its weight."""
        scores: Array = (self.codes(latents) @ self.steered_weight_).astype(np.float32)
        return scores

    @property
    def steered_weight_(self) -> Array:
        """The weights [f] that scores use: `weight_`, times its factor where the latent is steered."""
        self._check_fitted()
        factor = np.array([self.steering_.get(int(latent), 1.0) for latent in self.features_])
        weight: Array = self.weight_ * factor
        return weight

    def steer(self, feature: int, factor: float) -> Self:
        """A copy of this head with the weight of one SAE latent, in every view, `factor` times what was learned.

        The factor replaces an earlier one of that latent, and 1 undoes it; other latents' factors stay. Responses in
        which the latent is silent keep their score bit for bit.

        Raises InputError for a latent that no training state activated, or a factor that is not finite.
        """
        self._check_fitted()
        if feature not in self.features_:
            raise InputError(f"no training state activated latent {feature}, so its weight is 0; steer another")
        if not math.isfinite(factor):
            raise InputError(f"the factor is {factor}; give a finite number, such as 0 or 2")
        steered = copy.copy(self)
        steered.steering_ = {**self.steering_, int(feature): float(factor)}
        if factor == 1:
            del steered.steering_[int(feature)]
        return steered

    def feature_scores(self, pairs: LatentPairs) -> Array:
        """SARM's sensitivity [f] of each feature to the pairs' preference: (c - j) / (c + j + mean(c + j)).

        c and j are the feature's activation summed over the chosen and over the rejected states. The largest are the
        features that make these pairs' chosen responses differ, and so the ones to steer for them.
        """
        c, j = (self.codes(side).sum(axis=0) for side in (pairs.chosen, pairs.rejected))
        mean = (c + j).mean()
        scores: Array = (c - j) / np.where(mean > 0, c + j + mean, 1.0)
        return scores

    def activations(self, latents: Array) -> Array:
        """a_j(z): float32 [n, f], of latents [n, recipe.dim]."""
        dense: Array = self.codes(latents).toarray()
        return dense

    def contributions(self, latents: Array) -> Array:
        """w_j a_j(z), steered: float64 [n, f], whose rows sum to the scores."""
        shares: Array = self.activations(latents) * self.steered_weight_
        return shares

    base_ = 0.0
    """The score of a response in which no feature is active."""
    additive = True
    """A feature's contribution depends on no other feature."""

    @property
    def parameters(self) -> int:
        return len(self.weight_)

    def _pick_strength(self, rows: csr_array, group: Array) -> None:
        if self.strength is not None:
            self.strength_, self.cv_accuracy_, self.cv_margins_ = self.strength, None, None
            return
        prompts, member = np.unique(group, return_inverse=True)
        place = np.random.default_rng(self.random_state).permutation(len(prompts))[member]
        some = np.sort(np.argsort(place, kind="stable")[:STRENGTH_PAIRS])
        spectrum = Spectrum.of_gram((rows[some] @ rows[some].T).toarray())
        loss = BradleyTerryLoss(np.zeros((len(some), 1)), 0.0)
        fold = prompt_folds(group[some], self.folds, self.random_state)
        self.strength_, self.cv_accuracy_, self.cv_margins_ = pick_strength(spectrum, loss, fold, self.strengths)

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        head = super().from_state(config, tensors)
        head.steering_ = {int(latent): factor for latent, factor in head.steering_.items()}  # JSON's keys are strings
        return head

    def check_arguments(self) -> None:
        LinearHead(self.strength, self.strengths, folds=self.folds).check_arguments()
