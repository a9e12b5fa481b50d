"""The sentiment task of the Latent DPO paper, with film snippets and SmolLM2-135M-Instruct.

A prompt asks to continue a film review, whose first words people wrote. The LLM's own samples are judged by
vaderSentiment's compound score s in [-1, 1], for three people:

    positive  s        negative  -s        neutral  -|s|

Each prompt gives a person two pairs, best against second-worst and second-best against worst, as in the paper. A method
is judged by fresh answers to prompts that it never saw: the win rate against answers of the unadapted LLM (a tie is one
half), the person's mean score, and perplexity under the unadapted LLM.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import data_file, kept
from datasets import Dataset
from numpy.typing import NDArray

from penchant.generation import Generator
from penchant.personal.adapter import last_states
from penchant.policy.log_probs import Vocabulary

Array = NDArray[np.float64]

MODEL = "smollm2-135m-instruct"
POOL, ANSWERS, TOKENS = 400, 12, 24
"""Prompts, answers to each that the LLM gives, and tokens of an answer."""
QUICK_POOL = 48
WORDS = 8
"""Words of a snippet that a prompt has."""
VALID, TEST, TRAIN = 32, 96, 144
"""Prompts that settings were chosen by, that methods are judged on (the same at each seed), and of the rest those that
a seed draws for training."""
SAMPLED = 3
"""Answers to each test prompt."""
TASTES = {"positive": lambda s: s, "negative": lambda s: -s, "neutral": lambda s: -abs(s)}


class Task(NamedTuple):
    prompts: list[str]
    answers: list[list[str]]


class Split(NamedTuple):
    train: Task
    valid: list[str]
    test: list[str]


def sentiment(text: str) -> float:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    if not hasattr(sentiment, "by"):
        sentiment.by = SentimentIntensityAnalyzer()  # type: ignore[attr-defined]
    return float(sentiment.by.polarity_scores(text)["compound"])  # type: ignore[attr-defined]


def prompts(count: int = POOL) -> list[str]:
    """The first words of snippets, in an order of their own."""
    with gzip.open(data_file("movies/snippets"), "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"].split() for line in file]
    random.Random(0).shuffle(texts)
    texts = [words for words in texts if 10 <= len(words) <= 40][:count]
    return ["Continue this film review: " + " ".join(words[:WORDS]) for words in texts]


def pool(work: Path, count: int = POOL) -> Task:
    """The prompts with the LLM's own answers; goes on where a killed run was."""
    asked = prompts(count)

    def sample() -> list[list[str]]:
        sampling: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 1.0, "top_p": 0.95}
        return Generator.load(MODEL).sample(asked, answers=ANSWERS, file=work / f"answers-{count}.jsonl", **sampling)

    return Task(asked, kept(work / f"pool-{count}.json", sample))


def split(task: Task, seed: int, quick: bool = False) -> Split:
    valid, test, train = (4, 12, 24) if quick else (VALID, TEST, TRAIN)
    order = np.random.default_rng(1).permutation(len(task.prompts)).tolist()
    rows = np.random.default_rng([2, seed]).permutation(order[valid + test :])[:train].tolist()
    return Split(
        Task([task.prompts[i] for i in rows], [task.answers[i] for i in rows]),
        [task.prompts[i] for i in order[:valid]],
        [task.prompts[i] for i in order[valid : valid + test]],
    )


def pairs_of(task: Task, person: str) -> Dataset:
    """Two pairs a prompt, where the person's scores differ."""
    taste, rows = TASTES[person], []
    for prompt, answers in zip(task.prompts, task.answers, strict=True):
        ranked = sorted({text for text in answers if text.strip()}, key=lambda text: (taste(sentiment(text)), text))
        if len(ranked) < 4:
            continue
        for chosen, rejected in ((ranked[-1], ranked[1]), (ranked[-2], ranked[0])):
            if taste(sentiment(chosen)) > taste(sentiment(rejected)):
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "user_id": person})
    return Dataset.from_list(rows)


def scored(person: str, answers: Sequence[Sequence[str]]) -> Array:
    """[prompts, answers] of the person's scores."""
    return np.array([[TASTES[person](sentiment(text)) for text in texts] for texts in answers])


def wins(scores: Array, others: Array) -> Array:
    """[prompts]: share of (answer, other's answer) in which the answer is better; a tie is one half."""
    return np.asarray(0.5 + 0.5 * np.sign(scores[:, :, None] - others[:, None, :]).mean((1, 2)))


@torch.no_grad()
def perplexity(model: Any, backbone: Any, asked: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Of all answers under the LLM as it is."""
    said = [(prompt, text) for prompt, texts in zip(asked, answers, strict=True) for text in texts if text.strip()]
    items = backbone.chat.encode(*map(list, zip(*said, strict=True)))
    backbone.config._attn_implementation = backbone.plain_attention
    vocabulary, total, count = Vocabulary.of(model), 0.0, 0
    for start in range(0, len(items), 64):
        states, targets, _ = last_states(model, None, items[start : start + 64])
        total -= float(vocabulary.log_probs(states, targets).sum())
        count += len(targets)
    return float(np.exp(total / count))


def sample_args(seed: int) -> dict[str, Any]:
    """How every method answers the test prompts."""
    return {
        "answers": SAMPLED,
        "max_new_tokens": TOKENS,
        "temperature": 1.0,
        "top_p": 0.95,
        "seed": 1000 + seed,
        "show_progress": False,
    }
