"""Judged pairs: the widest gaps, no ties; the LLM's judgement is its own logits; augmented data are pairs like any."""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from penchant.encode import encode_pairs
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.pairs import load_pairs
from penchant.synthesis.text import QUESTION, augment, judged_pairs, least_answers, llm_judge
from tests.tiny_llm import save_tiny_llm, tiny_pairs

PROMPTS: list[Any] = [
    "Name a tree.",
    [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Sing"},
    ],
]
ANSWERS = [["An oak.", "An oak tree.", "", "Oak", "An oak."], ["La", "Lala", "No.", "Gladly! La la", "Lalala"]]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator.load(str(save_tiny_llm(tmp_path_factory.mktemp("llm"))), "float32", max_length=400)


@torch.inference_mode()
def test_the_judge_is_the_llms_own_yes_and_no(generator: Generator) -> None:
    """Each answer alone, the prefix not shared, gives the same; so do other batches."""
    found = llm_judge(generator, PROMPTS, ANSWERS)
    tokenizer = generator.backbone.chat.tokenizer
    yes, no = (tokenizer(word).input_ids[0] for word in ("Yes", "No"))
    model: Any = generator.model
    generator.backbone.config._attn_implementation = "sdpa"
    said = ["Name a tree.", "user: Hello?\n\nassistant: Hello!\n\nuser: Sing"]
    for prompt, answers, scores in zip(said, ANSWERS, found, strict=True):
        for answer, score in zip(answers, scores, strict=True):
            asked = [{"role": "user", "content": QUESTION.format(prompt=prompt, answer=answer)}]
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            logits = model(input_ids=ids).logits[0, -1]
            assert score == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)
    assert found[0, 0] == found[0, 4] != found[0, 1]
    alone = [[llm_judge(generator, [p], [[a]])[0, 0] for a in row] for p, row in zip(PROMPTS, ANSWERS, strict=True)]
    assert np.allclose(alone, found, atol=1e-4)
    assert np.allclose(llm_judge(generator, PROMPTS, ANSWERS, token_budget=1), found, atol=1e-4)


def test_the_judge_runs_a_prompt_once(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    run = generator.backbone.run_trees
    monkeypatch.setattr(
        generator.backbone,
        "run_trees",
        lambda trees, layers: tokens.extend(len(p) + sum(map(len, r)) for p, r in trees) or run(trees, layers),
    )
    llm_judge(generator, ["x" * 60], [["a", "b", "c", "d"]])
    before, after = QUESTION.split("{answer}")
    prompt, tail = len(before) + 60, len(after)
    assert sum(tokens) < prompt + 4 * (tail + 40)  # 4 * (prompt + tail) if each ran alone


def test_the_judge_wants_equal_numbers_of_answers(generator: Generator) -> None:
    for answers in ([["a"]], [["a"], ["b", "c"]]):
        with pytest.raises(InputError, match="all of one length"):
            llm_judge(generator, PROMPTS, answers)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_have_the_widest_gaps(seed: int) -> None:
    """Against the plain loop; scores are rounded, so that there are ties within prompts and between gaps."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (20, 5)).astype(float)
    valid = rng.random((20, 5)) < 0.8
    scores[~valid] = np.nan
    wanted = rng.integers(0, 12, 20)
    row, better, worse = judged_pairs(scores, wanted, valid)
    assert (np.diff(row) >= 0).all()
    for p in range(20):
        of_all = [abs(scores[p, i] - scores[p, j]) for i, j in combinations(np.flatnonzero(valid[p]), 2)]
        gaps = sorted((gap for gap in of_all if gap), reverse=True)[: wanted[p]]
        mine = row == p
        assert (scores[p, better[mine]] - scores[p, worse[mine]]).tolist() == gaps
        assert len({frozenset(pair) for pair in zip(better[mine], worse[mine], strict=True)}) == len(gaps)


def test_scores_that_cannot_be_ranked_are_said() -> None:
    with pytest.raises(InputError, match="1 scores are not finite"):
        judged_pairs(np.array([[0.0, np.nan]]), 1)
    with pytest.raises(InputError, match="must both be"):
        judged_pairs(np.zeros((2, 3)), 1, np.ones((2, 2), bool))


def test_least_answers() -> None:
    for pairs in range(1, 60):
        k = least_answers(pairs)
        assert k * (k - 1) // 2 >= pairs
        assert k == 2 or (k - 1) * (k - 2) // 2 < pairs


def score_by_length(prompts: list[Any], answers: list[str]) -> np.ndarray:
    assert len(prompts) == len(answers)
    return np.array([len(answer) + sum(map(ord, answer)) / 1e6 for answer in answers])


@pytest.mark.parametrize("messages", [False, True])
def test_augmented_data_are_pairs_like_any(generator: Generator, messages: bool) -> None:
    rows: list[dict[str, Any]] = [{**row, "margin": 1.5} for row in tiny_pairs(6)]  # two pairs a prompt
    if messages:
        for row in rows:
            row.update(prompt=[{"role": "user", "content": row["prompt"]}])
    pairs = load_pairs(rows)
    found = augment(pairs, generator, score_by_length, 3, max_new_tokens=12, show_progress=False)
    assert found.features == {**pairs.features, "source": found.features["source"]}
    assert len(found) == 18
    assert found[:6] == {**pairs[:], "source": [None] * 6}
    made = found.select(range(6, 18))
    assert set(made["source"]) == {"synthetic"}
    assert set(made["margin"]) == {None}
    assert [repr(p) for p in made["prompt"]] == [repr(p) for p in pairs["prompt"][::2] for _ in range(4)]
    for row in made:
        chosen, rejected = (row[side][0]["content"] if messages else row[side] for side in ("chosen", "rejected"))
        assert score_by_length([0, 0], [chosen, rejected]).argmax() == 0
    assert load_pairs(found.to_list()).num_rows == 18
    assert np.isfinite(encode_pairs(generator.backbone, found, ("2:mean",), show_progress=False).chosen).all()
    with_source = load_pairs([{**row, "source": "seed"} for row in rows])
    again = augment(with_source, generator, score_by_length, 2, max_new_tokens=12, show_progress=False)
    assert list(again["source"]) == ["seed"] * 6 + ["synthetic"] * 6


def test_ties_and_empty_answers_are_left_out_and_told(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = load_pairs(tiny_pairs(4))
    scored: list[str] = []

    def sample(self: Any, prompts: list[Any], **_: Any) -> list[list[str]]:
        return [["a", "b", " \n", "ccc"], ["", "", "one", ""]]

    def score(prompts: list[Any], answers: list[str]) -> np.ndarray:
        scored.extend(answers)
        return np.array([len(answer) for answer in answers], float)

    monkeypatch.setattr(Generator, "sample", sample)
    with caplog.at_level(logging.WARNING):
        found = augment(pairs, generator, score, 3, answers=4)
    assert scored == ["a", "b", "ccc", "one"]
    made = found.select(range(4, len(found)))
    assert sorted(zip(made["chosen"], made["rejected"], strict=True)) == [("ccc", "a"), ("ccc", "b")]
    assert "2 synthetic pairs instead of 8: 4 of 8 answers are empty" in caplog.text
    assert len(augment(pairs, generator, lambda p, a: np.zeros(len(a)), 3, answers=4)) == 4


def test_the_llm_judges_where_no_one_else_does(generator: Generator) -> None:
    pairs = load_pairs(tiny_pairs(4))
    found = augment(pairs, generator, factor=2, max_new_tokens=12, seed=3, show_progress=False)
    assert len(found) == 8
    for row in found.select(range(4, 8)):
        better, worse = llm_judge(generator, [row["prompt"]], [[row["chosen"], row["rejected"]]])[0]
        assert better > worse


def test_factors_that_cannot_be_met_are_said(generator: Generator) -> None:
    pairs: Dataset = load_pairs(tiny_pairs(4))
    with pytest.raises(InputError, match="factor is 0"):
        augment(pairs, generator, factor=0)
    with pytest.raises(InputError, match="3 answers make 3 pairs, and factor 3 takes 4 from one prompt; use answers=4"):
        augment(pairs, generator, factor=3, answers=3)
    assert augment(pairs, generator, factor=1)[:] == {**pairs[:], "source": [None] * 4}
