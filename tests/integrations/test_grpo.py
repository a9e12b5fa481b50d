"""A real run of TRL's GRPOTrainer on the embedded LLM, rewarded by a reward model on the same LLM's latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from penchant import RewardModel, load_pairs
from penchant.backbone import DEFAULT, load_whole
from penchant.cli.demo import DATA
from penchant.heads import LinearHead
from penchant.integrations.trl import reward_function

pytestmark = pytest.mark.slow
STEPS, ANSWERS = 2, 2


def test_grpo_learns_from_the_reward_models_scores(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    pairs = load_pairs(DATA / "demo.jsonl.gz").select(range(16))
    rm = RewardModel.train(
        pairs, head=LinearHead(), views=["8:mean"], cache=tmp_path / "cache", show_progress=False
    )  # fmt: skip
    rm.save_pretrained(tmp_path / "model")
    policy, backbone = load_whole(DEFAULT, "float32")
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    for weight in policy.parameters():
        weight.requires_grad_(True)

    score, calls = reward_function(tmp_path / "model"), []

    def watched(**arguments: Any) -> list[float | None]:
        rewards = score(**arguments)
        calls.append((arguments["prompts"], arguments["completions"], rewards))
        return list(rewards)

    watched.__name__ = score.__name__
    prompts = [[{"role": "user", "content": text}] for text in dict.fromkeys(pairs["prompt"])][:STEPS]
    trainer = trl.GRPOTrainer(
        policy,
        reward_funcs=watched,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "grpo"), max_steps=STEPS, per_device_train_batch_size=ANSWERS,
            num_generations=ANSWERS, max_completion_length=8, learning_rate=1e-4, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, seed=0, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "user_id": ["ann", "bob"][:STEPS]}),
        processing_class=backbone.chat.tokenizer,
    )  # fmt: skip
    trainer.train()

    assert len(calls) == STEPS
    for asked, answers, rewards in calls:
        assert len(rewards) == ANSWERS
        assert rewards == rm.score(asked, answers).tolist()
    rows = [row for row in trainer.state.log_history if "rewards/penchant/mean" in row]
    assert [row["reward"] for row in rows] == pytest.approx([sum(r) / ANSWERS for _, _, r in calls], rel=1e-4)
    assert all(row["penchant/truncated"] == 0 for row in rows)
    assert any(not torch.equal(weight, before[name]) for name, weight in policy.named_parameters())
