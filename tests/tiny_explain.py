"""Reward models on the features of a random SAE over the tiny LLM: what the tests of `penchant explain` explain."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch

from penchant import Backbone, LinearHead, MLPHead, RewardModel, load_pairs
from penchant.explain import explain
from penchant.heads import SAELinearHead, SparseHead
from penchant.sae import SAEConfig, SparseAutoencoder
from tests.tiny_llm import save_tiny_llm, tiny_pairs

LAYER = 2
VIEWS = (f"{LAYER}:last", f"{LAYER}:mean")


def made(seed: int = 1, **config: Any) -> SparseAutoencoder:
    """A random SAE of 64 latents at LAYER, with a decoder bias."""
    sae = SparseAutoencoder.random(SAEConfig(32, 64, k=6, layer=LAYER, **config), seed)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-1, 1, 32))
    return sae


SAE, NORMALIZING = made(), made(normalize="layer_norm")

HEADS: dict[str, Any] = {
    "sae": lambda: SAELinearHead(SAE),
    "sparse": lambda: SparseHead(SAE, k=8),
    "projection": lambda: SparseHead(SAE, k=8, features="projection"),
    "mlp": lambda: SparseHead(SAE, k=8, inner="mlp", hidden=8),
    "random": lambda: SparseHead(SAE, k=8, directions="random"),
    "linear": LinearHead,
    "normalizing": LinearHead,
    "dense mlp": MLPHead,
}
THROUGH = {"linear": SAE, "normalizing": NORMALIZING}
"""The SAE through which a head is explained that carries none."""


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="penchant-tests-"))


@functools.cache
def llm() -> Path:
    return save_tiny_llm(folder() / "llm")


@functools.cache
def backbone() -> Backbone:
    return Backbone.load(str(llm()), dtype="float32", max_length=256)


@functools.cache
def pairs() -> datasets.Dataset:
    return load_pairs(tiny_pairs(40, noise=0.2))


@functools.cache
def reward_model(kind: str) -> RewardModel:
    return RewardModel.train(
        pairs(), model=backbone(), head=HEADS[kind](), views=VIEWS, cache=folder() / "cache", show_progress=False
    )


def explained(kind: str, data: datasets.Dataset | None = None, **more: Any) -> dict[str, Any]:
    more = {"sae": THROUGH.get(kind), "cache": folder() / "cache", "show_progress": False, **more}
    return explain(reward_model(kind), pairs() if data is None else data, **more)
