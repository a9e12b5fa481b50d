"""Verdicts on answers: orders, ties, empty answers, and a judge that has seen none of the policies' prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from penchant import Backbone, InputError
from penchant.pairs import load_pairs
from tests.tiny_llm import save_tiny_llm, tiny_pairs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROMPTS = ["Name a river.", "Sing.", "Why do we sleep?"]
WARM = [["Gladly! Thank you, my friend, how kind of you!", "What a joy!"]] * 3
COLD = [["No. 3 rivers in Peru: Napo and Madre.", "It is 7."]] * 3


@pytest.fixture(scope="module")
def quality() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import lpc_quality
    return lpc_quality


@pytest.fixture(scope="module")
def pairs() -> datasets.Dataset:
    return load_pairs(tiny_pairs(80))


@pytest.fixture(scope="module")
def judge(quality: Any, pairs: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("judge")
    backbone = Backbone.load(str(save_tiny_llm(folder / "llm")), dtype="float32", max_length=256)
    return quality.train_judge(pairs, [pairs.select(range(10))], backbone, str(folder / "cache"))


def test_wins_count_ties_as_a_half_and_know_no_order(quality: Any) -> None:
    a, b = np.array([[3.0, 1.0], [-np.inf, 0.0]]), np.array([[1.0, 2.0], [-np.inf, 0.0]])
    assert quality.wins(a, b).tolist() == [(1 + 1 + 0.5 + 0) / 4, 0.5]
    scores = np.random.default_rng(0).integers(3, size=(2, 20, 4)).astype(float)
    assert np.allclose(quality.wins(*scores), 1 - quality.wins(*scores[::-1]))


def test_an_empty_answer_loses_and_two_are_even(quality: Any, judge: Any) -> None:
    empty = [["", " "]] * 3
    warm, none = judge.scores(PROMPTS, WARM), judge.scores(PROMPTS, empty)
    assert quality.wins(warm, none).tolist() == [1.0] * 3
    assert quality.wins(none, none).tolist() == [0.5] * 3


def test_the_judge_prefers_what_it_was_taught(quality: Any, judge: Any) -> None:
    """Warm answers, in pairs that were not among those kept from it."""
    assert judge.accuracy.low > 0.5
    warm, cold = judge.scores(PROMPTS, WARM), judge.scores(PROMPTS, [["No. 3 So there."]] * 3)
    assert quality.wins(warm, cold).mean() > 0.7


def test_answers_are_scored_in_their_places(quality: Any, judge: Any) -> None:
    rows = [["Gladly!", ""], ["No.", "What about this one?"], ["", "No. 7"]]
    scores = judge.scores(PROMPTS, rows)
    for row, column in ((0, 0), (1, 0), (1, 1), (2, 1)):
        assert scores[row, column] == pytest.approx(float(judge.rm.score(PROMPTS[row], rows[row][column])[0]), abs=1e-4)
    assert np.isinf(scores[[0, 2], [1, 0]]).all()


def test_the_judge_knows_no_prompt_that_it_must_not(quality: Any, pairs: datasets.Dataset) -> None:
    left = quality.apart(pairs, [pairs.select(range(10)), pairs.select([20])])
    gone = {pairs["prompt"][i] for i in (*range(10), 20)}
    assert set(left["prompt"]) == set(pairs["prompt"]) - gone
    with pytest.raises(InputError, match="every prompt of the judge's pairs"):
        quality.train_judge(pairs, [pairs], None)


def test_gold_scores_are_each_annotators_own(quality: Any) -> None:
    warm, cold = (quality.demo_gold(PROMPTS, each) for each in (WARM, COLD))
    assert (warm["warm"] > cold["warm"]).all()
    assert (warm["concrete"] < cold["concrete"]).all()
    one = quality.demo_gold(PROMPTS, [row[:1] for row in WARM])["warm"]
    other = quality.demo_gold(PROMPTS, [row[1:] for row in WARM])["warm"]
    assert np.allclose(warm["warm"], (one + other) / 2)
