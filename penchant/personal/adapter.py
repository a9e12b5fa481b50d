"""The latent adapter: z as a few virtual key and value positions in front of the prompt, in every layer of the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from penchant.backbone import decoder_layers
from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.personal.encoder import LATENT

POSITIONS = 4


class LatentAdapter(nn.Module):
    """z [b, latent] -> a key-value cache of m positions: Linear, GELU, Linear(., m n) give m vectors, and each layer
    makes its own keys and values of them, by its own norm and projections (the LLM's).

        u = W_2 gelu(W_1 z)  [m, n];   K_l = a_l K_l(norm_l(u)),   V_l = c_l V_l(norm_l(u))

    with a number a_l, c_l a layer that starts at 0. Before training the LLM is therefore one with m positions in front
    whose keys and values are zeros, whatever z. (Zeros in W_2 would not do: the layers' norms blow up
    the smallest u to full size, so there is no smooth way from zero.)

    The cache is transformers' own: any decoder-only model with rotary or learned positions and grouped queries takes
    it, in forward passes and in `generate`, and the prompt's positions go on behind it.

    Args:
        llm: causal transformers model; it is frozen where it is not yet, by whoever trains, not here.
        latent: size of z. positions: m. width: of the middle layer; the square root of the LLM's, as in the authors'
            code for large models, where it is None.
    """

    def __init__(
        self,
        llm: transformers.PreTrainedModel,
        latent: int = LATENT,
        positions: int = POSITIONS,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if positions < 1 or latent < 1:
            raise InputError(f"latent is {latent} and positions {positions}; give 1 or more.")
        config = llm.config.get_text_config()
        self.latent, self.positions = latent, positions
        self._llm = [llm]  # in a list, so that it is not among this module's own weights
        n = int(config.hidden_size)
        width = width or max(1, round(n**0.5))
        self.net = nn.Sequential(nn.Linear(latent, width), nn.GELU(), nn.Linear(width, positions * n))
        self.gates = nn.Parameter(torch.zeros(2, int(config.num_hidden_layers)))

    def forward(self, z: Tensor) -> transformers.DynamicCache:
        """Keys and values of b rows' virtual positions, differentiable by z."""
        vectors = self.net(z.float()).view(len(z), self.positions, -1)
        cache = every_layer_sees(self._llm[0], vectors)
        layers: Any = cache.layers
        for number, layer in enumerate(layers):
            layer.keys = layer.keys * self.gates[0, number].to(layer.keys.dtype)
            layer.values = layer.values * self.gates[1, number].to(layer.values.dtype)
        return cache


def every_layer_sees(llm: transformers.PreTrainedModel, vectors: Tensor) -> transformers.DynamicCache:
    """The cache of m positions whose vectors [b, m, n] are the input of each layer alike, not of the first alone.

    Keys are turned for positions 0 to m - 1. Only the layers' norms and projections into keys and values matter; what
    the rest of a layer makes of the vectors is dropped.
    """
    base: Any = llm.base_model
    vectors = vectors.to(next(base.parameters()))
    cache = transformers.DynamicCache()

    def instead(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return ((vectors, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": vectors})

    handles = [layer.register_forward_pre_hook(instead, with_kwargs=True) for layer in decoder_layers(llm)]
    try:
        base(inputs_embeds=vectors, past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return cache


def last_states(
    llm: transformers.PreTrainedModel, cache: transformers.DynamicCache | None, items: Sequence[Tokens]
) -> tuple[Tensor, Tensor, Tensor]:
    """The LLM behind a cache of b rows (or none) on b sequences of prompt and response.

    Returns the last hidden states [t, n] that predict the responses' tokens, these tokens [t], and whose they are [t].
    An empty prompt is predicted from nothing, so a response's first token counts only where a token stands before it.
    """
    m = cache.get_seq_length() if cache is not None else 0
    base: Any = llm.base_model
    rows = [torch.from_numpy(np.concatenate([item.prompt, item.response])).long() for item in items]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # padding behind: causal layers never look there
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(m + ids.shape[1]) < m + lengths[:, None]
    places = m + torch.arange(ids.shape[1]).expand(len(rows), -1)
    states = base(
        input_ids=ids.to(base.device),
        attention_mask=mask.long().to(base.device),
        position_ids=places.to(base.device),
        past_key_values=cache,
        use_cache=cache is not None,
    )[0]
    row, place, targets = [], [], []
    for number, (item, whole) in enumerate(zip(items, rows, strict=True)):
        first = max(1, len(item.prompt))
        place.append(torch.arange(first, len(whole)) - 1)
        targets.append(whole[first:])
        row.append(torch.full((len(whole) - first,), number))
    owner = torch.cat(row).to(base.device)
    return states[owner, torch.cat(place).to(base.device)], torch.cat(targets).to(base.device), owner
