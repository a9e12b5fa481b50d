"""Preference pairs: load and check them, split them by prompt, describe them.

Normal form (TRL's preference format with an explicit prompt): `prompt`, `chosen` and `rejected` are all three strings
where every row gave strings, and otherwise all three lists of {"role": str, "content": str}; then a string prompt
becomes one user message and a string completion one assistant message. A message keeps its role and content only.
An implicit prompt is the messages that chosen and rejected both begin with. Of the optional columns `margin` is
float64, `user_id` and `source` are strings. Other columns keep their type, but become text (JSON for what is not text)
where their rows do not fit one type.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penchant import pair_checks, pair_files
from penchant.errors import InputError
from penchant.pair_checks import OPTIONAL, TEXTS, BadRow, Text, as_answer, as_messages, normal_row
from penchant.pair_files import BATCH, Row, Source, open_source

log = logging.getLogger(__name__)

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
NUMBERS = {int, float, type(None)}
LOOK_AHEAD = 10_000  # rows read on after the first bad one, to say how many more there are


def load_pairs(
    source: Any,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    limit: int | None = None,
    skipped_file: str | os.PathLike[str] | None = None,
) -> datasets.Dataset:
    """Preference pairs in normal form (see the module), memory-mapped, in the order of their source.

    `source` is a hub id ("org/name" or "org/name:config"), a file (.jsonl, .json, .csv, each also .gz, or .parquet), a
    list of files, a folder, a list of dicts or a `datasets.Dataset`. `split` chooses on the hub, and in a folder the
    files whose path has it as a word. `columns` maps the data's names to ours: {"question": "prompt", "win": "chosen"}.
    `limit` reads only that many rows, good or bad.

    `on_bad="error"` raises `InputError` for the first bad row. `on_bad="skip"` leaves bad rows out, logs one warning
    with their number by reason, and lists them as JSON lines {"row", "column", "reason", "file", "line"} in
    `skipped.jsonl` beside the cached pairs (the warning says where) and in `skipped_file` if that is given. Rows are
    numbered from 0 in their own file. What is wrong with a whole file is an `InputError` in either mode.

    The result is kept below HF_DATASETS_CACHE under a digest of the rows' content and the arguments.
    """
    if on_bad not in ("error", "skip"):
        raise InputError(f'on_bad must be "error" or "skip", not {on_bad!r}')
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 row, not {limit}; leave it out to read all")
    found, names = open_source(source, split), dict(columns or {})
    key = hashlib.sha256(json.dumps([found.digest, names, on_bad, limit, rules()]).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "penchant_pairs" / key
    if not folder.exists():
        work = folder.with_name(f"{key}.{uuid.uuid4().hex}")
        work.mkdir(parents=True)
        try:
            build(found, names, on_bad == "skip", limit, work)
            try:
                work.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster, with the same rows
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    description = (folder / "report.json").read_text()
    report = json.loads(description)
    if skipped_file is not None:
        shutil.copyfile(folder / "skipped.jsonl", skipped_file)
    if report["skipped"]:
        warn_of_skipped(found.name, report["rows"], report["skipped"], skipped_file or folder / "skipped.jsonl")
    return datasets.Dataset.from_file(str(folder / "pairs.arrow"), info=datasets.DatasetInfo(description=description))


def warn_of_skipped(name: str, rows: int, skipped: Mapping[str, int], where: str | os.PathLike[str]) -> None:
    """One warning with the number of bad rows by reason."""
    reasons = ", ".join(f"{count} because {what}" for what, count in skipped.items())
    log.warning("skipped %d of %d rows of %s: %s; listed in %s", sum(skipped.values()), rows, name, reasons, where)


@cache
def rules() -> str:
    """Digest of the code that makes pairs: part of the key, so that newer rules never meet pairs made by older ones."""
    files = (__file__, pair_checks.__file__, pair_files.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def build(source: Source, columns: dict[str, str], skip: bool, limit: int | None, folder: Path) -> None:
    """Read the rows twice, once to check them and learn the columns' types, once to write `pairs.arrow`."""
    types: dict[str, pa.DataType] = {}
    with (folder / "skipped.jsonl").open("w") as list_of_skipped:
        rows = Checked(islice(source.rows(), limit), columns, skip, list_of_skipped)
        for batch in batched(rows):
            learn_types(types, batch)
    rows.close(source.name)
    order = [*TEXTS, *(name for name in OPTIONAL if name in types), *(n for n in types if n not in TEXTS + OPTIONAL)]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in order])
    with pa.OSFile(str(folder / "pairs.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batched(Checked(islice(source.rows(), limit), columns, True, None)):
            arrays = [column_array(batch, field.name, field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    (folder / "report.json").write_text(json.dumps({"rows": rows.total, "skipped": rows.skipped}))


class Checked:
    """The good rows in normal form; the bad ones are counted and listed, or lead to an error in `close`."""

    def __init__(self, rows: Iterator[Row], columns: dict[str, str], skip: bool, list_to: IO[str] | None) -> None:
        self.rows, self.columns, self.skip, self.list_to = rows, columns, skip, list_to
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.names: dict[str, None] = {}
        self.first: tuple[Row, BadRow] | None = None
        self.first_at = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            if self.first and not self.skip and self.total > self.first_at + LOOK_AHEAD:
                return
            self.total += 1
            try:
                if isinstance(row.value, BadRow):
                    raise row.value
                if isinstance(row.value, dict):
                    self.names.update(dict.fromkeys(map(str, row.value)))
                good = normal_row(row.value, self.columns)
            except BadRow as bad:
                if self.first is None:
                    self.first, self.first_at = (row, bad), self.total
                self.skipped[bad.what] += 1
                if self.list_to:
                    entry = {"row": row.number, "column": bad.column, "reason": bad.reason}
                    self.list_to.write(json.dumps({**entry, "file": row.file, "line": row.line}) + "\n")
            else:
                yield good

    def close(self, name: str) -> None:
        """Raise for names in `columns` that do not fit the data, and for bad rows that may not be skipped."""
        there = ", ".join(pair_checks.quoted(n) for n in list(self.names)[:20])
        for theirs, ours in self.columns.items():
            if self.names and theirs not in self.names:
                raise InputError(f'columns maps "{theirs}", which {name} does not have; its columns are {there}')
            if sum(self.columns.get(n, n) == ours for n in self.names) > 1:
                raise InputError(
                    f'columns maps "{theirs}" to "{ours}", a second column of that name; rename the other too'
                )
        if self.first and not self.skip:
            row, bad = self.first
            more = self.skipped.total() - 1
            others = f" ({more} of the next {self.total - self.first_at} rows are bad too)" if more else ""
            raise InputError(f'{row.place}: {bad.what}; {bad.cure}, or pass on_bad="skip"{others}')


def batched(rows: Checked) -> Iterator[list[dict[str, Any]]]:
    good = iter(rows)
    while batch := list(islice(good, BATCH)):
        yield batch


def learn_types(types: dict[str, pa.DataType], batch: list[dict[str, Any]]) -> None:
    """Widen `types` so that every column of the batch fits."""
    for name in dict.fromkeys(name for row in batch for name in row):
        if name in TEXTS:
            messages = types.get(name) == MESSAGES or any(isinstance(row[name], list) for row in batch)
            types[name] = MESSAGES if messages else pa.string()
        elif name in OPTIONAL:
            types[name] = pa.float64() if name == "margin" else pa.string()
        else:
            types[name] = wider_type(types.get(name, pa.null()), [row.get(name) for row in batch])


def wider_type(known: pa.DataType, values: list[Any]) -> pa.DataType:
    """The type that holds the known one and the values: integers give way to floats, whatever does not fit to text."""
    if any(type(value) is float for value in values) and {type(value) for value in values} <= NUMBERS:
        values = as_floats(values)  # Arrow would refuse integers beyond 2**53 beside a float
    try:
        both = [pa.schema([("column", one)]) for one in (known, pa.array(values).type)]
        wider = pa.unify_schemas(both, promote_options="permissive").field("column").type
        return wider if depth(wider) < 32 else pa.string()  # Arrow's files end at 64 levels
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.string()


def as_floats(values: list[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def depth(dtype: pa.DataType) -> int:
    return 1 + max((depth(dtype.field(i).type) for i in range(dtype.num_fields)), default=0)


def column_array(batch: list[dict[str, Any]], name: str, dtype: pa.DataType) -> pa.Array:
    values: list[Any] = [row.get(name) for row in batch]
    if name in TEXTS and dtype == MESSAGES:
        values = [as_messages(value) if name == "prompt" else as_answer(value) for value in values]
    elif dtype == pa.string():
        as_text = partial(json.dumps, default=str)
        values = [value if value is None or isinstance(value, str) else as_text(value) for value in values]
    elif dtype == pa.float64():
        values = as_floats(values)
    try:
        return pa.array(values, dtype)
    except pa.ArrowException:  # such integers inside lists
        return pa.array(values).cast(dtype, safe=False)


def prompt_groups(pairs: datasets.Dataset) -> NDArray[np.int64]:
    """A number [n] for each pair's prompt: the first 8 bytes of its BLAKE2 hash.

    Equal prompts have equal numbers in every dataset and on every machine, also a string and the one user message
    that it means. Reads the prompts batch by batch.
    """
    numbers = np.empty(len(pairs), np.int64)
    for i, prompt in enumerate(values_of(pairs, "prompt")):
        said = [[message["role"], message["content"]] for message in as_messages(prompt)]
        digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=8).digest()
        numbers[i] = int.from_bytes(digest, "little", signed=True)
    return numbers


def split_by_prompt(
    pairs: datasets.Dataset, test: float = 0.2, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, test) with no prompt in both; `test` is the share of prompts, at least one on either side.

    Which prompts go where depends on the seed and the set of prompts, not on the order of rows. Rows keep their order.
    Raises `InputError` for a share outside (0, 1) or fewer than two prompts.
    """
    groups = prompt_groups(pairs)
    prompts = np.unique(groups)
    if not 0 < test < 1:
        raise InputError(f"test is the share of prompts to hold out and must lie between 0 and 1, not at {test}")
    if len(prompts) < 2:
        raise InputError(f"a split by prompt needs at least 2 different prompts, not {len(prompts)}; add pairs")
    size = min(max(round(test * len(prompts)), 1), len(prompts) - 1)
    held_out = np.isin(groups, np.random.default_rng(seed).permutation(prompts)[:size])
    return pairs.select(np.flatnonzero(~held_out)), pairs.select(np.flatnonzero(held_out))


def describe(pairs: datasets.Dataset) -> dict[str, Any]:
    """Numbers of pairs, of different prompts, of pairs a source, and of rows skipped when the whole was loaded."""
    sources: Counter[str | None] = Counter(values_of(pairs, "source") if "source" in pairs.column_names else ())
    try:
        skipped = sum(json.loads(pairs.info.description)["skipped"].values())
    except (ValueError, TypeError, KeyError):  # not made by load_pairs
        skipped = 0
    return {
        "pairs": len(pairs),
        "prompts": len(np.unique(prompt_groups(pairs))),
        "sources": {name: count for name, count in sources.most_common() if name is not None},
        "skipped": skipped,
    }


def to_text(value: Text) -> str:
    """A prompt or completion to read: text or one message as it stands, several as "role: content" paragraphs."""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return value[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)


def values_of(pairs: datasets.Dataset, column: str) -> Iterator[Any]:
    """One column's values, read batch by batch."""
    for table in pairs.select_columns(column).with_format("arrow").iter(batch_size=BATCH):
        yield from table[column].to_pylist()
