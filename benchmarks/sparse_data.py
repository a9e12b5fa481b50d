"""The data of benchmarks/sparse.py: training and test pairs as latents, drawn at each seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from common import data_file
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate.learning_curve import nested_order
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

SIZES = (300, 1000)
HELD_OUT = 0.4
"""Share of the pairs tested at each seed, where there is no test part of its own; less where training needs more."""


@dataclass(frozen=True)
class Source:
    """A data set."""

    name: str
    pairs: LatentPairs
    test: LatentPairs | None
    """None: training and test pairs are drawn anew at each seed, by whole prompts."""

    @property
    def tested(self) -> LatentPairs:
        return self.pairs if self.test is None else self.test

    def sizes(self) -> list[int]:
        """300 and 1,000, or what there is where that is less; four fifths where test pairs come from the same pairs."""
        most = len(self.pairs) if self.test is not None else int(0.8 * len(self.pairs))
        return sorted({min(size, most) for size in SIZES})

    def draw(self, size: int, seed: int) -> tuple[LatentPairs, NDArray[np.int64]]:
        """The training pairs, and the rows of `tested` that are tested."""
        order = nested_order(self.pairs.group, seed)
        if self.test is not None:
            return self.pairs.take(order[:size]), np.arange(len(self.test))
        end = len(order) - int(min(HELD_OUT * len(order), len(order) - size))
        tested = order[end:]
        apart = ~np.isin(self.pairs.group[tested], self.pairs.group[order[:end]])  # no prompt on both sides
        return self.pairs.take(order[:size]), tested[apart]


SETS: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    "hh_harmless": (("hh/train",), "hh/test", "harmless"),
    "hh_helpful": (("hh/train",), "hh/test", "helpful"),
    "novelty": (("science/novelty.train",), "science/novelty.test", None),
    "feasibility": (("science/feasibility.train",), "science/feasibility.test", None),
    "ultrafeedback": (("ultrafeedback/train", "ultrafeedback/eval"), None, None),
    "llmbar": (("hh/train", "ultrafeedback/train"), "llmbar/test", None),
}
"""Files to train on, to test on, and the `source` that is kept. llmbar has no training pairs of its own."""


def encoded(backbone: Backbone, file: str, cache: str | None, source: str | None = None) -> LatentPairs:
    """The pairs of one file, or those of one `source` in it, without the optional columns."""
    pairs = load_pairs(data_file(file))
    if source is not None:
        pairs = pairs.select(np.flatnonzero(np.array(pairs["source"]) == source))
    views = backbone.default_views()
    store = open_store(cache, backbone.recipe(views))
    latents = encode_pairs(backbone, pairs, views, store, label=f"encode {file}")
    return LatentPairs(latents.chosen, latents.rejected, latents.prompt, latents.recipe, latents.group)


def load(name: str, backbone: Backbone, cache: str | None) -> Source:
    files, test, source = SETS[name]
    return Source(
        name,
        LatentPairs.concatenate([encoded(backbone, file, cache, source) for file in files]),
        encoded(backbone, test, cache, source) if test is not None else None,
    )
