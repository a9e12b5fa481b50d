"""A run of `penchant personal fit`: fit people from their pairs, then say whether knowing them pays."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from penchant.chat import Text
from penchant.errors import InputError
from penchant.pairs import describe
from penchant.personal.fitting import LatentDPOSettings
from penchant.personal.full_encoder import FullEncoderSettings
from penchant.personal.judging import ANSWERED, compare_answers, judge, margins
from penchant.personal.people import POPULATION, Read, Settings
from penchant.personal.people_map import people_map
from penchant.personal.people_pairs import rows_by_person
from penchant.personal.records import Person
from penchant.personal.rewards import name_of
from penchant.personal.system import PersonalLLM
from penchant.personal.watch import people_warnings
from penchant.saved import read_json
from penchant.writing import alone, write_text

FITTED = "fitted.json"
"""Says in a run's folder who its people are once they are in the database: what a killed run must not do twice."""

SIZED = 100
"""People whose mean size is told, at most."""


class Fitted(NamedTuple):
    versions: dict[str, int]
    """By person, after the fit."""
    before: list[str]
    """Who was known before."""
    outdated: int
    """People whose tastes belong to rewards that are no longer."""


def fit_run(
    system: PersonalLLM,
    train: Dataset,
    test: Dataset,
    names: tuple[str, str],
    folder: Path,
    settings: Settings,
    *,
    population: bool | None = None,
    rewards: bool = True,
    read: Read = "auto",
    examples: int = 8,
    max_new_tokens: int = 64,
    cache: str | Path | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Fit the population where it is asked for, then everybody in `train`; judge them on `test`. Returns metrics.

    Args:
        names: what train and test are called.
        folder: of the run. One that was killed after its people were kept does not fit them again.
        settings: of the compact form or of the full one, which they choose for who is new.
        population: fit what all share first; None does so where the system lacks it and the pairs are not one person's.
        rewards: tastes belong to what all share.
        read: how z of pairs is read, as in `People.fit_users`.
        cache: folder of the latents' cache.
        seed: of the intervals, the prompts shown and the answers.
        examples: held-out prompts that a few people's answers are compared on; 0 for none.

    Raises InputError where nobody in `test` is known, PenchantError where another process fits in `folder`.
    """
    cost: dict[str, Any] = {}
    check_out(folder, system.folder)
    with alone(folder):  # else two would fit the same people one after the other, unless the first has left its marker
        fitted = _fitted(system, train, folder, settings, population, rewards, read, cache, cost, show_progress)
    known = set(system.users.get_many(list(rows_by_person(test))))
    rows = [row for row, who in enumerate(test["user_id"]) if who in known]
    if not rows:
        raise InputError(
            f"nobody who judged pairs of {names[1]} is known; give held-out pairs of the people in the data"
        )
    judged, strangers = test.select(rows), len(rows_by_person(test)) - len(known)
    with _timed(cost, "judge_seconds"):
        found = margins(system, judged, read=read, cache=cache, show_progress=show_progress)
        metrics = judge(judged, found, seed)
    pairs_of = {name: len(own) for name, own in rows_by_person(train).items()}
    for one in metrics["people"]:
        one |= {"pairs": pairs_of.get(one["user_id"], 0), "version": fitted.versions.get(one["user_id"])}
    most = sorted(metrics["people"], key=lambda one: (-one["held_out"], one["user_id"]))
    people = [one["user_id"] for one in most]
    prompts = _prompts(judged, seed)
    metrics["map"] = people_map(system, prompts, people)
    if examples:
        with _timed(cost, "answer_seconds"):
            shown = people[:ANSWERED]
            metrics |= compare_answers(
                system,
                prompts[:examples],
                shown,
                max_new_tokens=max_new_tokens,
                seed=seed,
                show_progress=show_progress,
            )
    metrics |= {
        "data": {
            "train": {"name": names[0], "people": len(pairs_of), **describe(train)},
            "test": {"name": names[1], "people": len(people), "strangers": strangers, **describe(judged)},
        },
        "system": {
            "folder": str(system.folder),
            **{name: system.facts[name] for name in ("base", "dtype", "latent")},
            "full": isinstance(settings, FullEncoderSettings),
            "rewards": system.rewards is not None,
            "population": (system.folder / POPULATION).is_file(),
            "people": len(system.users),
            "bytes_each": float(np.mean([person.size for person in system.users.get_many(people[:SIZED]).values()])),
            "z": system.facts["figures"],
        },
        "seed": seed,
        "cost": cost,
    }
    metrics["warnings"] = people_warnings(metrics, fitted.before, fitted.outdated)
    return metrics


def check_out(folder: Path, system: Path) -> None:
    """InputError where a run would write over the report of its system's pretraining."""
    if folder.resolve() == system.resolve():
        raise InputError(
            f"{folder} is the system's own folder, with the report of its pretraining; give another --out."
        )


def _fitted(
    system: PersonalLLM,
    train: Dataset,
    folder: Path,
    settings: Settings,
    population: bool | None,
    rewards: bool,
    read: Read,
    cache: str | Path | None,
    cost: dict[str, Any],
    show_progress: bool,
) -> Fitted:
    """Fit what is asked for, or take over what a run that was killed afterwards did."""
    names = list(rows_by_person(train))
    had_rewards = system.rewards is not None
    lacking = len(names) > 1 and (not (system.folder / POPULATION).is_file() or (rewards and not had_rewards))

    def fit_population() -> None:
        small = settings if isinstance(settings, LatentDPOSettings) else LatentDPOSettings()
        with _timed(cost, "population_seconds"):
            system.fit_population(train, small, rewards=rewards, read=read, cache=cache, show_progress=show_progress)

    made_of = {
        "system": system.facts["digest"],
        "pairs": _digest(train),
        "settings": asdict(settings),
        "read": read,
        "rewards": rewards,
    }
    marker = folder / FITTED
    if marker.is_file():
        kept = _read_marker(marker)
        now = system.users.get_many(names)
        versions = {name: person.version for name, person in now.items()}
        if (kept["made_of"], kept["versions"], kept["contents"]) == (made_of, versions, contents(now.values())):
            cost |= kept["cost"]
            if population is None and lacking:  # as what all share was damaged since, and deleted
                fit_population()
                population = False
            if kept["directions"] == name_of(system.rewards):  # else tastes are to be fitted anew
                return Fitted(**{name: kept[name] for name in Fitted._fields})
    population = lacking if population is None else population
    if population:
        fit_population()
    before = list(system.users.get_many(names))
    full = isinstance(settings, FullEncoderSettings)
    outdated = len(system.users) - len(before) if population and rewards and had_rewards else 0
    start = time.perf_counter()

    def note(people: list[Person]) -> None:
        """Right before they are kept, for who is killed right after must know."""
        cost["fit_seconds"] = time.perf_counter() - start
        cost["people_per_second"] = len(names) / max(cost["fit_seconds"], 1e-9)
        fitted = Fitted({person.user_id: person.version for person in people}, before, outdated)
        directions = name_of(system.rewards)
        known = {"made_of": made_of, "directions": directions, "contents": contents(people), "cost": cost}
        write_text(marker, json.dumps({**known, **fitted._asdict()}) + "\n")

    versions = system.fit_users(
        train, settings, full=full, read=read, cache=cache, show_progress=show_progress, before_keeping=note
    )
    return Fitted(versions, before, outdated)


def _read_marker(marker: Path) -> dict[str, Any]:
    cure = (
        "without it nobody knows whether its people were fitted already: put a copy in its place, or give another --out"
        " to fit them once more."
    )
    kept = read_json(marker, cure)
    if not {"made_of", "directions", "contents", "cost", *Fitted._fields} <= kept.keys():
        raise InputError(f"{marker} is damaged (it lacks a part); {cure}")
    return kept


def contents(people: Iterable[Person]) -> str:
    """What is known of people, in 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for person in sorted(people, key=lambda person: person.user_id):
        digest.update(f"{person.user_id} {person.pairs}".encode())
        for name, vector in sorted(person.vectors.items()):
            digest.update(f"{name} {vector.dtype} {vector.shape}".encode() + np.ascontiguousarray(vector).tobytes())
    return digest.hexdigest()


def _digest(pairs: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in pairs.select_columns(["prompt", "chosen", "rejected", "user_id"]):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _prompts(pairs: Dataset, seed: int) -> list[Text]:
    """The different prompts of some pairs, shuffled."""
    found = list({json.dumps(prompt): prompt for prompt in pairs["prompt"]}.values())
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


@contextmanager
def _timed(cost: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    cost[name] = time.perf_counter() - start
