"""`penchant codes`: what the codes of an aligned policy stand for."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from penchant.errors import InputError
from penchant.pairs import load_pairs
from penchant.policy.policy import Policy
from penchant.policy.reading import ANSWER_TOKENS, PROMPTS, read_codes
from penchant.policy.saving import read_config
from penchant.report_codes import seen_pair, shown_codes, write_codes
from penchant.runs import peak_memory_mb, versions

PRINTED = 10


def codes(
    run: str,
    data: str,
    *,
    out: str | None = None,
    prompts: int = PROMPTS,
    max_new_tokens: int = ANSWER_TOKENS,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> None:
    """Read the codes of an aligned policy: which prompts call each, what it says sooner, whether it follows a source.

    Args:
        run: folder that `penchant align` wrote, or the policy in it.
        data: hub id, file or folder with preference pairs; those that the policy was not trained on tell most.
        out: folder for codes.json and codes.html; the run's by default.
        prompts: prompts answered under each code, side by side; 0 for none, which saves most of the time.
        max_new_tokens: longest answer.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows and count them.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        seed: of the shuffled labels.
    """
    start, created = time.perf_counter(), datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    folder = policy_folder(run)
    target = Path(out or run)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {target}: {error.strerror}; choose another --out.") from error
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit)
    found = read_codes(Policy.from_pretrained(folder), pairs, prompts=prompts, max_new_tokens=max_new_tokens, seed=seed)
    found["data"]["name"] = data
    spent = {"total_seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb()}
    title = f"The codes of {run}, read on {data}"
    found = {"title": title, "created": created, "versions": versions(), **found, "cost": spent}
    try:
        (target / "codes.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        page = write_codes(found, target / "codes.html")
    except OSError as error:
        raise InputError(f"cannot write into {target}: {error.strerror}; choose another --out.") from error
    print(summary(found))
    print(f"page: {page}")


def policy_folder(run: str) -> Path:
    """The policy of a run; InputError where there is no such folder, or one that holds no policy with codes."""
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"there is no folder {run!r}; give the one that penchant align wrote.")
    folder = folder / "policy" if (folder / "policy").is_dir() else folder
    config = read_config(folder)
    if not config["latent"]:
        raise InputError(f"the policy in {run!r} was trained without codes (codes 0), so there is none to read.")
    return folder


def summary(found: dict[str, Any]) -> str:
    """The codes that are shown in full, one a line, and what is wrong."""
    figures, shown = found["figures"], shown_codes(found)[:PRINTED]
    adds = "a pair adds" if seen_pair(found) else "who judged adds"
    lines = [
        f"about {figures['perplexity']:.1f} of {found['policy']['codes']} codes are in use on {figures['n']:,} prompts;"
        f" {adds} {figures['kl']:.3f} nats to what its prompt says",
        "code  weight  best of  switch",
    ]
    lines += [
        f"{one['code']:4}  {one['weight']:6.1%}  {one['best']:7.1%}  {one['switch_kl']:6.3f}  {one['name']}"
        for one in shown
    ]
    for row in found["agreement"]:
        verdict = "above chance" if row["above"] else "not above chance"
        lines.append(
            f"{row['weights']} and {row['label']}: normalised mutual information {row['nmi']:.3f}, shuffled"
            f" {row['chance']['mean']:.3f} (95% below {row['chance']['high']:.3f}): {verdict}"
        )
    return "\n".join([*lines, *(f"warning: {text}" for text in found["warnings"])])
