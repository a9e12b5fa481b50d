"""Is this the SAE of these states: the right width, layer and LLM by what it records, and by what it explains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penchant.errors import InputError
from penchant.latents import Recipe
from penchant.sae.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from penchant.backbone import Backbone

LEAST_EXPLAINED = 0.3
"""Variance explained on ordinary text below which an SAE is taken to be of another place."""
ROWS = 1024
"""States reconstructed at once: their activations are [ROWS, m]."""
VARIANTS = {"base", "pt", "it", "instruct", "chat", "sft", "hf", "meta"}
"""Parts of a name that tell a tuned LLM, or a copy, from its base."""


def check_place(sae: SparseAutoencoder, llm: Backbone | Recipe, layer: int | None = None) -> int:
    """The layer at which `sae` reads `llm`; refuses an SAE of another width, layer or LLM.

    Args:
        sae: what it records of itself is believed.
        llm: a backbone, or the recipe of latents made with one.
        layer: the layer it is to be used at, if that is fixed already.

    Raises:
        InputError: another width, a layer that the LLM or the recipe does not have or the SAE was not trained at, or
            another LLM. A base model and its tuned versions count as one; names that say nothing to each other, such
            as a folder's and a hub id, are let through.
    """
    config, name, width = sae.config, llm.model if isinstance(llm, Recipe) else llm.name, llm.width
    what = f"the SAE {sae.source!r}" if sae.source else "this SAE"
    if config.d_in != width:
        raise InputError(f"{what} reads states of width {config.d_in}, {name} has {width}; it belongs to another LLM")
    if config.model is not None and _differ(config.model, name):
        raise InputError(
            f"{what} was trained on {config.model}, not on {name}; if {name} was tuned from it, say so: load the SAE"
            f" with model={name!r}"
        )
    if config.layer is None and layer is None:
        raise InputError(f"{what} does not record its layer; load it with layer=, the index in hidden_states")
    if config.layer is not None and layer not in (None, config.layer):
        raise InputError(
            f"{what} was trained at layer {config.layer} of hidden_states (SAELens' block {config.layer - 1}), not"
            f" at layer {layer}; use the states of layer {config.layer}, or another SAE"
        )
    at = config.layer if layer is None else layer
    assert at is not None
    layers = llm.layers if isinstance(llm, Recipe) else range(1, llm.depth + 1)
    if at not in layers:
        if isinstance(llm, Recipe):
            raise InputError(f"{what} reads layer {at}, these latents hold {_listed(layers)}; encode a view {at}:last")
        raise InputError(f"{what} reads layer {at}, and {name} has layers 1 to {llm.depth}; it belongs to another LLM")
    return at


def _listed(layers: tuple[int, ...] | range) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _differ(recorded: str, name: str) -> bool:
    """Whether both are hub ids, of different LLMs."""
    if not all(re.fullmatch(r"[\w.-]+/[\w.-]+", each) and not Path(each).exists() for each in (recorded, name)):
        return False
    first, second = (re.split("[-_]", each.partition("/")[2].lower()) for each in (recorded, name))
    return [part for part in first if part not in VARIANTS] != [part for part in second if part not in VARIANTS]


@torch.inference_mode()
def check_reconstruction(sae: SparseAutoencoder, states: Tensor, bound: float = LEAST_EXPLAINED) -> float:
    """The share of the variance of real states [n, d] that `sae` explains; refuses an SAE that explains too little.

    The states should be of many tokens of ordinary text, without BOS, whose length swamps all others. It tells another
    LLM, a far layer, or states after the final norm; a layer next to the right one is too like it to be told so.

    Raises:
        InputError: less than `bound` is explained, or the states are of another width, alike, or not finite.
    """
    sae.check_width(states)
    if not bool(torch.isfinite(states).all()):
        raise InputError("the states hold numbers that are not finite; encode with dtype float32")
    share = variance_explained(states, torch.cat([sae(part) for part in states.split(ROWS)]))
    if not share >= bound:
        raise InputError(
            f"the SAE {sae.source!r} explains {share:.3f} of the variance of {len(states):,} states, less than"
            f" {bound:g}: it was trained on another layer or LLM; check both, or lower the bound"
        )
    return share


def variance_explained(states: Tensor, reconstruction: Tensor) -> float:
    """1 - sum |x - x^|^2 / sum |x - mean x|^2 over states [n, d]: 1 is perfect, 0 no better than their mean.

    Raises InputError where all states are alike, and there is nothing to explain.
    """
    x, found = states.double(), reconstruction.double()
    variance = float((x - x.mean(0)).square().sum())
    if not variance:
        raise InputError(f"the {len(x)} states are all alike, so there is no variance to explain; give different ones")
    return 1 - float((x - found).square().sum()) / variance
