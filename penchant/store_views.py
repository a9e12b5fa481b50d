"""One cache for many choices of views: latents that a wider recipe kept are read instead of made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penchant.latents import Recipe
from penchant.store import Store, default_root
from penchant.store_admin import list_stores

Keys = NDArray[np.uint8]


class ViewStore:
    """A store that also reads from stores with the same recipe but more views. It writes to its own alone."""

    def __init__(self, own: Store, wider: list[Store]) -> None:
        self.own, self.wider = own, wider
        self.folder = own.folder

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Bool [n]: which of the keys, uint8 [n, 16], can be read."""
        found = self.own.has(keys)
        for store in self.wider:
            found |= store.has(keys)
        return found

    def read(self, keys: Keys) -> NDArray[np.float32]:
        """The latents float32 [n, dim] of the keys; InputError if one is missing."""
        latents = np.empty((len(keys), self.own.recipe.dim), np.float32)
        missing = np.ones(len(keys), bool)
        for store in self.wider:
            here = np.flatnonzero(missing & store.has(keys))
            columns = store.recipe.columns(self.own.recipe.views)
            latents[here] = store.read(keys[here])[:, columns]
            missing[here] = False
        latents[missing] = self.own.read(keys[missing])
        return latents

    def write(self, keys: Keys, latents: NDArray[np.float32]) -> None:
        self.own.write(keys, latents)

    def refresh(self) -> None:
        for store in (self.own, *self.wider):
            store.refresh()

    def compact(self) -> None:
        self.own.compact()


def open_store(cache: str | Path | None, recipe: Recipe) -> Store | ViewStore:
    """What the cache (by default `default_root()`) keeps for this recipe: `recipe.stored`, wider recipes' included."""
    recipe = recipe.stored
    root = Path(cache) if cache else default_root()
    own = Store(root, recipe)
    wider = [
        Store(root, info.recipe)
        for info in list_stores(root)
        if info.recipe is not None
        and info.recipe != recipe
        and replace(info.recipe, views=recipe.views) == recipe
        and set(recipe.views) < set(info.recipe.views)
    ]
    return ViewStore(own, wider) if wider else own
