"""Two tiny LLMs: rotary positions with grouped queries, and learned positions; float32, random weights."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from penchant.chat import Tokens

VOCABULARY = 60
KINDS = ("llama", "gpt2")


def tiny_llm(kind: str, seed: int = 0) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "llama":
            llama = transformers.LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.3,
            )
            model: transformers.PreTrainedModel = transformers.LlamaForCausalLM(llama)
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
