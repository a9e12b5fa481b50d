"""JSON lines in, the same lines with something more out, a batch at a time, as `score` and `personal` do it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from penchant.chat import Text
from penchant.errors import InputError
from penchant.latents import Array
from penchant.responses import is_several, parse_line, read_lines, several
from penchant.writing import writing

Lines = list[dict[str, Any]]
Scorer = Callable[[list[Text], list[Text], list[int]], Array]
"""(prompts, responses, the number of each one's row in the batch) -> a score for each response."""


def check_data(data: str, purpose: str) -> None:
    """InputError unless `data` is a file, or "-" for standard input."""
    if data != "-" and not Path(data).is_file():
        raise InputError(f"there is no file {data!r} to {purpose}.")


def over_lines(
    data: str,
    out: str | None,
    label: str,
    check: Callable[[int, dict[str, Any]], dict[str, Any]],
    work: Callable[[Lines], None],
    batch: int,
) -> None:
    """Read JSON lines, let `work` change `batch` rows at a time, and write each batch when it is done.

    Args:
        data: JSON lines file, or "-" for standard input.
        out: file to write; standard output, without a progress bar, by default.
        label: what the progress bar says.
        check: (the line's number from 0, its row) -> the row, or InputError.
    """
    lines = read_lines(data)
    with ExitStack() as stack:
        stack.enter_context(writing(out or "standard output"))  # the last of it is written when it is closed
        target = stack.enter_context(_writable(Path(out), data)) if out else sys.stdout
        bar = stack.enter_context(tqdm(desc=label, unit="row", disable=out is None))
        while rows := [check(*parse_line(number, line)) for number, line in islice(lines, batch)]:
            work(rows)
            target.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            target.flush()
            bar.update(len(rows))


def put_scores(rows: Lines, prompt: str, response: str, scorer: Scorer) -> None:
    """Give each row its "score": a number, or a list where it has a list of responses."""
    answers = [several(row[response]) for row in rows]
    owner = [number for number, some in enumerate(answers) for _ in some]
    flat = iter(scorer([rows[number][prompt] for number in owner], [one for some in answers for one in some], owner))
    for row, some in zip(rows, answers, strict=True):
        scores = [float(next(flat)) for _ in some]
        row["score"] = scores if is_several(row[response]) else scores[0]


def _writable(out: Path, data: str) -> TextIO:
    if out.exists() and data != "-" and out.samefile(data):
        raise InputError(f"{data!r} cannot be read and overwritten at once; choose another --out.")
    try:
        return out.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out.") from error
