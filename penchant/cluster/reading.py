"""Preference pairs read by Ray Data, row for row as `load_pairs` reads them: checked once, then read in blocks."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import IO, Any

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from penchant.cluster.connect import get
from penchant.cluster.parts import Part
from penchant.cluster.streaming import quiet, stream, told
from penchant.errors import InputError, PenchantError
from penchant.pair_checks import TEXTS
from penchant.pairs import MESSAGES, Checked, batched, column_array

TASKS = 1000
"""Most tasks that read."""
Reader = Callable[[int], Iterable[pa.Table]]
"""(number of a part) -> blocks of rows."""


class PartSource(Datasource):
    """Ray Data's reading of parts: each task takes some that follow each other."""

    def __init__(self, parts: int, read: Reader) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts, self.read = parts, read

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        tasks = min(self.parts, max(1, parallelism))
        bounds = [self.parts * task // tasks for task in range(tasks + 1)]
        about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(self._blocks, range(*span)), about) for span in pairwise(bounds)]

    def _blocks(self, parts: range) -> Iterator[pa.Table]:
        return (block for part in parts for block in self.read(part))


def read_parts(parts: int, read: Reader, at_once: int | None = None) -> Dataset:
    """The rows of parts, `at_once` of them read at a time; as many blocks as `read` gives."""
    # Told no number, Ray would cut every block into many small ones.
    found: Dataset = ray.data.read_datasource(
        PartSource(parts, read), concurrency=at_once, override_num_blocks=min(parts, TASKS)
    )
    return found


@dataclass
class PairSource:
    """Pairs that were checked once, and how to read them again."""

    name: str
    columns: dict[str, str]
    parts: list[Part] = field(default_factory=list)
    """Those that are read."""
    rows: list[int] = field(default_factory=list)
    """Of each part, good and bad; the limit may end in the last."""
    pairs: list[int] = field(default_factory=list)
    """Good rows of each part."""
    messages: bool = False
    """Whether any text is a list of messages: then all become one, as `load_pairs` makes them."""
    skipped: Counter[str] = field(default_factory=Counter)
    names: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(self.pairs)

    def blocks(self, number: int) -> Iterator[pa.Table]:
        """Blocks of the good rows of a part: their numbers among all good rows, and their three texts."""
        part, first, done = self.parts[number], sum(self.pairs[:number]), 0
        kind = MESSAGES if self.messages else pa.string()
        try:
            for batch in batched(Checked(islice(part.rows(), self.rows[number]), self.columns, True, None)):
                found: dict[str, Any] = {name: column_array(batch, name, kind) for name in TEXTS}
                found["row"] = pa.array(range(first + done, first + done + len(batch)), pa.int64())
                done += len(batch)
                yield pa.table({**found, "error": pa.nulls(len(batch), pa.string())})
            if done != self.pairs[number]:
                raise InputError(f"{part.source} changed while it was read; run again when it is complete")
        except PenchantError as error:
            empty = {name: pa.nulls(1, kind) for name in TEXTS}
            yield pa.table({**empty, "row": pa.array([-1], pa.int64()), "error": [told(error)]})


def check_pairs(
    name: str,
    parts: Sequence[Part],
    columns: Mapping[str, str],
    *,
    skip: bool,
    limit: int | None,
    list_to: IO[str],
) -> PairSource:
    """Check every row, on all machines at once. Raises what `load_pairs` raises, word for word.

    Of the parts only counts come back. Bad rows that are skipped are listed in `list_to`, as `load_pairs` lists them.
    """
    found, left = PairSource(name, dict(columns)), limit
    check = ray.remote(_checked_part)

    def check_part(part: int) -> list[pa.Table]:
        # Up to the limit, as nobody knows yet how many rows the parts before it have.
        return [_checked_part(parts[part], found.columns, skip, limit, part)]

    with quiet(), _tallies(len(parts), check_part) as tallies:
        for tally in tallies:
            if left is not None and (tally["rows"] > left or (tally["rows"] == left and tally["refused"])):
                tally = get(check.remote(parts[tally["part"]], found.columns, skip, left, tally["part"])).to_pylist()[0]
            if tally["bad"]:
                rest = list(parts[tally["part"] :])
                get(ray.remote(_refuse).remote(rest, found.columns, left, list(found.names), name))
            if tally["refused"]:
                raise InputError(tally["refused"])
            found.parts.append(parts[tally["part"]])
            found.rows.append(tally["rows"])
            found.pairs.append(tally["pairs"])
            found.messages |= tally["messages"]
            found.skipped.update(json.loads(tally["skipped"]))
            found.names.update(dict.fromkeys(json.loads(tally["names"])))
            list_to.write(tally["listed"])
            left = None if left is None else left - tally["rows"]
            if left == 0:
                break
    named = Checked(iter(()), found.columns, skip, None)
    named.names = found.names
    named.close(name)
    return found


def _tallies(parts: int, check_part: Reader) -> AbstractContextManager[Iterator[dict[str, Any]]]:
    """What checking says of each part, in order; one part is checked here, as one process reads it in any case."""
    if parts > 1:
        return stream(read_parts(parts, check_part))
    return nullcontext(row for block in check_part(0) for row in block.to_pylist())


def _checked_part(part: Part, columns: dict[str, str], skip: bool, limit: int | None, number: int) -> pa.Table:
    """One row about a part; where bad rows are not skipped its reading ends at the first."""
    listed, pairs, messages, refused = io.StringIO(), 0, False, None
    rows = Checked(islice(part.rows(), limit), columns, skip, listed)
    try:
        for row in rows:
            pairs += 1
            messages |= any(isinstance(row[name], list) for name in TEXTS)
            if rows.first and not skip:
                break
    except InputError as error:
        refused = str(error)
    return pa.table(
        {
            "part": [number],
            "rows": [rows.total],
            "pairs": [pairs],
            "messages": [messages],
            "skipped": [json.dumps(rows.skipped)],
            "names": [json.dumps(list(rows.names))],
            "listed": [listed.getvalue()],
            "bad": [rows.first is not None and not skip],
            "refused": pa.array([refused], pa.string()),
        }
    )


def _refuse(parts: list[Part], columns: dict[str, str], left: int | None, names: list[str], name: str) -> None:
    """Raise for the first bad row, which is in the first part, having looked as far on as `load_pairs` looks."""
    rows = Checked(islice((row for part in parts for row in part.rows()), left), columns, False, None)
    rows.names.update(dict.fromkeys(names))
    for _ in rows:
        pass
    rows.close(name)
