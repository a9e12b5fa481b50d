"""The way over a GPU: its arithmetic on a stand-in for the kernel, and that nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penchant import attention_flash, encode
from penchant.attention import Pack, attending, tree_attention
from penchant.attention_flash import flash_attention, flash_serves, tree_parts
from penchant.backbone import Backbone, load_llm
from penchant.errors import InputError
from penchant.packing import Batch, pack
from penchant.transfers import fetch
from tests.test_attention import TREES
from tests.tiny_llm import save_tiny_llm

TEXTS = [
    ("Why is it so?", "It is."),
    ("Why is it so?", "Who can say, in the end?"),
    ("", "No."),
    ("Name a tree.", "Oak"),
]


def varlen(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, most_q: int, most_k: int, **how: Any
) -> Tensor:
    """What torch's documentation says of `varlen_attn`, sequence by sequence: q [s, h, d], k and v [t, g, d]."""
    assert most_q == int(q_ends.diff().max())
    assert most_k == int(k_ends.diff().max())
    assert how["num_splits"] == 1  # else a text's numbers would depend on its pack
    left, right = how["window_size"]
    assert right == 0
    out = torch.zeros(len(q), q.shape[1], v.shape[-1], dtype=q.dtype)
    repeat = q.shape[1] // k.shape[1]
    for (a, b), (c, d) in zip(q_ends.unfold(0, 2, 1).tolist(), k_ends.unfold(0, 2, 1).tolist(), strict=True):
        keys, values = (side[c:d].repeat_interleave(repeat, 1) for side in (k, v))
        back = (d - c) - (b - a) + torch.arange(b - a)[:, None] - torch.arange(d - c)  # the last row sees the last key
        hidden = (back < 0) | ((back > left) if left >= 0 else False)
        scores = torch.einsum("ihd,jhd->hij", q[a:b], keys) * how["scale"]
        out[a:b] = torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values)
    return out


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_one_call_for_all_parts_is_tree_attention(
    monkeypatch: pytest.MonkeyPatch, window: int | None, heads: int, groups: int
) -> None:
    monkeypatch.setattr(attention_flash, "varlen_attn", varlen)
    torch.manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in TREES)
    q, k, v = (torch.randn(1, n, total, 8, dtype=torch.float64) for n in (heads, groups, groups))
    with attending(Pack(TREES)):
        blocks = tree_attention(nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window)[0][0]
    found = flash_attention(q[0], k[0], v[0], tree_parts(TREES), 0.3, window)
    assert torch.allclose(found, blocks, atol=1e-12)


def test_where_there_is_a_kernel() -> None:
    half = torch.empty(4, 3, 64, dtype=torch.bfloat16, device="meta")
    assert flash_serves(half, half, None)
    assert not flash_serves(half, half, 50.0)
    assert not flash_serves(half.float(), half.float(), None)
    assert not flash_serves(half[..., :60], half[..., :60], None)
    assert not flash_serves(half, half[..., :32], None)
    here = torch.empty(4, 3, 64, dtype=torch.bfloat16)
    assert not flash_serves(here, here, None)


@pytest.mark.parametrize(
    ("device", "width", "budget"), [("cpu", 8192, 1024), ("meta", 576, 65_536), ("meta", 4096, 16_384)]
)
def test_a_gpu_is_given_more_tokens_at_once(folder: Path, device: str, width: int, budget: int) -> None:
    backbone = Backbone.load(str(folder), dtype="float32")
    backbone.device, backbone.width = torch.device(device), width
    assert backbone.budget() == budget
    assert backbone.budget(300) == 300
    with pytest.raises(InputError, match="token_budget is -1; give at least 1"):
        backbone.budget(-1)


def test_segment_means_are_the_means_of_spans() -> None:
    states = torch.randn(9, 5, dtype=torch.float64)
    spans = [(0, 3), (3, 3), (5, 9), (4, 5)]
    wanted = torch.stack([states[a:b].sum(0) / max(1, b - a) for a, b in spans])
    assert torch.allclose(encode._segment_means(states, spans), wanted, atol=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def batches(backbone: Backbone) -> Iterator[Batch]:
    prompts, responses = zip(*TEXTS, strict=True)
    return pack(backbone.chat.encode(list(prompts), list(responses)), 64, packed=backbone.packed)


def test_nothing_waits_for_the_device_before_the_latents_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """A tensor on "meta" has no numbers: whoever asks for one, as a wait for a GPU does, gets an error."""
    backbone = Backbone.load(str(folder), dtype="bfloat16")
    backbone.model.to("meta")
    backbone.device = torch.device("meta")
    asked: list[Tensor] = []

    def fake_fetch(tensor: Tensor) -> Any:
        asked.append(tensor)
        return lambda: None

    monkeypatch.setattr(encode, "fetch", fake_fetch)
    recipe = backbone.recipe(("1:mean", "2:last"))
    made = list(batches(backbone))
    for batch in made:
        encode.start_batch(backbone, recipe, batch)
    assert [tuple(tensor.shape) for tensor in asked] == [(len(batch.keys), recipe.dim) for batch in made]
    with pytest.raises(TypeError):
        fetch(asked[0])  # this is where numbers are waited for


# ---- with a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_is_tree_attention(window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in TREES)
    q, k, v = (torch.randn(1, n, total, 64, dtype=torch.bfloat16, device="cuda") for n in (6, 2, 2))
    with attending(Pack(TREES, q.device)):
        wanted = tree_attention(nn.Identity(), q.float(), k.float(), v.float(), None, sliding_window=window)[0][0]
    with attending(Pack(TREES, q.device)):
        found = tree_attention(nn.Identity(), q, k, v, None, sliding_window=window)[0][0]
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.gpu
def test_latents_of_a_gpu_are_those_of_the_cpu(folder: Path) -> None:
    there = Backbone.load(str(folder), dtype="float32")
    assert there.device.type == "cuda"
    model, tokenizer, digest, _ = load_llm(str(folder), "float32")
    here = Backbone(model, tokenizer, str(folder), digest)
    recipe = here.recipe(("1:mean", "2:last"))
    for batch in batches(here):
        wanted, found = (encode.batch_latents(backbone, recipe, batch) for backbone in (here, there))
        assert np.allclose(wanted, found, atol=1e-4)


@pytest.mark.gpu
def test_a_batch_is_queued_without_a_wait(folder: Path) -> None:
    backbone = Backbone.load(str(folder), dtype="bfloat16")
    assert backbone.packed
    recipe = backbone.recipe(("1:mean", "2:last"))
    made = list(batches(backbone))
    plain = [encode.batch_latents(backbone, recipe, batch) for batch in made]
    torch.cuda.set_sync_debug_mode("error")
    try:
        queued = [encode.start_batch(backbone, recipe, batch) for batch in made]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.array_equal(a, b()) for a, b in zip(plain, queued, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_derivatives_through_the_kernel_are_tree_attentions(window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in TREES)
    plain = [torch.randn(1, n, total, 64, device="cuda") for n in (6, 2, 2)]
    towards = torch.randn(total, 6, 64, device="cuda")
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (each.to(dtype).requires_grad_() for each in plain)
        with attending(Pack(TREES, q.device)):
            out = tree_attention(nn.Identity(), q, k, v, None, sliding_window=window)[0][0]
        gradients.append(torch.autograd.grad((out.float() * towards).sum(), (q, k, v)))
    for wanted, found in zip(*gradients, strict=True):
        assert (found.float() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.gpu
def test_a_copy_from_a_second_gpu_is_waited_for() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("torch sees one CUDA device")
    numbers = torch.randn(4096, 4096, device="cuda:1")
    product = numbers @ numbers
    assert np.array_equal(fetch(product)(), product.cpu().numpy())
