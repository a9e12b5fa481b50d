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
    eight of their pairs. other: the same of eight pairs of another annotator. posterior: the mean of what the
    posterior's network makes of the eight pairs.
    """
    users, tested = np.array(part.pool["user_id"]), np.array(part.test["user_id"])
    names = sorted(set(users) & set(tested))
    codes = policy.codes
    assert isinstance(codes, LatentCodes)
    rng = np.random.default_rng(seed)
    draws = [{name: rng.permutation(np.flatnonzero(users == name))[:KNOWN] for name in names} for _ in range(DRAWS)]

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
                found[name] = codes.z(codes.posterior_logits(states).mean(0).softmax(-1))
        return found

    def of_test_pairs(by: dict[str, Tensor]) -> Tensor:
        return torch.stack([by[name] for name in tested])

    def weighed(states: PairStates) -> Tensor:
        assert states.evidence is not None
        return codes.z((codes.prior_logits(states.prompt).log_softmax(-1) + states.evidence).softmax(-1))

    def right(evidence: Tensor | None, shift: Any) -> Any:
        _, found = policy.score(test, {"": shift}, evidence=evidence)
        margins = loss.margins(found[""], of_test).numpy().astype(float)
        return correctness(margins, np.zeros_like(margins))

    eight = [by_likelihood(rows) for rows in draws]
    others = {name: eight[0][names[i - 1]] for i, name in enumerate(names)}
    made = {
        "likelihood": np.mean([right(of_test_pairs(each), weighed) for each in eight], 0),
        "other": right(of_test_pairs(others), weighed),
    }
    if codes.posterior == PEOPLE:
        made["known"] = right(policy.known_people(part.test), weighed)
    else:  # the network's z travels as the evidence does
        made["posterior"] = right(of_test_pairs(by_network(draws[0])), lambda states: states.evidence)
    return {"users": tested.tolist(), **{way: rows.tolist() for way, rows in made.items()}}
