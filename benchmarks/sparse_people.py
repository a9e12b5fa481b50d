"""DRM on convarg: a person's taste from 5, 15 or 50 of their pairs, against the pooled head and what is simpler.

Every person is new: directions and pooled taste come from 2,000 training pairs of the other workers, others at each
seed. The pairs to adapt from are drawn from the person's own training pairs; the person is judged on all of their test
pairs, which are on other topics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import data_file
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate import correctness
from penchant.evaluate.baselines import longer_text
from penchant.heads import LinearHead, PCAHead
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

VIEWS = ("24:mean",)
SHOTS = (5, 15, 50)
POOLED_PAIRS = 2000
"""Pairs of other workers that give directions and pooled taste."""


def rows(backbone: Backbone, name: str, cache: str | None) -> tuple[LatentPairs, Any]:
    pairs = load_pairs(data_file(name))
    views = backbone.default_views()
    store = open_store(cache, backbone.recipe(views))
    return encode_pairs(backbone, pairs, views, store, label=f"encode {name}").select(VIEWS), pairs


def measure(backbone: Backbone, cache: str | None, seeds: range) -> dict[str, Any]:
    """Mean over persons of each row's accuracy, and its difference to the pooled head."""
    train, _ = rows(backbone, "convarg/train", cache)
    test, texts = rows(backbone, "convarg/test", cache)
    assert train.user_id is not None
    assert test.user_id is not None
    people = [user for user in np.unique(train.user_id) if (train.user_id == user).sum() >= max(SHOTS)]
    right: dict[str, list[NDArray[Any]]] = {}

    def judge(name: str, fitted: dict[Any, Any]) -> None:
        found = np.full(len(test), np.nan)
        for user, head in fitted.items():
            own = np.flatnonzero(test.user_id == user)
            part = test.take(own)
            found[own] = correctness(head.score(part.chosen), head.score(part.rejected))
        right.setdefault(name, []).append(found)

    for seed in seeds:
        rng = np.random.default_rng(seed)
        heads: dict[str, dict[Any, Any]] = {}

        def keep(name: str, user: Any, head: Any, heads: dict[str, dict[Any, Any]] = heads) -> None:
            heads.setdefault(name, {})[user] = head

        for user in people:
            others = train.take(rng.permutation(np.flatnonzero(train.user_id != user))[:POOLED_PAIRS])
            own = rng.permutation(np.flatnonzero(train.user_id == user))
            pooled = PCAHead(random_state=seed).fit(others)
            published = PCAHead(weighting="softmax", center=True, folds=2, random_state=seed).fit(others)
            random = PCAHead(weighting="uniform", directions="random", folds=2, random_state=seed).fit(others)
            keep("pooled", user, pooled)
            keep("ridge_pooled", user, LinearHead(random_state=seed).fit(others))
            keep("drm_pooled", user, published)
            keep("own_pairs_only", user, LinearHead(random_state=seed).fit(train.take(own)))
            for n in SHOTS:
                few = train.take(own[:n])
                keep(f"adapted_{n}", user, pooled.adapt(few))
                keep(f"drm_{n}", user, published.adapt(few))
                keep(f"random_heads_{n}", user, random.adapt(few))
        for name, fitted in heads.items():
            judge(name, fitted)
    longer = np.where(np.isin(test.user_id, people), longer_text(texts), np.nan)
    right["longer_text"] = [longer] * len(seeds)

    found: dict[str, Any] = {}
    base = per_person(right["pooled"], test.user_id, people)
    for name, runs in right.items():
        own = per_person(runs, test.user_id, people)
        found[name] = {**figure(own), "minus_pooled": figure(own - base)}
    return {"people": len(people), "rows": found}


def per_person(runs: list[NDArray[Any]], user_id: NDArray[Any], people: list[Any]) -> NDArray[Any]:
    """Accuracy [seeds, people] of correctness [n] at each seed."""
    return np.array([[correct[user_id == user].mean() for user in people] for correct in runs])


def figure(accuracy: NDArray[Any], draws: int = 2000) -> dict[str, Any]:
    """Mean of accuracies [seeds, people], with a 95% interval over both: each draw resamples seeds and persons.

    The test pairs are on six topics, which are not resampled.
    """
    rng = np.random.default_rng(0)
    seeds, people = accuracy.shape
    means = [
        accuracy[np.ix_(rng.integers(seeds, size=seeds), rng.integers(people, size=people))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": round(float(accuracy.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
