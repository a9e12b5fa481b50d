"""What benchmarks/lens.py compares: each method turns seed pairs into a fitted head, all from the same latents.

    ridge           ridge Bradley-Terry head on the means of three layers; its strength is cross-validated
    ridge_24        the same on layer 24's mean alone
    ridge_prompt    ridge on squashed features, no context: ContextHead(context=0)
    lens_best       ContextHead: the ridge whose taste varies with the prompt, context from unlabelled latents
    lens_best_seeds the same without unlabelled latents
    ridge_all       ridge on all six views of the response (means and last tokens of three layers)
    context_all     ContextHead on all six, without unlabelled latents
    auto            AutoHead, Penchant's default
    mlp             MLP on the seeds; dropout and weight decay picked on held-out prompts
    mlp_1x          MLP on the seeds, dropout and weight decay as in all the rows below
    lens_printed    LENS as printed: VAE, s^2 = .01, gamma = .1, filter, chosen against any prompt's rejected; MLP
    lens            the same, but pairs within one prompt only
    lens_ridge      the same pairs, ridge head

All that has an MLP reads layer 24's mean and takes the same number of optimiser steps. "_4x" has 4 n pairs in all, and
so on (`Synthesizer.sample`). Rivals: noise (direct), gaussian, cross (no VAE), text (answers the LLM samples to the
seed prompts, judged by the ridge head trained on the seeds; four answers make at most 6 pairs a prompt, so 7x in place
of 8x, and 3x on novelty, where three pairs share a prompt), text_llm (judged by the LLM).
Controls, of `lens_8x`: gamma0, s0 (reconstruction only), equal_norm (noise as far as LENS moves a latent), pca16,
no_filter, elbo (the other likelihood), unlabelled (VAE fitted on unlabelled latents too).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penchant.heads import AutoHead, ContextHead, Head, LinearHead, MLPHead
from penchant.latents import LatentPairs
from penchant.synthesis import CrossPairs, DirectNoise, GaussianSynthesis, Lens, PCANoise, Synthesizer
from penchant.synthesis.augmented import Augmented
from penchant.synthesis.text import judged_pairs
from penchant.synthesis.theory import displacement

Array = NDArray[np.float32]
STEPS = 400
BATCH = 128
MEANS = ("15:mean", "20:mean", "24:mean")
ALL = tuple(f"{layer}:{pooling}" for layer in (15, 20, 24) for pooling in ("last", "mean"))
CONTEXT = (*MEANS, "24:prompt")
ONE = ("24:mean",)


class Answers(NamedTuple):
    """Sampled answers to the seeds' prompts: latents [n, k, dim] and validity [n, k], one row a seed pair."""

    latents: Array
    valid: NDArray[np.bool_]
    llm: Array | None
    """The LLM's own judgement [n, k], where it was asked."""


@dataclass
class Seeds:
    """What a method may learn from."""

    pairs: LatentPairs
    unlabelled: Array
    answers: Answers | None
    seed: int


class Fitted(NamedTuple):
    head: Head
    views: tuple[str, ...]
    seconds: float


def mlp(pairs: LatentPairs, seed: int, dropout: float = 0.2, weight_decay: float = 0.1) -> MLPHead:
    """An MLP after STEPS steps on these pairs, at the epoch whose held-out loss was least."""
    a_pass = math.ceil(0.8 * len(pairs) / BATCH)
    epochs = math.ceil(STEPS / a_pass)
    head = MLPHead(
        dropout=dropout,
        weight_decay=weight_decay,
        batch_size=BATCH,
        epochs=epochs,
        patience=epochs,
        random_state=seed,
    )
    return head.fit(pairs)


def tuned_mlp(pairs: LatentPairs, seed: int) -> MLPHead:
    """The MLP with the least held-out loss over a grid of dropout and weight decay."""
    heads = [mlp(pairs, seed, dropout, decay) for dropout in (0.0, 0.5) for decay in (0.1, 1.0)]

    def loss(head: MLPHead) -> float:
        assert head.cv_margins_ is not None  # there are two prompts or more
        return float(np.logaddexp(0, -head.cv_margins_).mean())

    return min(heads, key=loss)


def synthetic_mlp(synthesizer: Synthesizer, seeds: Seeds, factor: int, unlabelled: bool = False) -> MLPHead:
    pairs = seeds.pairs.select(ONE)
    others = seeds.unlabelled[:, seeds.pairs.recipe.columns(ONE)] if unlabelled else None
    return mlp(synthesizer.fit(pairs, others).sample(pairs, factor, seeds.seed), seeds.seed)


def text_mlp(seeds: Seeds, factor: int, llm: bool = False) -> MLPHead:
    """Seeds and judged answers; the judge is the ridge head trained on the seeds, or the LLM."""
    assert seeds.answers is not None
    pairs = seeds.pairs.select(ONE)
    latents = seeds.answers.latents[:, :, seeds.pairs.recipe.columns(ONE)]
    n, k, d = latents.shape
    if llm:
        assert seeds.answers.llm is not None
        scores = seeds.answers.llm.astype(np.float64)
    else:
        scores = LinearHead(random_state=seeds.seed).fit(pairs).score(latents.reshape(-1, d)).reshape(n, k)
    # Seed pairs that share a prompt share its answers: each takes its own part of the ranking.
    _, where, member = np.unique(pairs.group, return_index=True, return_inverse=True)
    wanted = np.bincount(member) * (factor - 1)
    row, better, worse = judged_pairs(scores[where], wanted, seeds.answers.valid[where])
    row = where[row]
    made = pairs.take(row)
    made = LatentPairs(latents[row, better], latents[row, worse], made.prompt, made.recipe, made.group)
    bare = LatentPairs(pairs.chosen, pairs.rejected, pairs.prompt, pairs.recipe, pairs.group)
    return mlp(LatentPairs.concatenate([bare, made]), seeds.seed)


def equal_norm(seeds: Seeds) -> DirectNoise:
    pairs = seeds.pairs.select(ONE)
    lens = Lens(random_state=seeds.seed).fit(pairs)
    return DirectNoise(norm=displacement(lens, pairs, seeds.seed))


def context(seeds: Seeds, unlabelled: bool) -> Head:
    pairs = seeds.pairs.select(CONTEXT)
    others = seeds.unlabelled[:, seeds.pairs.recipe.columns(CONTEXT)] if unlabelled else None
    return ContextHead(random_state=seeds.seed).fit(pairs, others)


def lens_ridge(seeds: Seeds) -> Head:
    head, lens = LinearHead(random_state=seeds.seed), Lens(random_state=seeds.seed)
    return Augmented(head, lens, 8, random_state=seeds.seed).fit(seeds.pairs.select(ONE)).head_


Method = tuple[tuple[str, ...] | None, Callable[[Seeds], Head]]
"""The views its head scores (None for all), and how the head is made."""


def methods(quick: bool) -> dict[str, Method]:
    """Every row of the table by name, the baselines first."""
    rows: dict[str, Method] = {
        "ridge": (MEANS, lambda s: LinearHead(random_state=s.seed).fit(s.pairs.select(MEANS))),
        "ridge_24": (ONE, lambda s: LinearHead(random_state=s.seed).fit(s.pairs.select(ONE))),
        "ridge_prompt": (CONTEXT, lambda s: ContextHead(context=0, random_state=s.seed).fit(s.pairs.select(CONTEXT))),
        "lens_best": (CONTEXT, lambda s: context(s, True)),
        "lens_best_seeds": (CONTEXT, lambda s: context(s, False)),
        "ridge_all": (ALL, lambda s: LinearHead(random_state=s.seed).fit(s.pairs.select(ALL))),
        "context_all": (None, lambda s: ContextHead(random_state=s.seed).fit(s.pairs)),
        "auto": (None, lambda s: AutoHead(random_state=s.seed).fit(s.pairs)),
        "mlp": (ONE, lambda s: tuned_mlp(s.pairs.select(ONE), s.seed)),
        "mlp_1x": (ONE, lambda s: mlp(s.pairs.select(ONE), s.seed)),
        "lens_ridge_8x": (ONE, lens_ridge),
    }
    made: dict[str, Callable[[Seeds], Synthesizer]] = {
        "lens_printed": lambda s: Lens(pairing="all", random_state=s.seed),
        "lens": lambda s: Lens(random_state=s.seed),
        "noise": lambda s: DirectNoise(),
        "gaussian": lambda s: GaussianSynthesis(),
        "cross": lambda s: CrossPairs(),
    }
    controls: dict[str, Callable[[Seeds], Synthesizer]] = {
        "gamma0": lambda s: Lens(gamma=0, random_state=s.seed),
        "s0": lambda s: Lens(noise=0, keep=1, random_state=s.seed),
        "equal_norm": equal_norm,
        "pca16": lambda s: PCANoise(),
        "no_filter": lambda s: Lens(keep=1, random_state=s.seed),
        "elbo": lambda s: Lens(likelihood="elbo", random_state=s.seed),
    }
    for factor in (8,) if quick else (4, 8):
        for name, make in made.items():
            rows[f"{name}_{factor}x"] = (ONE, lambda s, m=make, f=factor: synthetic_mlp(m(s), s, f))  # type: ignore[misc]
        rows[f"text_{factor}x"] = (ONE, lambda s, f=factor: text_mlp(s, f))  # type: ignore[misc]
    for name, make in controls.items():
        rows[f"{name}_8x"] = (ONE, lambda s, m=make: synthetic_mlp(m(s), s, 8))  # type: ignore[misc]
    rows["unlabelled_8x"] = (ONE, lambda s: synthetic_mlp(Lens(random_state=s.seed), s, 8, unlabelled=True))
    rows["text_llm_8x"] = (ONE, lambda s: text_mlp(s, 8, llm=True))
    return rows


def kind(name: str) -> str:
    """The part of the work it belongs to: judged by the LLM, by text, LENS with a ridge head, all views, other."""
    if "llm" in name:
        return "judged"
    if name == "lens_ridge_8x":
        return "ridge"
    return "text" if name.startswith("text") else "views" if name in ("ridge_all", "context_all", "auto") else "latents"


def fitted(seeds: Seeds, quick: bool, part: str) -> Iterator[tuple[str, Fitted]]:
    """Each method of this kind, fitted."""
    for name, (views, make) in methods(quick).items():
        if kind(name) != part or ("llm" in name and (seeds.answers is None or seeds.answers.llm is None)):
            continue
        start = time.perf_counter()
        head = make(seeds)
        yield name, Fitted(head, views or seeds.pairs.recipe.views, time.perf_counter() - start)
