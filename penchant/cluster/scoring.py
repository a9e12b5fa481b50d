"""Responses -> scores by Ray Data: the local engine's batches of rows, each scored by whichever actor is free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from penchant.cluster.connect import connected
from penchant.cluster.planning import absolute
from penchant.cluster.reading import read_parts
from penchant.cluster.streaming import quiet, stream, told, work_in
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError, PenchantError
from penchant.responses import REMEDY, check_row, dump_lines, parse_line, read_lines, score_rows
from penchant.reward_model import RewardModel
from penchant.store_views import open_store

BATCH = 512
"""Rows scored at once."""


class Scored(NamedTuple):
    """A batch of rows as JSON lines."""

    text: str
    rows: int


def score_with_ray(
    reward_model: str,
    data: str,
    *,
    prompt: str = "prompt",
    response: str = "response",
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    batch: int = BATCH,
) -> Iterator[Scored]:
    """The rows of a JSON lines file with their scores, batch by batch in the file's order, as `penchant score` writes.

    Args:
        reward_model: folder of the model, or hub id.
        data: the file; a cluster's machines need it at the same path.
        prompt, response: names of the columns; a list of responses gets a list of scores.
        cache: folder that keeps the latents, so that the same call goes on after a stop; by default none are kept.
        token_budget: tokens an actor runs at once.
        actors, gpus_per_actor, address: as in `encode_with_ray`.
        batch: rows scored at once; with the local engine's number the scores are the local engine's to the last bit.

    Raises:
        InputError: there is no reward model, a line is not usable (earlier batches have come out by then), Ray or the
            cluster is not there.
    """
    if not Path(data).is_file():
        raise InputError(f"there is no file {data!r} to score; the ray engine reads no standard input.")
    RewardModel.from_pretrained(reward_model)  # its errors, before any machine is asked
    root = absolute(Path(cache)) if cache else None
    with connected(address, actors, gpus_per_actor) as pool, quiet():
        rows = (
            read_parts(1, _Lines(data, batch, os.getcwd()).blocks, 1)
            .repartition(target_num_rows_per_block=batch, strict=True)
            .map_batches(
                Scorer,
                fn_constructor_args=(reward_model, prompt, response, root, token_budget, pool.cores, os.getcwd()),
                batch_size=batch,
                batch_format="pyarrow",
                compute=pool.strategy(),
                **pool.remote,
            )
        )
        with stream(rows) as scored:
            for row in scored:
                yield Scored(row["text"], row["rows"])


class _Lines(NamedTuple):
    """Reads the file as blocks of lines."""

    data: str
    batch: int
    folder: str

    def blocks(self, _part: int) -> Iterator[pa.Table]:
        work_in(self.folder)
        lines = read_lines(self.data)
        while block := list(islice(lines, self.batch)):
            numbers, texts = zip(*block, strict=True)
            yield pa.table({"number": pa.array(numbers, pa.int64()), "line": pa.array(texts, pa.binary())})


class Scorer:
    """An actor: a reward model, whose backbone is loaded with the first rows."""

    def __init__(
        self,
        reward_model: str,
        prompt: str,
        response: str,
        cache: str | None,
        token_budget: int,
        cores: int,
        folder: str,
    ) -> None:
        work_in(folder)
        torch.set_num_threads(cores)
        self.rm = RewardModel.from_pretrained(reward_model)
        self.store = open_store(cache, self.rm.recipe) if cache else None
        self.prompt, self.response, self.token_budget = prompt, response, token_budget

    def __call__(self, lines: pa.Table) -> pa.Table:
        """A batch of lines as one row: their text with scores, or the error of the first that is not usable."""
        pairs = zip(lines["number"].to_pylist(), lines["line"].to_pylist(), strict=True)
        try:
            rows = [self._checked(*parse_line(number, line)) for number, line in pairs]
            score_rows(self.rm, rows, self.prompt, self.response, self.store, self.token_budget)
        except PenchantError as error:
            return _row("", 0, told(error))
        return _row(dump_lines(rows), len(rows), None)

    def _checked(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        return check_row(number, row, self.prompt, self.response, REMEDY)


def _row(text: str, rows: int, error: str | None) -> pa.Table:
    return pa.table({"text": [text], "rows": [rows], "error": pa.array([error], pa.string())})
