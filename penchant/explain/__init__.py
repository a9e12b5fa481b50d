"""Why a reward model scores as it does: which SAE features carry the score, and which tokens activate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from penchant.encode import TOKEN_BUDGET, encode_pairs
from penchant.errors import InputError
from penchant.evaluate import accuracy
from penchant.explain.figures import break_down, feature_facts, measure, pick, share, strongest
from penchant.explain.reading import REST, Reading
from penchant.explain.texts import read_texts
from penchant.heads import SparseHead
from penchant.pairs import describe
from penchant.reward_model import RewardModel, backbone_facts
from penchant.sae.autoencoder import SparseAutoencoder
from penchant.store_views import open_store

__all__ = ["TOKEN_PAIRS", "TOP", "Reading", "explain"]

TOP = 20
TOKEN_PAIRS = 500


def explain(
    rm: RewardModel,
    pairs: Dataset,
    *,
    sae: SparseAutoencoder | str | Path | None = None,
    top: int = TOP,
    row: int | None = None,
    token_pairs: int = TOKEN_PAIRS,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Explain a reward model whose head scores SAE features (sae, sparse), or a linear head through an SAE.

    The figures of the model rest on all pairs. The texts are read once more, token by token, for `token_pairs` of them
    and for the features that are shown.

    Args:
        rm: the reward model.
        pairs: from `load_pairs`.
        sae: SAE, folder or hub name; needed for a linear head, by default that of the head.
        top: features of the whole model to show.
        row: the pair to break down; by default a handful, clearly right, close and clearly wrong.
        token_pairs: pairs, spread evenly over the data, whose tokens are looked at; bounds the time.
        cache, token_budget: as in `RewardModel.train`.

    Returns:
        what explanation.json holds (see `report_explain`): numbers, strings, lists and dicts alone.

    Raises:
        InputError: the head cannot be read through an SAE, the SAE is not its own, or there is no such row.
    """
    if row is not None and not 0 <= row < len(pairs):
        raise InputError(f"there is no pair {row}; the data has {len(pairs)}, counted from 0.")
    if top < 1 or token_pairs < 1:
        raise InputError(f"top is {top} and token_pairs {token_pairs}; give at least 1 of each.")
    reading = Reading(rm, sae)
    latents = encode_pairs(
        rm.backbone,
        pairs,
        rm.recipe.views,
        open_store(cache, rm.recipe),
        token_budget=token_budget,
        show_progress=show_progress,
    )
    chosen, rejected = (rm.head.score(side).astype(np.float64) for side in (latents.chosen, latents.rejected))
    found = measure(reading, latents, show_progress)
    ranked = strongest(reading, found)
    shown = {row: "asked for"} if row is not None else pick(chosen - rejected)
    broken = [{"why": why, **break_down(reading, found, latents, i, (chosen, rejected))} for i, why in shown.items()]
    features = [feature_facts(reading, found, i) for i in ranked[:top]]
    listed = {part["feature"] for part in (*features, *(part for pair in broken for part in pair["features"]))}
    spread = np.linspace(0, len(pairs) - 1, min(token_pairs, len(pairs))).round().astype(int)
    texts = read_texts(
        rm.backbone,
        reading.sae,
        reading.layer,
        np.array(sorted(listed), int),
        pairs,
        np.union1d(spread, np.array(list(shown), int)),
        shown,
        token_budget=token_budget,
        show_progress=show_progress,
    )
    return {
        "model": model_facts(rm, reading),
        "backbone": backbone_facts(rm.backbone),
        "data": describe(pairs),
        "accuracy": accuracy(chosen, rejected, latents.group)["overall"],
        "features": features,
        "others": {"features": len(ranked[top:]), "share": share(found, ranked[top:])},
        "rest": share(found, np.flatnonzero(reading.parts.features_ == REST)),
        "pairs": broken,
        "token_pairs": len(spread),
        **texts,
    }


def model_facts(rm: RewardModel, reading: Reading) -> dict[str, Any]:
    """The head, the states it reads and the SAE it is read through."""
    config = reading.sae.config
    return {
        "head": rm.head.name,
        "views": list(rm.recipe.response_views),
        "additive": reading.parts.additive,
        "projects": isinstance(rm.head, SparseHead) and rm.head.features == "projection",
        "base": reading.parts.base_,
        "sae": {"source": reading.sae.source, "architecture": config.architecture, "latents": config.d_sae},
    }
