"""Latent DPO's slope for very many pairs at once: the loss of `latent_dpo_losses` as a few matrix products a step.

For a person's p(z | x) = N(m, s^2) and the prior N(0, 1),

    log p(z | x) - log N(z) = sum_d [h z + k z^2] + const,    h = m / s^2,  k = (1 - 1 / s^2) / 2.

Every pair has the same noise e, so its candidates are z = o + t e with a place o and a scale t of its own (0 and 1 for
the prior's, mean and deviation of a posterior for its draws), and the sum is

    sum_d [(t h + 2 o t k) e + t^2 k e^2] + sum_d [o h + o^2 k],

the first part a product with a matrix that all pairs share; no candidate is kept. The constant cancels in every margin.

Rewards never change. So candidates are put in order from the best to the worst once, and the ordered pairs that the
loss looks at are a corner of that table from then on. Its slope needs no exponential an ordered pair:
sigmoid(-(x - y)) = e^y / (e^x + e^y).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from penchant.personal.encoder import Gaussian
from penchant.personal.latent_dpo import least, top_pairs

REACH = 60.0
"""Evidences, times beta, that are further than this from the middle of a pair's are held there, so that e^x + e^y does
not overflow: those on one far side count as equal among themselves, and their distance from the rest stays clear."""


class Natural(NamedTuple):
    """h and k of b Gaussians [b, latent], or the derivatives by them."""

    h: Tensor
    k: Tensor

    @classmethod
    def of(cls, person: Gaussian) -> Natural:
        precision = (-2 * person.log_deviation).exp()
        return cls(person.mean * precision, 0.5 - 0.5 * precision)

    def by(self, person: Gaussian) -> Gaussian:
        """Derivatives by h and k as those by mean and log deviation."""
        precision = (-2 * person.log_deviation).exp()
        by_precision = torch.addcmul(-0.5 * self.k, person.mean, self.h)
        return Gaussian(precision * self.h, -2 * precision * by_precision)


class Draws(NamedTuple):
    """The candidates of n pairs, those of `latent_dpo.candidates`, without writing them out."""

    place: Tensor
    """o [2, n, latent]: of what is drawn from both posteriors."""
    scale: Tensor
    """t [2, n, latent]"""
    noise: Tensor
    """[e, e^2] [3, m, 2 latent]"""

    @classmethod
    def of(cls, chosen: Gaussian, rejected: Gaussian, noise: Tensor) -> Draws:
        """For posteriors [n, latent] and noise [3, m, 1, latent]."""
        place, log_scale = (torch.stack(both) for both in zip(chosen, rejected, strict=True))
        return cls(place, log_scale.exp(), torch.cat([noise[:, :, 0], noise[:, :, 0] ** 2], -1))

    def evidence(self, person: Natural) -> Tensor:
        """[3 m, n]: log p(z | x) - log N(z), up to a number a pair, for a person's p(z | x) at n prompts."""
        h, k = person
        bend = self.place * k
        there = (self.place * (h + bend)).sum(-1)
        features = torch.cat([self.scale * h.add(bend, alpha=2), self.scale.square() * k], -1)
        drawn = self.noise[1:] @ features.transpose(1, 2) + there[:, None]
        return torch.cat([self.noise[0] @ torch.cat([h, k], -1).T, drawn.flatten(0, 1)])

    def rewards(self, chosen: Gaussian, rejected: Gaussian) -> Tensor:
        """[n, 3 m]: those of `latent_dpo.candidates`."""
        both = [Natural.of(q) for q in (chosen, rejected)]
        odds = self.evidence(Natural(*(a - b for a, b in zip(*both, strict=True))))
        ends = [(q.mean * n.h / 2 + q.log_deviation).sum(-1) for q, n in zip((chosen, rejected), both, strict=True)]
        return torch.sigmoid(odds + ends[1] - ends[0]).T

    def sums(self, weight: Tensor) -> Natural:
        """sum_j weight_j z_j and sum_j weight_j z_j^2 [n, latent] over the candidates, weight [3 m, n]: what a slope by
        evidences is as one by h and k."""
        m = self.noise.shape[1]
        drawn = weight[m:].view(2, m, -1)
        e, e2 = (drawn.transpose(1, 2) @ self.noise[1:]).chunk(2, -1)
        moved, there = self.scale * e, self.place * drawn.sum(1)[..., None]
        second = torch.addcmul(self.place * moved.add(there, alpha=0.5) * 2, self.scale.square(), e2)
        h, k = (weight[:m].T @ self.noise[0]).chunk(2, -1)
        return Natural(h + (moved + there).sum(0), k + second.sum(0))


class Ranking(NamedTuple):
    """Candidates of n pairs from the best to the worst, and where the top quarter of their differences begins."""

    order: Tensor
    """Int16 [c, n]"""
    reward: Tensor
    """[c, n], falling."""
    edge: Tensor
    """[n]"""

    @classmethod
    def of(cls, reward: Tensor) -> Ranking:
        """For rewards [n, c]."""
        reward, order = reward.sort(1, descending=True)
        better, worse = torch.triu_indices(reward.shape[1], reward.shape[1], 1)  # other differences are not above 0
        gaps = reward.index_select(1, better) - reward.index_select(1, worse)
        edge = gaps.kthvalue(max(1, gaps.shape[1] + 1 - top_pairs(reward.shape[1])), 1).values
        return cls(order.T.short(), reward.T.contiguous(), edge)


class Table(NamedTuple):
    """The ordered pairs (a, b) of n pairs that the loss looks at, a from the best, b from the worst candidate on."""

    order: Tensor
    """Int [c, n]: places in the flat evidence [c n] of the candidates from the best to the worst."""
    rank: Tensor
    """Int [c, n]: the inverse of `order`."""
    weight: Tensor
    """[A, B, n]: what (a, b) counts, 0 where the loss does not look; nobody's are beyond A and B."""
    given: Tensor
    """[A, n]: the sum over b."""
    scratch: Tensor

    @classmethod
    def of(cls, ranking: Ranking, share: Tensor) -> Table:
        """For n pairs that count as much as `share` [n] says."""
        better = ranking.reward[:, None] - ranking.reward.flip(0)
        looked_at = better.ge_(least(ranking.edge))  # 0 and 1, as floats
        a, b = (int(looked_at.amax(side).amax(1).sum()) for side in (1, 0))
        weight = looked_at[:a, :b] * (share / looked_at.sum((0, 1)).clamp_min(1))
        n = len(share)
        order, rank = (n * places + torch.arange(n) for places in (ranking.order.long(), ranking.order.argsort(0)))
        return cls(order, rank, weight, weight.sum(1), torch.empty_like(weight))

    def slope(self, evidence: Tensor, beta: float) -> Tensor:
        """[c, n]: derivative by the evidence [c, n] of the sum over pairs of share times `latent_dpo_losses`."""
        a, b, _ = self.weight.shape
        x = beta * evidence.take(self.order)
        x = (x - (x.amax(0) + x.amin(0)) / 2).clamp_(-REACH, REACH).exp_()
        up, down = x[:a], x.flip(0)[:b]
        # Into memory that is there: a fresh block of this size would cost ten times the arithmetic.
        ratio = torch.add(up[:, None], down, out=self.scratch)
        torch.div(self.weight, ratio, out=ratio)
        found = torch.zeros_like(x)
        found[:a] = up * ratio.sum(1) - self.given  # -sum_b weight sigmoid(-margin)
        found[len(x) - b :] += (down * ratio.sum(0)).flip(0)
        return (beta * found).take(self.rank)
