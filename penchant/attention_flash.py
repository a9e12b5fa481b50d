"""Attention over packed trees on a GPU: one call of flash attention a layer, whatever the number of parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from penchant.transfers import to_device

MOST_WIDTH = 256
"""Flash attention's widest head."""
LEAST_CAPABILITY = (8, 0)
"""Of a GPU that it runs on: Ampere and newer."""


class Parts(NamedTuple):
    """A pack's parts (prompts and responses) as sequences of their own: part i's rows are the last of its keys.

    Flash attention lets the last row see the last key and each row before it one key less, which is a tree's rule.
    """

    keys: Tensor
    """Int [s]: positions in the pack of each part's keys, its prompt's and then its own."""
    rows_end: Tensor
    """Int32 [n + 1]: rows of parts 0 to i - 1."""
    keys_end: Tensor
    """Int32 [n + 1]: keys of parts 0 to i - 1."""
    most_rows: int
    most_keys: int


def tree_parts(lengths: list[tuple[int, list[int]]], device: torch.device | None = None) -> Parts:
    """The parts of a pack of trees, each given as (prompt length, response lengths), in the pack's order."""
    keys, rows, seen = [], [0], [0]
    origin = 0
    for prompt, responses in lengths:
        own, before = origin, 0
        for length in (prompt, *responses):
            keys += [origin + np.arange(before), own + np.arange(length)]
            rows.append(length)
            seen.append(before + length)
            own, before = own + length, prompt
        origin = own
    numbers = (np.concatenate(keys), *(np.cumsum(counts, dtype=np.int32) for counts in (rows, seen)))
    places, rows_end, keys_end = (to_device(torch.from_numpy(each), device) for each in numbers)
    return Parts(places, rows_end, keys_end, max(rows), max(seen))


def flash_serves(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether there is a kernel for this: half-precision on a GPU of Ampere or newer, heads of at most 256, no soft
    cap."""
    if query.device.type == "cpu" or softcap is not None or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = query.shape[-1]
    fits = width == value.shape[-1] and width <= MOST_WIDTH and width % 8 == 0
    return fits and (not query.is_cuda or torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, parts: Parts, scaling: float, window: int | None) -> Tensor:
    """softmax(q k' * scaling + mask) v: q [h, t, d], k and v [g, t, d], g dividing h -> [t, h, d].

    Without split keys a part's numbers do not depend on what else is in the pack.
    """
    keys, values = (side.transpose(0, 1).index_select(0, parts.keys) for side in (k, v))
    found = varlen_attn(
        q.transpose(0, 1),
        keys,
        values,
        parts.rows_end,
        parts.keys_end,
        parts.most_rows,
        parts.most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
        num_splits=1,
    )
    assert isinstance(found, Tensor)  # a second tensor comes only when it is asked for
    return found
