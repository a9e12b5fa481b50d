"""OpenRLHF's local reward file, loaded and called as its single-turn executor does."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant.integrations.openrlhf as file
from penchant import RewardModel
from penchant.errors import InputError
from penchant.judge import Judge
from penchant.personal.system import PersonalLLM

PROMPTS = ["Name a river.", "Name a song."]
TEXTS = ["Gladly! The Danube.", "No."]


@pytest.fixture
def reward_func() -> Any:
    """The function in the file, as the trainer loads it."""
    spec = importlib.util.spec_from_file_location("reward_func", file.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reward_func


def rendered(rm: RewardModel, prompt: str | list[dict[str, str]]) -> str:
    """What `--apply_chat_template` makes of a prompt."""
    talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = rm.backbone.chat.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return str(text)


def test_plain_prompts_get_the_models_scores(environment: Path, reward_func: Any) -> None:
    expected = torch.from_numpy(RewardModel.from_pretrained(environment).score(PROMPTS, TEXTS))
    queries = [prompt + text for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    found = reward_func(queries, PROMPTS, ["", ""])
    assert torch.equal(found["rewards"], expected)
    assert torch.equal(found["scores"], expected)
    assert found["extra_logs"]["truncated"].tolist() == [0, 0]


def test_rendered_prompts_are_not_rendered_twice(environment: Path, reward_func: Any) -> None:
    """The same ids as in training, whether the answer ended or was cut."""
    rm = RewardModel.from_pretrained(environment)
    expected = torch.from_numpy(rm.score(PROMPTS, TEXTS))
    prompts = [rendered(rm, prompt) for prompt in PROMPTS]
    queries = [f"{prompts[0]}{TEXTS[0]}<|im_end|>", prompts[1] + TEXTS[1]]
    assert torch.equal(reward_func(queries, prompts, [None, None])["rewards"], expected)


def test_an_empty_answer_gets_the_score_of_its_end(environment: Path, reward_func: Any) -> None:
    rm = RewardModel.from_pretrained(environment)
    start = rendered(rm, PROMPTS[0])
    found = [reward_func([start + end], [start], [None])["rewards"].item() for end in ("", "<|im_end|>")]
    assert found == [Judge(rm).score(PROMPTS[:1], [""])[0]] * 2


def test_a_rendered_conversation_keeps_its_turns(environment: Path, reward_func: Any) -> None:
    rm = RewardModel.from_pretrained(environment)
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    talk += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Name a river."}]
    prompt = rendered(rm, talk)
    found = reward_func([f"{prompt}The Danube.<|im_end|>"], [prompt], [None])["rewards"]
    assert found.item() == rm.score([talk], ["The Danube."])[0]


def test_one_query_a_thread_gives_what_a_batch_gives(environment: Path, reward_func: Any) -> None:
    """The executor calls with one query each, in threads."""
    prompts = [f"Name river {i}." for i in range(12)]
    whole = reward_func([p + "The Danube." for p in prompts], prompts, [None] * 12)["rewards"]

    async def apart() -> list[Any]:
        calls = [asyncio.to_thread(reward_func, [p + "The Danube."], [p], [None]) for p in prompts]
        return list(await asyncio.gather(*calls))

    found = torch.cat([each["rewards"] for each in asyncio.run(apart())])
    assert torch.allclose(found, whole, rtol=1e-5, atol=1e-6)


def test_labels_say_in_whose_taste(people: Path, reward_func: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENCHANT_REWARD_MODEL", str(people))
    system, prompt = PersonalLLM.load(people), "Say something about tea"
    found = reward_func([prompt + "Gladly!"] * 3, [prompt] * 3, ["ann", "bob", ""])["rewards"]
    expected = [float(system.score(prompt, "Gladly!", who)[0]) for who in ("ann", "bob", None)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_wrong_input_is_one_sentence(
    environment: Path, reward_func: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="query 0 is not in this model's chat format"):
        reward_func(["of the prompt. Answer"], ["A cut start of the prompt."], [None])
    monkeypatch.setenv("PENCHANT_REWARD_MODEL", str(tmp_path))
    with pytest.raises(InputError, match="there is no reward model in"):
        reward_func(["ab"], ["a"], [None])
    monkeypatch.delenv("PENCHANT_REWARD_MODEL")
    with pytest.raises(InputError, match="PENCHANT_REWARD_MODEL is not set; set it to the folder of a reward model"):
        reward_func(["ab"], ["a"], [None])
