"""Two equalities on the real LLM in float32: no codes is TRL's DPOTrainer, and one code of zeros is no codes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lpc_cost
import lpc_data
import torch

from penchant.backbone import DEFAULT, load_whole
from penchant.policy.align import make_trainer
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings

STEPS = 3
PAIRS = 2
"""A step."""


def exact(work: Path) -> dict[str, Any]:
    """Largest differences between losses of the same steps; all weights are trained."""
    shortest = sorted(lpc_data.draw("hh", 0).train, key=lambda row: len(str(row)))[: STEPS * PAIRS]
    pairs = lpc_data.Dataset.from_list(shortest)
    ours, one, theirs = (_losses(name, pairs, work) for name in ("none", "zero", "trl"))
    return {
        "trl_difference": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "zero_code_difference": max(abs(a - b) for a, b in zip(ours, one, strict=True)),
        "losses": ours,
    }


def _losses(name: str, pairs: Any, work: Path) -> list[float]:
    llm, backbone = load_whole(DEFAULT, "float32", None, 1024)
    tokens = token_pairs(backbone, pairs)
    settings = Settings(
        codes=1 if name == "zero" else 0,
        lora=0,
        steps=STEPS,
        batch_size=PAIRS,
        log_steps=1,
        learning_rate=1e-5,
        warmup=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        if name == "trl":
            llm.requires_grad_(True)
            reference = load_whole(DEFAULT, "float32")[0]
            trainer = lpc_cost.trl_trainer(llm, backbone, pairs, tokens, STEPS, folder, full=reference)
            trainer.args.per_device_train_batch_size = trainer._train_batch_size = PAIRS
            trainer.args.learning_rate = 1e-5
        else:
            reference, _ = reference_log_probs(Policy(llm, backbone), tokens, work)
            policy = make_policy(llm, backbone, settings)
            if name == "zero":
                torch.nn.init.zeros_(policy.codes.codebook)
                policy.codes.codebook.requires_grad_(False)
            trainer = make_trainer(
                policy, settings.make_loss(), tokens, reference, settings, Path(folder), show_progress=False
            )
        trainer.args.train_sampling_strategy = "sequential"
        trainer.args.max_grad_norm = 0.0  # more parameters would change the norm's last bits
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
