"""Personal rewards: what a person's taste from 5, 15, 50 or all of their own pairs is worth over everybody's.

Every person is new: directions, the population's taste and its spread come from the training pairs of people in the
other folds. Own pairs are drawn from the person's training pairs; all of their test pairs, which are on other topics or
prompts, judge. convarg has 15 workers (5 folds of 3), the demo data 3 simulated annotators (3 folds of 1).

    personal, n       `TasteHead`: the population's taste, pulled by n own pairs (0: the population's)
    known, n          the same where the population holds the person's training pairs, too (0: the population's)
    pooled            ridge on the other people's pairs, the strongest simple rival
    pooled with own   ridge on the other people's pairs and n own
    alone, n          ridge on n own pairs
    ceiling           ridge on all own training pairs and four fifths of the own test pairs, cross-validated
    flips, share      personal at 50 own pairs, a share of them turned round
    adversarial       personal at 0 and 50 where 2 people of the population turned every pair round

    python benchmarks/personal_tastes.py [--quick]
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from common import finish, table
from numpy.typing import NDArray
from personal_tastes_data import ceiling, load, ridge_heads, right

from penchant.backbone import Backbone
from penchant.heads import LinearHead, TasteHead
from penchant.heads.tastes import Taste
from penchant.latents import LatentPairs

SHOTS = {"5": 5, "15": 15, "50": 50, "all": None}
FLIPS = (0.2, 0.4)
ADVERSARIES = 2
FOLDS = 5
Array = NDArray[Any]
Rows = dict[str, dict[str, list[float]]]
"""Accuracy by row and person, one a seed."""


def turned_round(pairs: LatentPairs, which: Array) -> LatentPairs:
    """The pairs [n] with chosen and rejected swapped where `which` [n] says so."""
    swap = which[:, None]
    chosen, rejected = np.where(swap, pairs.rejected, pairs.chosen), np.where(swap, pairs.chosen, pairs.rejected)
    return replace(pairs, chosen=chosen, rejected=rejected)


def measure(train: LatentPairs, test: LatentPairs, longer: Array, seeds: list[int], most_folds: int) -> Rows:
    """Accuracy of every row, by person and seed."""
    assert train.user_id is not None and test.user_id is not None  # noqa: PT018
    who, judge = train.user_id.astype(str), test.user_id.astype(str)
    people = np.random.default_rng(0).permutation(np.unique(who))
    rows: Rows = {}
    for new in np.array_split(people, min(FOLDS, len(people)))[:most_folds]:
        others = np.flatnonzero(~np.isin(who, new))
        population = TasteHead().fit(train.take(others))
        spoiled = adversarial(train.take(others)) if population.people_ > 2 * ADVERSARIES else None
        strengths: dict[str, float] = {}
        draws = {
            (person, seed): np.random.default_rng(seed).permutation(np.flatnonzero(who == person))
            for person in new
            for seed in seeds
        }
        tests = {person: test.take(judge == person) for person in new}

        def keep(row: str, person: str, accuracy: Array | float) -> None:
            rows.setdefault(row, {}).setdefault(person, []).append(float(np.mean(accuracy)))

        def personal(row: str, few: dict[str, LatentPairs], head: TasteHead, tests: Any = tests) -> None:
            tastes = head.fit_people(LatentPairs.concatenate(list(few.values()))) if few else {}
            for person, own in tests.items():
                taste: Taste | None = tastes.get(person)
                keep(row, person, right(head.score(own.chosen, taste) - head.score(own.rejected, taste)))

        for seed in seeds:
            own = {person: train.take(draws[person, seed]) for person in new}
            personal("personal_0", {}, population)
            for shots, n in SHOTS.items():
                personal(f"personal_{shots}", {p: pairs.take(slice(n)) for p, pairs in own.items()}, population)
                for person, pairs in own.items():
                    if shots != "all" or seed == seeds[0]:  # all pairs are the same at every seed
                        alone = LinearHead().fit(pairs.take(slice(n)))
                        if shots == "all":
                            strengths[person] = alone.strength_
                        part = tests[person]
                        score = right(alone.score(part.chosen) - alone.score(part.rejected))
                        for _ in seeds if shots == "all" else (seed,):
                            keep(f"alone_{shots}", person, score)
            fifty = {person: pairs.take(slice(50)) for person, pairs in own.items()}
            if spoiled:
                personal("adversarial_0", {}, spoiled)
                personal("adversarial_50", fifty, spoiled)
            for share in FLIPS:
                place = np.random.default_rng([seed, 1]).permutation(50)
                flipped = {p: turned_round(each, place[: len(each)] < 50 * share) for p, each in fifty.items()}
                personal(f"flips_{share}", flipped, population)
        check_nobody_moves(population, train.take(draws[new[0], seeds[0]][:50]), train.take(others))

        strength = LinearHead().fit(train.take(others)).strength_
        asked = [
            (person, seed, shots) for person, seed in draws for shots in SHOTS if shots != "all" or seed == seeds[0]
        ]
        parts = [np.concatenate([others, draws[p, seed][: SHOTS[shots]]]) for p, seed, shots in asked]
        weights = ridge_heads(train, [others, *parts], strength)
        margins = {p: (own.chosen.astype(np.float64) - own.rejected) @ weights.T for p, own in tests.items()}
        for column, (person, _, shots) in enumerate(asked, 1):
            for _ in seeds if shots == "all" else (0,):
                keep(f"pooled_with_own_{shots}", person, right(margins[person][:, column]))
        for person in new:
            most = ceiling(train.take(draws[person, seeds[0]]), tests[person], strengths[person], seeds[0])
            for _ in seeds:
                keep("pooled", person, right(margins[person][:, 0]))
                keep("ceiling", person, most)
                keep("longer", person, longer[judge == person])
        print(f"people {', '.join(new)}: prior {population.prior_}", flush=True)

    everybody = TasteHead().fit(train)
    known = everybody.fit_people(train)
    for person in rows["pooled"]:
        own = test.take(judge == person)
        for row, taste in (("known_0", None), ("known_all", known[person])):
            accuracy = right(everybody.score(own.chosen, taste) - everybody.score(own.rejected, taste)).mean()
            rows.setdefault(row, {})[person] = [float(accuracy)] * len(seeds)
    return rows


def adversarial(others: LatentPairs) -> TasteHead:
    """A population in which some people turned all their pairs round."""
    assert others.user_id is not None
    liars = np.random.default_rng(1).permutation(np.unique(others.user_id.astype(str)))[:ADVERSARIES]
    return TasteHead().fit(turned_round(others, np.isin(others.user_id.astype(str), liars)))


def check_nobody_moves(population: TasteHead, honest: LatentPairs, others: LatentPairs) -> None:
    """With the population as it is, a person's taste is the same bit for bit beside people who lie."""
    (name, alone), *_ = population.fit_people(honest).items()
    liars = turned_round(others, np.ones(len(others), bool))
    beside = population.fit_people(LatentPairs.concatenate([honest, liars]))[name]
    assert np.array_equal(alone.mean, beside.mean)
    assert np.array_equal(alone.precision, beside.precision)


def interval(values: Array, draws: int = 2000) -> dict[str, float]:
    """Mean of [people, seeds] with a 95% interval: each draw resamples people and, independently, seeds."""
    rng = np.random.default_rng(0)
    people, seeds = values.shape
    means = [values[rng.integers(people, size=people)][:, rng.integers(seeds, size=seeds)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def compared(rows: Rows) -> dict[str, Any]:
    """Each row's accuracy, and its difference to the pooled ridge and to the population's taste."""
    found = {}
    values = {row: np.array([people[name] for name in sorted(people)]) for row, people in rows.items()}
    for row, each in values.items():
        differences = {base: interval(each - values[row_of]) for base, row_of in BASES.items()}
        found[row] = {**interval(each), **differences}
    return found


BASES = {"minus_pooled": "pooled", "minus_population": "personal_0"}


def keys(found: dict[str, Any]) -> dict[str, float]:
    """The closing line's figures: differences to the pooled ridge in accuracy, 0 to 1."""
    flat: dict[str, float] = {}

    def put(name: str, figure: dict[str, float]) -> None:
        flat.update({name: figure["value"], f"{name}_ci_low": figure["low"], f"{name}_ci_high": figure["high"]})

    put("personal_minus_pooled", found["convarg"]["personal_50"]["minus_pooled"])
    for data, rows in found.items():
        for row, figure in rows.items():
            kind, _, shots = row.rpartition("_")
            if kind == "personal":
                put(f"personal_minus_pooled_{data}_{shots}", figure["minus_pooled"])
                put(f"personal_minus_population_{data}_{shots}", figure["minus_population"])
            elif kind in ("alone", "known", "flips", "adversarial"):
                put(f"{kind}_{data}_{shots}", figure)
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 seed, one fold of people")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--cache", help="folder of the latents' cache")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="all pairs share one prompt")
    seeds = args.seeds[:1] if args.quick else args.seeds
    backbone = Backbone.load()
    found = {}
    for data in ("demo", "convarg"):
        rows = measure(*load(backbone, data, args.cache), seeds, 1 if args.quick else FOLDS)
        found[data] = compared(rows)
        shown = [[data, "accuracy", "minus pooled ridge", "minus the population's taste"]]
        for row, figure in found[data].items():
            cells = (figure, figure["minus_pooled"], figure["minus_population"])
            shown.append([row, *(f"{c['value']:.4f} ({c['low']:.4f} to {c['high']:.4f})" for c in cells)])
        print(table(shown), flush=True)
    finish("personal_tastes", keys(found), full=not args.quick, details=found, seeds=seeds)


if __name__ == "__main__":
    main()
