"""A linear head on many synthetic pairs of wide latents, fitted in the directions in which the pairs differ most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from penchant.heads.base import check_block, check_differ, check_pairs
from penchant.heads.linear import LinearHead, column_scale, view_scale
from penchant.latents import Array, LatentPairs
from penchant.mapped import read_blocks
from penchant.spooled import Spool

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
    if pairs.mapped:
        return _fit_streamed(head, pairs, axes)
    check_pairs(pairs)
    difference = pairs.chosen - pairs.rejected
    scale = column_scale(difference, pairs.recipe.width).astype(np.float32)
    difference /= scale
    basis = leading_directions(difference, axes)
    turned = difference @ basis
    head.fit(_narrow(pairs, turned))
    head.weight_ = basis.astype(np.float64) @ head.weight_ / scale
    return head


def _narrow(pairs: LatentPairs, turned: Array) -> LatentPairs:
    """The pairs with their differences in the basis [n, axes] as the chosen latents, and zeros as the others."""
    zero = np.zeros_like(turned)
    recipe = replace(pairs.recipe, views=pairs.recipe.views[:1], width=turned.shape[1])
    return replace(pairs, chosen=turned, rejected=zero, prompt=zero, recipe=recipe)


def _fit_streamed(head: LinearHead, pairs: LatentPairs, axes: int) -> LinearHead:
    """`fit_reduced` of pairs in files: three passes over them; then the head reads differences of `axes` numbers."""
    n, d = len(pairs), pairs.recipe.dim
    square, spread, differ = np.zeros(d), np.zeros((d, axes)), []
    for rows, chosen, rejected in read_blocks(pairs.chosen, pairs.rejected):
        differ.append(check_block(rows, chosen, rejected))
        difference = np.subtract(chosen, rejected, dtype=np.float64)
        square += np.einsum("ij,ij->j", difference, difference)
    check_differ(differ, n)
    scale = view_scale(square / n, pairs.recipe.width).astype(np.float32)
    start = np.random.default_rng(0).standard_normal((d, axes), dtype=np.float32)
    for _, chosen, rejected in read_blocks(pairs.chosen, pairs.rejected):
        difference = (chosen - rejected) / scale
        spread += difference.T @ (difference @ start)
    basis = np.linalg.qr(spread)[0].astype(np.float32)

    def turned() -> Iterator[LatentPairs]:
        for rows, chosen, rejected in read_blocks(pairs.chosen, pairs.rejected):
            yield _narrow(pairs.take(rows), (chosen - rejected) / scale @ basis)

    source: Any = pairs.chosen
    recipe = replace(pairs.recipe, views=pairs.recipe.views[:1], width=axes)
    head.fit(Spool(source.folder, source.limit).write(turned(), n, recipe))
    head.weight_ = basis.astype(np.float64) @ head.weight_ / scale
    return head


def leading_directions(rows: Array, axes: int) -> Array:
    """Orthonormal [d, axes], about the span of the rows' [n, d] leading right singular vectors."""
    start = np.random.default_rng(0).standard_normal((rows.shape[1], axes), dtype=np.float32)
    basis: Array = np.linalg.qr(rows.T @ np.linalg.qr(rows @ start)[0])[0]
    return basis
