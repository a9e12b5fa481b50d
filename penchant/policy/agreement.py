"""Do the codes follow a label that training never saw? Normalised mutual information, against shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from penchant.policy.watch import best_codes

Labels = NDArray[Any]
SHUFFLES = 200
HIGH = 0.95
"""The quantile of the shuffled labels' figures that an agreement above chance exceeds."""


def agreement(
    labels: Sequence[Any],
    prompts: NDArray[np.int64],
    prior: Any,
    posterior: Any,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How far the best codes of n pairs agree with the pairs' labels; pairs without a label (None) are left out.

    Where all pairs of a prompt share their label it belongs to the prompt, and the prior, which sees nothing else, is
    judged prompt by prompt; the posterior is judged pair by pair.

    Args:
        labels: n values, for example the `source` of each pair.
        prompts: [n], equal for pairs with the same prompt, see `prompt_groups`.
        prior, posterior: weights [n, K].

    Returns:
        for the prior and then the posterior {weights, unit ("prompts" or "pairs"), n, values (different labels), nmi,
        chance {mean, high (the HIGH quantile)}, above (nmi > high)}; empty with fewer than two different labels.
    """
    known = np.array([i for i, label in enumerate(labels) if label is not None], np.int64)
    numbers = np.unique([str(label) for label in labels if label is not None], return_inverse=True)[1]
    if len(np.unique(numbers)) < 2:
        return []
    _, first, place = np.unique(prompts[known], return_index=True, return_inverse=True)
    of_prompts = bool((numbers == numbers[first][place]).all())
    codes = {name: best_codes(w).argmax(1)[known] for name, w in (("prior", prior), ("posterior", posterior))}
    found = []
    for name, best in codes.items():
        by_prompt = name == "prior" and of_prompts
        rows = first if by_prompt else np.arange(len(known))
        unit = "prompts" if by_prompt else "pairs"
        found.append(
            {"weights": name, "unit": unit, **_against_chance(best[rows], numbers[rows], place[rows], shuffles, seed)}
        )
    return found


def _against_chance(codes: Labels, labels: Labels, prompts: Labels, shuffles: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    nmi = normalized_mutual_info_score(labels, codes)
    chance = [normalized_mutual_info_score(labels[shuffled(prompts, generator)], codes) for _ in range(shuffles)]
    high = float(np.quantile(chance, HIGH))
    return {
        "n": len(codes),
        "values": len(np.unique(labels)),
        "nmi": float(nmi),
        "chance": {"mean": float(np.mean(chance)), "high": high},
        "above": bool(nmi > high),
    }


def shuffled(prompts: Labels, generator: np.random.Generator) -> Labels:
    """An order [n] that gives each prompt the pairs of another prompt with as many, and mixes them within it.

    So labels that go together, as those of one prompt do, stay together: moved one by one, they would agree with
    codes less than labels without meaning do, and everything would look better than chance.
    """
    order = np.empty(len(prompts), np.int64)
    rows = np.argsort(prompts, kind="stable")  # the pairs of a prompt side by side
    _, starts, sizes = np.unique(prompts[rows], return_index=True, return_counts=True)
    for size in np.unique(sizes):
        blocks = rows[starts[sizes == size][:, None] + np.arange(size)]
        order[blocks] = generator.permuted(generator.permutation(blocks), axis=1)
    return order
