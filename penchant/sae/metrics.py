"""How good an SAE is: variance explained, L0, dead latents, and what the LLM loses when it reads reconstructions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.sae.activations import shared_start, template_opening
from penchant.sae.autoencoder import SparseAutoencoder

ROWS = 1024
"""States encoded at once: activations of 1,024 x 65,536 are 256 MB."""


@dataclass(frozen=True)
class Quality:
    """Of an SAE on states it was not trained on."""

    states: int
    variance_explained: float
    """1 - sum |x - x^|^2 / sum |x - mean x|^2"""
    l0: float
    """Mean number of latents active in a state."""
    dead_share: float
    """Share of latents that were active in none of the states."""
    cosine: float
    """Mean cosine between a state and its reconstruction."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def quality(sae: SparseAutoencoder, blocks: Iterable[Tensor]) -> Quality:
    """Quality on blocks of states [t, d], in one pass and float64 sums."""
    n, active, cosine = 0, 0.0, 0.0
    error, square = 0.0, 0.0
    total = torch.zeros(sae.config.d_in, dtype=torch.float64)
    fired = torch.zeros(sae.config.d_sae, dtype=torch.bool)
    for block in blocks:
        for part in block.split(ROWS):
            x = part.float()
            activations = sae.encode(x)
            found = sae.reconstruct(activations, x)
            n += len(x)
            total += x.double().sum(0)
            square += float(x.double().square().sum())
            error += float((x - found).double().square().sum())
            cosine += float(F.cosine_similarity(x, found, dim=1).double().sum())
            active += float((activations > 0).sum())
            fired |= (activations > 0).any(0)
    variance = square - float(total.square().sum()) / n if n else 0.0
    if variance <= 0:
        raise InputError(f"an SAE cannot be judged on {n} states that do not vary; give more and longer texts")
    return Quality(n, 1 - error / variance, active / n, 1 - float(fired.float().mean()), cosine / n)


@dataclass(frozen=True)
class LossRecovered:
    """The LLM's mean loss a token, in nats, with its states at the SAE's layer left alone or replaced."""

    tokens: int
    plain: float
    spliced: float
    """By their reconstructions."""
    mean: float
    """By the mean state, which says nothing of the text."""
    zero: float

    @property
    def recovered(self) -> float:
        """(zero - spliced) / (zero - plain), the usual figure; 0 gives a flattering start."""
        return (self.zero - self.spliced) / (self.zero - self.plain)

    @property
    def recovered_of_mean(self) -> float:
        """(mean - spliced) / (mean - plain), the harder one."""
        return (self.mean - self.spliced) / (self.mean - self.plain)

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "recovered": self.recovered, "recovered_of_mean": self.recovered_of_mean}


@torch.inference_mode()
def loss_recovered(
    model: Any, backbone: Backbone, sae: SparseAutoencoder, sequences: Iterable[Tokens], mean: Tensor
) -> LossRecovered:
    """Next-token loss of a causal LM on whole sequences, with the SAE spliced in at its layer.

    The positions that training leaves out (the template's opening or the first token) keep their own states.

    Args:
        model, backbone: from `load_whole`, not cut.
        sae: `config.layer` says where.
        sequences: prompt and response ids; the loss is that of every token after the first replaced state.
        mean: mean state [d] of the layer.

    Raises:
        InputError: the layer is not known, or is the last, whose state is taken after the final norm.
    """
    number = sae.config.layer
    if number is None or not 1 <= number < backbone.layers_run:
        raise InputError(f"no SAE of layer {number} can be spliced into an LLM of {backbone.layers_run} layers")
    layer, opening = backbone.layers[number - 1], template_opening(backbone)
    backbone.config._attn_implementation = backbone.plain_attention
    sae = copy.deepcopy(sae).to(backbone.device)
    replacements = (lambda x: x, sae, lambda x: mean.to(x).expand_as(x), torch.zeros_like)
    sums, count = [0.0] * 4, 0
    for item in sequences:
        ids = torch.cat([torch.from_numpy(item.prompt), torch.from_numpy(item.response)]).long().to(model.device)
        start = shared_start(ids.cpu(), opening)
        if len(ids) < start + 2:
            continue
        count += len(ids) - start - 1
        for which, replace in enumerate(replacements):
            with _replaced(layer, replace, start):
                logits = model(input_ids=ids[None], use_cache=False).logits[0, start:-1].float()
            sums[which] += float(F.cross_entropy(logits, ids[start + 1 :], reduction="sum"))
    if not count:
        raise InputError("no text has two tokens after its first; give longer texts to measure the LLM's loss on")
    return LossRecovered(count, *(value / count for value in sums))


@contextmanager
def _replaced(layer: nn.Module, replace: Any, start: int) -> Iterator[None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        changed = states.clone()
        changed[0, start:] = replace(states[0, start:].float()).to(states.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
