"""The rows of benchmarks/sparse.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from penchant.heads import Head, LinearHead, MLPHead, PCAHead, SAELinearHead, SparseHead
from penchant.latents import LatentPairs
from penchant.sae import SparseAutoencoder

LAST, MEAN = ("15:last",), ("15:mean",)
BOTH = (*LAST, *MEAN)
TOP = ("24:mean",)

METHODS = {
    "ridge": "dense ridge head, mean of layer 24: the baseline of every table here",
    "ridge_15": "dense ridge head on the two views that the SAE reads",
    "mlp": "dense MLP, mean of layer 24",
    "sparse_printed": "SparseRM as published: 128 + 128 decoder rows by frequency, last token, MLP, margin loss",
    "random_printed": "the same with 256 random unit directions",
    "random_sae_printed": "the same with a random SAE",
    "sparse_bt": "the published selection with a Bradley-Terry loss",
    "sparse": "SparseHead's defaults: 64 + 64 decoder rows by frequency over both views, ridge",
    "random": "ridge on as many random directions, the same views",
    "sparse_16": "the same with 16 + 16 rows",
    "random_16": "ridge on as many random directions",
    "sparse_active": "16 + 16 activations instead of projections, ridge: a score's parts are firing features",
    "random_sae": "`sparse` with a random SAE",
    "sae_activations": "SARM's light mode on both views",
    "sae_last": "SARM's light mode as published: last token",
    "drm": "DRM as published: 50 components of centred differences, softmax weights; mean of layer 24",
    "pca": "PCAHead's defaults on the same components",
}


@dataclass(frozen=True)
class Fitted:
    name: str
    head: Head
    views: tuple[str, ...]
    seconds: float


Row = tuple[Callable[[], Head], tuple[str, ...]]


def heads(sae: SparseAutoencoder, random: SparseAutoencoder, seed: int) -> dict[str, Row]:
    """How to make each row's head, and the views it reads."""

    def printed(which: SparseAutoencoder, directions: str = "selected", loss: str = "margin") -> SparseHead:
        return SparseHead(
            which,
            k=128,
            selection="frequency",
            features="projection",
            directions=directions,
            inner="mlp",
            loss=loss,
            random_state=seed,
        )

    return {
        "ridge": (lambda: LinearHead(random_state=seed), TOP),
        "ridge_15": (lambda: LinearHead(random_state=seed), BOTH),
        "mlp": (lambda: MLPHead(random_state=seed), TOP),
        "sparse_printed": (lambda: printed(sae), LAST),
        "random_printed": (lambda: printed(sae, "random"), LAST),
        "random_sae_printed": (lambda: printed(random), LAST),
        "sparse_bt": (lambda: printed(sae, loss="bradley-terry"), LAST),
        "sparse": (lambda: SparseHead(sae, random_state=seed), BOTH),
        "random": (lambda: SparseHead(sae, directions="random", random_state=seed), BOTH),
        "sparse_16": (lambda: SparseHead(sae, k=16, random_state=seed), BOTH),
        "random_16": (lambda: SparseHead(sae, k=16, directions="random", random_state=seed), BOTH),
        "sparse_active": (
            lambda: SparseHead(sae, k=16, selection="activation", features="activation", random_state=seed),
            BOTH,
        ),
        "random_sae": (lambda: SparseHead(random, random_state=seed), BOTH),
        "sae_activations": (lambda: SAELinearHead(sae, random_state=seed), BOTH),
        "sae_last": (lambda: SAELinearHead(sae, random_state=seed), LAST),
        "drm": (lambda: PCAHead(weighting="softmax", center=True, random_state=seed), TOP),
        "pca": (lambda: PCAHead(random_state=seed), TOP),
    }


def fitted(pairs: LatentPairs, sae: SparseAutoencoder, seed: int) -> Iterator[Fitted]:
    """Every row fitted on the pairs; the random SAE has the trained one's shape, scale and mean."""
    random = SparseAutoencoder.random(replace(sae.config), seed)
    random.b_dec.data.copy_(sae.b_dec.data)
    for name, (make, views) in heads(sae, random, seed).items():
        start = time.perf_counter()
        head = make()
        head.fit(pairs.select(views))
        yield Fitted(name, head, views, time.perf_counter() - start)
