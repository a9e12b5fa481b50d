"""Personal rewards: a new person's taste from 5, 15, 50 and all of their pairs, against the population's taste.

Every person is new in turn: directions, the population's taste and how far people are apart come from the pairs of the
others. The person's own pairs are drawn from the training part, and the person is judged on the test part, whose
prompts (on convarg: topics) are others.

    ridge          LinearHead on the others' pairs: the strongest simple head for everybody
    population     TasteHead before it has seen a pair of the person
    personal, n    n pairs of the person
    own, all       LinearHead on all of the person's own pairs: an oracle model a person
    longer text    the longer response
    n, p% turned   as "personal, n", with p% of the person's own answers turned round
    k turned       as "personal, 15" and "population", with k of the other people answering the opposite throughout
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from common import data_file
from numpy.typing import NDArray
from sparse_people import figure, per_person

from penchant.backbone import Backbone
from penchant.cli.demo import DATA
from penchant.encode import encode_pairs
from penchant.evaluate import correctness
from penchant.evaluate.baselines import longer_text
from penchant.heads import LinearHead, TasteHead
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

SHOTS = (5, 15, 50)
TURNED = (0.2, 0.4)
LIARS = 3
MOST = 3000
"""Pairs of the others, at most."""
Array = NDArray[Any]


def load(name: str, backbone: Backbone, cache: str | None) -> tuple[LatentPairs, LatentPairs, Array]:
    """Training and test pairs, means over tokens at three layers; and where the longer text is right."""
    views = backbone.default_views()
    means = tuple(view for view in views if view.endswith(":mean"))
    store = open_store(cache, backbone.recipe(views))
    if name == "demo":
        rows = load_pairs(DATA / "demo.jsonl.gz")
        parts = [rows.filter(lambda row, part=part: row["split"] == part) for part in ("train", "test")]
    else:
        parts = [load_pairs(data_file(f"{name}/{part}")) for part in ("train", "test")]
    train, test = (encode_pairs(backbone, each, views, store, label=f"encode {name}").select(means) for each in parts)
    return train, test, longer_text(parts[1])


def turned(pairs: LatentPairs, rows: Array) -> LatentPairs:
    """With chosen and rejected exchanged in these rows."""
    chosen, rejected = pairs.chosen.copy(), pairs.rejected.copy()
    chosen[rows], rejected[rows] = pairs.rejected[rows], pairs.chosen[rows]
    return replace(pairs, chosen=chosen, rejected=rejected)


def run(train: LatentPairs, test: LatentPairs, user: Any, seed: int) -> dict[str, Array]:
    """Whether each test pair of one person is ordered rightly, by method."""
    assert train.user_id is not None and test.user_id is not None  # noqa: PT018
    rng = np.random.default_rng([seed, *user.encode()])
    others = train.take(rng.permutation(np.flatnonzero(train.user_id != user))[:MOST])
    own = train.take(rng.permutation(np.flatnonzero(train.user_id == user)))
    judged = test.take(test.user_id == user)

    def right(score: Callable[[Array], Array]) -> Array:
        return correctness(score(judged.chosen), score(judged.rejected))

    def personal(head: TasteHead, pairs: LatentPairs) -> Array:
        (taste,) = head.fit_people(pairs).values()
        return right(lambda latents: head.score(latents, taste))

    head = TasteHead(random_state=seed).fit(others)
    found = {"ridge": right(LinearHead(random_state=seed).fit(others).score), "population": right(head.score)}
    for n in SHOTS:
        if n <= len(own):
            found[f"personal, {n}"] = personal(head, own.take(slice(n)))
    found["personal, all"] = personal(head, own)
    found["own, all"] = right(LinearHead(random_state=seed).fit(own).score)
    n = min(max(SHOTS), len(own))
    for share in TURNED:
        lies = turned(own.take(slice(n)), np.arange(round(share * n)))
        found[f"{max(SHOTS)}, {share:.0%} turned"] = personal(head, lies)
    assert others.user_id is not None
    names = np.unique(others.user_id)
    liars = rng.permutation(names)[: min(LIARS, len(names) // 3)]
    if len(liars):
        spoilt = TasteHead(random_state=seed).fit(turned(others, np.flatnonzero(np.isin(others.user_id, liars))))
        found["population, 3 turned"] = right(spoilt.score)
        found["personal, 15, 3 turned"] = personal(spoilt, own.take(slice(15)))
    return found


def measure(name: str, backbone: Backbone, cache: str | None, seeds: range) -> dict[str, Any]:
    """Mean over people of each row's accuracy with an interval over seeds and people, and minus the population's."""
    train, test, longer = load(name, backbone, cache)
    assert train.user_id is not None and test.user_id is not None  # noqa: PT018
    people = [user for user in np.unique(train.user_id) if (train.user_id == user).sum() >= max(SHOTS)]
    runs: dict[str, list[Array]] = {}
    for seed in seeds:
        filled: dict[str, Array] = {}
        for user in people:
            for row, right in run(train, test, user, seed).items():
                filled.setdefault(row, np.full(len(test), np.nan))[test.user_id == user] = right
        for row, values in filled.items():
            runs.setdefault(row, []).append(values)
        print(f"{name}, seed {seed}: done", flush=True)
    runs["longer text"] = [longer] * len(seeds)
    base = per_person(runs["population"], test.user_id, people)
    found = {}
    for row, each in runs.items():
        own = per_person(each, test.user_id, people)
        found[row] = {**figure(own), "minus_population": figure(own - base)}
    return {"people": len(people), "train": len(train), "test": len(test), "rows": found}
