"""`penchant score`: a score for each response in a file."""

from __future__ import annotations

from typing import Any

from penchant.cli.engine import Engine, beside_stdout, check_engine
from penchant.cli.lines import check_data, over_lines, write_batches
from penchant.encode import TOKEN_BUDGET
from penchant.responses import REMEDY, Lines, check_row, score_rows
from penchant.reward_model import RewardModel
from penchant.store_views import open_store

BATCH = 512
"""Rows scored, and written, at once."""


def score(
    reward_model: str,
    data: str,
    *,
    out: str | None = None,
    prompt: str = "prompt",
    response: str = "response",
    cache: str | None = None,
    token_budget: int = TOKEN_BUDGET,
    engine: Engine = "local",
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
) -> None:
    """Score responses: reads JSON lines with a prompt and a response, writes the same lines with a score.

    Args:
        reward_model: folder of the model (or hub id, org/name@REVISION).
        data: JSON lines file; "-" reads standard input.
        out: JSON lines file to write; standard output by default.
        prompt: name of the prompt's column; its value is a string or a list of messages.
        response: name of the response's column; a list of strings gives a list of scores.
        cache: folder that keeps the latents, so that the same command goes on after a stop; none are kept by default.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
        engine: local, or ray: several processes, on this machine or on a cluster (needs the extra ray).
        actors: with ray, how many processes run the LLM; one a GPU, or one a machine, by default.
        gpus_per_actor: with ray, GPUs of each; a part of one puts several on a GPU, 0 uses the CPU.
        address: with ray, a cluster that runs: auto or host:port; a Ray of this machine's own by default.
    """
    check_engine(engine, actors=actors, gpus_per_actor=gpus_per_actor, address=address)
    check_data(data, "score")
    if engine == "ray":
        from penchant.cluster.scoring import score_with_ray

        scored = score_with_ray(
            reward_model, data, prompt=prompt, response=response, cache=cache, token_budget=token_budget,
            actors=actors, gpus_per_actor=gpus_per_actor, address=address, batch=BATCH,
        )  # fmt: skip
        write_batches(data, out, "score", beside_stdout(scored))
        return
    rm = RewardModel.from_pretrained(reward_model)
    store = open_store(cache, rm.recipe) if cache else None

    def check(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return check_row(number, row, prompt, response, REMEDY)

    def work(rows: Lines) -> None:
        score_rows(rm, rows, prompt, response, store, token_budget)

    over_lines(data, out, "score", check, work, BATCH)
