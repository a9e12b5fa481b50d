"""A reward model's head with `--synthesis`: which synthesizer, fitted how, and what to tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone

from penchant.errors import InputError
from penchant.heads import AutoHead, CommitteeHead, ContextHead, Head, LinearHead
from penchant.heads.auto import CONTEXT_TO
from penchant.heads.base import pair_accuracy, prompt_folds
from penchant.latents import SAMPLE_PAIRS, Array, LatentPairs
from penchant.synthesis import SYNTHESIZERS, Lens, Synthesizer, order_kept, order_preservation
from penchant.synthesis.augmented import Augmented, choose_synthesis, fit_head, held_out_margins
from penchant.synthesis.base import check_factor

CANDIDATES = ("lens", "pca", "noise")
"""What "auto" tries beside no synthesis, each with its default arguments."""
KINDS = ("none", "auto", "lens", "noise", "gaussian", "cross", "pca")
ENOUGH_MARGINS = 150
"""Real pairs held out for the temperature, at least, where there are so many."""


class Trained(NamedTuple):
    """A fitted head and what came with it."""

    head: Head
    """Plain: a score needs nothing of the synthesizer."""
    views: tuple[str, ...]
    """The views it scores."""
    tried: list[dict[str, Any]]
    """What AutoHead tried."""
    chosen_on: int | None
    """The pairs on which AutoHead chose."""
    margins: Array | None
    """Score differences of real pairs that the fit behind them did not see."""
    augmented: Augmented | None
    """The fitted head and its fitted synthesizer; None without synthetic pairs."""
    facts: dict[str, Any]
    """kind, arguments, factor, real, unlabelled, diagnostics, collapsed, decision and says, for metrics.json; empty
    where no synthesis was asked for."""

    def head_facts(self) -> dict[str, Any]:
        """What the report says of the head."""
        cv_accuracy = getattr(self.head, "cv_accuracy_", None)
        if self.augmented is not None:  # the head's own is that of synthetic pairs too
            cv_accuracy = pair_accuracy(self.margins) if self.margins is not None else None
        return {
            "name": self.head.name,
            "views": list(self.views),
            "strength": getattr(self.head, "strength_", None),
            "parameters": self.head.parameters,
            "cv_accuracy": cv_accuracy,
            "tried": self.tried,
        }


def check_synthesis(synthesis: str | Synthesizer | None, factor: int, head: Head | None = None) -> None:
    """Raise InputError for a name that is not known, arguments out of range or a head that takes no synthetic pairs,
    before there is long work to do."""
    check_factor(factor)
    if isinstance(head, CommitteeHead) and synthesis not in (None, "none"):
        raise InputError("a committee learns from real pairs alone; leave out the committee or the synthesis")
    if isinstance(synthesis, str) and synthesis not in KINDS:
        raise InputError(f"synthesis is {synthesis!r}; give one of {', '.join(KINDS)}")
    if isinstance(synthesis, Synthesizer):
        synthesis.check_arguments()


def check_unlabelled(synthesis: str | Synthesizer | None, head: Head | None) -> None:
    """Raise InputError if there is nobody to learn from unlabelled responses."""
    if synthesis in (None, "none") and not (head or AutoHead()).takes_unlabelled:
        raise InputError(
            "unlabelled responses are for a synthesizer or for the auto and context heads; add --synthesis or drop them"
        )


def train_head(
    head: Head | None,
    pairs: LatentPairs,
    synthesis: str | Synthesizer | None,
    factor: int,
    unlabelled: Array | None,
) -> Trained:
    """Fit a head (by default `AutoHead`), with synthetic pairs if they are asked for.

    AutoHead picks views and kind of head from the real pairs; the head it picked is then fitted anew with synthetic
    ones. A context head takes few pairs: beyond 2,500 in all, a linear head takes its place where AutoHead picked it
    and the synthesizer was named; the factor is lowered where the head was asked for, or "auto" decides.
    """
    check_synthesis(synthesis, factor, head)
    if unlabelled is not None:
        check_unlabelled(synthesis, head)
    if isinstance(head, CommitteeHead) and isinstance(head.head, AutoHead):
        return _committee_of_auto(head, pairs, unlabelled)
    asked = None if synthesis in (None, "none") else synthesis
    head, views = head or AutoHead(), pairs.recipe.views
    tried: list[dict[str, Any]] = []
    chosen_on = None
    if asked is None or isinstance(head, AutoHead):
        # To choose by is enough where the head chosen is fitted anew below.
        some = pairs.sample(SAMPLE_PAIRS) if pairs.mapped and asked is not None else pairs
        fit_head(head, some, unlabelled)
        margins = getattr(head, "cv_margins_", None)
        tried = getattr(head, "tried_", [])
        if isinstance(head, AutoHead):
            seed, chosen_on = head.random_state, head.chosen_on_
            head, views = head.narrow()
            # Synthetic pairs that were asked for are made, by a head that can take them.
            if asked not in (None, "auto") and isinstance(head, ContextHead) and factor * len(pairs) > CONTEXT_TO:
                head, views = LinearHead(random_state=seed), pairs.recipe.response_views
        if asked is None:
            return Trained(head, views, tried, chosen_on, margins, None, {})

    narrow = pairs.select(views)
    others = None if unlabelled is None else unlabelled[:, pairs.recipe.columns(views)]
    made = _with_synthesis(head, narrow, asked, factor, others)
    return made._replace(tried=tried, chosen_on=chosen_on)


def _committee_of_auto(committee: CommitteeHead, pairs: LatentPairs, unlabelled: Array | None) -> Trained:
    """AutoHead picks views and kind of head once, from all pairs; the members are heads of that kind."""
    auto = committee.head
    assert isinstance(auto, AutoHead)
    fit_head(auto, pairs.sample(SAMPLE_PAIRS) if pairs.mapped else pairs, unlabelled)
    head, views = auto.narrow()
    others = None if unlabelled is None else unlabelled[:, pairs.recipe.columns(views)]
    members = CommitteeHead(clone(head), committee.members, committee.random_state)
    fit_head(members, pairs.select(views), others)
    return Trained(members, views, auto.tried_, auto.chosen_on_, members.cv_margins_, None, {})


def order_facts(synthesizer: Synthesizer, pairs: LatentPairs, random_state: int = 0) -> dict[str, Any]:
    """`order_kept` of synthetic pairs by a linear judge that was fitted on the other half of the prompts, and, for
    LENS, the list of `order_preservation`; None and an empty list where there are too few pairs for two halves. Of
    pairs in files 5,000 are taken."""
    pairs = pairs.sample(SAMPLE_PAIRS, random_state) if pairs.mapped else pairs
    half = prompt_folds(pairs.group, 2, random_state)
    if np.bincount(half, minlength=2).min() < 2:
        return {"order": None, "theory": []}
    seen, others = pairs.take(half == 0), pairs.take(half == 1)
    judge = LinearHead(random_state=random_state).fit(others)
    theory: list[dict[str, float]] = []
    if isinstance(synthesizer, Lens):  # the VAE knows nothing of the prompt's views, which have no weight anyway
        views = pairs.recipe.response_views
        blind = LinearHead(strength=judge.strength_).fit(others.select(views))
        theory = order_preservation(synthesizer, seen.select(views), blind)
    return {"order": order_kept(synthesizer, seen, judge, rounds=2, random_state=random_state), "theory": theory}


def _with_synthesis(
    head: Head, pairs: LatentPairs, asked: str | Synthesizer | None, factor: int, unlabelled: Array | None
) -> Trained:
    seed = int(getattr(head, "random_state", 0))
    most = max(1, CONTEXT_TO // len(pairs)) if isinstance(head, ContextHead) else factor
    lowered = f" The factor was lowered from {factor} to {most}: a context head takes few pairs." * (most < factor)
    factor = min(factor, most)
    decision = None
    if factor == 1:
        synthesizer = None
    elif asked == "auto":
        some = pairs.sample(SAMPLE_PAIRS, seed) if pairs.mapped else pairs
        decision = choose_synthesis(
            some, head, [_named(kind, seed) for kind in CANDIDATES], factor, random_state=seed, unlabelled=unlabelled
        )
        synthesizer = decision.synthesizer
    else:
        synthesizer = _named(asked, seed) if isinstance(asked, str) else asked

    augmented = Augmented(head, synthesizer, factor, unlabelled, seed)
    if synthesizer is None:
        margins = getattr(augmented.fit(pairs).head_, "cv_margins_", None)
    else:
        seen = decision is not None and not pairs.mapped
        margins = decision.margins if decision is not None and seen else held_out(augmented, pairs, seed)
        augmented.fit(pairs)
    n, used = len(pairs), augmented.synthesizer_
    if used is not None:
        says = f"{(factor - 1) * n:,} synthetic pairs by {used.name} were added to {n:,} real ones."
    else:
        says = "No synthetic pairs: a factor of 1 means the real pairs alone." if factor == 1 else ""
    facts = {
        "kind": used.name if used is not None else "none",
        "arguments": used.get_params() if used is not None else {},
        "factor": factor if used is not None else 1,
        "real": n,
        "unlabelled": len(unlabelled) if unlabelled is not None and _reads_unlabelled(used, head) else 0,
        "diagnostics": getattr(used, "diagnostics_", {}),
        "collapsed": isinstance(used, Lens) and used.collapsed_,
        "decision": decision.to_dict() if decision is not None else None,
        "says": " ".join(filter(None, (says, decision.says if decision is not None else "", lowered.strip()))),
    }
    return Trained(
        augmented.head_, pairs.recipe.views, [], None, margins, augmented if used is not None else None, facts
    )


def held_out(augmented: Augmented, pairs: LatentPairs, random_state: int) -> Array | None:
    """Margins for the temperature: of as many fifths of the prompts as give `ENOUGH_MARGINS`, synthesizer and head
    fitted without them. The head's own cross-validation will not do: its synthetic pairs know the held-out ones."""
    fold = prompt_folds(pairs.group, 5, random_state)
    size: Sequence[int] = np.bincount(fold).tolist()
    if len(pairs) - max(size) < 2:
        return None
    parts = int(np.searchsorted(np.cumsum(size), min(ENOUGH_MARGINS, len(pairs)))) + 1
    return held_out_margins(augmented, pairs, fold, range(parts))


def _reads_unlabelled(synthesizer: Synthesizer | None, head: Head) -> bool:
    return head.takes_unlabelled or (synthesizer is not None and synthesizer.takes_unlabelled)


def _named(kind: str, random_state: int) -> Synthesizer:
    """A synthesizer by its kind, with default arguments."""
    synthesizer = SYNTHESIZERS[kind]()
    if hasattr(synthesizer, "random_state"):
        synthesizer.random_state = random_state
    return synthesizer
