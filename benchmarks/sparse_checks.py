"""Are the features that carry a score the ones that matter, and the same ones for other training pairs?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from sparse_methods import BOTH

from penchant.evaluate import correctness
from penchant.heads import SparseHead
from penchant.heads.base import prompt_folds
from penchant.heads.sae_features import encode_views
from penchant.heads.selection import select_latents
from penchant.latents import LatentPairs
from penchant.sae import SparseAutoencoder

REMOVED = 10
DRAWS = 20
SHUFFLES = 10


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

    By chance: chosen and rejected swapped at random in half of the prompts, which leaves how often each latent fires
    as it is and takes away what the labels say; 10 draws.
    """
    half = prompt_folds(pairs.group, 2, seed)
    rng = np.random.default_rng(seed)
    seen = pairs.select(BOTH)
    sides = []
    for part in (0, 1):
        own = seen.take(half == part)
        states = [np.split(side, len(BOTH), axis=1) for side in (own.chosen, own.rejected)]
        codes = [encode_views(sae, views) for views in states]
        prompt = np.unique(own.group, return_inverse=True)[1]
        sides.append((codes[0], codes[1], prompt))

    def overlap(k: int, criterion: str, shuffled: bool) -> float:
        chosen = []
        for first, second, prompt in sides:
            sign = np.ones(len(prompt))
            if shuffled:
                sign = np.where(rng.random(prompt.max() + 1) < 0.5, -1.0, 1.0)[prompt]
            keep, swap = diags_array((sign > 0) * 1.0), diags_array((sign < 0) * 1.0)
            a, b = csr_array(keep @ first + swap @ second), csr_array(keep @ second + swap @ first)
            # No pair is held out: the last selection is from all of them.
            found = select_latents(sae, a, b, np.zeros(len(prompt), int), k, criterion)[-1]
            chosen.append(set(zip(found.view.tolist(), found.features.tolist(), strict=True)))
        both = chosen[0] | chosen[1]
        return len(chosen[0] & chosen[1]) / len(both) if both else 0.0

    kinds = {"sparse": (64, "frequency"), "sparse_16": (16, "frequency"), "sparse_active": (16, "activation")}
    found = {}
    for name, (k, criterion) in kinds.items():
        found[f"jaccard:{name}"] = overlap(k, criterion, shuffled=False)
        found[f"chance:{name}"] = float(np.mean([overlap(k, criterion, shuffled=True) for _ in range(SHUFFLES)]))
    return found
