"""`penchant evaluate`: how good a reward model is on other pairs."""

from __future__ import annotations

from typing import Literal

from penchant.encode import TOKEN_BUDGET
from penchant.pairs import load_pairs
from penchant.reward_model import RewardModel
from penchant.runs import Run, evaluate_run, summary


def evaluate(
    reward_model: str,
    data: str,
    *,
    out: str | None = None,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "test",
    limit: int | None = None,
    gold: str | None = None,
    cache: str | None = None,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
) -> None:
    """Evaluate a trained reward model on preference pairs, next to its baselines.

    Args:
        reward_model: folder of the model (or hub id).
        data: hub id, file or folder with preference pairs.
        out: folder of the run: metrics.json, config.yaml, report.html; runs/TIME-evaluate by default.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        gold: best-of-n is measured against the columns GOLD_chosen and GOLD_rejected.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        token_budget: tokens run at once; bounds memory.
        seed: of the intervals.
    """
    config = dict(locals())
    rm = RewardModel.from_pretrained(reward_model)
    run = Run(out, "evaluate", config)
    skipped = run.folder / "skipped.jsonl" if on_bad == "skip" else None
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
    metrics = evaluate_run(rm, pairs, data, cache=cache, token_budget=token_budget, gold=gold, seed=seed)
    report = run.finish({"title": f"{reward_model} on {data}", **metrics})
    print(summary(metrics))
    print(f"report: {report}")
