"""Hand-made latents for the tests of the store and for the processes that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from penchant.latents import Recipe
from penchant.store import Store

RECIPE = Recipe("tiny", "abc", ("1:last", "2:mean"), 3, "none", 64, "float32")


def batch(seed: int, rows: int = 5, recipe: Recipe = RECIPE) -> tuple[Any, Any]:
    """Random keys and latents, the latents of any bits: NaNs, infinities and negative zeros among them."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    return keys, rng.integers(0, 2**32, (rows, recipe.dim), dtype=np.uint32).view(np.float32)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def shards(store: Store) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))
