"""P-tuning by DPO, a rival of Latent DPO: four learned input vectors in front of the prompt, the LLM frozen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from personal_sentiment import MODEL
from torch import Tensor, nn

from penchant.backbone import load_whole
from penchant.decoding import Steering
from penchant.generation import Generator
from penchant.personal.adapter import last_states
from penchant.policy.batches import token_pairs
from penchant.policy.log_probs import Vocabulary
from penchant.policy.losses import PairLogProbs, make_loss
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs

POSITIONS, RATE, BATCH = 4, 1e-2, 8


class SoftPrompt(nn.Module):
    """Vectors [m, n] that run through the LLM in front of a text, seen from the prompt's last token on."""

    def __init__(self, llm: Any, seed: int) -> None:
        super().__init__()
        table = llm.get_input_embeddings().weight
        rows = torch.randint(len(table), (POSITIONS,), generator=torch.Generator().manual_seed(seed))
        self.vectors, self._llm = nn.Parameter(table[rows].detach().float().clone()), [llm]

    def forward(self, z: Tensor) -> Steering:
        """For len(z) rows; what z says is not looked at."""
        cache, embedded = transformers.DynamicCache(), self.vectors[None].to(self._llm[0].dtype)
        self._llm[0].base_model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        front, layers = transformers.DynamicCache(), cache.layers
        for number, layer in enumerate(layers):
            rows: Any = layer
            front.update(rows.keys.expand(len(z), -1, -1, -1), rows.values.expand(len(z), -1, -1, -1), number)
        return Steering(front=front)


def ptuned(
    pairs: Dataset, asked: Sequence[str], seed: int, cache: Path, sampling: dict[str, Any]
) -> tuple[float, list[list[str]]]:
    """Seconds of one epoch of DPO, and answers to `asked` behind the learned vectors."""
    llm, backbone = load_whole(MODEL, "auto", None, 512)
    tokens = token_pairs(backbone, pairs)
    reference, _ = reference_log_probs(Policy(llm, backbone), tokens, cache)
    llm.requires_grad_(False)
    soft, loss, vocabulary = SoftPrompt(llm, seed), make_loss("dpo"), Vocabulary.of(llm)
    adam = torch.optim.Adam(soft.parameters(), RATE)
    order = np.random.default_rng(seed).permutation(len(tokens))
    start = time.perf_counter()
    backbone.config._attn_implementation = backbone.plain_attention
    for rows in np.array_split(order, -(-len(order) // BATCH)):
        items = [tokens[i][side] for side in (0, 1) for i in rows]
        states, targets, owner = last_states(llm, soft(torch.zeros(len(items), 1)), items)
        each = vocabulary.log_probs(states, targets, None, owner)
        sums = each.new_zeros(len(items)).index_add(0, owner, each)
        counts = torch.tensor([len(item.response) for item in items])
        found = PairLogProbs(*sums.chunk(2), *counts.chunk(2))
        margins = loss.margins(found, PairLogProbs(*(part[rows] for part in reference)))
        adam.zero_grad()
        loss(margins).mean().backward()
        adam.step()
    seconds = time.perf_counter() - start
    answers = Generator(llm, backbone, soft).sample(list(asked), z=torch.zeros(len(asked), 1), **sampling)
    return seconds, answers
