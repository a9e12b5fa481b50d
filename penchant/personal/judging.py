"""Whether knowing a person pays: their own taste and the population's on pairs that were held out, and on answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from penchant.chat import Text
from penchant.encode import encode_pairs
from penchant.evaluate.accuracy import (
    accuracy_interval,
    correctness,
    crossed_mean,
    not_certain,
    paired_difference,
)
from penchant.evaluate.baselines import longer_text
from penchant.heads import Head
from penchant.latents import Array, LatentPairs
from penchant.pairs import prompt_groups, to_text
from penchant.personal.people import Read
from penchant.personal.people_pairs import rows_by_person
from penchant.personal.system import PersonalLLM
from penchant.store_views import open_store

ANSWERED = 6
"""People whose answers are shown, at most."""


def margins(
    system: PersonalLLM,
    pairs: Dataset,
    *,
    read: Read = "auto",
    cache: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Array]:
    """How far each pair's chosen response is ahead, by what is known of who judged and by what all share: float32 [n].

    {latent_own, latent_pooled} by p(z | x); with personal rewards {taste_own, taste_pooled} as well, by the scores of
    tastes. Texts whose latents are in `cache` are not run. InputError for somebody unknown, or without a taste.
    """
    found = {
        "latent_own": system.latent_margins(pairs, pairs["user_id"][:], read=read, cache=cache),
        "latent_pooled": system.latent_margins(pairs, read=read, cache=cache),
    }
    if system.rewards is None:
        return found
    recipe, store = system.rewards.recipe, open_store(cache, system.rewards.recipe)
    latents = encode_pairs(
        system.rewards.backbone, pairs, recipe.views, store, show_progress=show_progress, label="encode to judge"
    )
    found["taste_pooled"] = margin_of(system.rewards.head, latents)
    found["taste_own"] = np.zeros(len(pairs), np.float32)
    for name, rows in rows_by_person(pairs).items():
        found["taste_own"][rows] = margin_of(system.rewards_of(name).head, latents.take(rows))
    return found


def margin_of(head: Head, pairs: LatentPairs) -> Array:
    """Score of the chosen response less that of the rejected one, float32 [n]."""
    margin: Array = head.score(pairs.chosen) - head.score(pairs.rejected)
    return margin


def judge(pairs: Dataset, found: Mapping[str, Array], seed: int = 0) -> dict[str, Any]:
    """What metrics.json says of people on pairs that they judged, by `margins` [n]: accuracy, gain and people; see
    `report_personal`.

    Ties count one half. Intervals are over people and prompts, those of one person over prompts.
    """
    groups, people = prompt_groups(pairs), rows_by_person(pairs)
    owner = np.zeros(len(pairs), np.int64)
    for number, rows in enumerate(people.values()):
        owner[rows] = number
    right = {name: correctness(margin, np.zeros(len(margin))) for name, margin in found.items()}
    right["longer"] = longer_text(pairs)
    kinds = {kind: (f"{kind}_own", f"{kind}_pooled") for kind in ("taste", "latent") if f"{kind}_own" in right}
    own, pooled = next(iter(kinds.values()))

    def overall(correct: Array) -> dict[str, Any]:
        return not_certain(crossed_mean(correct, owner, groups, seed=seed), len(np.unique(groups)))._asdict()

    return {
        "accuracy": {name: overall(correct) for name, correct in right.items()},
        "gain": {
            kind: crossed_mean(right[one] - right[other], owner, groups, seed=seed)._asdict()
            for kind, (one, other) in kinds.items()
        },
        "people": [
            {
                "user_id": name,
                "held_out": len(rows),
                **{by: float(correct[rows].mean()) for by, correct in right.items()},
                "gain": paired_difference(right[own][rows], right[pooled][rows], groups[rows], seed=seed)._asdict(),
            }
            for name, rows in people.items()
        ],
    }


def compare_answers(
    system: PersonalLLM,
    prompts: Sequence[Text],
    people: Sequence[str],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Answers to some prompts in the taste of some people and of the population: examples and, with rewards, win_rates.

    A person's answer wins where their own taste scores it above the population's; equal texts and equal scores are one
    half, and an empty answer loses to one that is not.
    """

    def answer(user_id: str | None) -> list[str]:
        found = system.generate(prompts, user_id, max_new_tokens=max_new_tokens, show_progress=show_progress)
        return [one for (one,) in found]

    usual, answers = answer(None), {name: answer(name) for name in people}
    found: dict[str, Any] = {
        "examples": [
            {
                "prompt": to_text(prompt),
                "population": usual[row],
                "people": [{"user_id": name, "text": texts[row]} for name, texts in answers.items()],
            }
            for row, prompt in enumerate(prompts)
        ]
    }
    if system.rewards is None:
        return found
    wins = {name: _wins(system, prompts, texts, usual, name) for name, texts in answers.items()}
    asked = np.arange(len(prompts))
    together = crossed_mean(
        np.concatenate(list(wins.values())),
        np.repeat(np.arange(len(people)), len(prompts)),
        np.tile(asked, len(people)),
        seed=seed,
    )
    found["win_rates"] = {
        "prompts": len(prompts),
        "overall": not_certain(together, len(prompts))._asdict(),
        "people": [
            {
                "user_id": name,
                "changed": sum(one != other for one, other in zip(answers[name], usual, strict=True)),
                **accuracy_interval(each, asked, seed=seed)._asdict(),
            }
            for name, each in wins.items()
        ],
    }
    return found


def _wins(
    system: PersonalLLM, prompts: Sequence[Text], texts: Sequence[str], usual: Sequence[str], user_id: str
) -> Array:
    """Float [n]: 1 where a person's own answer is better for them than the usual one, 0 where it is worse."""
    written = [(bool(one.strip()), bool(other.strip())) for one, other in zip(texts, usual, strict=True)]
    won = np.array([0.5 + 0.5 * (one - other) for one, other in written])
    both = [row for row, (one, other) in enumerate(written) if one and other and texts[row] != usual[row]]
    if both:
        asked = [prompts[row] for row in both]
        scores = system.score([*asked, *asked], [side[row] for side in (texts, usual) for row in both], user_id)
        won[both] = correctness(scores[: len(both)], scores[len(both) :])
    return won
