"""The rows of published benchmarks of reward models, checked: prompts with the responses that are right and wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from penchant.errors import InputError
from penchant.evaluate.benchmark_subsets import COUNTS, DOMAINS, PRIOR_SETS, REWARDBENCH2, TIES, UNSCORED
from penchant.pair_checks import BadRow, Text, as_messages, check_completion, encodable, kind, label, plain, quoted
from penchant.pair_checks import text_or_messages as one_text
from penchant.pair_files import Row, open_source

Benchmark = Literal["rewardbench", "rewardbench2", "rm-bench", "best-of-n"]
TIES_ID = re.compile(r"(ref|tied):(\d+)")
MANY = 10**6
WRONG = 3
"""Wrong responses to a prompt of RewardBench 2, but for Ties."""


class Item(NamedTuple):
    """One row: at least one right response and one wrong one to a prompt."""

    row: int
    """Its number in its file, from 0."""
    prompt: Text
    chosen: list[Text]
    rejected: list[Text]
    subset: str
    id: str

    @property
    def responses(self) -> list[Text]:
        return [*self.chosen, *self.rejected]

    @property
    def group(self) -> str:
        """What is drawn together in a bootstrap: equal prompts, and both rows of one question of Ties."""
        tied = self.subset == TIES and TIES_ID.fullmatch(self.id)
        said = self.question if tied else json.dumps(as_messages(self.prompt))
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    @property
    def question(self) -> str:
        """In Ties, the number that both rows of a question share."""
        return str(int(self.id.partition(":")[2]))


class Items(NamedTuple):
    items: list[Item]
    skipped: dict[str, int]
    """Bad rows that were left out, by reason."""


@dataclass(frozen=True)
class Shape:
    """What a benchmark's rows look like."""

    chosen: tuple[int, int]
    """Fewest and most of them."""
    rejected: tuple[int, int]
    subset: str
    """The column that names the part a row belongs to."""
    known: tuple[str, ...] = ()
    """What that column may say; without any it may say anything, or be left out."""


SHAPES: dict[Benchmark, Shape] = {
    "rewardbench": Shape((1, 1), (1, 1), "subset", (*COUNTS, *PRIOR_SETS, *UNSCORED)),
    "rewardbench2": Shape((1, MANY), (1, MANY), "subset", REWARDBENCH2),
    "rm-bench": Shape((3, 3), (3, 3), "domain", DOMAINS),
    "best-of-n": Shape((1, 1), (1, MANY), "subset"),
}


def benchmark_named(name: str) -> Benchmark:
    """InputError where none is called so."""
    for known in SHAPES:
        if known == name:
            return known
    raise InputError(f"there is no benchmark {name!r}; the known ones are {', '.join(SHAPES)}")


def read_items(
    data: Any,
    benchmark: Benchmark,
    *,
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "test",
    limit: int | None = None,
    skipped_file: str | PathLike[str] | None = None,
) -> Items:
    """The rows of a benchmark from what `load_pairs` reads: a hub id, files, a folder or rows in memory.

    - rewardbench: `prompt`, `chosen`, `rejected`, `subset`.
    - rewardbench2: `prompt`, lists `chosen` and `rejected`, `subset`; in Ties also `id`, "ref:7" or "tied:7".
    - rm-bench: `prompt`, lists `chosen` and `rejected` of three (concise, detailed, detailed markdown), `domain`.
    - best-of-n: `prompt`, `chosen`, a list `rejected`; `subset` if there are any.

    The arguments are those of `load_pairs`. Raises InputError for a bad row, with its number, where none is left, and
    where those left do not make the benchmark.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 row, not {limit}; leave it out to read all")
    source = open_source(data, split)
    found: list[Item] = []
    skipped: Counter[str] = Counter()
    faults = []
    ids: set[str] = set()
    for row in islice(source.rows(), limit):
        try:
            item = read_item(row, benchmark, columns or {})
            if benchmark == "rewardbench2" and item.subset == TIES and item.id in ids:
                raise BadRow("id", "was there before", f"it is {quoted(item.id)}, drop one of the rows")
        except BadRow as bad:
            if on_bad == "error":
                raise InputError(f'{row.place}: {bad.what}; {bad.cure}, or pass on_bad="skip"') from bad
            skipped[bad.what] += 1
            faults.append({"row": row.number, "column": bad.column, "reason": bad.reason, "file": row.file})
            continue
        ids.add(item.id)
        found.append(item)
    if skipped_file is not None:
        Path(skipped_file).write_text("".join(json.dumps(fault) + "\n" for fault in faults), encoding="utf-8")
    if not found:
        raise InputError(f"{source.name} has no row of {benchmark} that can be used; every row was skipped")
    check_whole(found, benchmark)
    return Items(found, dict(skipped))


def check_whole(items: list[Item], benchmark: Benchmark) -> None:
    """InputError where a figure that the benchmark's average needs has no rows."""
    if benchmark == "rewardbench" and all(item.subset in UNSCORED for item in items):
        raise InputError(
            f"no row is of a subset that RewardBench scores, such as {next(iter(COUNTS))!r}; there are"
            f" {', '.join(map(repr, dict.fromkeys(item.subset for item in items)))}"
        )
    ties = [item for item in items if item.subset == TIES] if benchmark == "rewardbench2" else []
    of = {kind: {item.question for item in ties if item.id.startswith(kind)} for kind in ("ref", "tied")}
    if ties and not of["ref"] & of["tied"]:
        raise InputError(
            "no question of Ties has both its rows, ref and tied, which its formula needs; read more rows, or leave"
            " those of Ties out"
        )


def read_item(row: Row, benchmark: Benchmark, columns: Mapping[str, str]) -> Item:
    """One row, checked. Raises BadRow."""
    shape = SHAPES[benchmark]
    if isinstance(row.value, BadRow):
        raise row.value
    if not isinstance(row.value, dict):
        raise BadRow(
            None, "is not an object", f'it is {kind(row.value)} and must be {{"prompt": ..., "chosen": ..., ...}}'
        )
    given = {columns.get(str(name), str(name)): plain(value) for name, value in row.value.items()}
    needed = ["prompt", "chosen", "rejected", *([shape.subset] if shape.known else [])]
    for name in needed:
        if name not in given:
            raise BadRow(name, "is missing", f"there are: {', '.join(map(str, row.value)) or 'none'}")
    prompt = one_text(given["prompt"], "prompt")
    if isinstance(prompt, str) and not encodable(prompt):
        raise BadRow("prompt", "is not valid UTF-8 text", "save the data as UTF-8")
    subset = label(given.get(shape.subset), shape.subset) or ""
    if shape.known and not subset:
        raise BadRow(shape.subset, "is empty", "name the part of the benchmark that the row belongs to")
    subset = TIES if benchmark == "rewardbench2" and subset.lower() == TIES.lower() else subset
    if shape.known and subset not in shape.known:
        raise BadRow(
            shape.subset,
            f"names no part of {benchmark}",
            f"it is {quoted(subset)}, and there are {', '.join(shape.known)}",
        )
    if benchmark == "best-of-n" and not is_list(given["rejected"]):
        raise BadRow("rejected", "is not a list of responses", "give a list, or name the benchmark that has pairs")
    item = Item(
        row.number,
        prompt,
        several(given["chosen"], "chosen", shape.chosen),
        several(given["rejected"], "rejected", shape.rejected),
        subset,
        str(given.get("id", "")),
    )
    if benchmark == "rewardbench2":
        check_correct(item, given)
    return item


def is_list(value: Any) -> bool:
    """Whether it is a list of responses, and not one of messages."""
    return isinstance(value, list) and not (value and isinstance(value[0], dict))


def several(value: Any, column: str, count: tuple[int, int]) -> list[Text]:
    """One response or a list of them, each checked; `count` says how few and how many there may be."""
    texts = [one_text(plain(text), column) for text in (value if is_list(value) else [value])]
    least, most = count
    if not least <= len(texts) <= most:
        wanted = f"{least}" if least == most else f"at least {least}"
        raise BadRow(column, "has the wrong number of responses", f"it has {len(texts)}, give {wanted}")
    for text in texts:
        check_completion(text, column)
        if isinstance(text, str) and not encodable(text):
            raise BadRow(column, "is not valid UTF-8 text", "save the data as UTF-8")
    return texts


def check_correct(item: Item, given: dict[str, Any]) -> None:
    """Raises BadRow where the number of right responses is not what RewardBench 2's formulas take."""
    correct = len(item.chosen)
    if given.get("num_correct") not in (None, correct):
        raise BadRow("num_correct", "is not the number of chosen responses", f"there are {correct}, mend one of them")
    if item.subset != TIES:
        if correct > 1:
            raise BadRow("chosen", "has more than one response", f"only rows of {TIES} may, split the row")
        if len(item.rejected) != WRONG:
            raise BadRow("rejected", "has the wrong number of responses", f"it has {len(item.rejected)}, give {WRONG}")
        return
    named = TIES_ID.fullmatch(item.id)
    if not named:
        raise BadRow("id", "does not name a row of Ties", f'it is {quoted(item.id)} and must be "ref:7" or "tied:7"')
    if named[1] == "tied" and correct < 2:
        raise BadRow("chosen", "has one response in a tied row", "give all that are right, or make its id ref:...")
