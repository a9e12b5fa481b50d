"""Attention over packed trees: one prompt, several responses, no padding.

A pack is one row of tokens that holds whole trees side by side: a prompt, then its responses. A response's token sees
the prompt and the earlier tokens of its own response, nothing else; positions count as if each response stood alone
behind its prompt. So the prompt's keys and values are computed once for all of its responses.

`TREE_ATTENTION` is registered with transformers' attention interface, so any decoder that uses the interface runs
packed without a change to its code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penchant.attention_flash import Parts, flash_attention, flash_serves, tree_parts
from penchant.transfers import to_device

TREE_ATTENTION = "penchant_tree"
BLOCK = 128
"""Query rows of one part (a prompt, a response) worked on at once: large enough for full matrix-product speed, small
enough that little of the causal triangle is computed in vain."""
LANES = 32
"""Keys are padded to a multiple of this: bf16 softmax is four times slower on rows that end inside a vector."""


@dataclass
class Block:
    """Some consecutive query rows and all the keys that any of them may see."""

    rows: slice
    keys: Tensor
    """Int [m], positions in the pack; padded with repeats that the mask hides."""
    distance: Tensor
    """Int [n, m]: how many tokens back each key lies, -1 where the query must not see it."""
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive [n, m]: 0 where visible, -inf elsewhere; `window` limits how far back a query sees."""
        if (window, dtype) not in self.masks:
            hidden = (self.distance < 0) | (self.distance >= window if window is not None else False)
            zeros = torch.zeros(self.distance.shape, dtype=dtype, device=self.distance.device)
            self.masks[window, dtype] = zeros.masked_fill_(hidden, float("-inf"))
        return self.masks[window, dtype]


def tree_blocks(lengths: list[tuple[int, list[int]]], device: torch.device | None = None) -> list[Block]:
    """Blocks for a pack of trees, each given as (prompt length, response lengths), in the pack's order.

    No block holds rows of two parts (a prompt, a response), so that the shapes a part's rows are computed in are its
    own: its numbers do not depend on what else is in the pack.
    """
    blocks = []
    origin = 0
    for prompt, responses in lengths:
        own, before = origin, 0  # where the part begins in the pack, and how many tokens of the prompt it sees
        for length in (prompt, *responses):
            for first in range(0, length, BLOCK):
                rows = np.arange(first, min(first + BLOCK, length))
                keys = np.concatenate([origin + np.arange(before), own + np.arange(rows[-1] + 1)])
                distance = before + rows[:, None] - np.arange(len(keys))
                spare = -len(keys) % LANES
                keys = np.pad(keys, (0, spare), mode="edge")
                distance = np.pad(distance, ((0, 0), (0, spare)), constant_values=-1)
                blocks.append(
                    Block(
                        slice(own + first, own + int(rows[-1]) + 1),
                        to_device(torch.from_numpy(keys), device),
                        to_device(torch.from_numpy(np.maximum(distance, -1)), device),
                    )
                )
            own, before = own + length, prompt
        origin = own
    return blocks


@dataclass
class Pack:
    """What one forward pass works on: trees, each (prompt length, response lengths), and where."""

    lengths: list[tuple[int, list[int]]]
    device: torch.device | None = None
    calls: int = 0
    """How often TREE_ATTENTION was called: once for each layer, if every layer mixes tokens by it alone."""

    @cached_property
    def blocks(self) -> list[Block]:
        return tree_blocks(self.lengths, self.device)

    @cached_property
    def parts(self) -> Parts:
        return tree_parts(self.lengths, self.device)


_pack: ContextVar[Pack] = ContextVar("pack")


@contextmanager
def attending(pack: Pack) -> Iterator[None]:
    """Within this context, in this thread, TREE_ATTENTION works on this pack."""
    token = _pack.set(pack)
    try:
        yield
    finally:
        _pack.reset(token)


def current_pack() -> Pack | None:
    """The pack that is worked on in this thread, if any."""
    return _pack.get(None)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling + mask) v: query [1, h, t, d], key and value [1, g, t, d], g dividing h -> [1, t, h, d].

    The h / g query heads that share a key head are stacked as rows of one matrix product, so keys are never repeated.
    """
    if s_aux is not None:
        raise NotImplementedError("attention sinks")
    pack = _pack.get()
    pack.calls += 1
    q, k, v = query[0], key[0], value[0]
    heads, tokens, width = q.shape
    groups = k.shape[0]
    scaling = scaling if scaling is not None else width**-0.5
    if flash_serves(q, v, softcap):
        return flash_attention(q, k, v, pack.parts, scaling, sliding_window)[None], None
    q = q * scaling
    out = q.new_empty(tokens, heads, v.shape[-1])
    for block in pack.blocks:
        rows = q[:, block.rows]
        n, m = rows.shape[1], len(block.keys)
        keys, values = k.index_select(1, block.keys), v.index_select(1, block.keys)
        scores = torch.bmm(rows.reshape(groups, -1, width), keys.transpose(1, 2)).view(heads, n, m)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores.add_(block.mask(sliding_window, scores.dtype)), dim=-1)
        mixed = torch.bmm(weights.view(groups, -1, m), values)
        out[block.rows] = mixed.view(heads, n, -1).transpose(0, 1)
    return out[None], None


ALL_ATTENTION_FUNCTIONS.register(TREE_ATTENTION, tree_attention)
