"""Heads that can be read through an SAE: those made on one, and a linear head on the states that one describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from penchant.errors import InputError
from penchant.heads.linear import LinearHead
from penchant.heads.sae_features import check_views, sparse_activations
from penchant.heads.sae_linear import SAELinearHead
from penchant.heads.sparse import SparseHead
from penchant.latents import Recipe
from penchant.reward_model import RewardModel
from penchant.sae.autoencoder import SparseAutoencoder
from penchant.sae.formats import load_sae

Array = NDArray[Any]
REST = -1
"""Stands among `features_` for what the SAE does not describe of the states in a view."""


class Parts(Protocol):
    """A score as a sum over f features, each an SAE latent read in one view."""

    features_: Array
    """Int [f], the SAE latent behind each."""

    @property
    def feature_views_(self) -> tuple[str, ...]: ...
    @property
    def base_(self) -> float: ...
    @property
    def additive(self) -> bool: ...
    def activations(self, latents: Array) -> Array:
        """What the score is made from, [n, f]."""
        ...

    def contributions(self, latents: Array) -> Array:
        """Float64 [n, f]; with `base_` they add up to the score, exactly where `additive`."""
        ...


class LinearParts:
    """The score w . x of a linear head, x = W_dec a + b_dec + rest, as sum_j a_j (w . d_j) + w . b_dec + w . rest.

    For each view there are the SAE's m latents and, last, REST: what its reconstruction leaves of the state, and, for
    an SAE that normalises each state, the state's mean and the decoder's bias as well, whose size varies then.
    """

    additive = True

    def __init__(self, head: LinearHead, recipe: Recipe, sae: SparseAutoencoder) -> None:
        check_views(sae, recipe)
        self.recipe, self.sae = recipe, sae
        m, views = sae.config.d_sae, recipe.response_views
        self.features_ = np.tile(np.append(np.arange(m), REST), len(views))
        self.feature_views_ = tuple(view for view in views for _ in range(m + 1))
        self.weight = head.weight_[recipe.columns(views)].reshape(len(views), recipe.width)
        scaled = self.weight / sae.config.scale
        self.weights = scaled @ sae.W_dec.detach().double().cpu().numpy().T  # [views, m]
        self.biases = scaled @ sae.b_dec.detach().double().cpu().numpy()
        if sae.config.normalize != "none":
            self.biases[:] = 0.0
        self.base_ = float(self.biases.sum())

    def activations(self, latents: Array) -> Array:
        """Float32 [n, f]; 0 for REST."""
        silent = np.zeros((len(latents), 1), np.float32)
        found = [sparse_activations(self.sae, states).toarray() for states in view_states(latents, self.recipe)]
        return np.concatenate([part for one in found for part in (one, silent)], axis=1)

    def contributions(self, latents: Array) -> Array:
        parts = []
        for view, states in enumerate(view_states(latents, self.recipe)):
            spread = torch.as_tensor(self.sae.normalized(torch.from_numpy(states)).std).double().numpy()
            described = sparse_activations(self.sae, states).toarray() * self.weights[view] * spread
            rest = states.astype(np.float64) @ self.weight[view] - described.sum(1) - self.biases[view]
            parts += [described, rest[:, None]]
        return np.concatenate(parts, axis=1)


class Reading:
    """The parts of a reward model's score, and the SAE that says what activates them.

    Attributes:
        parts: see `Parts`.
        sae: the SAE.
        layer: that of the states it reads.
    """

    def __init__(self, rm: RewardModel, sae: SparseAutoencoder | str | Path | None = None) -> None:
        """`sae` is the SAE, its folder or hub name; without it, that of the head.

        Raises InputError for a head that cannot be read through an SAE, and for an SAE that does not belong to it.
        """
        head, self.recipe = rm.head, rm.recipe
        given = load_sae(sae) if isinstance(sae, (str, Path)) else sae
        self.parts: Parts
        if isinstance(head, (SAELinearHead, SparseHead)):
            self.sae, self.parts = sae_behind(head, given), head
        elif isinstance(head, LinearHead):
            if given is None:
                raise InputError("a linear head is explained through an SAE of its layer; name its folder with --sae")
            self.sae, self.parts = given, LinearParts(head, self.recipe, given)
        else:
            raise InputError(
                f"a head of kind {head.name!r} has no features to explain it by; train with --head sae or --head"
                " sparse, or explain a linear head with --sae"
            )
        self.layer = int(self.recipe.response_views[0].split(":")[0])

    def codes(self, latents: Array) -> Array:
        """Float32 [n, f]: how active the SAE latent behind each feature is in the feature's view; 0 for REST."""
        views = np.array(self.parts.feature_views_, object)
        found = np.zeros((len(latents), len(views)), np.float32)
        for view, states in zip(self.recipe.response_views, view_states(latents, self.recipe), strict=True):
            here = np.flatnonzero((views == view) & (self.parts.features_ != REST))
            found[:, here] = sparse_activations(self.sae, states)[:, self.parts.features_[here]].toarray()
        return found


def view_states(latents: Array, recipe: Recipe) -> list[Array]:
    """The columns [n, width] of each response view of latents [n, recipe.dim]."""
    return [latents[:, recipe.columns((view,))] for view in recipe.response_views]


def sae_behind(head: SAELinearHead | SparseHead, given: SparseAutoencoder | None) -> SparseAutoencoder:
    """The SAE that the head carries, else the one given, else the one it names; InputError if it is not the head's."""
    if isinstance(head, SparseHead) and head.directions == "random":
        raise InputError("this head scores random directions, which are no features; there is nothing to explain it by")
    if head.encoder_ is not None:
        if given is not None:
            raise InputError("this head carries its own SAE and can be explained through no other; leave --sae out")
        return head.encoder_
    sae = given if given is not None else head.autoencoder()
    if isinstance(head, SparseHead) and not _has_directions(sae, head):
        raise InputError(f"this head was not made from the SAE {sae.source!r}; name the right one with --sae")
    return sae


def _has_directions(sae: SparseAutoencoder, head: SparseHead) -> bool:
    if sae.config.d_in != head.directions_.shape[1] or sae.config.d_sae <= head.features_.max():
        return False
    rows = torch.nn.functional.normalize(sae.W_dec.detach()[head.features_].float(), dim=1).cpu().numpy()
    return bool(np.allclose(rows, head.directions_, atol=1e-4))
