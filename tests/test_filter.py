"""`penchant filter`: exactly the pairs that pass, in a form that trainers read, and a reason for every other one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from penchant import RewardModel, filtering
from penchant.candidates import read_rows
from penchant.chat import Chat
from penchant.cli.main import main
from penchant.encode import encode_texts
from penchant.errors import InputError
from penchant.filtering import Rule, Scores, filter_pairs, verdicts
from penchant.heads import CommitteeHead, LinearHead
from tests.tiny_llm import save_tiny_llm, tiny_pairs

N = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM, a linear model, a committee and pairs of which a third are the wrong way round."""
    folder = tmp_path_factory.mktemp("filter")
    arguments: dict[str, Any] = {
        "model": str(save_tiny_llm(folder / "llm")), "dtype": "float32", "views": ["3:mean"],
        "cache": folder / "cache", "show_progress": False,
    }  # fmt: skip
    rows = tiny_pairs(60, noise=0.2)
    RewardModel.train(rows, head=LinearHead(), **arguments).save_pretrained(folder / "linear")
    RewardModel.train(rows, head=CommitteeHead(LinearHead(), 5), **arguments).save_pretrained(folder / "committee")
    write(folder / "pairs.jsonl", [{**row, "user_id": f"u{i}"} for i, row in enumerate(tiny_pairs(N, noise=0.35))])
    return folder


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENCHANT_CACHE", str(work / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(work: Path, here: Path, *options: str, model: str = "linear", data: Path | None = None) -> list[dict[str, Any]]:
    done = main(["filter", str(work / model), str(data or work / "pairs.jsonl"), "--out", "kept.jsonl", *options])
    assert done == 0
    assert [path.name for path in here.iterdir() if path.name.startswith(".")] == []
    return read(here / "kept.jsonl")


def chances(rm: RewardModel, rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([rm.compare(r["prompt"], r["chosen"], r["rejected"])[0] for r in rows], np.float64)


# --- which pairs


def test_it_keeps_exactly_the_pairs_whose_confidence_passes(work: Path, here: Path, capsys: Any) -> None:
    rows, rm = read(work / "pairs.jsonl"), RewardModel.from_pretrained(work / "linear")
    p = chances(rm, rows)
    kept = run(work, here, "--confidence", "0.6")
    assert 0 < len(kept) < N
    assert [k["user_id"] for k in kept] == [r["user_id"] for r, sure in zip(rows, p >= 0.6, strict=True) if sure]
    np.testing.assert_allclose([k["confidence"] for k in kept], p[p >= 0.6], rtol=1e-5)
    for k in kept:
        scores = rm.score(k["prompt"], [k["chosen"], k["rejected"]])
        np.testing.assert_allclose([k["score_chosen"], k["score_rejected"]], scores, rtol=1e-5, atol=1e-6)
    contrary, unsure = int((p <= 0.4).sum()), int(((p > 0.4) & (p < 0.6)).sum())
    assert contrary > 0
    assert unsure > 0
    said = capsys.readouterr().out
    assert f"kept {len(kept)} of {N} pairs" in said
    assert f"{unsure} unsure (confidence below 0.6), {contrary} contrary" in said


def test_relabel_swaps_the_contrary_ones_with_all_that_is_theirs(work: Path, here: Path) -> None:
    rows = [{**r, "gold_chosen": 2, "gold_rejected": 1, "margin": 1.0, "note": "a"} for r in read(work / "pairs.jsonl")]
    data = write(here / "gold.jsonl", rows)
    plain = run(work, here, "--confidence", "0.6", data=data)
    both = run(work, here, "--confidence", "0.6", "--relabel", "true", data=data)
    assert [{**k, "swapped": False} for k in plain] == [k for k in both if not k["swapped"]]
    turned = [k for k in both if k["swapped"]]
    assert turned
    by_user = {row["user_id"]: row for row in rows}
    for k in turned:
        was = by_user[k["user_id"]]
        assert (k["chosen"], k["rejected"]) == (was["rejected"], was["chosen"])
        assert (k["gold_chosen"], k["gold_rejected"], k["margin"], k["note"]) == (1, 2, None, "a")
        assert k["confidence"] >= 0.6
        assert k["score_chosen"] > k["score_rejected"]


def test_a_committee_must_agree(work: Path, here: Path, capsys: Any) -> None:
    rows, rm = read(work / "pairs.jsonl"), RewardModel.from_pretrained(work / "committee")
    assert isinstance(rm.head, CommitteeHead)
    prompts = [r["prompt"] for r in rows]
    sides = [encode_texts(rm.backbone, prompts, [r[s] for r in rows], rm.recipe.views) for s in ("chosen", "rejected")]
    margin, spread = rm.head.margins(*sides), rm.head.spread(*sides)
    expected = (margin / rm.temperature > np.log(0.55 / 0.45)) & (margin - 2 * spread > 0)
    kept = run(work, here, "--confidence", "0.55", "--spread_limit", "2", model="committee")
    assert [k["user_id"] for k in kept] == [r["user_id"] for r, sure in zip(rows, expected, strict=True) if sure]
    np.testing.assert_allclose([k["spread"] for k in kept], spread[expected], rtol=1e-4)
    assert "on which the committee's members disagree" in capsys.readouterr().out
    assert len(run(work, here, "--confidence", "0.55", model="committee")) > len(kept)  # 1 is the default


def test_keep_takes_the_surest_share_in_the_order_of_the_data(work: Path, here: Path, capsys: Any) -> None:
    rows, rm = read(work / "pairs.jsonl"), RewardModel.from_pretrained(work / "linear")
    p = chances(rm, rows)
    surest = np.sort(np.argsort(-p, kind="stable")[: N // 4])
    kept = run(work, here, "--keep", "0.25")
    assert [k["user_id"] for k in kept] == [rows[i]["user_id"] for i in surest]
    assert f"kept {N // 4} of {N} pairs (25.0%)" in capsys.readouterr().out
    # A share that only contrary pairs could fill is not filled, unless they are swapped.
    assert len(run(work, here, "--keep", "1")) == (p > 0.5).sum()
    both = run(work, here, "--keep", "0.5", "--relabel", "true")
    surest = np.sort(np.argsort(-np.abs(p - 0.5), kind="stable")[: N // 2])
    assert [k["user_id"] for k in both] == [rows[i]["user_id"] for i in surest]
    assert [k["swapped"] for k in both] == [bool(p[i] < 0.5) for i in surest]


def test_every_pair_has_one_verdict() -> None:
    margin = np.array([0.0, 3.0, -3.0, 0.1, 2.0, -2.0])
    spread = np.array([0.0, 1.0, 1.0, 0.0, 2.5, 2.0])
    p = 1 / (1 + np.exp(-margin))
    scores = Scores(margin, 0 * margin, spread, margin, p)
    found = verdicts(scores, Rule())
    assert found.tolist() == ["unsure", "kept", "contrary", "unsure", "disagreeing", "disagreeing"]
    turned = verdicts(scores, Rule(relabel=True)).tolist()
    assert turned == ["unsure", "kept", "swapped", "unsure", "disagreeing", "disagreeing"]
    assert verdicts(scores, Rule(confidence=0.5))[0] == "unsure"  # a tie says nothing
    alone = verdicts(scores._replace(spread=None), Rule())
    assert alone.tolist() == ["unsure", "kept", "contrary", "unsure", "kept", "contrary"]


def test_counts_add_up_and_batches_change_nothing(work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rm = RewardModel.from_pretrained(work / "committee")

    def made(rule: Rule) -> tuple[Any, str]:
        found = filter_pairs(rm, read_rows(work / "pairs.jsonl"), "a.jsonl", rule, show_progress=False)
        assert sum(found.counts.values()) == found.total == N
        assert found.kept == len(read(here / "a.jsonl"))
        return found, (here / "a.jsonl").read_text()

    rules = [Rule(0.55), Rule(0.55, relabel=True), Rule(keep=0.3), Rule(keep=0.7, relabel=True)]
    whole = [made(rule) for rule in rules]
    monkeypatch.setattr(filtering, "BATCH", 6)
    assert [made(rule) for rule in rules] == whole


# --- candidates and formats


def test_best_and_worst_candidates_become_chosen_and_rejected(work: Path, here: Path) -> None:
    rm = RewardModel.from_pretrained(work / "linear")
    rows = [
        {"prompt": r["prompt"], "responses": [r["rejected"], "Maybe. Perhaps.", r["chosen"]], "id": i}
        for i, r in enumerate(tiny_pairs(10))
    ]
    kept = run(work, here, "--confidence", "0.5", data=write(here / "samples.jsonl", rows))
    assert len(kept) == 10
    for k in kept:
        responses = rows[k["id"]]["responses"]
        scores = rm.score(k["prompt"], responses)
        assert k["chosen"] == responses[int(scores.argmax())]
        assert k["rejected"] == responses[int(scores.argmin())]
        assert set(k) == {"prompt", "chosen", "rejected", "id", "score_chosen", "score_rejected", "confidence"}


@pytest.mark.parametrize("messages", [False, True])
def test_what_is_written_loads_as_preference_data(work: Path, here: Path, messages: bool) -> None:
    rows = read(work / "pairs.jsonl")
    if messages:
        for r in rows:
            r["prompt"] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": r["prompt"]}]
            r |= {side: [{"role": "assistant", "content": r[side]}] for side in ("chosen", "rejected")}
    data = write(here / "data.jsonl", rows)
    kept = run(work, here, "--confidence", "0.5", data=data)
    loaded = load_dataset("json", data_files=str(here / "kept.jsonl"), split="train", cache_dir=str(here / "hf"))
    assert loaded.column_names[:3] == ["prompt", "chosen", "rejected"]
    by_user = {r["user_id"]: r for r in rows}
    assert loaded.to_list() == kept
    for row in loaded:
        was = by_user[row["user_id"]]
        assert all(row[name] == was[name] for name in ("prompt", "chosen", "rejected"))
    for name in ("score_chosen", "score_rejected", "confidence"):
        assert loaded.features[name].dtype == "float64"
    again = run(work, here, "--confidence", "0.5", data=Path(here / "kept.jsonl").rename(here / "first.jsonl"))
    assert len(again) == len(kept)


def test_a_pair_that_stood_in_a_row_of_candidates_gives_way_to_the_one_that_is_picked(work: Path, here: Path) -> None:
    rows = [
        {"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "rejected": "OLD"}
        for r in read(work / "pairs.jsonl")
    ]
    kept = run(work, here, "--keep", "1", data=write(here / "candidates.jsonl", rows))
    assert len(kept) == N
    assert not any("OLD" in (row["chosen"], row["rejected"]) for row in kept)


def test_mixed_candidates_all_become_messages(here: Path) -> None:
    rows = [
        {"prompt": "Hi?", "responses": ["a", "b"]},
        {"prompt": "Hi?", "responses": [[{"role": "assistant", "content": "a"}], "b"]},
    ]
    found = list(read_rows(write(here / "mixed.jsonl", rows)).rows)
    assert found[0] == found[1]._replace(row=0)
    assert found[0].prompt == [{"role": "user", "content": "Hi?"}]
    assert [row.responses for row in read_rows(rows[:1]).rows] == [["a", "b"]]
    assert [row.responses for row in read_rows(Dataset.from_list(rows[:1])).rows] == [["a", "b"]]


# --- what goes wrong


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": "p", "responses": ["one"]}, "row 1 .*fewer than two responses"),
        ({"prompt": "p", "responses": ["same", "same"]}, "row 1 .*are all the same"),
        ({"prompt": "p", "responses": ["a", " "]}, "row 1 .*is empty"),
        ({"prompt": "p", "responses": "text"}, "row 1 .*is not a list of responses"),
        ({"prompt": "p"}, 'row 1 .*"responses" is missing'),
        ({"responses": ["a", "b"]}, 'row 1 .*"prompt" is missing'),
        (["a"], "row 1 .*is not an object"),
    ],
)
def test_bad_candidates_are_named_or_counted(here: Path, row: Any, match: str) -> None:
    good = {"prompt": "p", "responses": ["a", "b"]}
    data = write(here / "bad.jsonl", [good, row, good])
    with pytest.raises(InputError, match=match):
        read_rows(data)
    rows = read_rows(data, on_bad="skip", skipped_file=here / "skipped.jsonl")
    assert (rows.total, sum(rows.skipped.values()), len(list(rows.rows))) == (2, 1, 2)
    assert [fault["row"] for fault in read(here / "skipped.jsonl")] == [1]
    assert Counter(read_rows(data, limit=1).skipped) == Counter()


def test_wrong_use_is_one_sentence_and_leaves_no_file(work: Path, here: Path, capsys: Any) -> None:
    pairs, linear = str(work / "pairs.jsonl"), str(work / "linear")
    own = write(here / "own.jsonl", read(work / "pairs.jsonl"))
    (here / "folder").mkdir()
    own_text = own.read_text()
    wrong = {
        "cannot be read and written at once": [str(own), "--out", str(own)],
        "at once; choose": [str(here / "folder"), "--out", "folder/kept.jsonl"],
        "ends in .jsonl": [pairs, "--out", "kept.csv"],
        "there is no folder": [pairs, "--out", "nowhere/kept.jsonl"],
        "confidence is 0.4": [pairs, "--out", "k.jsonl", "--confidence", "0.4"],
        "keep is 0": [pairs, "--out", "k.jsonl", "--keep", "0"],
        "give one of them": [pairs, "--out", "k.jsonl", "--keep", "0.5", "--confidence", "0.7"],
        "spread_limit is for a committee": [pairs, "--out", "k.jsonl", "--spread_limit", "1"],
        "no pair passes (kept 0 of 40": [pairs, "--out", "k.jsonl", "--confidence", "0.999999"],
        "empty.jsonl is empty": [str(write(here / "empty.jsonl", [])), "--out", "k.jsonl"],
    }
    for said, arguments in wrong.items():
        assert main(["filter", linear, *arguments]) == 2, said
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.err.count("\n") == 1
    assert own.read_text() == own_text
    assert {path.name for path in here.rglob("*")} == {"own.jsonl", "folder", "empty.jsonl"}


def test_a_row_the_template_refuses_is_named(work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Chat._apply

    def picky(self: Chat, row: int, messages: list[dict[str, str]], generation: bool) -> str:
        if messages[-1]["content"] == "c":
            raise InputError(f"row {row}: refused")
        return apply(self, row, messages, generation)

    rows = [{"prompt": "p", "responses": ["a", "b", "d"]}, {"prompt": "q"}, {"prompt": "p", "responses": ["a", "c"]}]
    found = read_rows(write(here / "tool.jsonl", rows), on_bad="skip")
    rm = RewardModel.from_pretrained(work / "linear")
    monkeypatch.setattr(Chat, "_apply", picky)
    with pytest.raises(InputError, match="row 2: refused"):
        filter_pairs(rm, found, "k.jsonl", show_progress=False)


def test_an_interrupted_run_leaves_the_old_file(work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "kept.jsonl").write_text("old\n")

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filtering, "_pair", stop)
    assert main(["filter", str(work / "linear"), str(work / "pairs.jsonl"), "--out", "kept.jsonl"]) == 130
    assert [path.name for path in here.iterdir()] == ["kept.jsonl"]
    assert (here / "kept.jsonl").read_text() == "old\n"


def test_columns_of_the_same_name_are_replaced_and_that_is_said(work: Path, here: Path, capsys: Any) -> None:
    rows = [{**r, "score_chosen": 9.0} for r in read(work / "pairs.jsonl")]
    kept = run(work, here, "--confidence", "0.5", data=write(here / "scored.jsonl", rows))
    assert all(k["score_chosen"] != 9 for k in kept)
    assert "the data's own score_chosen were replaced" in capsys.readouterr().out
