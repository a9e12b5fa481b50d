"""Pairs as token trees: one prompt with its responses is run once, and where in the run each side of a pair stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from penchant.backbone import Backbone
from penchant.chat import Ids, Tokens
from penchant.encode import CHUNK, tokenize_pairs
from penchant.packing import Tree, pack, packed_spans, padded_spans

TokenPair = tuple[Tokens, Tokens]
"""A pair's chosen and rejected sequence."""


@dataclass(frozen=True)
class Layout:
    """b pairs as trees, and places in the states [t, d] that `Backbone.final_states` gives for them."""

    trees: list[Tree]
    prompt: Tensor
    """Int [b]: the prompt's last token; -1 where no token of it is left."""
    last: Tensor
    """Int [2 b]: the last token of the chosen, then of the rejected responses."""
    before: Tensor
    """Int [r]: for each token of each response, the place whose state predicts it."""
    targets: Tensor
    """Int [r]: those tokens."""
    owner: Tensor
    """Int [r]: 0 to b - 1 for tokens of the chosen responses, b to 2 b - 1 for the rejected."""
    tokens: int
    """Tokens that are run."""


def token_pairs(backbone: Backbone, pairs: Dataset) -> list[TokenPair]:
    """All pairs as ids; InputError for a row that the template refuses or that truncation left with equal sides."""
    found: list[TokenPair] = []
    for first in range(0, len(pairs), CHUNK):
        chunk = pairs[first : first + CHUNK]
        tokens = tokenize_pairs(backbone, chunk["prompt"], chunk["chosen"], chunk["rejected"], first)
        found += zip(tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :], strict=True)
    return found


def lay_out(pairs: Sequence[TokenPair], *, packed: bool) -> Layout:
    """The layout of some pairs; equal prompts, and equal responses to one prompt, are run once."""
    unique = {item.key: item for pair in pairs for item in pair}
    (batch,) = pack(unique.values(), sys.maxsize, packed=packed)
    longest = max(map(len, unique.values()))
    spans = packed_spans(batch.trees) if packed else padded_spans(batch.trees, longest)
    # A prompt's key is also the key of an empty response to it, but no response is empty.
    place = dict(zip(map(bytes, batch.keys), spans, strict=True))
    sides = [pair[side] for side in (0, 1) for pair in pairs]
    before, targets, owner = [], [], []
    for number, item in enumerate(sides):
        prompt_end, (start, end) = place[item.prompt_key][1], place[item.key]
        first = [prompt_end - 1] if len(item.prompt) else []  # nothing predicts the first token of all
        before += [*first, *range(start, end - 1)]
        targets.append(_ids(item.response)[1 - len(first) :])
        owner += [number] * len(targets[-1])
    least_cut = [min(pair, key=lambda item: item.cut) for pair in pairs]
    prompts = [place[item.prompt_key][1] - 1 if len(item.prompt) else -1 for item in least_cut]
    return Layout(
        batch.trees,
        torch.tensor(prompts),
        torch.tensor([place[item.key][1] - 1 for item in sides]),
        torch.tensor(before, dtype=torch.long),
        torch.cat(targets),
        torch.tensor(owner, dtype=torch.long),
        batch.tokens,
    )


def batches_of(pairs: Sequence[TokenPair], budget: int) -> Iterator[list[int]]:
    """Pair numbers in batches of at most `budget` tokens; pairs with one prompt side by side, short prompts first."""

    def size(number: int) -> int:
        chosen, rejected = pairs[number]
        return len(chosen) + len(rejected.response)

    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0].prompt), pairs[i][0].prompt_key, size(i), i))
    batch: list[int] = []
    spent = 0
    for number in order:
        if batch and spent + size(number) > budget:
            yield batch
            batch, spent = [], 0
        batch.append(number)
        spent += size(number)
    if batch:
        yield batch


def _ids(ids: Ids) -> Tensor:
    return torch.from_numpy(ids).long()
