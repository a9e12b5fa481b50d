"""`penchant score`: a score for each response in a file."""

from __future__ import annotations

from typing import Any

from penchant.cli.lines import Lines, check_data, over_lines, put_scores
from penchant.encode import TOKEN_BUDGET
from penchant.responses import check_row
from penchant.reward_model import RewardModel

BATCH = 512
"""Rows scored, and written, at once."""
REMEDY = "name the columns with --prompt and --response"


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
        reward_model: folder of the model (or hub id, org/name@REVISION).
        data: JSON lines file; "-" reads standard input.
        out: JSON lines file to write; standard output by default.
        prompt: name of the prompt's column; its value is a string or a list of messages.
        response: name of the response's column; a list of strings gives a list of scores.
        token_budget: tokens run at once; bounds memory.
    """
    check_data(data, "score")
    rm = RewardModel.from_pretrained(reward_model)

    def check(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return check_row(number, row, prompt, response, REMEDY)

    def work(rows: Lines) -> None:
        put_scores(
            rows, prompt, response, lambda asked, answers, _: rm.score(asked, answers, token_budget=token_budget)
        )

    over_lines(data, out, "score", check, work, BATCH)
