"""The pairs a model gets most wrong, with their texts: the fastest way to see what it does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from penchant.latents import Array
from penchant.pairs import to_text

LONGEST = 4000
"""Characters kept of a text, so that a report stays small."""


def shorten(text: str, keep_end: bool = False) -> str:
    """At most LONGEST characters and a note of how many are left out; a prompt keeps its end, where the question is."""
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    return (
        f"[{left_out:,} characters] …{text[-LONGEST:]}" if keep_end else f"{text[:LONGEST]}… [{left_out:,} characters]"
    )


def mistakes(test: Dataset, score_chosen: Array, score_rejected: Array, most: int = 20) -> list[dict[str, Any]]:
    """Up to `most` pairs whose rejected response scores higher, worst first, with row (from 0), scores and texts."""
    margin = np.asarray(score_chosen, dtype=np.float64) - np.asarray(score_rejected, dtype=np.float64)
    worst = np.argsort(margin, kind="stable")[:most]
    worst = worst[margin[worst] < 0]
    found = []
    for row in worst.tolist():
        pair = test[row]
        found.append(
            {
                "row": row,
                "prompt": shorten(to_text(pair["prompt"]), keep_end=True),
                "chosen": shorten(to_text(pair["chosen"])),
                "rejected": shorten(to_text(pair["rejected"])),
                "score_chosen": float(score_chosen[row]),
                "score_rejected": float(score_rejected[row]),
                "source": pair.get("source"),
            }
        )
    return found
