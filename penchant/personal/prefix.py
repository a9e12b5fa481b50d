"""Prompts that a decoder reads once, whatever stands behind them: several responses, several people's z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn


class Prefix(NamedTuple):
    """p prompts as keys and values, right-padded."""

    cache: transformers.DynamicCache
    """Of p rows; empty where all prompts are."""
    lengths: Tensor
    """Int [p]."""
    start: int
    """The position of their first tokens."""


def read_prefix(decoder: nn.Module, prompts: Sequence[Tensor], start: int = 0) -> Prefix:
    """Run p prompts, each embedded [t_i, n] (t_i may be 0), at positions from `start` on."""
    run: Any = decoder
    cache = transformers.DynamicCache()
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    if lengths.max():
        embedded = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)  # causal: nobody looks at padding behind
        places = start + torch.arange(embedded.shape[1], device=embedded.device).expand(len(prompts), -1)
        run(inputs_embeds=embedded, position_ids=places, past_key_values=cache, use_cache=True)
    return Prefix(cache, lengths, start)


def read_on(
    decoder: nn.Module,
    prefix: Prefix,
    owner: Tensor,
    texts: Sequence[Tensor],
    front: transformers.DynamicCache | None = None,
) -> Tensor:
    """Last states [b, longest, n] of b texts, each embedded [t_i, n] (t_i may be 0), behind the prompts owner [b].

    Right-padded. The texts see the positions of `front` (b rows, or none) as well, which their prompts have not seen.
    """
    run: Any = decoder
    embedded = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    device, t = embedded.device, embedded.shape[1]
    if not t:  # a decoder takes no texts that are all empty
        return embedded
    own = owner.to(device)
    before: Any = prefix.cache.layers
    ahead: Any = front.layers if front is not None else []
    lengths, sizes = prefix.lengths[owner.cpu()], torch.tensor([len(text) for text in texts])
    seen = torch.arange(prefix.cache.get_seq_length()) < lengths[:, None]
    if front is not None:
        seen = torch.cat([seen.new_ones(len(texts), front.get_seq_length()), seen], 1)
    # Padding first, then what is seen: a sliding window counts places, and must not count padding.
    seen, order = seen.int().sort(stable=True, dim=1)
    row, order = torch.arange(len(texts), device=device)[:, None], order.to(device)
    cache = transformers.DynamicCache()
    for number in range(max(len(before), len(ahead))):
        parts = [(layer.keys, layer.values) for layer in ahead[number : number + 1]]
        parts += [(layer.keys[own], layer.values[own]) for layer in before[number : number + 1]]
        keys, values = (torch.cat(part, 2)[row, :, order].transpose(1, 2) for part in zip(*parts, strict=True))
        cache.update(keys, values, number)
    mask = torch.cat([seen, torch.arange(t) < sizes[:, None]], 1)
    places = prefix.start + lengths[:, None] + torch.arange(t)
    states: Tensor = run(
        inputs_embeds=embedded,
        attention_mask=mask.long().to(device),
        position_ids=places.to(device),
        past_key_values=cache,
        use_cache=True,
    )[0]
    return states


def distinct(keys: Sequence[bytes]) -> tuple[list[int], Tensor]:
    """Where each different key first stands, and the number among these of every key, int [n]."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    number = {key: i for i, key in enumerate(first)}
    return list(first.values()), torch.tensor([number[key] for key in keys])
