"""Conflict for one and the same prompt: what a policy knows of an annotator from eight of that annotator's pairs.

On the demo data three annotators judge answers to the same prompts. A prompt cannot say who judges, so the prior is
blind to them; the posterior can be asked what it makes of some pairs of one annotator, and that z be used on others.
"""

from __future__ import annotations

from typing import Any

import lpc_data
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penchant.evaluate.accuracy import correctness
from penchant.policy.batches import TokenPair
from penchant.policy.codes import LatentCodes
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.policy import Policy

KNOWN = 8
"""Pairs that are known of an annotator."""
DRAWS = 2
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
    """Share of draws in which each test pair is ordered rightly, by how z is inferred from its annotator's pairs.

    posterior: mean of the posterior's logits over the known pairs. likelihood: p(k) times the product over the known
    pairs of s(margin under code k), p the mean prior. other: the posterior of another annotator's pairs.
    """
    users, tested = np.array(part.pool["user_id"]), np.array(part.test["user_id"])
    names = sorted(set(users) & set(tested))
    right: dict[str, list[NDArray[np.float64]]] = {"posterior": [], "other": [], "likelihood": []}
    codes = policy.codes
    assert isinstance(codes, LatentCodes)
    for draw in range(DRAWS):
        rng = np.random.default_rng([seed, draw])
        z: dict[str, dict[str, Tensor]] = {"posterior": {}, "likelihood": {}}
        for name in names:
            rows = rng.permutation(np.flatnonzero(users == name))[:KNOWN]
            known = [pool[i] for i in rows]
            each = {str(k): _code(codes, k) for k in range(codes.codes)} if codes.codes <= MOST_CODES else {}
            states, found = policy.score(known, each)
            with torch.no_grad():
                logits = codes.posterior_logits(states.chosen, states.rejected).mean(0, keepdim=True)
                z["posterior"][name] = codes.z(logits.softmax(-1))
                if each:
                    reference = PairLogProbs(*(column[rows] for column in of_pool))
                    fit = [torch.nn.functional.logsigmoid(loss.margins(p, reference)).sum() for p in found.values()]
                    prior = codes.prior_logits(states.prompt).log_softmax(-1).mean(0)
                    z["likelihood"][name] = codes.z((prior + torch.stack(fit)).softmax(-1)[None])
        z["other"] = {name: z["posterior"][names[i - 1]] for i, name in enumerate(names)}
        for way, of in z.items():
            if not of:
                continue
            correct = np.full(len(test), np.nan)
            for name in names:
                at = np.flatnonzero(tested == name)
                _, found = policy.score([test[i] for i in at], {"": _fixed(of[name])})
                reference = PairLogProbs(*(column[at] for column in of_test))
                margins = loss.margins(found[""], reference).numpy().astype(float)
                correct[at] = correctness(margins, np.zeros_like(margins))
            right[way].append(correct)
    return {
        "users": tested.tolist(),
        **{way: np.mean(values, axis=0).tolist() for way, values in right.items() if values},
    }


def _code(codes: LatentCodes, k: int) -> Any:
    return lambda _: codes.codebook[k : k + 1].detach()


def _fixed(z: Tensor) -> Any:
    return lambda _: z
