"""Conflict for one and the same prompt: what a policy knows of an annotator from eight of that annotator's pairs.

On the demo data three annotators judge answers to the same prompts. A prompt cannot say who judges, so the prior is
blind to them; the posterior can be asked what it makes of some pairs of one annotator, and that z be used on others.
"""

from __future__ import annotations

from typing import Any

import lpc_data
import numpy as np
import torch
from torch import Tensor

from penchant.evaluate.accuracy import correctness
from penchant.policy.batches import TokenPair
from penchant.policy.codes import LatentCodes
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.policy import Policy

KNOWN = 8
"""Pairs that are known of an annotator."""
MOST_CODES = 16
"""Codes for which each one's likelihood is worked out: a pass of the LM head over the known pairs a code."""


def people(
    policy: Policy,
    loss: Loss,
    part: lpc_data.Part,
    pool: list[TokenPair],
    of_pool: PairLogProbs,
    test: list[TokenPair],
    of_test: PairLogProbs,
    seed: int,
) -> dict[str, Any]:
    """Whether each test pair is ordered rightly, by how z is inferred from its annotator's pairs.

    posterior: mean of the posterior's logits over the known pairs. likelihood: p(k) times the product over the known
    pairs of s(margin under code k), p the mean prior. other: the posterior of another annotator's pairs.
    """
    users, tested = np.array(part.pool["user_id"]), np.array(part.test["user_id"])
    names = sorted(set(users) & set(tested))
    codes = policy.codes
    assert isinstance(codes, LatentCodes)
    rng = np.random.default_rng(seed)
    z: dict[str, dict[str, Tensor]] = {"posterior": {}, "other": {}, "likelihood": {}}
    for name in names:
        rows = rng.permutation(np.flatnonzero(users == name))[:KNOWN]
        each = {str(k): _fixed(codes.codebook[k : k + 1]) for k in range(codes.codes)}
        states, found = policy.score([pool[i] for i in rows], each if codes.codes <= MOST_CODES else {})
        with torch.no_grad():
            logits = codes.posterior_logits(states.chosen, states.rejected).mean(0, keepdim=True)
            z["posterior"][name] = codes.z(logits.softmax(-1))
            if found:
                reference = PairLogProbs(*(column[rows] for column in of_pool))
                fit = [torch.nn.functional.logsigmoid(loss.margins(p, reference)).sum() for p in found.values()]
                prior = codes.prior_logits(states.prompt).log_softmax(-1).mean(0)
                z["likelihood"][name] = codes.z((prior + torch.stack(fit)).softmax(-1)[None])
    z["other"] = {name: z["posterior"][names[i - 1]] for i, name in enumerate(names)}
    right = {way: np.full(len(test), np.nan) for way, of in z.items() if of}
    for name in names:
        at = np.flatnonzero(tested == name)
        _, found = policy.score([test[i] for i in at], {way: _fixed(z[way][name]) for way in right})
        reference = PairLogProbs(*(column[at] for column in of_test))
        for way, probs in found.items():
            margins = loss.margins(probs, reference).numpy().astype(float)
            right[way][at] = correctness(margins, np.zeros_like(margins))
    return {"users": tested.tolist(), **{way: values.tolist() for way, values in right.items()}}


def _fixed(z: Tensor) -> Any:
    return lambda _: z
