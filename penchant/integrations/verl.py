"""The file that verl's `custom_reward_function.path` takes.

    export PENCHANT_REWARD_MODEL=my-reward-model
    ... custom_reward_function.path=$(python -c "import penchant.integrations.verl as file; print(file.__file__)")

verl hands a reward function the answer but not the prompt, so the data's `extra_info` must have it: as `prompt`, a text
or a list of messages, or as `question`, the name in verl's own examples. `user_id` there says in whose taste to score
where the model is a personal LLM. With `reward_manager=batch` and `custom_reward_function.name=compute_scores` a whole
batch is scored at once, which is faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.chat import Text
from penchant.errors import InputError
from penchant.integrations import judge_of_environment
from penchant.pair_checks import BadRow, label, plain, text_or_messages

PROMPTS = ("prompt", "question")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> float:
    """The reward model's score of one answer, `solution_str`, to the prompt in `extra_info`.

    Raises InputError where the environment names no model, or `extra_info` has no prompt.
    """
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info])[0]


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **_: Any,
) -> list[float]:
    """`compute_score` of n answers at once."""
    judge = judge_of_environment()
    infos = [info or {} for info in extra_infos]
    prompts = [prompt_of(row, info) for row, info in enumerate(infos)]
    people = None if judge.people is None else [person_of(row, info) for row, info in enumerate(infos)]
    scores: list[float] = judge.score(prompts, list(solution_strs), people).tolist()
    return scores


def prompt_of(row: int, info: Mapping[str, Any]) -> Text:
    """The prompt that was asked; InputError where there is none."""
    name = next((name for name in PROMPTS if info.get(name) is not None), None)
    if name is None:
        there = ", ".join(map(str, info)) or "nothing"
        raise InputError(
            f"row {row}: extra_info has no prompt, only {there}; put it there as 'prompt' when you write the data"
        )
    try:
        return text_or_messages(plain(info[name]), f"extra_info.{name}")
    except BadRow as bad:
        raise InputError(f"row {row}: {bad.what}; {bad.cure}") from bad


def person_of(row: int, info: Mapping[str, Any]) -> str | None:
    try:
        return label(plain(info.get("user_id")), "extra_info.user_id")
    except BadRow as bad:
        raise InputError(f"row {row}: {bad.what}; {bad.cure}") from bad
