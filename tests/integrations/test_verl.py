"""verl's custom reward function, called with the keywords of its naive and batch reward managers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import RewardModel
from penchant.errors import InputError
from penchant.integrations.verl import compute_score, compute_scores
from penchant.personal.system import PersonalLLM

PROMPT, TEXT = "Name a river.", "Gladly! The Danube."
TALK = [{"role": "user", "content": PROMPT}]


def score(extra_info: dict[str, Any] | None, text: str = TEXT) -> float:
    return compute_score(data_source="mine", solution_str=text, ground_truth="", extra_info=extra_info)


def test_the_prompt_comes_from_extra_info(environment: Path) -> None:
    expected = float(RewardModel.from_pretrained(environment).score(PROMPT, TEXT)[0])
    parquet = {"prompt": np.array(TALK, dtype=object), "num_turns": None, "rollout_reward_scores": {}}
    found = [score({"prompt": PROMPT}), score({"question": PROMPT}), score({"prompt": TALK}), score(parquet)]
    assert found == [expected] * 4
    assert all(type(each) is float for each in found)


def test_a_batch_gives_what_single_rows_give(environment: Path) -> None:
    texts = [TEXT, "No.", ""]
    infos = np.array([{"prompt": PROMPT}, {"prompt": "Name a song."}, {"prompt": PROMPT}], dtype=object)
    found = compute_scores(
        data_sources=np.array(["a"] * 3), solution_strs=texts, ground_truths=[None] * 3, extra_infos=infos
    )
    assert found == pytest.approx([score(info, text) for info, text in zip(infos, texts, strict=True)], rel=1e-5)
    assert np.isfinite(found).all()


def test_user_id_says_in_whose_taste(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENCHANT_REWARD_MODEL", str(people))
    system = PersonalLLM.load(people)
    for who in ("ann", "bob", None):
        expected = float(system.score(PROMPT, TEXT, who)[0])
        assert score({"prompt": PROMPT, "user_id": who}) == pytest.approx(expected, rel=1e-5)


def test_wrong_input_is_one_sentence(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="row 0: extra_info has no prompt, only split, index"):
        score({"split": "train", "index": 3})
    with pytest.raises(InputError, match="has no prompt, only nothing"):
        score(None)
    with pytest.raises(InputError, match=r'column "extra_info.prompt" is an empty message list'):
        score({"prompt": []})
    monkeypatch.delenv("PENCHANT_REWARD_MODEL")
    with pytest.raises(InputError, match="PENCHANT_REWARD_MODEL is not set"):
        score({"prompt": PROMPT})
