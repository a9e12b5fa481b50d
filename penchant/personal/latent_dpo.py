"""Latent DPO: a person's p(z | x) from their pairs by the posterior alone, without a pass of the LLM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from penchant.personal.encoder import Gaussian, log_normal

CANDIDATES = 16
"""z drawn from each of: the prior, q(z | x, chosen), q(z | x, rejected)."""
TOP = 0.25
"""Share of ordered candidate pairs, those whose rewards differ most, that the loss looks at."""


class Candidates(NamedTuple):
    """What b preference pairs say of values of z."""

    z: Tensor
    """[b, c, latent]"""
    reward: Tensor
    """[b, c]: r(x, z) = q(z | x, chosen) / (q(z | x, chosen) + q(z | x, rejected)), in [0, 1]."""


def candidates(chosen: Gaussian, rejected: Gaussian, noise: Tensor) -> Candidates:
    """Values of z for b pairs and their latent rewards.

    The reward is importance weighting with reward 1 for the chosen and 0 for the rejected response: how much likelier
    it is that z stands for the chosen one.

    Args:
        chosen, rejected: q(z | x, y) of both responses, [b, latent].
        noise: standard normal [3, m, b or 1, latent]; its parts make draws from the prior and from both posteriors.
    """
    prior = noise[0].expand(-1, len(chosen.mean), -1)
    z = torch.cat([prior, chosen.draw(noise[1]), rejected.draw(noise[2])])
    odds = chosen.log_prob(z) - rejected.log_prob(z)
    return Candidates(z.transpose(0, 1), torch.sigmoid(odds).T)


def latent_dpo_losses(person: Gaussian, found: Candidates, beta: float = 0.1) -> Tensor:
    """[b]: -mean log sigmoid( beta [ (log p(z_a | x) - log N(z_a)) - (log p(z_b | x) - log N(z_b)) ] ) over the ordered
    pairs (a, b) of candidates whose r_a - r_b is in the top quarter of its prompt's, and above 0: where posteriors are
    narrow, most rewards are 0 or 1 to the last bit.

    Args:
        person: p(z | x) of b prompts [b, latent].
    """
    z = found.z.transpose(0, 1)
    evidence = (person.log_prob(z) - log_normal(z).sum(-1)).T  # log p(z | x) / p(z), [b, c]
    better = found.reward[:, :, None] - found.reward[:, None]  # [b, a, b']
    margin = evidence[:, :, None] - evidence[:, None]
    c = better.shape[1]
    edge = better.flatten(1).topk(max(1, int(TOP * c * (c - 1))), 1).values[:, -1, None, None]
    looked_at = (better >= edge) & (better > 0)
    losses = torch.where(looked_at, -F.logsigmoid(beta * margin), 0.0)
    return losses.sum((1, 2)) / looked_at.sum((1, 2)).clamp_min(1)
