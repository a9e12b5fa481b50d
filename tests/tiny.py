"""Tiny random backbones of many families, tokenizers for them, and pairs: for tests and the processes they start."""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from penchant.backbone import Backbone
from penchant.encode import encode, tokenize_pairs
from penchant.store import Store

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
ALPHABET = ["▁", *string.printable.replace(" ", "")]
VOCABULARY = 420
DEPTH = 4
WINDOW = 7
"""Sliding windows and chunks, far shorter than the texts."""
VIEWS = tuple(f"{layer}:{pooling}" for layer in (1, 3, DEPTH) for pooling in ("last", "mean"))

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def trained(kind: str) -> str:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=ALPHABET if kind == "spaced" else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if kind == "spaced":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tok.decoder = decoders.ByteLevel()
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(["the user and the assistant say hello there, how are you today\n"] * 3, trainer)
    return str(tok.to_str())


def tokenizer(template: str | None = CHATML, *, bos: bool = False, kind: str = "bytes", **special: str) -> Any:
    """A small BPE tokenizer; `bos` puts <s> before every text, kind "spaced" a space as SentencePiece does."""
    tok = Tokenizer.from_str(trained(kind))
    if bos:
        tok.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **special}
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **{name: token for name, token in names.items() if token},
    )
    fast.chat_template = template
    return fast


_size = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_grouped = {**_size, "num_key_value_heads": 2}
_windowed = {**_grouped, "sliding_window": WINDOW}
_two_kinds = ["sliding_attention", "full_attention"] * (DEPTH // 2)
_gpt = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 512}
_plain = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}

PACKED: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_grouped),
    "qwen2": lambda: hf.Qwen2Config(**_grouped),
    "qwen2-window": lambda: hf.Qwen2Config(**_windowed, use_sliding_window=True, max_window_layers=2),
    "qwen3": lambda: hf.Qwen3Config(**_grouped, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**_windowed),
    "mixtral": lambda: hf.MixtralConfig(**_windowed, num_local_experts=4),
    "gemma2": lambda: hf.Gemma2Config(
        **_windowed, head_dim=8, layer_types=_two_kinds, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(**_windowed, head_dim=8, layer_types=_two_kinds, query_pre_attn_scalar=8),
    "cohere2": lambda: hf.Cohere2Config(**_windowed, layer_types=_two_kinds),
    "olmo3": lambda: hf.Olmo3Config(**_windowed, layer_types=_two_kinds),
    "gpt2": lambda: hf.GPT2Config(**_gpt, scale_attn_by_inverse_layer_idx=True),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_size),
    "phi": lambda: hf.PhiConfig(**_grouped),
    "phi3": lambda: hf.Phi3Config(**_grouped),
    "opt": lambda: hf.OPTConfig(**_plain, ffn_dim=48, max_position_embeddings=512, word_embed_proj_dim=32),
}
PADDED: dict[str, Callable[[], Any]] = {
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=DEPTH, n_head=4),
    "falcon-alibi": lambda: hf.FalconConfig(**_plain, alibi=True),
    "falcon": lambda: hf.FalconConfig(**_plain, alibi=False),
    "mpt": lambda: hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=DEPTH, n_heads=4),
    "gpt-j": lambda: hf.GPTJConfig(**_gpt, rotary_dim=4),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=DEPTH,
        num_heads=4,
        attention_types=[[["global", "local"], DEPTH // 2]],
        window_size=WINDOW,
    ),
    "mamba": lambda: hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=DEPTH, state_size=8),
    "lfm2": lambda: hf.Lfm2Config(**_grouped, layer_types=["conv", "full_attention"] * (DEPTH // 2)),
    "llama4-chunks": lambda: hf.Llama4TextConfig(
        **_grouped, head_dim=8, attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=48
    ),
    "gpt-oss-sinks": lambda: hf.GptOssConfig(
        **_windowed,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=_two_kinds,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}
FAMILIES = {**PACKED, **PADDED}


def model(family: str = "llama", std: float = 0.3) -> Any:
    """Random, with weights so large that every token a token sees matters to it; fp32."""
    torch.manual_seed(0)
    built = hf.AutoModel.from_config(FAMILIES[family]()).float().eval()
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1 and "A_log" not in name:
            nn.init.normal_(parameter, std=std)
    return built


def backbone(family: str = "llama", tok: Any = None, max_length: int = 256) -> Backbone:
    return Backbone(model(family), tok or tokenizer(), f"tiny-{family}", "0", max_length=max_length)


@torch.no_grad()
def plain_states(plain: Any, ids: Any) -> list[Tensor]:
    """States [t, width] of one sequence run alone by transformers itself, by layer; number 0 is the embeddings."""
    if getattr(plain.config, "attn_logit_softcapping", None):
        plain.config._attn_implementation = "eager"  # with sdpa some versions of transformers drop the cap
    asked = torch.as_tensor(np.asarray(ids), dtype=torch.long)[None]
    found = plain(input_ids=asked, output_hidden_states=True, use_cache=False).hidden_states
    states = [state[0] for state in found]
    if plain.config.model_type == "mamba":  # lists each layer's output, then the normed last one, but no embeddings
        states = [states[0], *states[: DEPTH - 1], states[-1]]
    return states


def plain_latent(plain: Any, prompt: Any, response: Any, views: tuple[str, ...] = VIEWS) -> Tensor:
    states = plain_states(plain, np.concatenate([prompt, response]))
    parts = []
    for view in views:
        layer, pooling = view.split(":")
        own = states[int(layer)][len(prompt) :]
        parts.append(own[-1] if pooling == "last" else own.mean(0))
    return torch.cat(parts)


def pairs(n: int, seed: int = 0) -> datasets.Dataset:
    """n pairs of random words, of most different lengths, some of which share their prompts or whole texts."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(["hello", "there", "you", "say", "no", "42", "naïve", "how"]) for _ in range(most))

    prompts = [words(rng.randint(1, 30)) for _ in range(max(1, n * 2 // 3))]
    rows = [
        {
            "prompt": rng.choice(prompts),
            "chosen": words(rng.randint(1, 25)),
            "rejected": words(rng.randint(0, 25)) + "!",
        }
        for _ in range(n)
    ]
    if n > 4:
        rows[n - 1] = {**rows[0], "chosen": rows[1]["chosen"]}
        rows[n - 2] = {**rows[1], "prompt": rows[0]["prompt"]}
    return datasets.Dataset.from_list(rows)


BUDGET = 128


def encode_to(root: Path | str, n: int, seed: int, started: Any = None) -> None:
    """What another process does: encode pairs(n, seed) into the store below `root`."""
    torch.set_num_threads(2)
    tiny = backbone()
    data = pairs(n, seed)
    tokens = tokenize_pairs(tiny, data["prompt"][:], data["chosen"][:], data["rejected"][:])
    recipe = tiny.recipe(VIEWS)
    store = Store(root, recipe)
    if started is not None:
        started.set()
    encode(tiny, recipe, tokens, store, token_budget=BUDGET)
    store.compact()
