"""Latent codes (LPC, arXiv 2505.04993): a codebook of hidden preference factors, mixed anew for every sequence.

    prior      p(z | x)          = softmax(MLP(h_x))                        h_x at the last prompt token
    posterior  q(z | x, w > l)   = softmax(MLP([h_xw; h_xl]))               at the last token of either response
    weights    g Gumbel(p) + (1 - g) Gumbel(q),   g from 0 to 1 over training
    z          sum_k weights_k e_k,   the policy is softmax(LMHead(h_t + z)) at every response position

All h come from the policy's own forward pass and carry no z. At inference there is no pair: the prior alone speaks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penchant.errors import InputError

POSTERIORS = {"concat": 2, "difference": 1, "both": 3}
"""What the posterior sees, by name, and how many hidden states wide that is."""


class PairStates(NamedTuple):
    """Last hidden states of b pairs, each [b, d]."""

    prompt: Tensor
    """At the last prompt token."""
    chosen: Tensor
    """At the last token of the chosen response."""
    rejected: Tensor


class Draw(NamedTuple):
    """What a latent gives b pairs in training."""

    z: Tensor
    """[b, d], added to the hidden states that predict the responses' tokens."""
    kl: Tensor
    """[b], KL[q || p] in nats."""
    prior: Tensor | None = None
    """[b, K], the prior's code weights; None where there are no codes."""
    posterior: Tensor | None = None
    """[b, K], the posterior's."""


class Latent(Protocol):
    """Whatever gives each sequence a z: latent codes, or a control in their place."""

    def draw(self, states: PairStates, g: float, person: Tensor | None = None) -> Draw:
        """A random z of each pair, g of it from the prior. `person`, int [b], says who judged each pair."""
        ...

    def expected(self, prompt: Tensor) -> Tensor:
        """z [b, d] of prompt states [b, d] at inference."""
        ...


class LatentCodes(nn.Module):
    """A codebook with its prior and posterior.

    Args:
        width: d, of the LLM's hidden states.
        codes: K.
        posterior: what it sees: "concat" [h_xw; h_xl] as the paper has it, "difference" h_xw - h_xl, or "both".
        temperature: of the Gumbel-softmax; towards 0 a draw becomes a single code.
        scale: standard deviation of the fresh codebook's numbers; 0 starts from codes that do nothing.

    Both MLPs have two layers with d hidden units, see hidden states brought to mean 0 and deviation 1, and start from
    uniform weights.
    """

    def __init__(
        self, width: int, codes: int = 64, posterior: str = "concat", temperature: float = 1.0, scale: float = 0.1
    ) -> None:
        super().__init__()
        if codes < 1:
            raise InputError(f"codes is {codes}; give at least 1, or 0 for a policy without codes.")
        if posterior not in POSTERIORS:
            raise InputError(f"posterior {posterior!r} is not one of {', '.join(POSTERIORS)}.")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature is {temperature}; give a finite number above 0.")
        self.width, self.codes, self.posterior, self.temperature = width, codes, posterior, temperature
        self.codebook = nn.Parameter(torch.randn(codes, width) * scale)
        self.prior_net = _mlp(width, width, codes)
        self.posterior_net = _mlp(POSTERIORS[posterior] * width, width, codes)

    def prior_logits(self, prompt: Tensor) -> Tensor:
        """[b, K] of prompt states [b, d]."""
        logits: Tensor = self.prior_net(_normed(prompt))
        return logits

    def posterior_logits(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """[b, K] of two responses' states [b, d]."""
        won, lost = _normed(chosen), _normed(rejected)
        seen = {"concat": (won, lost), "difference": (won - lost,), "both": (won, lost, won - lost)}[self.posterior]
        logits: Tensor = self.posterior_net(torch.cat(seen, -1))
        return logits

    def z(self, weights: Tensor) -> Tensor:
        """[b, d]: the mixture of codes with weights [b, K]."""
        return weights @ self.codebook

    def draw(self, states: PairStates, g: float, person: Tensor | None = None) -> Draw:
        """z from g Gumbel-softmax(prior) + (1 - g) Gumbel-softmax(posterior), and KL[posterior || prior].

        With `person` given, a pair's posterior is that of the same person's other pairs, see `of_others`.
        """
        prior, posterior = self.prior_logits(states.prompt), self.posterior_logits(states.chosen, states.rejected)
        if person is not None:
            posterior = of_others(posterior, person)
        weights = g * self._gumbel(prior) + (1 - g) * self._gumbel(posterior)
        kl = kl_divergence(posterior, prior)
        return Draw(self.z(weights), kl, prior.detach().softmax(-1), posterior.detach().softmax(-1))

    def expected(self, prompt: Tensor) -> Tensor:
        return self.z(self.prior_logits(prompt).softmax(-1))

    def _gumbel(self, logits: Tensor) -> Tensor:
        return F.gumbel_softmax(logits, tau=self.temperature)


def of_others(logits: Tensor, person: Tensor) -> Tensor:
    """For each row of logits [b, K] the mean over the other rows with the same number in `person`, int [b].

    So a posterior says what a person's pairs have in common, and cannot tell what is particular to the pair whose
    label it helps to explain. A row that is alone keeps its own logits.
    """
    same = (person[:, None] == person) & ~torch.eye(len(person), dtype=torch.bool, device=person.device)
    others = same.sum(1, keepdim=True)
    return torch.where(others > 0, same.to(logits.dtype) @ logits / others.clamp(min=1), logits)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL[softmax(logits) || softmax(other)] of rows [b, K], in nats [b]."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1)


def _normed(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Its last layer starts at zero, so that every code is equally likely."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), last)
