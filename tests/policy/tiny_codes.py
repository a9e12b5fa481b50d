"""A policy over the tiny LLM whose codes are known: rivers call code 0, all other prompts call code 1 or 2."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from penchant import load_pairs
from penchant.backbone import load_whole
from penchant.policy.codes import LatentCodes
from penchant.policy.policy import Policy
from tests.tiny_llm import save_tiny_llm, tiny_pairs

CODES = 4
WEIGHTS = {"river": [0.7, 0.1, 0.1, 0.1], "colour": [0.1, 0.6, 0.2, 0.1], "": [0.1, 0.2, 0.6, 0.1]}
LETTERS = "Z5q"
"""The byte that codes 0, 1 and 2 raise most; code 3 is the mean of all and raises none."""


class Known(nn.Module):
    """The logits of the known state that a row is closest to."""

    def __init__(self, states: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.states, self.logits = states, logits

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[torch.cdist(rows, self.states).argmin(1)]


def weights_of(prompt: str) -> list[float]:
    return next(weights for word, weights in WEIGHTS.items() if word in prompt)


@functools.cache
def pairs() -> datasets.Dataset:
    """80 pairs over 40 prompts; source says whether the prompt is on a river, user_id is chance."""
    return load_pairs(
        [
            {**row, "source": "river" if "river" in row["prompt"] else "other", "user_id": f"u{i * 7 % 3}"}
            for i, row in enumerate(tiny_pairs(80))
        ]
    )


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="penchant-tests-"))


@functools.cache
def policy() -> Policy:
    """Its posterior is the prior of the next prompt: it knows nothing, but differs."""
    made, codes = plain_policy(), LatentCodes(32, CODES)
    head: Any = made.lm_head.weight
    ids = made.backbone.chat.tokenizer(LETTERS).input_ids
    rows = nn.functional.normalize(head[ids].detach(), dim=1)
    with torch.no_grad():
        codes.codebook[:3] = 4 * rows
        prompts = list(dict.fromkeys(pairs()["prompt"]))
        weights = torch.tensor([weights_of(prompt) for prompt in prompts])
        mean = weights.mean(0)
        codes.codebook[3] = mean[:3] @ codes.codebook[:3] / mean[:3].sum()
        states = made.pair_states(pairs())
        seen = nn.functional.layer_norm(states.prompt, (32,))
        each = torch.tensor([weights_of(prompt) for prompt in pairs()["prompt"]]).log()
        codes.prior_net = Known(seen, each)  # type: ignore[assignment]
        both = torch.cat([nn.functional.layer_norm(side, (32,)) for side in (states.chosen, states.rejected)], -1)
        codes.posterior_net = Known(both, each.roll(2, 0))  # type: ignore[assignment]
    return Policy(made.model, made.backbone, codes, {"base": "tiny", "loss": "dpo", "beta": 0.1})


@functools.cache
def plain_policy() -> Policy:
    model, backbone = load_whole(str(save_tiny_llm(folder() / "llm")), dtype="float32", max_length=256)
    return Policy(model, backbone, None, {"base": "tiny", "loss": "dpo", "beta": 0.1, "lora": None})
