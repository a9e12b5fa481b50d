"""The data of benchmarks/lpc.py: training and test pairs of each set, drawn at each seed, and the noise put on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from common import data_file
from datasets import Dataset
from numpy.typing import NDArray

from penchant.cli.demo import DATA
from penchant.pairs import load_pairs

MAX_LENGTH = {"ultrafeedback": 512}
"""Tokens a sequence keeps, where they are not 1,024."""
TAG = "[FLIP] "
SIZES = {"hh": (256, 400, 160), "science": (200, 300, 120), "ultrafeedback": (128, 160, 80), "demo": (600, 791, 209)}
"""Training pairs, drawn at each seed; pairs they are drawn from; test pairs, the same at every seed."""
QUICK = {"hh": (24, 24, 24), "demo": (48, 96, 32)}
COLUMNS = ("prompt", "chosen", "rejected", "source", "user_id")


class Part(NamedTuple):
    train: Dataset
    test: Dataset
    pool: Dataset
    """What the training pairs of all seeds are drawn from."""
    rows: NDArray[np.int64]
    """Those of this seed."""
    flipped: NDArray[np.bool_]
    """Of the pool: which labels were turned round."""
    flipped_test: NDArray[np.bool_]


def whole(name: str) -> tuple[Dataset, Dataset]:
    """All training and all test pairs of a set, with `source` and `user_id` (the same for all where unknown)."""
    if name == "demo":
        rows = load_pairs(DATA / "demo.jsonl.gz")
        split = np.array(rows["split"])
        return _plain(rows.select(np.flatnonzero(split == "train"))), _plain(
            rows.select(np.flatnonzero(split == "test"))
        )
    if name == "science":
        parts = []
        for part in ("train", "test"):
            aspects = [_plain(load_pairs(data_file(f"science/{a}.{part}")), a) for a in ("novelty", "feasibility")]
            parts.append(Dataset.from_list([row for aspect in aspects for row in aspect]))
        return parts[0], parts[1]
    files = {"hh": ("hh/train", "hh/test"), "ultrafeedback": ("ultrafeedback/train", "ultrafeedback/eval")}[name]
    return _plain(load_pairs(data_file(files[0]))), _plain(load_pairs(data_file(files[1])))


def draw(name: str, seed: int, *, quick: bool = False, flips: float = 0.0, tag: bool = False) -> Part:
    """Pairs of one run. `flips` of the labels are turned round on both sides of the split; `tag` marks their prompts.

    Without a tag the test labels stay as they are; with one, a flipped test pair's label is turned round too, since
    its prompt says so.
    """
    train, test = whole(name)
    n, of, m = (QUICK if quick else SIZES)[name]
    pool = train.select(np.random.default_rng(0).permutation(len(train))[:of])
    test = test.select(np.sort(np.random.default_rng(0).permutation(len(test))[:m]))
    marks = [np.random.default_rng(i).permutation(len(each)) < flips * len(each) for i, each in enumerate((pool, test))]
    if not tag:
        marks[1][:] = False
    pool, test = (_flip(each, mark, tag) for each, mark in zip((pool, test), marks, strict=True))
    rows = np.random.default_rng(seed).permutation(len(pool))[:n]
    return Part(pool.select(rows), test, pool, rows, *marks)


def by_people(pairs: Dataset, name: str) -> Dataset:
    """The pairs with `source` for `user_id` but on the demo data: who judges is then what was asked."""
    if name == "demo":
        return pairs
    return pairs.remove_columns("user_id").rename_column("source", "user_id")


def _plain(rows: Dataset, source: str | None = None) -> Dataset:
    return Dataset.from_list([_row(row, source) for row in rows])


def _row(row: dict[str, Any], source: str | None) -> dict[str, Any]:
    given = {"source": source or row.get("source") or "all", "user_id": row.get("user_id") or "all"}
    return {**{name: row[name] for name in ("prompt", "chosen", "rejected")}, **given}


def _flip(pairs: Dataset, which: NDArray[np.bool_], tag: bool) -> Dataset:
    rows = []
    for row, turned in zip(pairs, which, strict=True):
        if turned:
            row = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            row["prompt"] = _tagged(row["prompt"]) if tag else row["prompt"]
        rows.append(row)
    return Dataset.from_list(rows)


def _tagged(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return TAG + prompt
    return [{**prompt[0], "content": TAG + prompt[0]["content"]}, *prompt[1:]]
