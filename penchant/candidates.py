"""What a filter reads: preference pairs, or prompts with several responses of which the reward picks best and worst."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from penchant.errors import InputError
from penchant.pair_checks import (
    BadRow,
    as_answer,
    as_messages,
    check_completion,
    encodable,
    kind,
    plain,
    text_or_messages,
)
from penchant.pair_files import Row, Source, open_source
from penchant.pairs import load_pairs

RESPONSES = "responses"


class Judged(NamedTuple):
    """One prompt and its responses, in one form: all of them text, or all of them message lists."""

    row: int
    """Its number in the data, from 0."""
    prompt: Any
    responses: list[Any]
    """Chosen and rejected, or at least two candidates."""
    others: dict[str, Any]
    """The row's other columns."""


class Rows(NamedTuple):
    """Rows that are read when they are asked for."""

    rows: Iterator[Judged]
    total: int
    candidates: bool
    skipped: dict[str, int]
    """Bad rows that were left out, by reason."""


def read_rows(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    skipped_file: str | os.PathLike[str] | None = None,
) -> Rows:
    """Pairs as `load_pairs` reads them, or rows {"prompt", "responses": [...]} from the same kinds of sources.

    The first row says which. All rows are checked before the first is given out. The other arguments are those of
    `load_pairs`. Raises InputError as that does; for candidates also for fewer than two responses, an empty one, or
    responses that are all the same.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 row, not {limit}; leave it out to read all")
    names = dict(columns or {})
    source = open_source(data, split)
    first = next((row.value for row in source.rows() if isinstance(row.value, dict)), {})
    given = {names.get(str(name), str(name)) for name in first}
    if RESPONSES in given and "chosen" not in given:
        return _candidates(source, names, on_bad == "skip", limit, skipped_file)
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped_file)
    skipped = json.loads(pairs.info.description)["skipped"]
    if not len(pairs):
        raise InputError(f"{source.name} has no pair that can be used; {_counts(skipped)}")
    return Rows(map(_judged_pair, range(len(pairs)), pairs), len(pairs), False, skipped)


def _judged_pair(number: int, row: dict[str, Any]) -> Judged:
    others = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
    return Judged(number, row["prompt"], [row["chosen"], row["rejected"]], others)


def _candidates(
    source: Source, names: dict[str, str], skip: bool, limit: int | None, skipped_file: str | os.PathLike[str] | None
) -> Rows:
    """Reads the rows once to check them and to learn whether any holds messages: then all will."""
    good, messages = 0, False
    skipped: Counter[str] = Counter()
    faults = []
    for row in islice(source.rows(), limit):
        try:
            found = candidate_row(row, names)
        except BadRow as bad:
            if not skip:
                raise InputError(f'{row.place}: {bad.what}; {bad.cure}, or pass on_bad="skip"') from bad
            skipped[bad.what] += 1
            faults.append({"row": row.number, "column": bad.column, "reason": bad.reason, "file": row.file})
            continue
        good += 1
        messages |= not all(isinstance(text, str) for text in (found.prompt, *found.responses))
    if skipped_file is not None:
        Path(skipped_file).write_text("".join(json.dumps(fault) + "\n" for fault in faults), encoding="utf-8")
    if not good:
        raise InputError(f"{source.name} has no row that can be used; {_counts(skipped)}")

    def again() -> Iterator[Judged]:
        for row in islice(source.rows(), limit):
            try:
                found = candidate_row(row, names)
            except BadRow:
                continue
            if messages:
                found = found._replace(
                    prompt=as_messages(found.prompt), responses=[as_answer(text) for text in found.responses]
                )
            yield found

    return Rows(again(), good, True, dict(skipped))


def candidate_row(row: Row, names: Mapping[str, str]) -> Judged:
    """The row's prompt and responses, checked. Raises BadRow."""
    if isinstance(row.value, BadRow):
        raise row.value
    if not isinstance(row.value, dict):
        raise BadRow(
            None, "is not an object", f'it is {kind(row.value)} and must be {{"prompt": ..., "responses": []}}'
        )
    given = {names.get(str(name), str(name)): plain(value) for name, value in row.value.items()}
    for name in ("prompt", RESPONSES):
        if name not in given:
            raise BadRow(name, "is missing", f"there are: {', '.join(map(str, row.value)) or 'none'}")
    texts = given.pop(RESPONSES)
    if not isinstance(texts, list) or (texts and isinstance(texts[0], dict)):
        raise BadRow(RESPONSES, "is not a list of responses", "give a list of texts, or a list of message lists")
    if len(texts) < 2:
        raise BadRow(RESPONSES, "has fewer than two responses", "best and worst need two, sample more")
    prompt = text_or_messages(given.pop("prompt"), "prompt")
    responses = [text_or_messages(text, RESPONSES) for text in texts]
    for name, text in [("prompt", prompt), *((RESPONSES, text) for text in responses)]:
        if isinstance(text, str) and not encodable(text):
            raise BadRow(name, "is not valid UTF-8 text", "save the data as UTF-8")
    for text in responses:
        check_completion(text, RESPONSES)
    if all(text == responses[0] for text in responses):
        raise BadRow(RESPONSES, "are all the same", "sample with a higher temperature")
    return Judged(row.number, prompt, responses, given)


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} skipped because {what}" for what, count in skipped.items())
