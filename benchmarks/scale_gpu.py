"""What a GPU makes of it: encoding against the card's own bf16 rate, LENS at d = 4,096, a step of align against TRL's.

Only where torch sees a CUDA device. Encoding is timed from the first batch to the last latent on the host, with the
embedded LLM and with randomly initialised Llama shapes, whose numbers mean nothing and cost the same.

    encode_fraction      operations that the unique tokens need over seconds times the rate of a large product (goal .5)
    compiled             the same with MLPs and norms under torch.compile, over the plain seconds
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import data_file, table
from encode import timed
from lens_cost import scale
from scale_model import SHAPES, Shape, Trees

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import MemoryStore, encode, tokenize_pairs
from penchant.pairs import load_pairs

PRODUCT = 8192
BUDGETS = (8192, 16384, 32768, 65536)


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, dtype: torch.dtype, size: int = PRODUCT, repeats: int = 20) -> float:
    """Floating-point operations a second of a large product of random numbers, the median of three."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def work() -> None:
        for _ in range(repeats):
            a @ b
        waited(device)

    work()
    return 2 * size**3 * repeats / median(timed(work) for _ in range(3))


def random_llama(shape: Shape, like: Backbone) -> Backbone:
    """A Llama of this shape with random weights, on the device and in the number type of `like`, with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=like.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_width,
        max_position_embeddings=8192,
        dtype=like.dtype,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with like.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return Backbone(model, like.chat.tokenizer, shape.name, "random")


def encoding(
    backbone: Backbone, tokens: Sequence[Tokens], rate: float, budgets: Sequence[int], rounds: int = 3
) -> dict[str, Any]:
    """Tokens a second and the share of `rate`, at the best budget of those that fit the memory."""
    if not backbone.packed:
        raise RuntimeError(f"{backbone.name} does not run packed here: a kernel fails, and the figures would hide it")
    shape, trees = Shape.of(backbone), Trees.of(tokens)
    recipe = backbone.recipe((f"{shape.top}:mean", f"{shape.top}:last"))

    def work(budget: int) -> None:
        encode(backbone, recipe, tokens, MemoryStore(), token_budget=budget)
        waited(backbone.device)

    seconds: dict[int, float] = {}
    for budget in budgets:
        try:
            work(budget)
            seconds[budget] = median(timed(lambda b=budget: work(b)) for _ in range(rounds))
        except torch.cuda.OutOfMemoryError:
            break
    best = min(seconds, key=lambda budget: seconds[budget])
    return {
        "budget": best,
        "tokens_per_second": trees.tokens / seconds[best],
        "fraction": shape.operations(trees, shape.top) / seconds[best] / rate,
        "packed": backbone.packed,
        "seconds": {str(budget): spent for budget, spent in seconds.items()},
    }


def compile_small_parts(backbone: Backbone) -> None:
    """What stands between the products: a layer as a whole cannot be compiled, as its states are caught on the way."""
    for layer in backbone.layers:
        for name in ("mlp", "input_layernorm", "post_attention_layernorm"):
            getattr(layer, name).compile(dynamic=True)


def align(steps: int = 12) -> dict[str, Any]:
    """Seconds a step of DPO with LoRA, without and with codes and in TRL, from `lpc_cost`."""
    from lpc_cost import cost

    with tempfile.TemporaryDirectory() as work:
        found = cost(3, steps, Path(work), ("plain", "codes", "people", "top", "trl"))
    return {name: found[name] for name in ("step_seconds", "speed_vs_trl", "overhead_ratio")}


def measure(pairs: int = 2000) -> dict[str, Any] | None:
    """All of it, or None where there is no GPU."""
    if not torch.cuda.is_available():
        return None
    backbone = Backbone.load()
    rows = load_pairs(data_file("hh/train")).select(range(pairs))
    tokens = tokenize_pairs(backbone, rows["prompt"][:], rows["chosen"][:], rows["rejected"][:])
    rate = product_rate(backbone.device, backbone.dtype)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "product_tflops": rate / 1e12, "encode": {}}
    for shape in (None, *SHAPES[:2]):
        llm = random_llama(shape, backbone) if shape else backbone
        plain = encoding(llm, tokens, rate, BUDGETS)
        compile_small_parts(llm)
        compiled = encoding(llm, tokens, rate, [plain["budget"]])
        plain["compiled"] = plain["tokens_per_second"] / compiled["tokens_per_second"]
        found["encode"][shape.name if shape else "SmolLM2-135M"] = plain
        del llm
        torch.cuda.empty_cache()
    return {**found, "lens": scale(1000, 4096), "align": align()}


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    head = ["LLM", "tokens/s", "share of a product's rate", "tokens at once", "compiled over plain"]
    return [
        head,
        *(
            [
                name,
                f"{each['tokens_per_second']:,.0f}",
                f"{each['fraction']:.2f}",
                f"{each['budget']:,}",
                f"{each['compiled']:.2f}",
            ]
            for name, each in found["encode"].items()
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    found = measure(parser.parse_args().pairs)
    if found is None:
        print("torch sees no CUDA device")
    else:
        print(table(rows_of(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
