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
"""Couples of sequences after which what was computed is written: at most this much is lost to an interruption."""


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
    items = {item.key: item for pair in pairs for item in pair}
    known = store.has(stack_keys(items))
    missing = [item for item, there in zip(items.values(), known, strict=True) if not there]
    for first in range(0, len(missing), 2 * CHUNK):
        part = missing[first : first + 2 * CHUNK]
        couples = list(zip(part[::2], [*part[1::2], *part[-1:]], strict=False))  # two at a time, as pairs are run
        said = f"{label} {first + len(part):,}/{len(missing):,}" if label else None
        _, found = policy.score(couples, {"": lambda _: None}, label=said)
        values = dict(zip((item.key for couple in couples for item in couple), _flat(found[""]), strict=True))
        store.write(stack_keys(values), np.array([[value] for value in values.values()], np.float32))
    if len(missing):
        store.refresh()
        store.compact()
    chosen, rejected = (torch.from_numpy(store.read(each)[:, 0]) for each in keys)
    lengths = (torch.tensor([len(pair[side].response) for pair in pairs]) for side in (0, 1))
    return PairLogProbs(chosen, rejected, *lengths), time.perf_counter() - start


def _flat(found: PairLogProbs) -> list[float]:
    return [float(value) for couple in zip(found.chosen, found.rejected, strict=True) for value in couple]
