"""Log-probabilities under the reference, the LLM as it was before training: computed once and cached by content.

They lie in the latents' cache as vectors of length one, so they are found again by what was read (the ids) and by what
read it (model, template, number type), whatever file the pairs came from. No second model is ever in memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from penchant.backbone import Backbone
from penchant.latents import Recipe
from penchant.packing import stack_keys
from penchant.policy.batches import TokenPair
from penchant.policy.losses import PairLogProbs
from penchant.policy.policy import Policy
from penchant.store import Store, default_root

CHUNK = 256
"""Pairs after which what was computed is written: at most this much is lost to an interruption."""


def reference_recipe(backbone: Backbone) -> Recipe:
    """What names the reference's log-probabilities in a cache."""
    return replace(backbone.recipe((f"{backbone.depth}:last",)), views=(f"{backbone.depth}:log_prob",), width=1)


def reference_log_probs(
    policy: Policy, pairs: Sequence[TokenPair], cache: str | Path | None = None, *, label: str | None = None
) -> tuple[PairLogProbs, float]:
    """Of all pairs, on the CPU, and the seconds it took. `policy` must not have been trained yet.

    Only sequences that the cache lacks go through the LLM.
    """
    start = time.perf_counter()
    store = Store(cache or default_root(), reference_recipe(policy.backbone))
    keys = [stack_keys(pair[side].key for pair in pairs) for side in (0, 1)]
    missing = np.flatnonzero(~(store.has(keys[0]) & store.has(keys[1])))
    for first in range(0, len(missing), CHUNK):
        rows = missing[first : first + CHUNK]
        part = f"{label} {first + len(rows):,}/{len(missing):,}" if label else None
        _, found = policy.score([pairs[i] for i in rows], {"": lambda _: None}, label=part)
        named = dict(zip(map(bytes, np.concatenate([k[rows] for k in keys])), torch.cat(found[""][:2]), strict=True))
        values = np.array([[float(value)] for value in named.values()], np.float32)
        store.write(stack_keys(named), values)
    if len(missing):
        store.refresh()
        store.compact()
    chosen, rejected = (torch.from_numpy(store.read(each)[:, 0]) for each in keys)
    lengths = (torch.tensor([len(pair[side].response) for pair in pairs]) for side in (0, 1))
    return PairLogProbs(chosen, rejected, *lengths), time.perf_counter() - start
