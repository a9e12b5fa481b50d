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
from penchant.evaluate.accuracy import Interval, accuracy_interval, correctness
from penchant.heads import ContextHead
from penchant.pairs import prompt_groups, split_by_prompt

Array = NDArray[np.float64]
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
