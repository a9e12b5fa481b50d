"""Print the figures about the demo data that `penchant/data/README.md` states.

python -m scripts.demo_figures
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from scripts.demo_annotators import ANNOTATORS, WORD
from scripts.make_demo_data import DATA

Row = dict[str, Any]
Score = Callable[[Row, str], float]
"""Score of one of a pair's two answers: (pair, "chosen" or "rejected") -> float."""


def read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def words(text: str) -> int:
    return len(WORD.findall(text))


def accuracy(pairs: list[Row], score: Score) -> float:
    """Share of pairs whose chosen answer scores higher; a tie counts one half."""
    gaps = [score(pair, "chosen") - score(pair, "rejected") for pair in pairs]
    return float(np.mean([(gap > 0) + 0.5 * (gap == 0) for gap in gaps]))


def main() -> None:
    candidates = read(DATA / "demo_candidates.jsonl.gz")
    pairs = read(DATA / "demo.jsonl.gz")
    gold: dict[tuple[str, str], NDArray[np.float64]] = {
        (row["prompt"], text): column
        for row in candidates
        for text, column in zip(row["responses"], columns(row), strict=True)
    }
    print(len(candidates), "prompts", len(gold), "answers", len(pairs), "pairs")
    print("answers a prompt", Counter(len(row["responses"]) for row in candidates))
    print("words, quartiles", np.percentile([words(text) for _, text in gold], [0, 25, 50, 75, 100]))
    for part in ("train", "test"):
        users = Counter(pair["user_id"] for pair in pairs if pair["split"] == part)
        print(part, sum(row["split"] == part for row in candidates), "prompts", users)
    print("flipped", Counter(pair["user_id"] for pair in pairs if pair["flipped"]))

    table = np.array(list(gold.values()))
    length = np.log([words(text) for _, text in gold])
    print("correlations of", *ANNOTATORS, "log words\n", np.corrcoef(np.c_[table, length].T).round(2))

    def gold_of(pair: Row, side: str) -> NDArray[np.float64]:
        return gold[pair["prompt"], pair[side]]

    gaps = np.array([gold_of(pair, "chosen") - gold_of(pair, "rejected") for pair in pairs])
    train = np.array([pair["split"] == "train" for pair in pairs])
    model = LogisticRegression(fit_intercept=False).fit(
        np.r_[gaps[train], -gaps[train]], np.repeat([1, 0], train.sum())
    )
    print("fitted weights of the golds", model.coef_.round(2))

    def weighted(weights: NDArray[np.float64]) -> Score:
        return lambda pair, side: float(gold_of(pair, side) @ weights)

    scores: dict[str, Score] = {
        "longer text": lambda pair, side: words(pair[side]),
        **{f"gold {name}": weighted(np.eye(len(ANNOTATORS))[k]) for k, name in enumerate(ANNOTATORS)},
        "mean gold": weighted(np.ones(len(ANNOTATORS))),
        "fitted gold": weighted(model.coef_[0]),
        "own gold": lambda pair, side: pair[f"gold_{side}"],
    }
    parts = {part: [pair for pair in pairs if pair["split"] == part] for part in ("train", "test")}
    groups = {**parts, **{name: [pair for pair in pairs if pair["user_id"] == name] for name in ANNOTATORS}}
    print(f"{'accuracy of':14}", *(f"{group:>9}" for group in groups))
    for name, score in scores.items():
        print(f"{name:14}", *(f"{accuracy(rows, score):9.3f}" for rows in groups.values()))


def columns(row: Row) -> NDArray[np.float64]:
    """The gold scores [answers, annotators] of one prompt."""
    return np.array([row["gold"][name] for name in ANNOTATORS]).T


if __name__ == "__main__":
    main()
