"""Why one answer scores above another: the features, or the codes, that speak for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from penchant.encode import TOKEN_BUDGET, encode_texts
from penchant.explain.figures import break_down, measure
from penchant.explain.reading import Reading
from penchant.explain.texts import read_texts
from penchant.heads import CodedHead
from penchant.latents import LatentPairs
from penchant.reward_model import RewardModel


def pair_latents(rm: RewardModel, prompt: str, first: str, second: str) -> NDArray[np.float32]:
    """Latents [2, d] of both answers. Raises InputError for an answer that the chat template refuses."""
    return encode_texts(rm.backbone, [prompt] * 2, [first, second], rm.recipe.views)


def features_of_pair(rm: RewardModel, reading: Reading, prompt: str, first: str, second: str) -> dict[str, Any]:
    """Both scores as sums of features, and where in the texts those features are active.

    Returns:
        `break_down`'s facts, its sides called first and second, and `texts`: {prompt, first, second: {pieces, content,
        activations {feature: [[place, activation]]}}}.
    """
    found = pair_latents(rm, prompt, first, second)
    latents = LatentPairs(
        chosen=found[:1], rejected=found[1:], prompt=np.zeros_like(found[:1]), recipe=rm.recipe, group=np.zeros(1, int)
    )
    scores = rm.head.score(found).astype(np.float64)
    broken = break_down(reading, measure(reading, latents), latents, 0, (scores[:1], scores[1:]))
    listed = np.array(sorted({one["feature"] for one in broken["features"]}), np.int64)
    pair = Dataset.from_list([{"prompt": prompt, "chosen": first, "rejected": second}])
    read = read_texts(
        rm.backbone,
        reading.sae,
        reading.layer,
        listed,
        pair,
        np.zeros(1, int),
        (0,),
        token_budget=TOKEN_BUDGET,
        show_progress=False,
    )
    told: dict[str, Any] = renamed({**broken, "texts": read["texts"]["0"], "additive": reading.parts.additive})
    return told


def codes_of_pair(rm: RewardModel, head: CodedHead, prompt: str, first: str, second: str) -> list[dict[str, Any]]:
    """For each code its name, its weight for each answer, and the score of each answer in that taste alone."""
    latents = pair_latents(rm, prompt, first, second)
    return [
        {"name": name, "weight": sides(weight), "score": sides(score)}
        for name, weight, score in zip(code_names(head), head.prior(latents).T, head.tastes(latents).T, strict=True)
    ]


def code_names(head: CodedHead) -> list[str]:
    """The sources that the codes were learned from, else their numbers."""
    return list(head.sources_) or [f"code {number}" for number in range(1, len(head.codebook_) + 1)]


def sides(values: NDArray[Any]) -> dict[str, float]:
    return {"first": float(values[0]), "second": float(values[1])}


def renamed(facts: Any) -> Any:
    """The same with the sides called first and second, as nobody has chosen."""
    names = {"chosen": "first", "rejected": "second"}
    if isinstance(facts, dict):
        return {names.get(key, key): renamed(value) for key, value in facts.items()}
    return [renamed(value) for value in facts] if isinstance(facts, list) else facts
