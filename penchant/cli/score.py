"""`penchant score`: a score for each response in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.reward_model import RewardModel

BATCH = 512
"""Rows scored, and written, at once."""


def score(
    reward_model: str,
    data: str,
    *,
    out: str | None = None,
    prompt: str = "prompt",
    response: str = "response",
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Score responses: reads JSON lines with a prompt and a response, writes the same lines with a score.

    Args:
        reward_model: folder of the model (or hub id).
        data: JSON lines file; "-" reads standard input.
        out: JSON lines file to write; standard output by default.
        prompt: name of the prompt's column; its value is a string or a list of messages.
        response: name of the response's column; a list of strings gives a list of scores.
        token_budget: tokens run at once; bounds memory.
    """
    if data != "-" and not Path(data).is_file():
        raise InputError(f"there is no file {data!r} to score.")
    rm = RewardModel.from_pretrained(reward_model)
    lines = _lines(data)
    with ExitStack() as stack:
        target = stack.enter_context(_writable(Path(out), data)) if out else sys.stdout
        bar = stack.enter_context(tqdm(desc="score", unit="row", disable=out is None))
        while batch := [_row(number, line, prompt, response) for number, line in islice(lines, BATCH)]:
            answers = [row[response] if _several(row[response]) else [row[response]] for row in batch]
            asked = [row[prompt] for row, some in zip(batch, answers, strict=True) for _ in some]
            flat = iter(rm.score(asked, [one for some in answers for one in some], token_budget=token_budget))
            for row, some in zip(batch, answers, strict=True):
                scores = [float(next(flat)) for _ in some]
                row["score"] = scores if _several(row[response]) else scores[0]
                target.write(json.dumps(row, ensure_ascii=False) + "\n")
            target.flush()
            bar.update(len(batch))


def _writable(out: Path, data: str) -> TextIO:
    if out.exists() and data != "-" and out.samefile(data):
        raise InputError(f"{data!r} cannot be read and overwritten at once; choose another --out.")
    try:
        return out.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out.") from error


def _lines(data: str) -> Iterator[tuple[int, bytes]]:
    with sys.stdin.buffer if data == "-" else Path(data).open("rb") as file:
        for number, line in enumerate(file):
            if line.strip():
                yield number, line


def _row(number: int, line: bytes, prompt: str, response: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number + 1} is not JSON ({error}); write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise InputError(f"line {number + 1} is not a JSON object; write one a line.")
    for name, option in ((prompt, "--prompt"), (response, "--response")):
        if name not in row:
            raise InputError(f"line {number + 1} has no {name!r}, only {', '.join(row)}; name it with {option}.")
        value = row[name]
        texts = value if _several(value) and name == response else [value]
        if not texts or not all(_is_text(text) for text in texts):
            raise InputError(f"line {number + 1}: {name!r} is not a text or a list of messages, or is empty.")
    return row


def _several(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value)
    )
