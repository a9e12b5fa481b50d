"""`penchant filter`: the pairs whose order a reward model is sure of, for the next round of training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penchant.candidates import read_rows
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.filtering import Rule, filter_pairs
from penchant.reward_model import RewardModel


def filter(  # the verb's name
    reward_model: str,
    data: str,
    *,
    out: str,
    confidence: float | None = None,
    spread_limit: float | None = None,
    keep: float | None = None,
    relabel: bool = False,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Keep the pairs whose order the reward model is sure of, ready for a DPO trainer.

    Choose the round of an alignment loop by a validation set, not by the test set.

    Args:
        reward_model: folder of the model (or hub id, org/name@REVISION).
        data: hub id, file or folder with preference pairs, or with rows of a prompt and a list of responses, of which
            the best and the worst by the reward become chosen and rejected.
        out: JSON lines file to write: prompt, chosen, rejected, the other columns, scores and confidence.
        confidence: least calibrated probability that chosen is better; 0.7 by default.
        spread_limit: of a committee: the margin less this many standard deviations over its members must be above 0;
            1 by default.
        keep: keep this share of all pairs, the surest, instead of those above a limit.
        relabel: swap the pairs that are clearly the wrong way round, where they are left out otherwise.
        columns: the data's column names for ours, for example {question: prompt, samples: responses}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them beside `out` in .skipped.jsonl.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
    """
    if confidence is not None and keep is not None:
        raise InputError("--keep takes the place of --confidence; give one of them")
    check_target(Path(out), Path(data))
    rule = Rule(0.7 if confidence is None else confidence, spread_limit, keep, relabel)
    rm = RewardModel.from_pretrained(reward_model)
    rule.check(rm)
    skipped = Path(out).with_suffix(".skipped.jsonl") if on_bad == "skip" else None
    if skipped is not None:
        check_target(skipped, Path(data))
    rows = read_rows(data, columns=columns, on_bad=on_bad, split=split, limit=limit, skipped_file=skipped)
    print(filter_pairs(rm, rows, out, rule, cache=cache, token_budget=token_budget).says)
    print(out)


def check_target(out: Path, data: Path) -> None:
    """Raise InputError where `out` cannot be written, or where that would change the data."""
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} to write into; make it or choose another --out")
    same = out.exists() and data.exists() and out.samefile(data)
    if same or data.resolve() in out.resolve().parents:
        raise InputError(f"{str(data)!r} cannot be read and written at once; choose another --out")
