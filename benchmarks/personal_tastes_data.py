"""Latents for `personal_tastes.py`, small without loss, and its ridge heads, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from common import data_file
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.cli.demo import DATA
from penchant.encode import encode_pairs
from penchant.evaluate.baselines import longer_text
from penchant.heads import TasteHead
from penchant.heads.linear import BradleyTerryLoss, Spectrum, column_scale, solve
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

Array = NDArray[Any]
TOLERANCE = 1e-6
"""Of the mean gradient where many ridge heads are solved."""


def load(backbone: Backbone, name: str, cache: str | None) -> tuple[LatentPairs, LatentPairs, Array]:
    """Training and test pairs of convarg or the demo, and whether the longer text of each test pair was chosen."""
    views = TasteHead().default_views(backbone)
    store = open_store(cache, backbone.recipe(views))
    if name == "demo":
        rows = load_pairs(DATA / "demo.jsonl.gz")
        split = np.array(rows["split"])
        tables = [rows.select(np.flatnonzero(split == part)) for part in ("train", "test")]
    else:
        tables = [load_pairs(data_file(f"{name}/{part}")) for part in ("train", "test")]
    train, test = (encode_pairs(backbone, each, views, store, label=f"encode {name}") for each in tables)
    return *in_span(train, test), longer_text(tables[1])


def in_span(train: LatentPairs, test: LatentPairs) -> tuple[LatentPairs, LatentPairs]:
    """The same pairs in orthonormal coordinates of all texts' span, each view over its root mean square in training.

    Ridge heads, principal directions and tastes see inner products only, which stay, and a few hundred texts span a few
    hundred of 3,456 dimensions.
    """
    scale = column_scale(train.chosen.astype(np.float64) - train.rejected, train.recipe.width)
    sides = (side for pairs in (train, test) for side in (pairs.chosen, pairs.rejected))
    texts = np.stack(list({row.tobytes(): row for side in sides for row in side}.values())) / scale
    axes = Spectrum.of(texts).axes
    recipe = replace(train.recipe, views=train.recipe.views[:1], width=axes.shape[1])

    def turned(pairs: LatentPairs) -> LatentPairs:
        chosen, rejected = ((side / scale @ axes).astype(np.float32) for side in (pairs.chosen, pairs.rejected))
        return replace(pairs, chosen=chosen, rejected=rejected, prompt=np.zeros_like(chosen), recipe=recipe)

    return turned(train), turned(test)


def ridge_heads(pairs: LatentPairs, fitted_on: Sequence[Array], strength: float) -> Array:
    """`LinearHead`'s weights [heads, d] at one strength, of each selection of rows, all solved together."""
    difference = pairs.chosen.astype(np.float64) - pairs.rejected
    scale = column_scale(difference, pairs.recipe.width)
    spectrum = Spectrum.of(difference / scale)
    use = np.zeros((len(pairs), len(fitted_on)))
    for head, rows in enumerate(fitted_on):
        use[rows, head] = 1
    loss = BradleyTerryLoss(np.zeros((len(pairs), 1)), 0.0)
    weights: Array = (
        spectrum.axes @ solve(spectrum, loss, use, np.full(len(fitted_on), strength), TOLERANCE)
    ).T / scale
    return weights


def ceiling(train: LatentPairs, test: LatentPairs, strength: float, seed: int, folds: int = 5) -> Array:
    """Whether each of a person's own test pairs is right [n], by ridge on all their training pairs and their test pairs
    of the other folds; the folds cut through topics, so the very arguments are known from other pairs."""
    both = LatentPairs.concatenate([train, test])
    fold = np.random.default_rng(seed).permutation(np.arange(len(test)) % folds)
    own = np.arange(len(train))
    parts = [np.concatenate([own, len(train) + np.flatnonzero(fold != part)]) for part in range(folds)]
    weights = ridge_heads(both, parts, strength)
    margins = np.einsum("nd,nd->n", test.chosen.astype(np.float64) - test.rejected, weights[fold])
    return right(margins)


def right(margins: Array) -> Array:
    """1 where a score difference is above zero, one half at a tie."""
    found: Array = (margins > 0) + 0.5 * (margins == 0)
    return found
