"""A head together with a synthesizer, and the choice of a synthesizer by cross-validation on real pairs alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import clone
from typing_extensions import Self

from penchant.evaluate import fit_temperature
from penchant.heads.auto import CLEARLY, Candidate, clearly_better
from penchant.heads.base import Head, pair_accuracy, prompt_folds, score_rows
from penchant.heads.context import ContextHead
from penchant.heads.linear import LinearHead
from penchant.latents import Array, LatentPairs
from penchant.synthesis.base import Synthesizer, check_factor
from penchant.synthesis.reduced import fit_reduced


class Augmented:
    """A head that learns from real and synthetic pairs; stands wherever something with `fit` and `score` does.

    Everything is fitted in `fit`, from the pairs it is given: in a cross-validation or a learning curve neither the
    synthesizer nor the head sees another part's pairs.

    A ridge penalty is multiplied by `factor`, so that it means the same for each real pair whatever their copies: a
    synthesizer that returns its seeds changes nothing. With wide latents a linear head is fitted by `fit_reduced`.

    Args:
        head: unfitted; a copy is fitted.
        synthesizer: unfitted; a copy is fitted. None is no synthesis.
        factor: pairs for each real one, itself included.
        unlabelled: latents [m, recipe.dim] of responses that nobody judged, for the synthesizer and for a head that
            takes them.
        random_state: of the synthetic pairs.

    Attributes:
        head_, synthesizer_: fitted; synthesizer_ is None where there was nothing to make.
    """

    head_: Head
    synthesizer_: Synthesizer | None

    def __init__(
        self,
        head: Head,
        synthesizer: Synthesizer | None,
        factor: int = 8,
        unlabelled: Array | None = None,
        random_state: int = 0,
    ) -> None:
        self.head = head
        self.synthesizer = synthesizer
        self.factor = factor
        self.unlabelled = unlabelled
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for a factor below 1, and what the synthesizer and the head raise."""
        check_factor(self.factor)
        self.head_ = clone(self.head)
        if self.synthesizer is None or self.factor == 1:
            self.synthesizer_ = None
            fit_head(self.head_, pairs, self.unlabelled)
            return self
        self.synthesizer_ = clone(self.synthesizer)
        everything = self.synthesizer_.fit(pairs, self.unlabelled).sample(pairs, self.factor, self.random_state)
        if isinstance(self.head_, (LinearHead, ContextHead)):
            self.head_.strengths = tuple(strength * self.factor for strength in self.head_.strengths)
        if isinstance(self.head_, LinearHead):
            if self.head_.strength is not None:
                self.head_.strength *= self.factor
            fit_reduced(self.head_, everything)
        else:
            fit_head(self.head_, everything, self.unlabelled)
        return self

    def score(self, latents: Array) -> Array:
        """Float32 scores [n] of latents [n, d]."""
        return self.head_.score(latents)

    def seeded(self, random_state: int) -> Augmented:
        """An unfitted copy with this seed everywhere."""
        head: Any = clone(self.head)
        synthesizer: Any = None if self.synthesizer is None else clone(self.synthesizer)
        for part in (head, synthesizer):
            if hasattr(part, "random_state"):
                part.random_state = random_state
        return Augmented(head, synthesizer, self.factor, self.unlabelled, random_state)


@dataclass(frozen=True)
class Decision:
    """Which synthesizer cross-validation keeps, and what it saw."""

    synthesizer: Synthesizer | None
    """Unfitted; None is no synthesis."""
    rows: list[dict[str, Any]]
    """One a candidate: name, cv_accuracy, cv_loss, gain (mean loss without synthesis less that with it), error (its
    standard error, paired over pairs), chosen."""
    says: str
    """One sentence with the numbers."""
    margins: Array | None
    """The chosen candidate's out-of-fold score differences [n] of the real pairs; None where there was no choice."""

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {"rows": self.rows, "says": self.says}


def choose_synthesis(
    pairs: LatentPairs,
    head: Head,
    candidates: Sequence[Synthesizer | None],
    factor: int,
    folds: int = 5,
    random_state: int = 0,
    unlabelled: Array | None = None,
) -> Decision:
    """Keep a synthesizer only if it clearly lowers the log-loss of held-out real pairs.

    For each candidate and each part of the prompts, synthesizer and head are fitted on the other parts and score this
    part's real pairs. Each candidate's n out-of-fold margins are divided by their own temperature, so that a
    synthesizer which only stretches the scores gains nothing. None, no synthesis, is always a candidate and is kept
    unless another has a mean loss lower by more than 1.5 standard errors of the paired differences; of several such
    the lowest loss is taken. With one prompt nothing can be held out, and there is no synthesis.
    """
    check_factor(factor)
    fold = prompt_folds(pairs.group, folds, random_state)
    if len(pairs) - np.bincount(fold).max() < 2:
        says = f"No synthesis: {len(pairs)} pairs of {len(np.unique(pairs.group))} prompts leave nothing to choose by."
        empty = dict.fromkeys(("cv_accuracy", "cv_loss", "gain", "error"))
        return Decision(None, [{"name": "none", **empty, "chosen": True}], says, None)

    def tried(synthesizer: Synthesizer | None) -> Candidate:
        augmented = Augmented(head, synthesizer, factor, unlabelled, random_state)
        margins = held_out_margins(augmented, pairs, fold, range(fold.max() + 1))
        return Candidate(pairs.recipe.views, head, margins)

    named = {"none" if c is None else c.name: c for c in (None, *candidates)}
    found = {name: tried(synthesizer) for name, synthesizer in named.items()}
    scaled = {name: replace(c, margins=c.margins / fit_temperature(c.margins)) for name, c in found.items()}
    none = scaled["none"]
    better = [name for name, c in scaled.items() if clearly_better(c, none)]
    chosen = min(better, key=lambda name: scaled[name].losses.mean(), default="none")
    rows = [{**_row(name, c, none), "chosen": name == chosen} for name, c in scaled.items()]
    return Decision(named[chosen], rows, _sentence(rows), found[chosen].margins)


def held_out_margins(augmented: Augmented, pairs: LatentPairs, fold: Array, parts: Iterable[int]) -> Array:
    """Score differences of the real pairs in `parts`, in the pairs' order, each scored by a fit on the other parts."""
    margins = np.full(len(pairs), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fit on all pairs will say it once
        for part in parts:
            held_out = pairs.take(fold == part)
            augmented.fit(pairs.take(fold != part))
            margins[fold == part] = score_rows(augmented, held_out.chosen) - score_rows(augmented, held_out.rejected)
    return margins[np.isin(fold, list(parts))]


def fit_head(head: Head, pairs: LatentPairs, unlabelled: Array | None) -> Head:
    """Fit a head, with the unlabelled latents if it takes them."""
    learn: Any = head.fit
    fitted: Head = learn(pairs, unlabelled) if head.takes_unlabelled and unlabelled is not None else learn(pairs)
    return fitted


def _row(name: str, candidate: Candidate, none: Candidate) -> dict[str, Any]:
    gain = none.losses - candidate.losses
    return {
        "name": name,
        "cv_accuracy": pair_accuracy(candidate.margins),
        "cv_loss": float(candidate.losses.mean()),
        "gain": float(gain.mean()),
        "error": float(gain.std() / np.sqrt(len(gain))),
    }


def _sentence(rows: list[dict[str, Any]]) -> str:
    none, others = rows[0], rows[1:]
    best = next((row for row in others if row["chosen"]), min(others, key=lambda row: row["cv_loss"], default=none))
    if best is none:
        return "No synthesis: there was no other candidate."
    if best["chosen"]:
        return (
            f"{best['name']} is used: it lowers the log-loss of held-out real pairs from {none['cv_loss']:.4f} to "
            f"{best['cv_loss']:.4f}, a gain of {best['gain']:.4f} with a standard error of {best['error']:.4f}, and "
            f"{CLEARLY} standard errors are asked for."
        )
    return (
        f"No synthesis: none of {', '.join(row['name'] for row in others)} lowers the log-loss of held-out real pairs, "
        f"{none['cv_loss']:.4f}, by more than {CLEARLY} standard errors; the best, {best['name']}, gains "
        f"{best['gain']:+.4f} with a standard error of {best['error']:.4f}."
    )
