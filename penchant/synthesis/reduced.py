"""A linear head on many synthetic pairs of wide latents, fitted in the directions in which the pairs differ most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from penchant.heads.base import check_pairs
from penchant.heads.linear import LinearHead, column_scale
from penchant.latents import Array, LatentPairs

AXES = 512
"""Directions kept. A full fit takes time that grows with the cube of the latents' width."""


def fit_reduced(head: LinearHead, pairs: LatentPairs, axes: int = AXES) -> LinearHead:
    """Fit on the differences' `axes` leading directions, and write the weights for the whole latents [n, d].

    Exact where there are no more than `axes` pairs or columns. Beyond, the directions left out are those in which the
    ridge penalty shrinks the weights most: with eigenvalue v of the scaled differences' Gram matrix a weight is
    shrunk to about v / (v + 4 strength) of what it would be. The directions come from one step of randomised subspace
    iteration (Halko et al. 2011) in float32, always from the same random start.
    """
    if min(len(pairs), pairs.recipe.dim) <= axes:
        return head.fit(pairs)
    check_pairs(pairs)
    difference = pairs.chosen - pairs.rejected
    scale = column_scale(difference, pairs.recipe.width).astype(np.float32)
    difference /= scale
    basis = leading_directions(difference, axes)
    turned = difference @ basis
    recipe = replace(pairs.recipe, views=pairs.recipe.views[:1], width=axes)
    zero = np.zeros_like(turned)
    head.fit(replace(pairs, chosen=turned, rejected=zero, prompt=zero, recipe=recipe))
    head.weight_ = basis.astype(np.float64) @ head.weight_ / scale
    return head


def leading_directions(rows: Array, axes: int) -> Array:
    """Orthonormal [d, axes], about the span of the rows' [n, d] leading right singular vectors."""
    start = np.random.default_rng(0).standard_normal((rows.shape[1], axes), dtype=np.float32)
    basis: Array = np.linalg.qr(rows.T @ np.linalg.qr(rows @ start)[0])[0]
    return basis
