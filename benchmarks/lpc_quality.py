"""Preference accuracy is not generation quality: how good a policy's sampled answers are, for lpc.py.

On the demo data the annotators' tastes are known, so answers get gold scores. Elsewhere a reward model judges, trained
on pairs whose prompts no policy has seen. It reads latents of the same LLM as it was before any policy was trained, so
what it cannot see it cannot judge, and its own accuracy stands beside its verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import lens_pool
import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from penchant import RewardModel
from penchant.backbone import Backbone
from penchant.chat import Text
from penchant.encode import LatentStore, MemoryStore
from penchant.errors import InputError
from penchant.evaluate.accuracy import Interval, accuracy_interval, bootstrap_mean, correctness
from penchant.heads import ContextHead
from penchant.pairs import prompt_groups, split_by_prompt
from penchant.policy.generate import Code, generate
from penchant.policy.policy import Policy

Array = NDArray[np.float64]
MAX_NEW_TOKENS = 100
JUDGE_TEST = 0.2
"""Share of the judge's prompts that its accuracy is measured on."""


class Judge(NamedTuple):
    rm: RewardModel
    accuracy: Interval
    """On pairs of its own that it was not fitted to."""
    store: LatentStore
    """Latents of what it has read: answers of the base model are compared with those of many policies."""

    def scores(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> Array:
        """Float [P, k] of k answers to each prompt; -inf for an empty one, which loses to any other."""
        found = np.full((len(answers), max(map(len, answers))), -np.inf)
        said = [(row, column) for row, texts in enumerate(answers) for column, text in enumerate(texts) if text.strip()]
        if said:
            rows, columns = map(list, zip(*said, strict=True))
            texts = [answers[row][column] for row, column in said]
            found[rows, columns] = self.rm.score([prompts[row] for row in rows], texts, store=self.store)
        return found


def train_judge(pairs: Dataset, seen: Sequence[Dataset], backbone: Backbone, cache: str | None = None) -> Judge:
    """A context head on those of `pairs` whose prompts are in none of `seen`: the policies' training and test pairs.

    `backbone` must be the LLM as it came, not a policy's. Raises InputError if no pair is left.
    """
    own = apart(pairs, seen)
    if len(own) == 0:
        raise InputError("every prompt of the judge's pairs is among those that it must not know; give other pairs.")
    train, test = split_by_prompt(own, JUDGE_TEST, 0)
    rm = RewardModel.train(train, model=backbone, head=ContextHead(), cache=cache, show_progress=False)
    store = MemoryStore()
    sides = [rm.score(test["prompt"][:], test[side][:], store=store) for side in ("chosen", "rejected")]
    return Judge(rm, accuracy_interval(correctness(*sides), prompt_groups(test)), store)


def apart(pairs: Dataset, seen: Sequence[Dataset]) -> Dataset:
    """The pairs whose prompts are in none of `seen`."""
    known = np.concatenate([prompt_groups(each) for each in seen])
    return pairs.select(np.flatnonzero(~np.isin(prompt_groups(pairs), known)))


def sample_policy(
    policy: Policy, prompts: Sequence[Text], answers: int = 4, seed: int = 0, code: Code = "expectation"
) -> list[list[str]]:
    """Answers as `Generator.sample` draws them by default."""
    return generate(
        policy,
        prompts,
        code=code,
        answers=answers,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=0.8,
        top_p=0.95,
        seed=seed,
    )


def demo_gold(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Array]:
    """Each annotator's mean gold score [P] of the answers to each prompt, in deviations of the answers that the demo
    data carry."""
    scores = lens_pool.demo_gold(list(prompts), [list(row) for row in answers])
    return {name: np.asarray(rows, np.float64).mean(1) for name, rows in scores.items()}


def wins(a: Array, b: Array) -> Array:
    """[P]: how often one of a prompt's answers scored a [P, k] beats one of those scored b [P, m]; a tie is a half."""
    left, right = a[:, :, None], b[:, None, :]
    won: Array = np.where(left == right, 0.5, left > right).mean((1, 2))
    return won


def win_rate(
    answers_a: Sequence[Sequence[str]], answers_b: Sequence[Sequence[str]], prompts: Sequence[Text], judge: Judge
) -> Interval:
    """How often the judge puts an answer of a above one of b, over all such couples of a prompt's answers.

    A score knows no order of presentation, so b against a is 1 minus this. The interval is over prompts.
    """
    return _over_prompts(wins(judge.scores(prompts, answers_a), judge.scores(prompts, answers_b)))


def quality(
    policy_answers: Sequence[Sequence[str]],
    base_answers: Sequence[Sequence[str]],
    prompts: Sequence[Text],
    *,
    judge: Judge | None = None,
    gold: bool = False,
) -> dict[str, float]:
    """What the answers are worth beside the base model's (or another policy's); NAME_ci_low and _ci_high over prompts.

    - `words`, `base_words`: mean length, and `empty`: share of empty answers; both can buy a win.
    - with a judge: `win_rate` and `judge_accuracy`.
    - with gold, for prompts of the demo data: `gold_ANNOTATOR`, its `gold_ANNOTATOR_delta` to the base model's answers,
      and `gold_mean`, `gold_mean_delta` over the annotators.
    """
    if not len(policy_answers) == len(base_answers) == len(prompts) > 0:
        raise InputError(
            f"{len(policy_answers)} and {len(base_answers)} lists of answers to {len(prompts)} prompts; give one each."
        )
    found = {
        "words": _words(policy_answers),
        "base_words": _words(base_answers),
        "empty": float(np.mean([not text.strip() for row in policy_answers for text in row])),
    }
    if judge is not None:
        found |= _figures("win_rate", win_rate(policy_answers, base_answers, prompts, judge))
        found |= _figures("judge_accuracy", judge.accuracy)
    if gold:
        ours, theirs = (demo_gold([str(p) for p in prompts], each) for each in (policy_answers, base_answers))
        ours["mean"], theirs["mean"] = (np.mean(list(each.values()), 0) for each in (ours, theirs))
        for name, values in ours.items():
            found |= _figures(f"gold_{name}", _over_prompts(values))
            found |= _figures(f"gold_{name}_delta", _over_prompts(values - theirs[name]))
    return found


def _words(answers: Sequence[Sequence[str]]) -> float:
    return float(np.mean([len(text.split()) for row in answers for text in row]))


def _over_prompts(values: Array) -> Interval:
    return bootstrap_mean(values, np.arange(len(values)))


def _figures(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}
