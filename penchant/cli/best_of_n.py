"""`penchant best-of-n`: the best of several responses to each prompt, given in a file or sampled from an LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penchant.backbone import check_budget
from penchant.candidates import read_rows
from penchant.cli.filter import check_target
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.judge import Judge
from penchant.picking import check_people, pick_best, prompt_rows, sampled_rows


def best_of_n(
    reward_model: str,
    data: str,
    *,
    out: str,
    model: str | None = None,
    n: int = 8,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    user_id: str | None = None,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Keep the best of several responses to each prompt, from a file or sampled from an LLM.

    The same command again goes on where it was interrupted.

    Args:
        reward_model: folder of the model (or hub id, org/name@REVISION), or of a personal LLM.
        data: hub id, file or folder with rows of a prompt and a list of responses, or with pairs; with --model the
            responses in it are left out, and rows that then say the same are answered once.
        out: JSON lines file to write: prompt, the other columns, responses, response (the best), score and scores.
        model: LLM to sample responses from: hub id, folder or GGUF file. They are kept beside `out` in .answers.jsonl.
        n: responses sampled for each prompt.
        max_new_tokens: longest sampled response.
        temperature: of the sampling; 0 takes the likeliest token.
        top_p: tokens are drawn from the fewest likeliest that reach this probability.
        seed: of the sampling.
        user_id: in whose taste, with a personal LLM; by default that of each row's own user_id, or the population's.
        columns: the data's column names for ours, for example {question: prompt, samples: responses}.
        on_bad: stop at the first bad row, or skip bad rows and say how many there were.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
    """
    check_budget(token_budget)
    if n < 1:
        raise InputError(f"n is {n}; give at least 1")
    answers_file = Path(out).with_suffix(".answers.jsonl")
    check_target(Path(out), Path(data))
    if model is not None:
        check_target(answers_file, Path(data))
    judge = Judge.load(reward_model)
    judge.check(user_id)
    if model is None:
        rows = read_rows(data, columns=columns, on_bad=on_bad, split=split, limit=limit)
    else:
        asked, skipped = prompt_rows(data, columns=columns, on_bad=on_bad, split=split, limit=limit)
        check_people(judge, asked, user_id)  # before the sampling, which takes long
        answers = Generator.load(model).sample(
            [row.prompt for row in asked],
            answers=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            file=answers_file,
        )
        rows = sampled_rows(asked, answers)._replace(skipped=skipped)
    print(pick_best(judge, rows, out, user_id, cache=cache, token_budget=token_budget).says)
    for what, count in rows.skipped.items():
        print(f"skipped {count:,} rows because {what}")
    print(out)
