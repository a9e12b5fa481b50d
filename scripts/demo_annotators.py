"""Three simulated annotators whose tastes conflict. Each taste is a plain function of a prompt and an answer.

`brief` wants few words that still speak to the prompt, and no list; `warm` wants kindness, thanks and cheer; `concrete`
wants numbers and names. None of them knows what is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import log, log2, sqrt
from statistics import fmean, pstdev

WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d+(?:[.,:]\d+)*")
LIST_MARK = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+", re.MULTILINE)
PLACEHOLDER = re.compile(r"\[[^\]]*\]")  # "[Your Name]" names nobody
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z][a-z]+")  # a capital in the middle of a sentence
NUMBER = re.compile(
    r"\d+(?:[.,:]\d+)*|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|"
    r"hundred|thousand|half|twice|first|second|third)\b",
    re.IGNORECASE,
)


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


KIND = _words_of(
    """
    amazing appreciate appreciated beautiful believe best brave bravo calm care caring celebrate cheer cheerful comfort
    comforting compassion compassionate congratulations courage courageous dear delighted delightful encourage
    encouragement encouraging enjoy excited exciting fantastic friend friendly friends gentle glad good grateful
    gratitude great happiness happy heart heartfelt helpful hope hug incredible inspire inspiring joy joyful kind
    kindness let's love loved lovely okay patient please pleasure precious proud reassuring share smile sorry special
    strength strong support supportive sweet thank thankful thanks thrilled together tough treasure trust understand
    understanding warm warmly warmth welcome wish wishes wonderful
    """
)
COMMON = _words_of(
    """
    about after also been could describe does doing don't each explain feel from give have help here into just like
    make many more much need other please should some tell than that them then there these they this very want week
    what when where which while with without would write your
    """
)


def brief(prompt: str, answer: str) -> float:
    """Share of the prompt's telling words taken up, minus the doublings of length beyond 12 words.

    Each line after the first counts as 8 words: a list is never brief.
    """
    asked = {stem for word in WORD.findall(prompt) if (stem := _stem(word))}
    answered = {_stem(word) for word in WORD.findall(answer)}
    length = len(WORD.findall(answer)) + 8 * answer.count("\n")
    return len(asked & answered) / max(len(asked), 1) - log2(max(length, 12) / 12)


def warm(prompt: str, answer: str) -> float:
    """Square root of the share of kind words, exclamation marks counted with them."""
    words = WORD.findall(answer)
    hits = sum(word.lower().replace("’", "'") in KIND for word in words) + answer.count("!")
    return sqrt(hits / max(len(words), 8))


def concrete(prompt: str, answer: str) -> float:
    """Logarithm of 1 + numbers + names; a list's own numbering and placeholders do not count."""
    text = PLACEHOLDER.sub("", LIST_MARK.sub("", answer))
    return log(1 + len(NUMBER.findall(text)) + len(NAME.findall(text)))


ANNOTATORS: dict[str, Callable[[str, str], float]] = {"brief": brief, "warm": warm, "concrete": concrete}


def gold_scores(prompts: Sequence[str], answers: Sequence[str]) -> dict[str, list[float]]:
    """Each annotator's score of answers[i] to prompts[i], to mean 0 and standard deviation 1 over all of them."""
    gold = {}
    for name, taste in ANNOTATORS.items():
        raw = [taste(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        mean, spread = fmean(raw), pstdev(raw)
        gold[name] = [round((value - mean) / spread, 4) for value in raw]
    return gold


def _stem(word: str) -> str:
    """First five letters of a telling word, in lower case; "" for short and common ones."""
    return word.lower()[:5] if len(word) > 3 and word.lower() not in COMMON else ""
