"""`penchant export`: a reward model for programs that know only transformers."""

from __future__ import annotations

from penchant.reward_model import RewardModel


def export(reward_model: str, folder: str) -> None:
    """Write a linear reward model as a transformers AutoModelForSequenceClassification folder, where that is exact.

    Args:
        reward_model: folder of the model (or hub id), trained with --head linear --views [DEPTH:last].
        folder: folder to write; it will hold the LLM's weights too.
    """
    print(RewardModel.from_pretrained(reward_model).export(folder))
