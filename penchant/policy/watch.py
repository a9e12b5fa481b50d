"""Watching latent codes for collapse: figures of the prior's and the posterior's weights, and what is wrong with them.

With one unambiguous label a pair, a policy can ignore its codes at no cost. Then KL[q || p] is about zero, or one code
serves every prompt; and codes that only the posterior can tell apart are of no use where there is no pair to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

LEAST_PROMPTS = 30
"""Prompts below which no warning is given: of a few prompts any shares may come about by chance."""
LEAST_KL = 0.01
"""Nats below which two distributions count as the same: on average at most sqrt(KL / 2) = 7% of the weight moves from
one code to another (Pinsker's inequality)."""
MOST_ON_ONE = 0.8
"""Share of the prompts that may have one and the same best code."""
LEAST_PERPLEXITY = 1.5
"""Codes in use, fewer than which are hardly more than one: two with shares .86 and .14 make 1.5."""
MOST_GAP = 0.05
"""Accuracy with the posterior minus accuracy with the prior that calls for a warning."""


def code_figures(prior: Any, posterior: Any = None) -> dict[str, Any]:
    """Figures of the weights that n prompts, or pairs, give to K codes. All in nats; ready for JSON.

    Args:
        prior: p(z | x), [n, K], n >= 1, rows add up to 1; a tensor or an array.
        posterior: q(z | x, w > l), [n, K], for the same rows, if there are pairs.

    Returns:
        n; kl: mean KL[q || p], absent without a posterior; perplexity: exp of the entropy of the mean prior, from 1 to
        K, the codes in use; usage: for each code the share of rows whose best one it is, ties shared; top_share: the
        largest of them; prior_entropy: mean entropy of the rows; prior_spread: mean KL from the mean prior, how much
        the prior depends on the prompt, 0 where it does not.
    """
    p = _weights(prior)
    mean = p.mean(0)
    usage = best_codes(p).mean(0)
    found: dict[str, Any] = {"n": len(p)}
    if posterior is not None:
        found["kl"] = float(_kl(_weights(posterior), p).mean())
    return found | {
        "perplexity": math.exp(_entropy(mean)),
        "top_share": float(usage.max()),
        "usage": usage.tolist(),
        "prior_entropy": float(_entropy(p).mean()),
        "prior_spread": float(_kl(p, mean).mean()),
    }


def best_codes(weights: Any) -> Array:
    """[n, K]: 1 for each row's best code; codes that tie share it, as all do before the first step."""
    p = _weights(weights)
    best = p >= p.max(1, keepdims=True) * (1 - 1e-6)
    shared: Array = best / best.sum(1, keepdims=True)
    return shared


def warnings(
    figures: Mapping[str, Any],
    accuracy_prior: float | None = None,
    accuracy_posterior: float | None = None,
    known: float | None = None,
) -> list[str]:
    """What is wrong with a policy's codes, one sentence each: what it means and what to try. Empty if nothing is.

    Args:
        figures: what `code_figures` returned for held-out pairs.
        accuracy_prior, accuracy_posterior: shares of those pairs ordered rightly with z from either.
        known: where the posterior goes by who judged, and not by which response was chosen: the share of pairs on whose
            judge there is evidence. What such a posterior adds is what it is for.

    A single code cannot fail, and no warning is given for fewer than LEAST_PROMPTS rows.
    """
    codes = len(figures["usage"])
    if codes == 1 or figures["n"] < LEAST_PROMPTS:
        return []
    if known is not None:
        return _of_people(figures, accuracy_prior, accuracy_posterior, known)
    said = []
    kl, perplexity, top = figures.get("kl"), figures["perplexity"], figures["top_share"]
    constant = figures["prior_spread"] < LEAST_KL
    if kl is not None and kl < LEAST_KL:
        said.append(
            f"The posterior has collapsed: seeing the pair moves the codes by {kl:.2g} nats, so they say no more than"
            " the prompt does; try a smaller kl_weight or fewer codes, and check that the preferences conflict at all."
        )
    # A prior that is the same for all has one best code however little it prefers it: that is said below instead.
    if perplexity < LEAST_PERPLEXITY or (top > MOST_ON_ONE and not constant):
        said.append(
            f"Nearly all prompts use one code: it is the best one for {top:.0%} of them and {perplexity:.1f} of {codes}"
            " codes are in use, so the policy is a plain one with a constant added; try a higher temperature, a smaller"
            " kl_weight or a lower learning rate."
        )
    elif constant:
        said.append(
            "The prior does not depend on the prompt: every prompt gets the same mixture of codes, so at inference they"
            " act as one constant; train longer, or try a larger kl_weight if the posterior knows more than the prior."
        )
    if accuracy_prior is not None and accuracy_posterior is not None and accuracy_posterior - accuracy_prior > MOST_GAP:
        gap = 100 * (accuracy_posterior - accuracy_prior)
        said.append(
            f"The posterior is {gap:.1f} points better than the prior: it sees which response was chosen, and what the"
            " codes learn from that cannot be told from a prompt at inference; try a larger kl_weight, fewer codes or a"
            " longer training, or infer the code from some of a person's own pairs."
        )
    return said


def _of_people(
    figures: Mapping[str, Any], by_prior: float | None, by_posterior: float | None, known: float
) -> list[str]:
    said = []
    if known < 0.5:
        return [
            f"Who judged is known from training for {known:.0%} of these pairs, and for the others the posterior is the"
            " prior: its figures here say little; test on pairs of the same people, named in user_id."
        ]
    kl = figures.get("kl")
    if kl is not None and kl < LEAST_KL:
        said.append(
            f"Who judged moves the codes by {kl:.2g} nats: no person's taste was told from another's; give more pairs a"
            " person, train longer, or check that the people disagree at all."
        )
    elif by_prior is not None and by_posterior is not None and by_posterior <= by_prior:
        said.append(
            f"Knowing who judged does not help on held-out pairs ({100 * (by_posterior - by_prior):+.1f} points): the"
            " codes learned what sets people's training pairs apart and not their taste; give more pairs a person."
        )
    return said


def _weights(weights: Any) -> Array:
    """Float64 [n, K] whose rows add up to 1 exactly, so that no KL is below 0 by rounding."""
    given = weights.detach().double().cpu().numpy() if isinstance(weights, Tensor) else np.asarray(weights, np.float64)
    normal: Array = given / given.sum(1, keepdims=True)
    return normal


def _entropy(p: Array) -> Any:
    return -np.sum(p * _log(p), axis=-1)


def _kl(p: Array, q: Array) -> Array:
    """KL[p || q] of rows [n, K], where a weight that underflowed to 0 counts as the smallest one there is."""
    kl: Array = np.maximum(np.sum(p * (_log(p) - _log(q)), axis=-1), 0.0)
    return kl


def _log(p: Array) -> Array:
    log: Array = np.log(np.maximum(p, np.finfo(np.float32).tiny))
    return log
