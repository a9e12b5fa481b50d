"""Which sequences run together: trees of one prompt and its responses, filled into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penchant.chat import Tokens

Keys = NDArray[np.uint8]
"""Content keys [n, 16]."""
Tree = tuple[Tensor, list[Tensor]]
"""A prompt's ids [p], and the ids [r_i] of each of its responses."""
Span = tuple[int, int]
"""Where a part's tokens begin and end among the states of a batch."""


@dataclass
class Batch:
    """Trees that run together."""

    trees: list[Tree]
    items: list[Tokens]
    """The sequences, in the pack's order."""
    keys: Keys
    """Keys of all latents the batch gives: each tree's prompt, then its sequences."""

    tokens: int
    """Tokens that go through the model for it, padding included."""


def pack(tokens: Iterable[Tokens], budget: int, *, packed: bool) -> Iterator[Batch]:
    """Trees in order of appearance, filled into batches of at most `budget` tokens.

    A tree is split, its prompt repeated, only where it is larger than the budget by itself; a sequence never is.
    Padded rows are sorted by length first, or the padding would cost more than the tokens.
    """
    count = _packed_tokens if packed else _padded_tokens
    groups: dict[bytes, list[Tokens]] = {}
    for item in tokens:
        groups.setdefault(item.prompt_key, []).append(item)
    trees = [tree for items in groups.values() for tree in _split(items, budget, count)]
    if not packed:
        trees.sort(key=lambda items: max(map(len, items)))
    batch: list[list[Tokens]] = []
    for tree in trees:
        if batch and count([*batch, tree]) > budget:
            yield batch_of(batch, count(batch))
            batch = []
        batch.append(tree)
    if batch:
        yield batch_of(batch, count(batch))


def _packed_tokens(trees: list[list[Tokens]]) -> int:
    return sum(len(items[0].prompt) + sum(len(item.response) for item in items) for items in trees)


def _padded_tokens(trees: list[list[Tokens]]) -> int:
    rows = [len(item) for items in trees for item in items]
    return len(rows) * max(rows)


def _split(items: list[Tokens], budget: int, count: Callable[[list[list[Tokens]]], int]) -> Iterator[list[Tokens]]:
    """Runs of sequences with one prompt that fit the budget together."""
    part: list[Tokens] = []
    for item in items:
        if part and count([[*part, item]]) > budget:
            yield part
            part = []
        part.append(item)
    yield part


def batch_of(trees: list[list[Tokens]], size: int) -> Batch:
    """Trees, each all sequences with one prompt, as a batch of `size` tokens."""
    keys = [key for items in trees for key in (items[0].prompt_key, *(item.key for item in items))]
    tensors = [
        (torch.from_numpy(items[0].prompt).long(), [torch.from_numpy(item.response).long() for item in items])
        for items in trees
    ]
    return Batch(tensors, [item for items in trees for item in items], stack_keys(keys), size)


def packed_spans(trees: list[Tree]) -> Iterator[Span]:
    at = 0
    for prompt, responses in trees:
        for part in (prompt, *responses):
            yield at, at + len(part)
            at += len(part)


def padded_spans(trees: list[Tree], longest: int) -> Iterator[Span]:
    row = 0
    for prompt, responses in trees:
        yield row * longest, row * longest + len(prompt)
        for response in responses:
            start = row * longest + len(prompt)
            yield start, start + len(response)
            row += 1


def stack_keys(keys: Iterable[bytes]) -> Keys:
    joined = b"".join(keys)
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)
