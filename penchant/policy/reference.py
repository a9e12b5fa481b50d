"""Log-probabilities under the reference, the LLM as it was before training: computed once and cached by content.

They lie in the latents' cache as vectors of length one, so they are found again by what was read (the ids) and by what
read it (model, template, number type), whatever file the pairs came from. No second model is ever in memory.

Several processes share the sequences out; the main one alone reads and writes the cache, and tells the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from penchant.backbone import Backbone
from penchant.latents import Recipe
from penchant.packing import stack_keys
from penchant.policy.batches import TokenPair
from penchant.policy.losses import PairLogProbs
from penchant.policy.policy import Policy
from penchant.processes import from_main, is_main, share, told, whole, world
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
    items = {item.key: item for pair in pairs for item in pair}
    store = Store(cache or default_root(), reference_recipe(policy.backbone)) if is_main() else None
    known = told(store.has(stack_keys(items)).tolist() if store is not None else None)
    missing = [item for item, there in zip(items.values(), known, strict=True) if not there]
    for first in range(0, len(missing), 2 * CHUNK * world()):
        part = missing[first : first + 2 * CHUNK * world()]
        couples = list(zip(part[::2], [*part[1::2], *part[-1:]], strict=False))  # two at a time, as pairs are run
        said = f"{label} {first + len(part):,}/{len(missing):,}" if label else None
        values = _scored(policy, couples, said)
        if store is not None:
            rows = zip((item.key for couple in couples for item in couple), values.flatten().tolist(), strict=True)
            found = dict(rows)
            store.write(stack_keys(found), np.array([[value] for value in found.values()], np.float32))
    if store is not None and len(missing):
        store.refresh()
        store.compact()
    both = torch.zeros(2, len(pairs))
    if store is not None:
        sides = [store.read(stack_keys(pair[side].key for pair in pairs)) for side in (0, 1)]
        both = torch.from_numpy(np.stack(sides)[:, :, 0])
    chosen, rejected = from_main(both)
    lengths = (torch.tensor([len(pair[side].response) for pair in pairs]) for side in (0, 1))
    return PairLogProbs(chosen, rejected, *lengths), time.perf_counter() - start


def _scored(policy: Policy, couples: list[TokenPair], label: str | None) -> Tensor:
    """Log-probabilities [n, 2] of couples of sequences, each process running its share."""
    own = couples[share(len(couples))]
    found = policy.score(own, {"": lambda _: None}, label=label)[1][""] if own else None
    values = torch.stack([found.chosen, found.rejected], 1) if found is not None else torch.zeros(0, 2)
    return whole(values, len(couples))
