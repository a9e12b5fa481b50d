"""The demo data is what its README says: schema, split, labels, and gold scores that follow from the texts."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest

from scripts.demo_annotators import ANNOTATORS, brief, concrete, gold_scores, warm
from scripts.make_demo_data import DATA, PAIRS, clean, fit_to_keep, make_pairs, read_prompts, write

Row = dict[str, Any]
FILES = (DATA / "demo.jsonl.gz", DATA / "demo_candidates.jsonl.gz")
PAIR_COLUMNS = {
    "prompt": str,
    "chosen": str,
    "rejected": str,
    "source": str,
    "user_id": str,
    "split": str,
    "flipped": bool,
    "gold_chosen": float,
    "gold_rejected": float,
}


def read(path: Any) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pairs() -> list[Row]:
    return read(FILES[0])


@pytest.fixture(scope="module")
def candidates() -> list[Row]:
    return read(FILES[1])


def test_the_files_are_small_and_carry_no_time() -> None:
    assert sum(path.stat().st_size for path in FILES) < 1_000_000
    assert all(path.read_bytes()[4:8] == b"\0\0\0\0" for path in FILES)


def test_every_pair_has_the_columns_and_two_different_answers(pairs: list[Row]) -> None:
    for pair in pairs:
        assert {name: type(value) for name, value in pair.items()} == PAIR_COLUMNS
        texts = [pair["prompt"], pair["chosen"], pair["rejected"]]
        assert all(text.strip() == text != "" for text in texts)
        assert pair["chosen"] != pair["rejected"]


def test_counts(pairs: list[Row], candidates: list[Row]) -> None:
    assert [(row["source"], row["prompt"]) for row in candidates] == read_prompts()
    assert len(candidates) == 200
    assert set(Counter(row["source"] for row in candidates).values()) == {25}
    assert all(4 <= len(set(row["responses"])) == len(row["responses"]) <= 8 for row in candidates)
    assert sum(len(row["responses"]) >= 6 for row in candidates) >= 190
    assert 800 <= len(pairs) <= 1000
    assert Counter(pair["user_id"] for pair in pairs) == PAIRS
    assert len(
        {(pair["user_id"], pair["prompt"], *sorted((pair["chosen"], pair["rejected"]))) for pair in pairs}
    ) == len(pairs)


def test_the_split_is_by_prompt_and_even_over_sources(pairs: list[Row], candidates: list[Row]) -> None:
    split = {row["prompt"]: row["split"] for row in candidates}
    assert all(pair["split"] == split[pair["prompt"]] for pair in pairs)
    tests = Counter(row["source"] for row in candidates if row["split"] == "test")
    assert tests == dict.fromkeys({row["source"] for row in candidates}, 5)
    assert set(split.values()) == {"train", "test"}


def test_one_label_in_ten_is_flipped_and_no_other(pairs: list[Row], candidates: list[Row]) -> None:
    gold = {
        (row["prompt"], text, user): value
        for row in candidates
        for user, values in row["gold"].items()
        for text, value in zip(row["responses"], values, strict=True)
    }
    for pair in pairs:
        assert pair["gold_chosen"] == gold[pair["prompt"], pair["chosen"], pair["user_id"]]
        assert pair["gold_rejected"] == gold[pair["prompt"], pair["rejected"], pair["user_id"]]
        assert (pair["gold_chosen"] > pair["gold_rejected"]) == (not pair["flipped"])
    for user, count in PAIRS.items():
        assert sum(pair["flipped"] for pair in pairs if pair["user_id"] == user) == round(0.1 * count)
    for part in ("train", "test"):
        flips = [pair["flipped"] for pair in pairs if pair["split"] == part]
        assert 0.05 < sum(flips) / len(flips) < 0.15


def test_gold_follows_from_the_texts(candidates: list[Row]) -> None:
    texts = [(row["prompt"], text) for row in candidates for text in row["responses"]]
    gold = gold_scores([prompt for prompt, _ in texts], [text for _, text in texts])
    stored = {name: [value for row in candidates for value in row["gold"][name]] for name in ANNOTATORS}
    for name in ANNOTATORS:
        assert stored[name] == pytest.approx(gold[name], abs=2e-4)


def test_pairs_follow_from_the_candidates(pairs: list[Row], candidates: list[Row]) -> None:
    assert make_pairs(candidates) == pairs


def test_the_answers_are_fit_to_keep(candidates: list[Row]) -> None:
    assert all(fit_to_keep(text) for row in candidates for text in row["responses"])


def test_each_annotator_has_its_taste() -> None:
    prompt = "How do I clean a burnt saucepan?"
    plain = "Soak the saucepan in hot water and soap overnight, then scrub the burnt parts and rinse it before use."
    assert brief(prompt, "Soak the burnt saucepan overnight, then scrub it.") > brief(prompt, plain)
    assert brief(prompt, "Soak the burnt saucepan overnight, then scrub it.") > brief(
        prompt, "I have no idea about that."
    )
    assert brief(prompt, plain) > brief(prompt, plain.replace(", ", "\n"))
    assert warm(prompt, f"You poor dear! {plain} Thank you for asking!") > warm(prompt, plain)
    kind = f"I understand. {plain}"
    assert warm(prompt, f"{kind} {kind}") == pytest.approx(warm(prompt, kind))  # a rate, not a length
    assert concrete(prompt, plain.replace("overnight", "for 8 hours, and ask Anna")) > concrete(prompt, plain)
    assert concrete(prompt, f"1. {plain}\n2. {plain}") == concrete(prompt, plain)
    assert concrete(prompt, "Then write: dear [Mr Smith], soak it.") == concrete(prompt, plain)


def test_clean_cuts_at_the_last_whole_sentence() -> None:
    assert clean("One. Two is", ended=False) == "One."
    assert clean("One. Two is", ended=True) == "One. Two is"
    assert clean("1. Soak it.\n2. Scrub", ended=False) == "1. Soak it."
    assert clean("- soak\n- scr", ended=False) == "- soak"
    assert clean("no end here", ended=False) == ""


def test_written_files_read_back_and_carry_no_time(tmp_path: Any, pairs: list[Row]) -> None:
    write(tmp_path / "pairs.gz", pairs)
    assert read(tmp_path / "pairs.gz") == pairs
    assert (tmp_path / "pairs.gz").read_bytes()[4:8] == b"\0\0\0\0"
