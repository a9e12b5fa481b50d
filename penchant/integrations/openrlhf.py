"""The file that OpenRLHF's `--remote_rm_url` (`--reward.remote_url`) takes in place of a server's address.

    export PENCHANT_REWARD_MODEL=my-reward-model
    ... --remote_rm_url $(python -c "import penchant.integrations.openrlhf as file; print(file.__file__)")

The prompts may be plain, or rendered by the reward model's own chat template (`--apply_chat_template`, where policy and
reward model share it). Where the model is a personal LLM, the labels (`--label_key user_id`) say in whose taste.
OpenRLHF logs what this function raises and goes on without a reward, so look into its log at the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from penchant.integrations import judge_of_environment
from penchant.rendered import Rendered


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Rewards of n queries, each the prompt and the policy's answer as one text, special tokens included.

    Returns:
        {"rewards", "scores", "extra_logs"}: float32 [n] tensors; both are the reward model's scores, and the log holds
        whether a query lost its start to `max_length`.

    Raises InputError where the environment names no model, or a query cannot be cut into prompt and answer.
    """
    judge = judge_of_environment()
    chat = judge.rewards.backbone.chat
    rendered = Rendered(chat)
    cut = [rendered.cut(*both, f"query {row}") for row, both in enumerate(zip(queries, prompts, strict=True))]
    tokens = chat.encode_rendered(cut)
    people = None
    if judge.people is not None and labels is not None:
        people = [str(label) if label not in (None, "") else None for label in labels]
    rewards = torch.from_numpy(judge.score_tokens(tokens, people))
    truncated = torch.tensor([float(item.cut > 0) for item in tokens])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"truncated": truncated}}
