"""`penchant evaluate`: how good a reward model is on other pairs."""

from __future__ import annotations

from typing import Literal

from penchant.backbone import check_budget
from penchant.benchmark_run import benchmark_run, benchmark_summary
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.evaluate.benchmark_rows import benchmark_named, read_items
from penchant.pairs import load_pairs
from penchant.reward_model import RewardModel
from penchant.runs import Run, evaluate_run, summary


def evaluate(
    reward_model: str,
    data: str,
    *,
    benchmark: str | None = None,
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
    """Evaluate a trained reward model on preference pairs, next to its baselines, or on a published benchmark.

    Args:
        reward_model: folder of the model (or hub id, org/name@REVISION).
        data: hub id, file or folder with preference pairs, or with rows of the benchmark; also as --data.
        benchmark: what the rows are instead of pairs: rewardbench (prompt, chosen, rejected, subset), rewardbench2
            (prompt, lists of chosen and rejected, subset, id), rm-bench (prompt, three chosen, three rejected, domain)
            or best-of-n (prompt, chosen, a list of rejected); scored as the benchmark's authors do.
        out: folder of the run: metrics.json, config.yaml, report.html; runs/TIME-evaluate by default.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        gold: best-of-n is measured against the columns GOLD_chosen and GOLD_rejected.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
        seed: of the intervals.
    """
    config = dict(locals())
    check_budget(token_budget)
    known = None if benchmark is None else benchmark_named(benchmark)
    if known is not None and gold is not None:
        raise InputError("--gold is for pairs, and a benchmark has its own measure; leave one of them out")
    rm = RewardModel.from_pretrained(reward_model)
    # A refused row leaves no folder; rows that are skipped are listed in it while they are read.
    early = Run(out, "evaluate", config) if on_bad == "skip" else None
    skipped = early.folder / "skipped.jsonl" if early else None
    if known is not None:
        rows = read_items(data, known, columns=columns, on_bad=on_bad, split=split, limit=limit, skipped_file=skipped)
        run = early or Run(out, "evaluate", config)
        metrics = benchmark_run(rm, known, rows, data, cache=cache, token_budget=token_budget, seed=seed)
        says = benchmark_summary(metrics)
    else:
        pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
        run = early or Run(out, "evaluate", config)
        metrics = evaluate_run(rm, pairs, data, cache=cache, token_budget=token_budget, gold=gold, seed=seed)
        says = summary(metrics)
    report = run.finish({"title": f"{reward_model} on {data}", **metrics})
    print(says)
    print(f"report: {report}")
