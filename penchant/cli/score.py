"""`penchant score`: a score for each response in a file."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.responses import check_row, is_several, parse_line, read_lines, several
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
    lines = read_lines(data)
    with ExitStack() as stack:
        target = stack.enter_context(_writable(Path(out), data)) if out else sys.stdout
        bar = stack.enter_context(tqdm(desc="score", unit="row", disable=out is None))
        while batch := [_row(number, line, prompt, response) for number, line in islice(lines, BATCH)]:
            answers = [several(row[response]) for row in batch]
            asked = [row[prompt] for row, some in zip(batch, answers, strict=True) for _ in some]
            flat = iter(rm.score(asked, [one for some in answers for one in some], token_budget=token_budget))
            for row, some in zip(batch, answers, strict=True):
                scores = [float(next(flat)) for _ in some]
                row["score"] = scores if is_several(row[response]) else scores[0]
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


def _row(number: int, line: bytes, prompt: str, response: str) -> dict[str, Any]:
    return check_row(*parse_line(number, line), prompt, response, "name the columns with --prompt and --response")
