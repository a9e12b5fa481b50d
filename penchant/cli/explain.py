"""`penchant explain`: which features carry a reward model's score, and which texts activate them."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from penchant.encode import TOKEN_BUDGET
from penchant.explain import TOKEN_PAIRS, TOP
from penchant.explain import explain as explained
from penchant.pairs import load_pairs
from penchant.report_explain import write_explanation
from penchant.reward_model import RewardModel
from penchant.runs import Run, peak_memory_mb, versions

PRINTED = 10


def explain(
    reward_model: str,
    data: str,
    *,
    out: str | None = None,
    sae: str | None = None,
    pair: int | None = None,
    top: int = TOP,
    token_pairs: int = TOKEN_PAIRS,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "test",
    limit: int | None = None,
    cache: str | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Explain a reward model by the features of a sparse autoencoder: what carries its score, and where that is active.

    For heads that score such features (sae, sparse), and for a linear head whose states an SAE describes (--sae).

    Args:
        reward_model: folder of the model (or hub id, org/name@REVISION).
        data: hub id, file or folder with preference pairs.
        out: folder of the run: explanation.json, explanation.html, config.yaml; runs/TIME-explain by default.
        sae: folder or hub name of the SAE; needed for a linear head, by default that of the head.
        pair: row (from 0) of the pair to take apart; by default a handful, clearly right, close and clearly wrong.
        top: features shown of the whole model.
        token_pairs: pairs, spread over the data, whose tokens are looked at one by one; bounds the time.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
    """
    config = dict(locals())
    rm = RewardModel.from_pretrained(reward_model)
    run = Run(out, "explain", config)
    skipped = run.folder / "skipped.jsonl" if on_bad == "skip" else None
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
    found = explained(
        rm, pairs, sae=sae, top=top, row=pair, token_pairs=token_pairs, cache=cache, token_budget=token_budget
    )
    found["data"]["name"] = data
    spent = {"total_seconds": time.perf_counter() - run.start, "peak_memory_mb": peak_memory_mb()}
    title = f"{reward_model} explained on {data}"
    found = {"title": title, "created": run.created, "versions": versions(), **found, "cost": spent}
    text = json.dumps(found, allow_nan=False)
    (run.folder / "explanation.json").write_text(text + "\n", encoding="utf-8")
    page = write_explanation(found, run.folder / "explanation.html")
    print(summary(found))
    print(f"page: {page}")


def summary(found: dict[str, Any]) -> str:
    """The strongest features, one a line."""
    right, features = found["accuracy"], found["features"]
    named = [found["latents"][str(one["feature"])]["name"] or "(silent at single tokens)" for one in features[:PRINTED]]
    width = max(map(len, named), default=0)
    lines = [
        f"accuracy on {right['n']:,} pairs: {right['value']:.1%} ({right['low']:.1%} to {right['high']:.1%})",
        f"{len(features):,} of {len(features) + found['others']['features']:,} features carry"
        f" {sum(one['share'] for one in features):.1%} of the score; the first {len(named)}:",
    ]
    for name, one in zip(named, features, strict=False):
        verb = "lowers" if (one["weight"] or 0) < 0 else "raises"
        lines.append(
            f"  {name:<{width}}  {one['share']:6.1%}  {verb} it; active in {one['chosen']:.0%} of chosen,"
            f" {one['rejected']:.0%} of rejected  ({one['feature']}, {one['view']})"
        )
    if found["rest"]:
        lines.append(f"the SAE does not describe {found['rest']:.1%} of the score")
    return "\n".join(lines)
