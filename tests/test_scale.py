"""What the scale benchmark counts with: the cost model against torch's count, the GPU's part on a tiny shape."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.backbone import Backbone
from penchant.encode import tokenize_pairs
from penchant.pairs import load_pairs
from tests.tiny_llm import LAYERS, save_tiny_llm, tiny_pairs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The benchmark's modules, imported as scripts import one another."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import scale_gpu
        import scale_model

        yield {"gpu": scale_gpu, "model": scale_model}
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(str(save_tiny_llm(tmp_path_factory.mktemp("llm"))), dtype="float32")


@pytest.fixture(scope="module")
def tokens(backbone: Backbone) -> list[Any]:
    pairs = load_pairs(tiny_pairs(12))
    return tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])


def test_the_model_counts_what_torch_counts(scripts: dict[str, Any], backbone: Backbone, tokens: list[Any]) -> None:
    """Of the matrices exactly; attention works in blocks, so a part of its triangle is computed in vain."""
    model = scripts["model"]
    shape, trees = model.Shape.of(backbone), model.Trees.of(tokens)
    counted = {depth: model.count_operations(backbone, tokens, depth) for depth in (1, LAYERS)}
    assert counted[LAYERS] == pytest.approx(LAYERS * counted[1])
    matrices = 2 * shape.layer_weights * trees.tokens
    least = shape.operations(trees, 1)
    blocks = 4 * shape.heads * shape.head_width
    padded = max(len(item) for item in tokens) + 64  # no part is longer than a block
    assert least <= counted[1] <= matrices + blocks * trees.tokens * padded
    layer = backbone.layers[0]
    assert shape.layer_weights == sum(p.numel() for p in layer.parameters() if p.ndim == 2)


def test_seen_keys_by_hand(scripts: dict[str, Any], backbone: Backbone) -> None:
    """Two responses of r tokens to one prompt of p: p(p+1)/2 + 2 (r p + r(r+1)/2)."""
    tokens = backbone.chat.encode(["Why?", "Why?"], ["Yes", "Noo"])
    p, r = len(tokens[0].prompt), len(tokens[0].response)
    assert r == len(tokens[1].response)
    trees = scripts["model"].Trees.of([*tokens, tokens[0]])  # a repeated text is not run again
    assert trees == (p + 2 * r, p * (p + 1) / 2 + 2 * (r * p + r * (r + 1) / 2))


def test_the_gpus_part_runs(scripts: dict[str, Any], backbone: Backbone, tokens: list[Any]) -> None:
    gpu, model = scripts["gpu"], scripts["model"]
    rate = gpu.product_rate(torch.device("cpu"), torch.float32, 64, 1)
    random = gpu.random_llama(model.Shape("tiny", 2, 16, 32, 2, 1, 8), backbone)
    assert random.packed
    assert random.width == 16
    found = gpu.encoding(random, tokens, rate, [64, 256], 1)
    assert found["budget"] in (64, 256)
    assert found["tokens_per_second"] > 0
    assert gpu.rows_of({"encode": {"tiny": {**found, "compiled": 1.0}}})[1][0] == "tiny"
