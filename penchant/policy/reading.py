"""What the codes of a trained policy stand for: who calls each, what it says, and whether it changes anything at all.

A code is a vector added before the vocabulary's head, so what it does to the tokens can be read off directly. Which
prompts call it says the prior; whether it follows a known source is measured against shuffled sources.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from penchant.errors import InputError
from penchant.pairs import describe, prompt_groups, to_text
from penchant.policy.agreement import SHUFFLES, agreement
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import generate
from penchant.policy.held_out import known_share
from penchant.policy.policy import Policy
from penchant.policy.watch import LEAST_KL, best_codes, code_figures, warnings
from penchant.policy.wording import Decoded, effects, phrase, prompt_words, response_tokens, seen_tokens

Array = NDArray[np.float64]

LEAST_SHARE = 0.01
"""Mean weight from which a code is shown in full."""
SHOWN = 16
"""Codes shown in full at most."""
CALLERS = 5
"""Prompts kept for each code."""
TOKENS = 10
"""Tokens kept that a code raises, and that it lowers."""
SWITCHED = 64
"""Prompts, spread over the data, at which codes are switched."""
PROMPTS = 4
ANSWER_TOKENS = 64
LABELS = ("source", "user_id")
LONGEST = 400
"""Characters kept of a prompt: the last ones, where the question is."""


def read_codes(
    policy: Policy,
    pairs: Dataset,
    *,
    prompts: int = PROMPTS,
    max_new_tokens: int = ANSWER_TOKENS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Read the codes of a policy from n pairs, best ones that it was not trained on.

    The LLM runs once over the pairs; then it answers `prompts` prompts under each code that is shown in full.

    Args:
        policy: one with codes.
        pairs: from `load_pairs`; `source` and `user_id` are compared with the codes where they are there.
        prompts: how many to answer under each code, the strongest caller of each of the most used codes; 0 for none.
        max_new_tokens: longest answer.
        shuffles: of the labels, for `agreement`.

    Returns:
        what codes.json holds (see `report_codes`): numbers, strings, lists and dicts alone.

    Raises:
        InputError: the policy has no codes, there are no pairs, or a number is out of range.
    """
    codes = policy.codes
    if not isinstance(codes, LatentCodes):
        raise InputError("this policy was trained without codes (codes 0), so there is none to read.")
    if not len(pairs):
        raise InputError("there are no pairs to read the codes from; give at least one.")
    if prompts < 0 or max_new_tokens < 1:
        raise InputError(f"prompts is {prompts} and max_new_tokens {max_new_tokens}; give at least 0 and 1.")
    states = policy.pair_states(pairs)
    with torch.inference_mode():
        each = codes.prior_logits(states.prompt.to(codes.codebook.device)).softmax(-1).double().cpu().numpy()
    posterior = policy.weights_by_posterior(states).double().numpy()
    groups = prompt_groups(pairs)
    rows = np.sort(np.unique(groups, return_index=True)[1])  # the first pair of each prompt
    prior, texts = each[rows], pairs[rows]["prompt"]
    figures = code_figures(prior) | {"kl": code_figures(each, posterior)["kl"]}
    weight, best = prior.mean(0), best_codes(prior).mean(0)
    order = np.lexsort((-best, -weight))
    shown = [int(k) for k in order[:SHOWN] if weight[k] >= LEAST_SHARE] or [int(order[0])]
    raised, lowered = moved_tokens(policy, codes, prior, pairs)
    words = prompt_words(texts, prior)
    spread = np.unique(np.linspace(0, len(rows) - 1, min(SWITCHED, len(rows))).round().astype(int))
    kl = switching(policy, codes, states.prompt[rows[spread]])
    asked = callers_of(prior, shown, prompts)
    answers = [texts[i] for i in asked]
    speakers: list[int | str] = ["expectation", *shown] if asked else []
    said = {k: answered(policy, answers, k, max_new_tokens, show_progress) for k in speakers}

    def facts(k: int) -> dict[str, Any]:
        callers = np.argsort(-prior[:, k], kind="stable")[:CALLERS]
        return {
            "code": k,
            "weight": float(weight[k]),
            "best": float(best[k]),
            "posterior_weight": float(posterior[:, k].mean()),
            "name": phrase(raised[k], words[k], bool(kl[k] >= LEAST_KL)),
            "switch_kl": float(kl[k]),
            "words": words[k],
            "raises": raised[k],
            "lowers": lowered[k],
            "callers": [
                {"row": int(rows[i]), "weight": float(prior[i, k]), "text": shortened(texts[i])} for i in callers
            ],
            "answers": said.get(k, []),
        }

    return {
        "policy": {name: policy.facts.get(name) for name in ("base", "loss", "beta")}
        | {"codes": codes.codes, "posterior": codes.posterior},
        "data": describe(pairs),
        "figures": figures,
        "warnings": warnings(figures, known=known_share(states)),
        "codes": [facts(int(k)) for k in order],
        "shown": shown,
        "switched_prompts": len(spread),
        "answers": {
            "prompts": [{"row": int(rows[i]), "text": shortened(texts[i])} for i in asked],
            "expectation": said.get("expectation", []),
            "max_new_tokens": max_new_tokens,
        },
        "agreement": [
            {"label": label, **one}
            for label in LABELS
            if label in pairs.column_names
            for one in agreement(pairs[label], groups, each, posterior, shuffles=shuffles, seed=seed)
        ],
    }


def moved_tokens(
    policy: Policy, codes: LatentCodes, prior: Array, pairs: Dataset
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]]]:
    """For each code the tokens that it raises, and those that it lowers, strongest first; see `effects`."""
    head = policy.vocabulary.head.weight
    counts = response_tokens(policy.backbone.chat, pairs, len(head))
    seen, decoded = seen_tokens(counts), Decoded(policy.backbone.chat)
    rows = policy.vocabulary.scale * head[torch.from_numpy(seen).to(head.device)]
    moved = effects(codes.codebook, prior, rows, counts[seen])
    lowered = [decoded.strongest(-row, seen, TOKENS) for row in moved]
    for token in (token for tokens in lowered for token in tokens):
        token["effect"] *= -1
    return [decoded.strongest(row, seen, TOKENS) for row in moved], lowered


@torch.inference_mode()
def switching(policy: Policy, codes: LatentCodes, prompt: Tensor) -> Array:
    """How much switching to each code changes what comes next, [K], in nats.

    The mean over prompt states [n, d] of KL[p(. | x, e_k) || p(. | x, E z)], the distributions of a response's first
    token under code k and under the prior's expectation.
    """
    states = prompt.to(codes.codebook.device)
    usual = policy.vocabulary.logits(states + codes.expected(states)).log_softmax(-1)
    found = []
    for code in codes.codebook:
        own = policy.vocabulary.logits(states + code).log_softmax(-1)
        found.append((own.exp() * (own - usual)).sum(-1).mean().clamp(min=0).item())
    return np.array(found)


def callers_of(prior: Array, shown: list[int], most: int) -> list[int]:
    """Up to `most` different prompts: the strongest caller of each code in `shown`, then the next strongest of each."""
    ranked = np.argsort(-prior[:, shown], axis=0, kind="stable")
    return list(dict.fromkeys(ranked.flatten().tolist()))[:most]


def answered(
    policy: Policy, prompts: list[Any], code: int | str, max_new_tokens: int, show_progress: bool
) -> list[str]:
    """The likeliest answer to each prompt under a code."""
    found = generate(policy, prompts, code=code, max_new_tokens=max_new_tokens, show_progress=show_progress)
    return [texts[0] for texts in found]


def shortened(prompt: Any) -> str:
    text = to_text(prompt)
    return text if len(text) <= LONGEST else "…" + text[-LONGEST:]
