"""The latent adapter, what z does to the LLM: a few virtual positions in front of the prompt (the paper's), or a shift
of its layers' states (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from penchant.backbone import decoder_layers
from penchant.chat import Tokens
from penchant.decoding import Steering, shifted_layers
from penchant.errors import InputError
from penchant.personal.encoder import LATENT
from penchant.personal.prefix import distinct, read_on, read_prefix

POSITIONS = 4


class LatentPositions(nn.Module):
    """z [b, latent] -> keys and values of m positions: Linear, GELU, Linear(., m n) give m vectors, and each layer
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

    def forward(self, z: Tensor) -> Steering:
        """Of b rows, differentiable by z."""
        vectors = self.net(z.float()).view(len(z), self.positions, -1)
        cache = every_layer_sees(self._llm[0], vectors)
        layers: Any = cache.layers
        for number, layer in enumerate(layers):
            layer.keys = layer.keys * self.gates[0, number].to(layer.keys.dtype)
            layer.values = layer.values * self.gates[1, number].to(layer.values.dtype)
        return Steering(front=cache)


class LatentShift(nn.Module):
    """z [b, latent] -> a vector z A_l that is added to the residual stream behind each of the LLM's layers.

    All A_l [latent, n] start at zero, and the LLM is then the LLM. `begin` sets those of a few layers to directions
    which mean something there, and training goes on from there, at these layers or, without it, at all.

    Args:
        llm: causal transformers model. latent: size of z.
    """

    def __init__(self, llm: transformers.PreTrainedModel, latent: int = LATENT) -> None:
        super().__init__()
        self._llm = [llm]  # in a list, so that it is not among this module's own weights
        n, depth = int(llm.config.get_text_config().hidden_size), len(decoder_layers(llm))
        self.axes = nn.Parameter(torch.zeros(depth, latent, n))

    def begin(self, axes: Mapping[int, Tensor]) -> None:
        """A_l = axes[l] [latent, n] behind these layers, numbered from 1."""
        with torch.no_grad():
            for layer, own in axes.items():
                self.axes[layer - 1].copy_(own)

    def forward(self, z: Tensor) -> Steering:
        """Of b rows, differentiable by z."""
        return Steering(
            layers=list(decoder_layers(self._llm[0])), shifts=torch.einsum("bk,lkn->lbn", z.float(), self.axes)
        )


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
    llm: transformers.PreTrainedModel, steering: Steering | None, items: Sequence[Tokens]
) -> tuple[Tensor, Tensor, Tensor]:
    """The LLM, steered by b rows or not at all, on b sequences of prompt and response.

    A prompt's last token and the response are steered; what stands before is not, and is run once for all that
    share it.

    Returns the last hidden states [t, n] that predict the responses' tokens, these tokens [t], and whose they are [t].
    An empty prompt is predicted from nothing, so a response's first token counts only where a token stands before it.
    """
    steering = steering or Steering()
    base: Any = llm.base_model
    embed: Any = llm.get_input_embeddings()
    first, owner = distinct([item.prompt_key for item in items])
    starts = [torch.from_numpy(items[row].prompt[:-1]).long().to(base.device) for row in first]
    wholes = [torch.from_numpy(np.concatenate([item.prompt[-1:], item.response])).long() for item in items]
    prefix = read_prefix(base, [embed(ids) for ids in starts], steering.positions)
    with shifted_layers(steering):
        states = read_on(base, prefix, owner, [embed(whole[:-1].to(base.device)) for whole in wholes], steering.front)
    sizes = torch.tensor([len(whole) - 1 for whole in wholes])
    kept = (torch.arange(states.shape[1]) < sizes[:, None]).to(base.device)
    row = torch.arange(len(items), device=base.device)[:, None].expand(kept.shape)[kept]
    return states[kept], torch.cat([whole[1:] for whole in wholes]).to(base.device), row
