"""`penchant best-of-n`: the highest score wins, of given and of sampled responses, and a killed run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import RewardModel, picking
from penchant.candidates import Judged, read_rows
from penchant.cli.main import main
from penchant.encode import Cost
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.judge import Judge
from penchant.picking import Picked, line, pick_best, sampled_rows
from tests.tiny_judges import save_tiny_model, save_tiny_people
from tests.tiny_llm import save_tiny_llm

CANDIDATES = [
    {"prompt": f"Name river {i}.", "responses": ["No.", f"Gladly! Number {i}.", "So there."][: 2 + i % 2], "topic": i}
    for i in range(30)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("best-of-n") / "llm")


@pytest.fixture(scope="module")
def model(llm: Path) -> Path:
    return save_tiny_model(llm, llm.parent / "model")


@pytest.fixture(scope="module")
def people(llm: Path) -> Path:
    return save_tiny_people(llm, llm.parent / "people")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "candidates.jsonl", CANDIDATES)
    return tmp_path


def test_the_best_response_its_score_and_all_scores(here: Path, model: Path, capsys: Any) -> None:
    assert main(["best-of-n", str(model), "candidates.jsonl", "--out", "best.jsonl"]) == 0
    rm, found = RewardModel.from_pretrained(model), read(here / "best.jsonl")
    assert len(found) == len(CANDIDATES)
    for row, given in zip(found, CANDIDATES, strict=True):
        scores = rm.score(given["prompt"], given["responses"])
        assert row["scores"] == pytest.approx(scores.tolist(), rel=1e-5)
        assert row["score"] == max(row["scores"])
        assert row["response"] == given["responses"][int(scores.argmax())]
        assert (row["responses"], row["topic"]) == (given["responses"], given["topic"])
    gain = np.mean([max(row["scores"]) - np.mean(row["scores"]) for row in found])
    said = capsys.readouterr().out
    assert f"picked the best of 75 responses to 30 prompts; its score is {gain:.3g} above the mean" in said
    assert not list(here.glob(".*"))


def test_equal_scores_take_the_first_and_empty_responses_none() -> None:
    (row,) = sampled_rows([Judged(0, "p", [], {})], [["", "b", "c", "d"]]).rows
    found = Picked()
    assert line(row, [None, 1.0, 2.0, 2.0], found)["response"] == "c"
    assert line(row, [None, None, None, None], found) == {
        "prompt": "p", "responses": ["", "b", "c", "d"], "response": None, "score": None, "scores": [None] * 4,
    }  # fmt: skip
    assert (found.prompts, found.unanswered, found.responses) == (2, 1, 8)
    assert found.gain == pytest.approx(2 - 5 / 3)
    assert "1 prompts had only empty responses" in found.says


def test_a_killed_run_goes_on_and_ends_the_same(
    here: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picking, "ROWS", 10)
    asked = ["best-of-n", str(model), "candidates.jsonl", "--out"]
    assert main([*asked, "whole.jsonl", "--cache", "other"]) == 0
    costs: list[Cost] = []
    whole = Judge.score

    def killed(self: Judge, *texts: Any, **more: Any) -> Any:
        if len(costs) == 2:
            raise KeyboardInterrupt
        costs.append(Cost())
        return whole(self, *texts, **more, cost=costs[-1])

    monkeypatch.setattr(Judge, "score", killed)
    left = f"from pathlib import Path; from penchant.store_shard import temp_in; temp_in(Path({str(here)!r})).touch()"
    subprocess.run([sys.executable, "-c", left], check=True)  # as a run that was killed at once
    assert list(here.glob(".tmp-*"))
    assert main([*asked, "best.jsonl"]) == 130
    assert not (here / "best.jsonl").exists()
    assert not list(here.glob(".*"))
    costs.append(Cost())  # past the fatal number
    assert main([*asked, "best.jsonl"]) == 0
    assert [cost.encoded_sequences == 0 for cost in costs[3:]] == [True, True, False]
    assert (here / "best.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()


def test_sampling_from_an_llm_is_resumable(
    here: Path,
    llm: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(here / "prompts.jsonl", [{"prompt": f"Say {i % 3}"} for i in range(5)])
    asked = [
        "best-of-n",
        str(model),
        "prompts.jsonl",
        "--model",
        str(llm),
        "--n",
        "3",
        "--max_new_tokens",
        "6",
        "--out",
    ]
    assert main([*asked, "best.jsonl"]) == 0
    found = read(here / "best.jsonl")
    assert [row["prompt"] for row in found] == ["Say 0", "Say 1", "Say 2"]
    assert all(len(row["responses"]) == len(row["scores"]) == 3 for row in found)
    expected = Generator.load(str(llm)).sample(
        ["Say 0", "Say 1", "Say 2"], answers=3, max_new_tokens=6, show_progress=False
    )
    assert [row["responses"] for row in found] == expected

    def never(*_: Any) -> Any:
        raise AssertionError("sampled again")

    monkeypatch.setattr(Generator, "_answer", never)
    first = (here / "best.jsonl").read_bytes()
    assert main([*asked, "best.jsonl"]) == 0
    assert (here / "best.jsonl").read_bytes() == first


def test_sampled_answers_keep_each_rows_columns_and_person(
    here: Path, llm: Path, people: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One prompt in the name of two people and of nobody is three rows; the same row again is none."""
    monkeypatch.setattr(
        Generator, "sample", lambda _, prompts, **__: [["Gladly! 3 of them.", "No. 1 it is."]] * len(prompts)
    )
    rows = [{"question": "Say something about tea", "user_id": who, "topic": "\udc80"} for who in ("ann", "bob", "ann")]
    write(here / "asked.jsonl", [*rows, {"question": "Say something about tea"}])
    asked = ["--model", str(llm), "--columns", "{question: prompt}", "--out"]
    assert main(["best-of-n", str(people), "asked.jsonl", *asked, "best.jsonl"]) == 0
    found = read(here / "best.jsonl")
    assert [(row.get("user_id"), row.get("topic")) for row in found] == [
        ("ann", "\udc80"),
        ("bob", "\udc80"),
        (None, None),
    ]
    assert [row["response"][:2] for row in found[:2]] == ["Gl", "No"]
    pairs = [{"question": "q", "chosen": "a", "rejected": "b", "user_id": who} for who in ("ann", "bob", "ann")]
    write(here / "pairs.jsonl", pairs)
    assert main(["best-of-n", str(people), "pairs.jsonl", *asked, "of_pairs.jsonl"]) == 0
    assert [row["user_id"] for row in read(here / "of_pairs.jsonl")] == ["ann", "bob"]

    write(here / "asked.jsonl", [{"question": "q"}, {"question": "q", "user_id": "eve"}])
    monkeypatch.setattr(Generator, "sample", lambda *_, **__: pytest.fail("sampled for somebody unknown"))
    assert main(["best-of-n", str(people), "asked.jsonl", *asked, "best.jsonl"]) == 2
    assert "row 1: " in capsys.readouterr().err


def test_the_data_are_never_the_file_of_answers(here: Path, llm: Path, model: Path, capsys: Any) -> None:
    write(here / "p.answers.jsonl", [{"prompt": "a"}])
    before = (here / "p.answers.jsonl").read_bytes()
    assert main(["best-of-n", str(model), "p.answers.jsonl", "--out", "p.jsonl", "--model", str(llm), "--n", "1"]) == 2
    assert "cannot be read and written at once" in capsys.readouterr().err
    assert (here / "p.answers.jsonl").read_bytes() == before


def test_in_the_taste_of_a_person(here: Path, people: Path) -> None:
    rows = [{"prompt": "Say something about tea", "responses": ["Gladly! 3 of them.", "No. 1 it is."], "user_id": who}
            for who in ("ann", "bob", None)]  # fmt: skip
    write(here / "mine.jsonl", rows)
    asked = ["best-of-n", str(people), "mine.jsonl", "--out"]
    assert main([*asked, "own.jsonl"]) == 0
    assert main([*asked, "bob.jsonl", "--user_id", "bob"]) == 0
    own, bob = read(here / "own.jsonl"), read(here / "bob.jsonl")
    assert [row["response"][:2] for row in own[:2]] == ["Gl", "No"]
    assert [row["scores"] for row in bob] == [pytest.approx(own[1]["scores"], rel=1e-5)] * 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["candidates.jsonl", "--out", "best.txt"], "give an --out that ends in .jsonl"),
        (["candidates.jsonl", "--out", "candidates.jsonl"], "cannot be read and written at once"),
        (["bad.jsonl", "--out", "best.jsonl"], 'row 1 of bad.jsonl (line 2): column "responses" has fewer than two'),
        (["candidates.jsonl", "--out", "best.jsonl", "--user_id", "ann"], "one for all and knows no 'ann'"),
        (["candidates.jsonl", "--out", "best.jsonl", "--model", "x", "--n", "0"], "n is 0; give at least 1"),
        (["candidates.jsonl", "--out", "best.jsonl", "--token_budget", "-1"], "token_budget is -1; give at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(
    here: Path,
    model: Path,
    arguments: list[str],
    says: str,
    capsys: Any,
) -> None:
    write(here / "bad.jsonl", [CANDIDATES[0], {"prompt": "p", "responses": ["a"]}])
    assert main(["best-of-n", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (here / "best.jsonl").exists()


def test_an_unknown_person_in_the_data_is_named_with_the_row(here: Path, people: Path) -> None:
    rows = read_rows([{**CANDIDATES[0], "user_id": "ann"}, {**CANDIDATES[1], "user_id": "eve"}])
    with pytest.raises(InputError, match=r"row 1: .*eve"):
        pick_best(Judge.load(people), rows, here / "best.jsonl", show_progress=False)
