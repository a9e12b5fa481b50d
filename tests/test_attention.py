"""Tree attention equals plain attention over each sequence alone, written out term by term."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penchant import attention
from penchant.attention import Pack, attending, tree_attention, tree_blocks

TREES = [(5, [3, 1, 9]), (0, [4, 2]), (21, [1]), (1, [17, 0, 6]), (40, [30, 2])]


def alone(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
    """Causal attention of one sequence, q [h, t, d], k and v [g, t, d] -> [t, h, d], in double precision."""
    repeat = q.shape[0] // k.shape[0]
    q, k, v = q.double(), k.double().repeat_interleave(repeat, 0), v.double().repeat_interleave(repeat, 0)
    scores = q @ k.transpose(1, 2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    t = q.shape[1]
    back = torch.arange(t)[:, None] - torch.arange(t)
    hidden = (back < 0) | (back >= (window or t))
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("block", [1, 7, 256])
@pytest.mark.parametrize(
    ("window", "softcap", "scaling"), [(None, None, None), (4, None, 0.3), (6, 2.0, 1.0), (1, None, 1.0)]
)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_equals_each_sequence_alone(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    window: int | None,
    softcap: float | None,
    scaling: float | None,
    heads: int,
    groups: int,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    torch.manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in TREES)
    q = torch.randn(1, heads, total, 8)
    k, v = torch.randn(1, groups, total, 8), torch.randn(1, groups, total, 5)
    with attending(Pack(TREES)):
        packed = tree_attention(
            nn.Identity(), q, k, v, None, scaling=scaling, sliding_window=window, softcap=softcap, dropout=0.0
        )[0][0]
    at = 0
    for prompt, responses in TREES:
        start = at + prompt
        for length in responses:
            rows = torch.cat([torch.arange(at, at + prompt), torch.arange(start, start + length)])
            expected = alone(q[0, :, rows], k[0, :, rows], v[0, :, rows], scaling or 8**-0.5, window, softcap)
            assert torch.allclose(packed[rows].double(), expected, atol=1e-5)
            start += length
        at = start
    assert at == total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_part_has_the_same_bits_in_any_pack(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    prompt, own, others = 48, 104, [66, 140, 11]
    length = prompt + own + sum(others)
    q = torch.randn(1, 9, length, 64).to(dtype)
    k, v = (torch.randn(1, 3, length, 64).to(dtype) for _ in range(2))
    alone = slice(0, prompt + own)
    with attending(Pack([(prompt, [own])])):
        expected = tree_attention(nn.Identity(), q[:, :, alone], k[:, :, alone], v[:, :, alone], None)[0][0]
    order = torch.tensor([*range(prompt), *range(prompt + own, length), *range(prompt, prompt + own)])  # ours last
    with attending(Pack([(prompt, [*others, own])])):
        packed = tree_attention(nn.Identity(), q[:, :, order], k[:, :, order], v[:, :, order], None)[0][0]
    assert torch.equal(packed[:prompt], expected[:prompt])
    assert torch.equal(packed[-own:], expected[prompt:])


def test_sinks_are_refused() -> None:
    q = torch.randn(1, 2, 3, 4)
    with attending(Pack([(3, [])])), pytest.raises(NotImplementedError):
        tree_attention(nn.Identity(), q, q, q, None, s_aux=torch.zeros(2))


def test_every_query_row_is_in_one_block_and_no_key_of_another_tree_is_read() -> None:
    blocks = tree_blocks(TREES)
    rows = [row for block in blocks for row in range(block.rows.start, block.rows.stop)]
    ends = torch.tensor([prompt + sum(responses) for prompt, responses in TREES]).cumsum(0)
    assert rows == list(range(int(ends[-1])))
    tree = torch.bucketize(torch.tensor(rows), ends, right=True)
    for block in blocks:
        assert (tree[block.keys] == tree[block.rows.start]).all()
        assert block.distance.shape == (block.rows.stop - block.rows.start, len(block.keys))
        assert len(block.keys) % attention.LANES == 0


def test_contexts_nest_and_end() -> None:
    outer, inner = Pack([(2, [])]), Pack([(3, [])])
    with attending(outer):
        with attending(inner):
            q = torch.randn(1, 2, 3, 4)
            tree_attention(nn.Identity(), q, q, q, None)
        q = torch.randn(1, 2, 2, 4)
        tree_attention(nn.Identity(), q, q, q, None)
    assert (outer.calls, inner.calls) == (1, 1)
    with pytest.raises(LookupError):
        tree_attention(nn.Identity(), q, q, q, None)
