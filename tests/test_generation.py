"""Sampled answers are transformers' own, whatever else is in their batch, and a killed run goes on to the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penchant.backbone import Backbone
from penchant.chat import Chat
from penchant.decoding import Decoder, draw
from penchant.errors import InputError
from penchant.generation import Generator
from tests import tiny
from tests.tiny_llm import save_tiny_llm

PROMPTS = ["Name a tree.", "Say hello to the people who live next door and ask them how they are.", "Why?", "Sing me"]
SETTINGS: dict[str, Any] = {"answers": 3, "max_new_tokens": 40, "show_progress": False}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator.load(str(save_tiny_llm(tmp_path_factory.mktemp("llm"))), "float32", max_length=256)


def causal(family: str) -> Any:
    torch.manual_seed(0)
    config = tiny.FAMILIES[family]()
    if getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", tiny.PACKED)
@torch.inference_mode()
def test_logits_are_those_of_each_answer_alone(family: str) -> None:
    """Beyond the sliding window too, behind a prompt of one token, and after other prompts are done and dropped."""
    model = causal(family)
    generator = Generator(model, Backbone(model, tiny.tokenizer(), family, "0"))
    draws = torch.Generator().manual_seed(1)
    prompts = [torch.randint(tiny.VOCABULARY, (n,), generator=draws) for n in (1, 4, 5, 23)]
    answers = torch.randint(tiny.VOCABULARY, (4, 3, 9), generator=draws)
    for budget in (1, 10, 1000):
        decoder = Decoder(model, generator.backbone, prompts, 3, budget)
        decoder.step(decoder.first)
        rows = torch.arange(4)
        for at in range(9):
            found = decoder.step(answers[rows, :, at])
            if at == 5:
                decoder.keep(kept := torch.tensor([0, 3]))
                rows, found = rows[kept], found[kept]
            if at in (0, 5, 8):
                for row, logits in zip(rows.tolist(), found, strict=True):
                    for column in range(3):
                        ids = torch.cat((prompts[row], answers[row, column, : at + 1]))
                        alone = model(input_ids=ids[None], use_cache=False).logits[0, -1]
                        assert relative(logits[column], alone) < 1e-4


@pytest.mark.parametrize("family", ["bloom", "lfm2", "gpt-oss-sinks"])
def test_a_model_whose_attention_is_not_plain_is_refused(family: str) -> None:
    model = causal(family)
    with pytest.raises(InputError, match="cannot be sampled"):
        Generator(model, Backbone(model, tiny.tokenizer(), family, "0"))


def test_the_likeliest_answers_are_those_of_transformers(generator: Generator) -> None:
    found = generator.sample(PROMPTS, temperature=0, **SETTINGS)
    tokenizer = generator.backbone.chat.tokenizer
    for prompt, answers in zip(PROMPTS, found, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        ends = sorted(generator.backbone.chat.ends)
        model: Any = generator.model
        whole = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
        assert answers == [tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_what_else_is_sampled(generator: Generator, temperature: float) -> None:
    """Nor on the batches, nor on the order; equal prompts get equal answers."""
    whole = generator.sample(PROMPTS, temperature=temperature, **SETTINGS)
    cost = generator.cost
    small = generator.sample(PROMPTS[::-1], temperature=temperature, rows=1, token_budget=1, **SETTINGS)
    assert small[::-1] == whole
    assert generator.cost.new_tokens == cost.new_tokens
    assert generator.sample([PROMPTS[2], PROMPTS[2]], temperature=temperature, **SETTINGS) == [whole[2]] * 2
    texts = {text for row in whole for text in row}
    assert len(texts) == (len(PROMPTS) if temperature == 0 else 3 * len(PROMPTS))
    assert (generator.sample(PROMPTS, temperature=temperature, seed=1, **SETTINGS) == whole) == (temperature == 0)


def test_answers_end_where_the_llm_ends_them(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny LLM ends some answers by chance; none goes on behind its end, and the tokens are counted."""
    seen: list[list[int]] = []
    text = Generator._text
    monkeypatch.setattr(Generator, "_text", lambda self, ids: seen.append(ids) or text(self, ids))
    found = generator.sample(PROMPTS, answers=8, max_new_tokens=60, temperature=2.0, show_progress=False)
    ends = generator.backbone.chat.ends
    ended = [ids for ids in seen if ids[-1] in ends]
    assert 3 <= len(ended) < len(seen) == 32
    assert not any(token in ends for ids in seen for token in ids[:-1])
    assert all(len(ids) == 60 for ids in seen if ids[-1] not in ends)
    cost = generator.cost
    assert (cost.prompts, cost.answers, cost.new_tokens) == (4, 32, sum(map(len, seen)))
    assert not any("<|im_" in text for row in found for text in row)


def test_dropping_finished_prompts_changes_no_answer(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    keep = Decoder.keep
    monkeypatch.setattr(Decoder, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    monkeypatch.setattr(Chat, "ends", frozenset(range(0, 258, 25)))
    prompts = [f"Name a tree that begins with {letter}." for letter in "abcdefghijklmnopqrst"]
    settings: dict[str, Any] = {"answers": 1, "max_new_tokens": 120, "temperature": 2.0, "show_progress": False}
    whole = generator.sample(prompts, **settings)
    assert len(kept) >= 2
    assert kept[0] <= 10
    assert generator.sample(prompts, rows=1, **settings) == whole


def test_a_killed_run_goes_on_to_the_same_answers(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[int] = []
    answer = Generator._answer
    monkeypatch.setattr(
        Generator, "_answer", lambda self, ids, *rest: sampled.append(len(ids)) or answer(self, ids, *rest)
    )
    settings = {**SETTINGS, "rows": 3, "file": tmp_path / "below" / "answers.jsonl"}  # a batch a prompt
    whole = generator.sample(PROMPTS, **settings)
    cost = generator.cost
    lines = settings["file"].read_bytes().splitlines(keepends=True)
    assert len(lines) == len(sampled) == 4
    for left, again in ((b"".join(lines[:2]), 2), (b"".join(lines[:2]) + lines[2][:-9], 2), (b"", 4)):
        sampled.clear()
        settings["file"].write_bytes(left)
        assert generator.sample(PROMPTS, **settings) == whole
        assert len(sampled) == again
        records = [json.loads(line) for line in settings["file"].read_bytes().splitlines() if line.endswith(b"}")]
        first, untimed = [json.loads(line) for line in lines], {"seconds": 0, "sum": ""}
        assert [{**r, **untimed} for r in records] == [{**r, **untimed} for r in first]
        assert (generator.cost.new_tokens, generator.cost.prompt_tokens) == (cost.new_tokens, cost.prompt_tokens)
    sampled.clear()
    assert generator.sample(PROMPTS, **settings) == whole
    assert not sampled
    settings["file"].write_bytes(lines[0].replace(b'"texts": [["', b'"texts": [["x') + b"\xff\n" + b"".join(lines[1:]))
    assert generator.sample(PROMPTS, **settings) == whole  # a bit has changed, and is not believed
    assert len(sampled) == 1
    sampled.clear()
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_new_tokens": 9},
        {"answers": 2},
    ]
    for number, change in enumerate(changes, 1):
        assert generator.sample(PROMPTS, **{**settings, **change}) != whole
        assert len(sampled) == 4 * number
    assert generator.sample(PROMPTS, **settings) == whole


def test_a_long_prompt_loses_its_start(generator: Generator) -> None:
    ends_alike = [[{"role": "user", "content": start * 300 + "the end " * 30}] for start in "ab"]
    found = generator.sample(ends_alike, **SETTINGS)  # 256 tokens, 40 of them for the answer, hold the same of both
    assert found[0] == found[1]
    other = generator.sample(["a" * 300 + "the end " * 20], **SETTINGS)
    assert other[0] != found[0]


def test_draws_follow_the_nucleus() -> None:
    logits = torch.tensor([0.1, 2.0, 1.0, -1.0, 1.5])
    probability = torch.softmax(logits / 0.7, -1)
    order = probability.argsort(descending=True)
    for top_p, size in ((0.3, 1), (float(probability[order[:2]].sum()) + 1e-4, 3), (1.0, 5)):
        random = (torch.arange(20_000) + 0.5) / 20_000
        tokens = draw(logits.expand(20_000, 5), random, 0.7, top_p)
        expected = torch.zeros(5)
        expected[order[:size]] = probability[order[:size]] / probability[order[:size]].sum()
        assert torch.allclose(torch.bincount(tokens, minlength=5) / 20_000, expected, atol=1e-3)
    assert draw(logits, torch.tensor(0.999999), 0.0, 1.0) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": 0}, "answers is 0"),
        ({"max_new_tokens": 256}, "no room for a prompt in 256"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"rows": 0}, "rows is 0"),
    ],
)
def test_bad_settings_are_said(generator: Generator, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        generator.sample(PROMPTS, **change)


def test_no_prompts_no_answers(generator: Generator) -> None:
    assert generator.sample([], show_progress=False) == []


def test_a_model_that_is_not_there_is_said_as_for_a_backbone() -> None:
    with pytest.raises(InputError, match="no folder at"):
        Generator.load("./nowhere")
