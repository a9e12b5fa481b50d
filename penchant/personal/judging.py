"""Whether knowing a person pays: their own taste and the population's on pairs that were held out, and on answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from penchant.chat import Text
from penchant.evaluate.accuracy import (
    accuracy_interval,
    correctness,
    crossed_mean,
    not_certain,
    paired_difference,
)
from penchant.evaluate.baselines import longer_text
from penchant.latents import Array
from penchant.pairs import prompt_groups, to_text
from penchant.personal.people_pairs import rows_by_person
from penchant.personal.system import PersonalLLM

ANSWERED = 6
"""People whose answers are shown, at most."""


def judge(system: PersonalLLM, test: Dataset, *, seed: int = 0, show_progress: bool = False) -> dict[str, Any]:
    """What metrics.json says of people on pairs that they judged: accuracy, gain and people; see `report_personal`.

    Pairs are ordered by the score of a person's own taste and of the population's (taste_own, taste_pooled), where the
    system has personal rewards, and by p(z | x) of both (latent_own, latent_pooled). Ties count one half. Intervals are
    over people and prompts, those of one person over prompts. Everybody in `test` must be known.
    """
    groups, people = prompt_groups(test), rows_by_person(test)
    owner = np.zeros(len(test), np.int64)
    for number, rows in enumerate(people.values()):
        owner[rows] = number
    found = margins(system, test, people, show_progress)
    right = {name: correctness(margin, np.zeros(len(margin))) for name, margin in found.items()}
    right["longer"] = longer_text(test)
    pairs_of_kinds = {kind: (f"{kind}_own", f"{kind}_pooled") for kind in ("taste", "latent") if f"{kind}_own" in right}
    own, pooled = next(iter(pairs_of_kinds.values()))

    def overall(correct: Array) -> dict[str, Any]:
        return not_certain(crossed_mean(correct, owner, groups, seed=seed), len(np.unique(groups)))._asdict()

    return {
        "accuracy": {name: overall(correct) for name, correct in right.items()},
        "gain": {
            kind: crossed_mean(right[one] - right[other], owner, groups, seed=seed)._asdict()
            for kind, (one, other) in pairs_of_kinds.items()
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


def margins(
    system: PersonalLLM, test: Dataset, people: Mapping[str, Array], show_progress: bool = False
) -> dict[str, Array]:
    """How far each pair's chosen response is ahead, float [n], by what is known of its person and of the population."""
    kinds = {"latent": _latent_margins, **({"taste": _taste_margins} if system.rewards is not None else {})}
    found = {}
    for kind in sorted(kinds, reverse=True):
        found[f"{kind}_pooled"] = kinds[kind](system, test, None)
        own = np.zeros(len(test), np.float32)
        for name, rows in tqdm(people.items(), desc=f"judge by {kind}", disable=not show_progress, leave=False):
            own[rows] = kinds[kind](system, test.select(rows), name)
        found[f"{kind}_own"] = own
    return found


def _taste_margins(system: PersonalLLM, pairs: Dataset, user_id: str | None) -> Array:
    prompts = pairs["prompt"][:]
    scores = system.score([*prompts, *prompts], [*pairs["chosen"], *pairs["rejected"]], user_id)
    margin: Array = scores[: len(pairs)] - scores[len(pairs) :]
    return margin


def _latent_margins(system: PersonalLLM, pairs: Dataset, user_id: str | None) -> Array:
    margin: Array = system.latent_margins(pairs, user_id)
    return margin


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
