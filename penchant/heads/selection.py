"""SparseRM's selection: the SAE latents that are active more often, or more strongly, in chosen or rejected states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from penchant.sae.autoencoder import SparseAutoencoder

Array = NDArray[Any]

CRITERIA = ("frequency", "activation")


class Selection(NamedTuple):
    """The f latents kept, in the order of view and latent."""

    features: Array
    """int [f], the latents; -1 for random directions"""
    view: Array
    """int [f], in which of the views given"""
    directions: Array
    """float32 [f, d], their decoder rows, of unit length"""
    frequencies: Array
    """float64 [f, 2], the share of chosen and of rejected states in which the latent is active; NaN where random"""

    def project(self, states: Sequence[Array]) -> Array:
        """Inner products [n, f], float64, of the states [n, d] of each view with the directions."""
        found = np.empty((len(states[0]), len(self.view)))
        for place, x in enumerate(states):
            own = self.view == place
            found[:, own] = x.astype(np.float64) @ self.directions[own].T.astype(np.float64)
        return found


def select_latents(
    sae: SparseAutoencoder, chosen: csr_array, rejected: csr_array, part: Array, k: int, criterion: str
) -> list[Selection]:
    """For each number in `part` [n] the selection from all other pairs, in order, and last that from all pairs.

    `chosen` and `rejected` are the activations [n, views * m]. With mu_w[j] and mu_l[j] the shares of chosen and of
    rejected states in which latent j is active, "frequency" (the paper) ranks by mu_w - mu_l. "activation" ranks by
    sum_i D_ij / sqrt(sum_i D_ij^2 + c), D_ij the difference of pair i's activations and c the mean sum of squares of
    the view's active latents, so that what is seldom active does not lead by chance. The k largest above 0 and the k
    least below 0 are kept, ties going to the lower index.
    """
    one_hot = (part == np.arange(part.max() + 1)[:, None]).astype(np.float64)
    active = [_ones_where_active(side) for side in (chosen, rejected)]
    difference = active[0] - active[1] if criterion == "frequency" else (chosen - rejected).astype(np.float64)
    sums = {
        "chosen": one_hot @ active[0],
        "rejected": one_hot @ active[1],
        "difference": one_hot @ difference,
        "square": one_hot @ difference.multiply(difference),
    }
    sizes = one_hot.sum(axis=1)

    def selection(use: Array) -> Selection:
        """From the parts where `use` is 1."""
        rank = use @ sums["difference"]
        if criterion == "activation":
            square = (use @ sums["square"]).reshape(-1, sae.config.d_sae)
            prior = square.sum(axis=1, keepdims=True) / np.maximum((square > 0).sum(axis=1, keepdims=True), 1)
            rank = rank / np.sqrt(np.where(prior > 0, square + prior, 1.0)).ravel()
        kept = _both_ends(rank, k)
        view, features = np.divmod(kept, sae.config.d_sae)
        rows = sae.W_dec.detach()[features].float().cpu().numpy()
        counts = np.stack([use @ sums["chosen"][:, kept], use @ sums["rejected"][:, kept]], axis=1)
        return Selection(features, view, _unit(rows), counts / (use @ sizes))

    return [selection(use) for use in (*(1 - np.eye(len(sizes)))[len(sizes) == 1 :], np.ones(len(sizes)))]


def random_directions(sae: SparseAutoencoder, views: int, k: int, random_state: int) -> Selection:
    """2 k random unit directions, dealt evenly to the views."""
    rows = np.random.default_rng(random_state).normal(size=(2 * k, sae.config.d_in))
    view = np.sort(np.arange(2 * k) % views)
    return Selection(np.full(2 * k, -1), view, _unit(rows), np.full((2 * k, 2), np.nan))


def _ones_where_active(activations: csr_array) -> csr_array:
    ones = activations.astype(np.float64)
    ones.data[:] = 1
    return ones


def _both_ends(rank: Array, k: int) -> Array:
    """Ascending indices of the k largest numbers above 0 and the k least below 0 of `rank` [l]."""
    most, least = np.argsort(-rank, kind="stable")[:k], np.argsort(rank, kind="stable")[:k]
    return np.sort(np.concatenate([most[rank[most] > 0], least[rank[least] < 0]]))


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1.0)).astype(np.float32)
