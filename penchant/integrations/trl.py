"""A reward function for TRL's GRPOTrainer (and other trainers that take `reward_funcs`).

    trainer = GRPOTrainer(model, reward_funcs=reward_function("my-reward-model"), train_dataset=prompts, ...)

Prompts and completions may be texts or conversations. Where the model is a personal LLM, the data's column `user_id`
says in whose taste a completion is scored; a row without one is scored by the population's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penchant.chat import Text
from penchant.encode import Cost
from penchant.errors import InputError
from penchant.judge import Judge
from penchant.pair_checks import BadRow, label, text_or_messages
from penchant.personal.people import People
from penchant.reward_model import RewardModel

RewardFunction = Callable[..., Any]
Rewards = list[float | None]


def reward_function(model: str | Path | RewardModel | People | Judge, *, asynchronous: bool = False) -> RewardFunction:
    """A function that scores completions as `RewardModel.score` does, for `reward_funcs`.

    It takes TRL's keyword arguments, `prompts` and `completions` [n], the column `user_id` [n] and the trainer's
    `log_metric` and `log_extra` where there are any, and returns n rewards. A reward is None, which TRL reads as "not
    applicable", where a completion is a conversation that ends without an answer in words, such as in a tool call. An
    empty completion gets the score of the end that the LLM reads. Logged are the shares of completions that were empty
    or lost the start of their prompt to `max_length`, and who judged, where there are people.

    Args:
        model: folder or hub id of a reward model, folder of a personal LLM, or either one loaded.
        asynchronous: make it a coroutine function, so that TRL runs it beside other such ones.

    Raises InputError for a model that cannot be loaded; the function does for a row that cannot be scored.
    """
    judge = model if isinstance(model, Judge) else Judge.load(model) if isinstance(model, str | Path) else Judge(model)

    def penchant(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        user_id: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> Rewards:
        answers = [answer(row, completion) for row, completion in enumerate(completions)]
        asked = [text_of(row, prompt, "prompt") for row, prompt in enumerate(prompts)]
        people = None
        if user_id is not None and judge.people is not None:
            people = [name_of(row, who) for row, who in enumerate(user_id)]
        rows = [row for row, given in enumerate(answers) if given is not None]
        cost = Cost()
        scores = judge.score(
            [asked[row] for row in rows],
            [given for given in answers if given is not None],
            None if people is None else [people[row] for row in rows],
            cost=cost,
        )
        rewards: Rewards = [None] * len(answers)
        for row, score in zip(rows, scores.tolist(), strict=True):
            rewards[row] = score
        if log_metric is not None and answers:
            log_metric("penchant/empty", sum(map(is_empty, answers)) / len(answers))
            log_metric("penchant/truncated", cost.truncated / len(answers))
        if log_extra is not None and judge.people is not None:
            log_extra("judged_by", people or [None] * len(answers))
        return rewards

    if not asynchronous:
        return penchant

    async def penchant_async(**arguments: Any) -> Rewards:
        return await asyncio.to_thread(penchant, **arguments)

    penchant_async.__name__ = penchant.__name__  # the name that TRL logs it by
    return penchant_async


def answer(row: int, completion: Any) -> Text | None:
    """What was answered: a text, the messages that have one, or None where the last one has none."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if isinstance(message.get("content"), str)]
    if not said or said[-1] is not completion[-1] or said[-1].get("role") != "assistant":
        return None
    return text_of(row, said, "completion")


def text_of(row: int, value: Any, what: str) -> Text:
    """A text, or messages reduced to role and content; InputError for what is neither."""
    try:
        return text_or_messages(value, what)
    except BadRow as bad:
        raise InputError(f"row {row} of the batch: {bad.what}; {bad.cure}") from bad


def name_of(row: int, user_id: Any) -> str | None:
    try:
        return label(user_id, "user_id")
    except BadRow as bad:
        raise InputError(f"row {row} of the batch: {bad.what}; {bad.cure}") from bad


def is_empty(text: Text | None) -> bool:
    """Whether it says nothing; None, which was no answer in words, is not asked."""
    return text is not None and not (text if isinstance(text, str) else text[-1]["content"]).strip()
