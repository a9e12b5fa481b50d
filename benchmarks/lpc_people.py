"""Conflict for one and the same prompt: what a policy knows of an annotator from eight of that annotator's pairs.

On the demo data three annotators judge answers to the same prompts. A prompt cannot say who judges, so the prior is
blind to them; a person's evidence on the codes is had from some of their pairs, and that z is used on others.
"""

from __future__ import annotations

from typing import Any

import lpc_data
import numpy as np
import torch
from torch import Tensor

from penchant.evaluate.accuracy import correctness
from penchant.policy.batches import TokenPair
from penchant.policy.codes import PEOPLE, LatentCodes, PairStates
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.people import evidence_of
from penchant.policy.policy import Policy

KNOWN = 8
"""Pairs that are known of an annotator,"""
DRAWS = 3
"""drawn this often at each seed."""


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
    """Whether each test pair is ordered rightly, by what is known of its annotator.

    known: all that training saw of them (the posterior "people" alone). likelihood: p(z | x) times the likelihood of
    eight of their pairs that training has not seen, the mean of three draws. other: the same of eight pairs of another
    annotator. posterior: the mean of what the posterior's network makes of the eight pairs.
    """
    users, tested = np.array(part.pool["user_id"]), np.array(part.test["user_id"])
    fresh = np.setdiff1d(np.arange(len(pool)), part.rows)
    names = sorted(set(users) & set(tested))
    codes = policy.codes
    assert isinstance(codes, LatentCodes)
    rng = np.random.default_rng(seed)
    draws = [{name: rng.permutation(fresh[users[fresh] == name])[:KNOWN] for name in names} for _ in range(DRAWS)]

    def by_likelihood(rows: dict[str, Any]) -> dict[str, Tensor]:
        return {
            name: evidence_of(policy, loss, [pool[i] for i in few], PairLogProbs(*(c[few] for c in of_pool))).sum(0)
            for name, few in rows.items()
        }

    def by_network(rows: dict[str, Any]) -> dict[str, Tensor]:
        found = {}
        for name, few in rows.items():
            states = policy.score([pool[i] for i in few], {})[0]
            with torch.no_grad():
                found[name] = codes.posterior_logits(states).mean(0)
        return found

    eight = [by_likelihood(rows) for rows in draws]
    ways = {f"likelihood {i}": each for i, each in enumerate(eight)}
    ways["other"] = {name: eight[0][names[i - 1]] for i, name in enumerate(names)}
    if codes.posterior == PEOPLE:
        ways["known"] = {name: policy.evidence_on(name) for name in names}
    else:
        ways["posterior"] = by_network(draws[0])

    def shift(number: int, way: str) -> Any:
        """z by the evidence of one way; those of all ways stand side by side."""

        def z(states: PairStates) -> Tensor:
            assert states.evidence is not None
            own = states.evidence[:, number * codes.codes : (number + 1) * codes.codes]
            prior = 0 if way == "posterior" else codes.prior_logits(states.prompt).log_softmax(-1)
            return codes.z((prior + own).softmax(-1))

        return z

    evidence = torch.cat([torch.stack([by[name] for name in tested]) for by in ways.values()], 1)
    _, found = policy.score(test, {way: shift(i, way) for i, way in enumerate(ways)}, evidence=evidence)
    margins = {way: loss.margins(probs, of_test).numpy().astype(float) for way, probs in found.items()}
    right = {way: correctness(each, np.zeros_like(each)) for way, each in margins.items()}
    drawn = np.mean([right.pop(f"likelihood {i}") for i in range(DRAWS)], 0)
    return {"users": tested.tolist(), "likelihood": drawn.tolist(), **{way: r.tolist() for way, r in right.items()}}
