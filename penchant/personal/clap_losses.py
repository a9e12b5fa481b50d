"""CLaP's terms beside the reconstruction: two KL divergences to the prior N(0, I), and the contrastive term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from penchant.personal.encoder import Gaussian, log_normal


def kld(q: Gaussian) -> Tensor:
    """The usual mean_i KL(q_i || N(0, I)) of N Gaussians [N, d], in closed form."""
    variance = (2 * q.log_deviation).exp()
    return 0.5 * (q.mean**2 + variance - 1 - 2 * q.log_deviation).sum(-1).mean()


def dg_kld(q: Gaussian, noise: Tensor) -> Tensor:
    """DG-KLD: KL of the aggregated posterior of N Gaussians [N, d] to N(0, 1), dimension by dimension,

        sum_d mean_{i,m} [ log( (1/N) sum_j q_j(z_{i,m,d}) ) - log N(z_{i,m,d}; 0, 1) ],  z_{i,m} ~ q_i,

    which asks of the N together to fill the prior and leaves each free to be narrow; noise [M, N, d] makes z_{i,m}.
    """
    z = q.draw(noise)
    each = log_normal(z[:, :, None], q.mean, q.log_deviation)  # [M, i, j, d]
    aggregated = each.logsumexp(2) - math.log(len(q.mean))
    return (aggregated - log_normal(z)).mean((0, 1)).sum()


def contrastive(log_probs: Tensor) -> Tensor:
    """-mean_i log( p(y_i | x, z_i) / sum_j p(y_i | x, z_j) ); log_probs [N, c] has p(y_i | x, z_i) in column 0."""
    return -torch.log_softmax(log_probs, 1)[:, 0].mean()


def contrastive_accuracy(log_probs: Tensor) -> Tensor:
    """Share of responses that are likelier under their own z (column 0) than under any other; ties count as wrong."""
    return (log_probs[:, :1] > log_probs[:, 1:]).all(1).float().mean()
