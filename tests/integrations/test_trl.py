"""The reward function for TRL: scores are those of the model, in every form that GRPOTrainer hands texts over."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import RewardModel
from penchant.errors import InputError
from penchant.integrations.trl import reward_function
from penchant.judge import Judge
from penchant.personal.system import PersonalLLM

PROMPTS = ["Name a river.", "Name a river.", "Name a song."]
TEXTS = ["Gladly! The Danube.", "No.", "Gladly!"]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str | None, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


class Log:
    """The trainer's two functions, as GRPOTrainer passes them."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.extra: dict[str, list[Any]] = defaultdict(list)

    def arguments(self) -> dict[str, Any]:
        return {
            "log_metric": lambda name, value: self.metrics[name].append(value),
            "log_extra": lambda name, values: self.extra[name].extend(values),
            "trainer_state": object(),
            "completion_ids": [[1], [2], [3]],
        }


def test_texts_get_the_models_scores(model: Path) -> None:
    rm, log = RewardModel.from_pretrained(model), Log()
    found = reward_function(model)(prompts=PROMPTS, completions=TEXTS, **log.arguments())
    assert found == rm.score(PROMPTS, TEXTS).tolist()
    assert all(type(reward) is float for reward in found)
    assert log.metrics == {"penchant/empty": [0.0], "penchant/truncated": [0.0]}
    assert not log.extra


def test_conversations_get_the_scores_of_their_texts(model: Path) -> None:
    function = reward_function(model)
    texts = function(prompts=PROMPTS, completions=TEXTS)
    talks = function(prompts=[asked(p) for p in PROMPTS], completions=[said(t) for t in TEXTS])
    assert talks == texts
    system = {"role": "system", "content": "Be brief."}
    assert function(prompts=[[system, *asked(PROMPTS[0])]], completions=[said(TEXTS[0])]) != texts[:1]


def test_asynchronous_is_a_coroutine_function_of_the_same_name_and_scores(model: Path) -> None:
    plain, waiting = reward_function(model), reward_function(model, asynchronous=True)
    assert inspect.iscoroutinefunction(waiting)
    assert not inspect.iscoroutinefunction(plain)
    assert waiting.__name__ == plain.__name__ == "penchant"

    async def both() -> list[Any]:
        calls = [waiting(prompts=PROMPTS, completions=TEXTS, **Log().arguments()) for _ in range(3)]
        return list(await asyncio.gather(*calls))

    assert asyncio.run(both()) == [plain(prompts=PROMPTS, completions=TEXTS)] * 3


def test_none_where_there_is_no_answer_in_words_and_a_number_for_an_empty_one(model: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    completions = [said(TEXTS[0]), said(None, tool_calls=[call]), said("")]
    log = Log()
    found = reward_function(model)(prompts=[asked(p) for p in PROMPTS], completions=completions, **log.arguments())
    assert found[1] is None
    assert found[0] == RewardModel.from_pretrained(model).score(PROMPTS[0], TEXTS[0])[0]
    assert np.isfinite(found[2])
    assert log.metrics["penchant/empty"] == [pytest.approx(1 / 3)]
    assert reward_function(model)(prompts=PROMPTS[:1], completions=[""])[0] is not None
    assert reward_function(model)(prompts=[asked("a")], completions=[said(None)]) == [None]
    assert reward_function(model)(prompts=[], completions=[]) == []


def test_the_column_user_id_says_in_whose_taste(people: Path) -> None:
    system, log = PersonalLLM.load(people), Log()
    names = ["ann", "bob", None]
    prompts, texts = ["Say something about tea"] * 3, ["Gladly! 3 of them."] * 3
    found = reward_function(system)(prompts=prompts, completions=texts, user_id=names, **log.arguments())
    expected = [float(system.score(prompts[0], texts[0], name)[0]) for name in names]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == 3
    assert log.extra == {"judged_by": names}
    assert reward_function(people)(prompts=prompts, completions=texts, user_id=names) == pytest.approx(found)
    everybody = reward_function(system)(prompts=prompts, completions=texts)
    assert everybody == pytest.approx([expected[2]] * 3)
    with pytest.raises(InputError, match="eve"):
        reward_function(system)(prompts=prompts, completions=texts, user_id=["ann", "eve", "ann"])


def test_a_model_for_all_takes_no_account_of_user_id(model: Path) -> None:
    function = reward_function(model)
    with_people = function(prompts=PROMPTS, completions=TEXTS, user_id=["ann", "bob", 3])
    assert with_people == function(prompts=PROMPTS, completions=TEXTS)


def test_wrong_input_is_one_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no reward model in"):
        reward_function(tmp_path)
    with pytest.raises(InputError, match='row 1 of the batch: column "prompt" is null'):
        reward_function(model)(prompts=["a", None], completions=["b", "c"])


def test_a_judge_knows_whom_it_can_tell_apart(model: Path, people: Path) -> None:
    Judge.load(model).check(None)
    Judge.load(people).check("ann")
    with pytest.raises(InputError, match="one for all"):
        Judge.load(model).check("ann")
    with pytest.raises(InputError, match="eve"):
        Judge.load(people).check("eve")
