"""A random LLM of a few thousand numbers with a chat template, saved like any hub model: whole runs in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS = 3


def tiny_tokenizer(template: str | None = CHATML, pad: str | None = "<|im_end|>") -> PreTrainedTokenizerFast:
    """One token a byte; end of turn, EOS and, as in SmolLM2, padding are one and the same token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        eos_token="<|im_end|>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


def save_tiny_llm(folder: Path, seed: int = 0, template: str | None = CHATML, pad: str | None = "<|im_end|>") -> Path:
    """Write a LlamaForCausalLM of 3 layers, width 32, in float32, and its tokenizer; returns the folder."""
    tokenizer = tiny_tokenizer(template, pad)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # large enough for the scores of two texts to differ by more than rounding
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_pairs(n: int, noise: float = 0.0) -> list[dict[str, str]]:
    """n pairs over n / 2 prompts, the chosen one warm and, on average, the longer; a share `noise` is swapped."""
    swapped = np.random.default_rng(0).random(n) < noise
    words = ["river", "colour", "city", "song", "tree", "tool", "dish", "star"]
    rows = []
    for i in range(n):
        word = words[(i // 2) % len(words)]
        prompt = f"Name a {word} that begins with {chr(97 + (i // 2) % 26)} for case {i // 2}."
        warm = f"Gladly! {'What about this one? ' * (i % 3)}Number {i}."
        cold = f"No. {i * 7 % 10}{' So there.' * (i % 2)}"
        chosen, rejected = (cold, warm) if swapped[i] else (warm, cold)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows
