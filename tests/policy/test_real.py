"""The embedded LLM itself: packed log-probabilities are the plain ones, and a few steps of DPO with codes learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penchant.backbone import DEFAULT, load_whole
from penchant.cli.demo import DATA
from penchant.pairs import load_pairs
from penchant.policy.align import train_policy
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy, make_trunk
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings

pytestmark = pytest.mark.slow


def test_a_few_steps_on_the_top_layers_learn_their_pairs(tmp_path: Path) -> None:
    rows = load_pairs(DATA / "demo.jsonl.gz")
    short = np.argsort([len(c) + len(r) for c, r in zip(rows["chosen"], rows["rejected"], strict=True)])[:8]
    llm, backbone = load_whole(DEFAULT, "float32")
    tokens = token_pairs(backbone, rows.select(short))
    settings = Settings(codes=8, top_layers=1, steps=6, batch_size=8, log_steps=1, learning_rate=3e-3, warmup=0.0)
    trunk = make_trunk(backbone, settings, tokens, tmp_path)
    before = Policy(llm, backbone, trunk=trunk)
    reference, _ = reference_log_probs(before, tokens, tmp_path)

    item = tokens[0][0]
    ids = torch.from_numpy(np.concatenate([item.prompt, item.response])).long()
    model: Any = llm
    with torch.no_grad():
        log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    at = len(item.prompt) - 1
    expected = log_p[at:-1].gather(1, ids[at + 1 :, None]).sum()
    assert reference.chosen[0].item() == pytest.approx(expected.item(), rel=1e-4)

    policy = make_policy(llm, backbone, settings, trunk)
    trainer = train_policy(policy, settings.make_loss(), tokens, reference, settings, tmp_path, show_progress=False)
    rows_ = [row for row in trainer.state.log_history if "loss" in row]
    assert rows_[0]["loss"] == pytest.approx(np.log(2), abs=0.05)
    assert rows_[-1]["loss"] < 0.5
