"""Are the features that carry a score the ones that matter, and the same ones for other training pairs?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparse_methods import BOTH

from penchant.evaluate import correctness
from penchant.heads import SparseHead
from penchant.heads.base import prompt_folds
from penchant.heads.sae_features import encode_views
from penchant.latents import LatentPairs
from penchant.sae import SparseAutoencoder

REMOVED = 10
DRAWS = 20


def deletion(head: SparseHead, train: LatentPairs, test: LatentPairs, seed: int) -> dict[str, NDArray[Any]]:
    """Correctness [n] on the test pairs with all features, without the ten that carry most, without ten random ones.

    What a feature carries is its mean absolute contribution to the margin of the training pairs. The random ones are
    drawn 20 times; theirs is a mean.
    """

    def parts(pairs: LatentPairs) -> NDArray[Any]:
        return head.contributions(pairs.chosen) - head.contributions(pairs.rejected)

    carried, found = np.abs(parts(train)).mean(axis=0), parts(test)
    whole = found.sum(axis=1)

    def without(features: NDArray[Any]) -> NDArray[Any]:
        left = whole - found[:, features].sum(axis=1)
        left[np.abs(left) < 1e-9] = 0.0  # nothing fires any more: a tie
        return correctness(left, np.zeros_like(left))

    rng = np.random.default_rng(seed)
    few = min(REMOVED, len(carried))
    random = [without(rng.choice(len(carried), few, replace=False)) for _ in range(DRAWS)]
    return {
        "all": correctness(whole, np.zeros_like(whole)),
        "without_top": without(np.argsort(-carried)[:few]),
        "without_random": np.mean(random, axis=0),
    }


def stability(sae: SparseAutoencoder, pairs: LatentPairs, seed: int) -> dict[str, float]:
    """Jaccard index of the features chosen from two halves of the pairs that share no prompt, and by chance.

    By chance: as many latents drawn from all that are active in some state.
    """
    half = prompt_folds(pairs.group, 2, seed)
    found = {}
    kinds: dict[str, dict[str, Any]] = {
        "sparse": {},
        "sparse_16": {"k": 16},
        "sparse_active": {"k": 16, "selection": "activation", "features": "activation"},
    }
    seen = pairs.select(BOTH)
    for name, settings in kinds.items():
        chosen = []
        for part in (0, 1):
            head = SparseHead(sae, **settings).fit(seen.take(half == part))
            chosen.append(set(zip(head.feature_view_.tolist(), head.features_.tolist(), strict=True)))
        a, b = chosen
        found[f"jaccard:{name}"] = len(a & b) / len(a | b)
        codes = encode_views(sae, head.states(seen.chosen))
        live = np.flatnonzero((codes > 0).sum(axis=0))
        rng = np.random.default_rng(seed)
        drawn = [set(rng.choice(live, min(len(a), len(live)), replace=False).tolist()) for _ in range(2 * DRAWS)]
        found[f"chance:{name}"] = float(np.mean([len(x & y) / len(x | y) for x, y in pairwise(drawn)]))
    return found
