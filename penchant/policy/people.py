"""Who judged what: each person's evidence on the codes, and a new person's from a few pairs.

Under code k the margin of a pair is, to first order in z,

    m_k = m + dm/dz (e_k - z)

and dm/dz is at hand wherever the loss is: for all K codes it costs one product with the codebook, not K passes of the
vocabulary's head (weights under training that the head shares, as with --lora 0, cost one more derivative by them).
log f(m_k) = -loss(m_k) is what the pair says for code k, and a person's evidence is the sum over their pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from penchant.errors import InputError
from penchant.policy.batches import TokenPair, lay_out, token_pairs
from penchant.policy.losses import Loss, PairLogProbs, make_loss
from penchant.policy.policy import Policy
from penchant.policy.saving import load_base


def people_of(pairs: Dataset) -> tuple[list[str], list[int]]:
    """The people who judged some pairs, sorted, and the number of who judged each; InputError where it is not said."""
    if "user_id" not in pairs.column_names:
        raise InputError("the pairs have no column user_id, who judged each; add it, or map it with --columns.")
    given = pairs["user_id"]
    if None in given:
        raise InputError(f"row {given.index(None)} has no user_id; name who judged it, or drop it.")
    names = sorted(set(given))
    number = {name: i for i, name in enumerate(names)}
    return names, [number[who] for who in given]


def code_likelihood(loss: Loss, margins: Tensor, z: Tensor, codebook: Tensor) -> Tensor:
    """log f(m_k) of b pairs under each of K codes, [b, K], without a gradient.

    Args:
        margins: [b], differentiable by z.
        z: [b, d], under which they were had; codebook: [K, d].
    """
    (slopes,) = torch.autograd.grad(margins.sum(), z, retain_graph=True)
    with torch.no_grad():
        under = margins[:, None] + slopes @ codebook.T - (slopes * z).sum(-1, keepdim=True)
        return -loss(under)


def evidence_of(policy: Policy, loss: Loss, pairs: Sequence[TokenPair], reference: PairLogProbs | None) -> Tensor:
    """log f(m_k) of n pairs under each code, [n, K], around the prior's expectation; `reference` as in training."""
    codes = policy._codes()

    def work(batch: list[int]) -> Tensor:
        with torch.no_grad():
            states, under = policy.run(lay_out([pairs[i] for i in batch], packed=policy.backbone.packed))
            z = codes.expected(states.prompt)
        z.requires_grad_(True)
        known = PairLogProbs(*(part[batch].to(z.device) for part in reference)) if reference is not None else None
        return code_likelihood(loss, loss.margins(under(z), known), z, codes.codebook.detach()).cpu()

    found = torch.zeros(len(pairs), codes.codes)
    for batch, said in policy.over_batches(pairs, work):
        found[batch] = said
    return found


def evidence_from(policy: Policy, pairs: Dataset) -> Tensor:
    """Evidence [K] on somebody new from a few pairs that they judged, for `generate`; no training.

    `policy` as `Policy.from_pretrained` gives it: its loss and its reference are those it was trained with.
    """
    facts = policy.facts
    loss = make_loss(facts["loss"], facts["beta"], facts.get("label_smoothing", 0.0), facts.get("gamma"))
    tokens = token_pairs(policy.backbone, pairs)
    reference = reference_again(policy, tokens) if loss.needs_reference else None
    return evidence_of(policy, loss, tokens, reference).sum(0)


def reference_again(policy: Policy, pairs: Sequence[TokenPair]) -> PairLogProbs:
    """The reference's log-probabilities, by the trained policy without its adapters, or by the LLM it was made from."""
    model: Any = policy.model
    if policy.facts["lora"] is not None:
        with model.disable_adapter():
            return policy.score(pairs, {"": lambda _: None})[1][""]
    return Policy(*load_base(policy.facts)).score(pairs, {"": lambda _: None})[1][""]
