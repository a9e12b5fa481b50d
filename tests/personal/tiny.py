"""Two tiny LLMs: rotary positions with grouped queries, and learned positions; float32, random weights. And CLaP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from penchant.backbone import load_whole
from penchant.chat import Tokens
from penchant.personal.adapter import LatentPositions, LatentShift
from penchant.personal.clap import AdapterKind, Clap
from tests.tiny_llm import tiny_tokenizer

VOCABULARY = 60
KINDS = ("llama", "gpt2")
WINDOW = 7
"""Of "mistral", a third kind: llama's layers through a sliding window."""
ADAPTERS: tuple[AdapterKind, ...] = ("positions", "shift")


def tiny_llm(kind: str, seed: int = 0) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rotary: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
        }
        model: transformers.PreTrainedModel
        if kind == "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**rotary))
        elif kind == "mistral":
            model = transformers.MistralForCausalLM(transformers.MistralConfig(**rotary, sliding_window=WINDOW))
        else:
            gpt2 = transformers.GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.3
            )
            model = transformers.GPT2LMHeadModel(gpt2)
    return model.eval().requires_grad_(False)


def ids(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def sequence(prompt: int, response: int, seed: int = 0) -> Tokens:
    whole = ids(prompt + response, seed).numpy().astype(np.int32)
    return Tokens(whole[:prompt], whole[prompt:], cut=0)


ANSWERS = ["aaaa aaaa", "bbbb bbbb", "cccc", "dd dd dd d"]


def prompts(n: int) -> list[str]:
    return [f"Say {i}" for i in range(n)]


def save_tiny_gpt2(folder: Path) -> Path:
    """A GPT-2 that drops out a tenth of everything while it is in training mode, with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.3, **ends
    )
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_clap(llm: Path, latent: int = 8, dtype: str = "float32", adapter: AdapterKind = "shift") -> Clap:
    torch.manual_seed(0)
    return Clap(*load_whole(str(llm), dtype=dtype), latent, adapter)


def opened(adapter: Any) -> Any:
    """The adapter, letting z through."""
    torch.manual_seed(1)
    if isinstance(adapter, LatentPositions):
        torch.nn.init.normal_(adapter.gates, 1.0, 0.2)
    else:
        torch.nn.init.normal_(adapter.axes, std=0.2)
    return adapter


def made(llm: transformers.PreTrainedModel, adapter: AdapterKind) -> Any:
    """An adapter of z [b, 8] that lets z through."""
    return opened((LatentPositions if adapter == "positions" else LatentShift)(llm, latent=8))
