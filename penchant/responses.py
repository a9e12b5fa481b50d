"""Responses in JSON lines, one prompt a line: what `penchant score` reads and writes, and training without labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penchant.chat import Text
from penchant.errors import InputError
from penchant.latents import Array

if TYPE_CHECKING:
    from penchant.encode import LatentStore
    from penchant.reward_model import RewardModel

Lines = list[dict[str, Any]]
Scorer = Callable[[list[Text], list[Text], list[int]], Array]
"""(prompts, responses, the number of each one's row in the batch) -> a score for each response."""
REMEDY = "name the columns with --prompt and --response"
"""For a row to score without a prompt or a response."""


class Responses(NamedTuple):
    """Response i answers prompt i."""

    prompts: list[Text]
    responses: list[Text]


def load_responses(source: str | Path | Iterable[dict[str, Any]]) -> Responses:
    """Rows with a "prompt" and a "response", which may be a list of strings, from a JSON lines file or as they are.

    Raises InputError for a file that cannot be read, no row at all, or a row without a text in either.
    """
    found = Responses([], [])
    rows: Iterable[tuple[int, dict[str, Any]]]
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise InputError(f"there is no file {str(source)!r} with unlabelled responses.")
        name, rows = f"{source}: ", (parse_line(*line) for line in read_lines(str(source)))
    else:
        name, rows = "", enumerate(source)
    try:
        for number, row in rows:
            check_row(number, row, "prompt", "response", "unlabelled responses need both")
            answers = several(row["response"])
            found.prompts.extend([row["prompt"]] * len(answers))
            found.responses.extend(answers)
    except InputError as error:
        raise InputError(f"{name}{error}") from error
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}.") from error
    if not found.responses:
        raise InputError(f"{name}there are no unlabelled responses; give at least one or leave them out.")
    return found


def read_lines(data: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, or of standard input for "-", that are not blank, with their numbers from 0.

    Raises InputError where the file cannot be read.
    """
    try:
        with sys.stdin.buffer if data == "-" else Path(data).open("rb") as file:
            for number, line in enumerate(file):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}; give another file.") from error


def parse_line(number: int, line: bytes) -> tuple[int, dict[str, Any]]:
    """The line's number and its JSON object, or InputError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number + 1} is not JSON ({error}); write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise InputError(f"line {number + 1} is not a JSON object; write one a line.")
    return number, row


def check_row(number: int, row: dict[str, Any], prompt: str, response: str, remedy: str) -> dict[str, Any]:
    """The row, if it has a text or messages as prompt and as response (or several texts); else InputError."""
    return _check(number, check_prompt(number, row, prompt, remedy), response, remedy, True)


def check_prompt(number: int, row: dict[str, Any], prompt: str, remedy: str) -> dict[str, Any]:
    """The row, if it has a text or messages as prompt; else InputError."""
    return _check(number, row, prompt, remedy, False)


def _check(number: int, row: dict[str, Any], name: str, remedy: str, many: bool) -> dict[str, Any]:
    if name not in row:
        raise InputError(f"line {number + 1} has no {name!r}, only {', '.join(row)}; {remedy}.")
    texts = several(row[name]) if many else [row[name]]
    if not all(_is_text(text) for text in texts):
        raise InputError(f"line {number + 1}: {name!r} is not a text or a list of messages, or is empty.")
    return row


def put_scores(rows: Lines, prompt: str, response: str, scorer: Scorer) -> None:
    """Give each row its "score": a number, or a list where it has a list of responses."""
    answers = [several(row[response]) for row in rows]
    owner = [number for number, some in enumerate(answers) for _ in some]
    flat = iter(scorer([rows[number][prompt] for number in owner], [one for some in answers for one in some], owner))
    for row, some in zip(rows, answers, strict=True):
        scores = [float(next(flat)) for _ in some]
        row["score"] = scores if is_several(row[response]) else scores[0]


def score_rows(
    rm: RewardModel, rows: Lines, prompt: str, response: str, store: LatentStore | None, token_budget: int
) -> None:
    """`put_scores` by a reward model."""

    def scorer(prompts: list[Text], responses: list[Text], _rows: list[int]) -> Array:
        return rm.score(prompts, responses, store=store, token_budget=token_budget)

    put_scores(rows, prompt, response, scorer)
    if store is not None:
        store.compact()


def dump_lines(rows: Lines) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def is_several(response: Any) -> bool:
    """Whether it is a list of texts rather than one text or a list of messages."""
    return isinstance(response, list) and bool(response) and isinstance(response[0], str)


def several(response: Any) -> list[Any]:
    """The response as a list of responses."""
    return response if is_several(response) else [response]


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value)
        and any(m["content"].strip() for m in value)
    )
