"""What each word of an answer is worth to its score, for any head: the score with it less the score without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

WORD = re.compile(r"\s*\w{1,16}(?:['’]\w+)*[^\w\s]*|\s*[^\w\s]+|\s+")
"""A word with the space before and the signs behind it; where no spaces stand between words, 16 letters."""
MOST, LEAST = 32, 6
"""Pieces of one answer, at most, and of a long one at least."""
BUDGET = 16_000
"""Characters that the LLM reads again for one answer, about: a long answer is cut into fewer pieces."""


def pieces(text: str) -> list[str]:
    """The words of a text; phrases of a text with many or long ones. Joined, they are the text."""
    words: list[str] = WORD.findall(text)
    if len(words) > 1 and not words[-1].strip():
        words[-2:] = ["".join(words[-2:])]
    most = min(MOST, max(LEAST, BUDGET // max(1, len(text))))
    edges = [len(words) * i // most for i in range(most + 1)] if len(words) > most else range(len(words) + 1)
    return ["".join(words[a:b]) for a, b in pairwise(edges)]


def without(parts: Sequence[str]) -> list[str]:
    """The text of `parts` without each of them in turn; none where leaving one out leaves nothing."""
    shorter = ["".join((*parts[:i], *parts[i + 1 :])) for i in range(len(parts))]
    return shorter if all(text.strip() for text in shorter) else []


def worth(whole: float, left_out: Sequence[float]) -> list[float]:
    """What each piece adds: the score of the whole text less that without the piece. Above 0 it helps."""
    return [whole - score for score in left_out]
