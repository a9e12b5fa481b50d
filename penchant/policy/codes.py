"""Latent codes (LPC, arXiv 2505.04993): a codebook of hidden preference factors, mixed anew for every sequence.

    prior      p(z | x)          = softmax(MLP(h_x))                        h_x at the last prompt token
    posterior  q(z | x, w > l)   = softmax(MLP([h_xw; h_xl]))               at the last token of either response
    weights    g Gumbel(p) + (1 - g) Gumbel(q),   g from 0 to 1 over training
    z          sum_k weights_k e_k,   the policy is softmax(LMHead(h_t + z)) at every response position

All h come from the policy's own forward pass and carry no z. At inference there is no pair: the prior alone speaks.

Where it is known who judged each pair, there is a posterior that no network has to learn (posterior "people", ours):

    q(z | x, person)  ~  p(z | x) prod_i f(margin of pair i under z)    over the other pairs that the person judged

What f is says the loss (for DPO the logistic function). It knows nothing of the pair whose label it helps to explain,
and a new person's is had from a few pairs without training; see people.py.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penchant.errors import InputError

POSTERIORS = {"concat": 2, "difference": 1, "both": 3}
"""What the posterior's network sees, by name, and how many hidden states wide that is."""
PEOPLE = "people"
"""The posterior that knows who judged a pair and has no network."""


class PairStates(NamedTuple):
    """Last hidden states of b pairs, each [b, d], and what is known of who judged them."""

    prompt: Tensor
    """At the last prompt token."""
    chosen: Tensor
    """At the last token of the chosen response."""
    rejected: Tensor
    evidence: Tensor | None = None
    """[b, K], for each code the log-likelihood of other pairs that the same person judged; None if nothing is known."""
    among: tuple[int, int] | None = None
    """These are the pairs from the first number on of a batch of as many as the second says, which several processes
    share; None where they are the whole batch. What is random is drawn for the batch, however it is shared."""


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

    def draw(self, states: PairStates, g: float) -> Draw:
        """A random z of each pair, g of it from the prior."""
        ...

    def expected(self, prompt: Tensor) -> Tensor:
        """z [b, d] of prompt states [b, d] at inference."""
        ...


class LatentCodes(nn.Module):
    """A codebook with its prior and posterior.

    Args:
        width: d, of the LLM's hidden states.
        codes: K.
        posterior: what it sees: "concat" [h_xw; h_xl] as the paper has it, "difference" h_xw - h_xl, or "both"; or
            "people", the other pairs of whoever judged the pair.
        temperature: of the Gumbel-softmax; towards 0 a draw becomes a single code.
        scale: standard deviation of the fresh codebook's numbers; 0 starts from codes that do nothing.
        people: how many people judged the training pairs, for the posterior "people".

    `evidence` [people, K] is each person's log-likelihood of each code, from their pairs so far. Both MLPs have two
    layers with d hidden units, see hidden states brought to mean 0 and deviation 1, and start from uniform weights.
    """

    def __init__(
        self,
        width: int,
        codes: int = 64,
        posterior: str = "concat",
        temperature: float = 1.0,
        scale: float = 0.1,
        people: int = 0,
    ) -> None:
        super().__init__()
        if codes < 1:
            raise InputError(f"codes is {codes}; give at least 1, or 0 for a policy without codes.")
        if posterior not in (*POSTERIORS, PEOPLE):
            raise InputError(f"posterior {posterior!r} is not one of {', '.join((*POSTERIORS, PEOPLE))}.")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature is {temperature}; give a finite number above 0.")
        self.width, self.codes, self.posterior, self.temperature = width, codes, posterior, temperature
        self.codebook = nn.Parameter(torch.randn(codes, width) * scale)
        self.prior_net = two_layers(width, width, codes)
        self.evidence: Tensor
        if posterior == PEOPLE:
            self.register_buffer("evidence", torch.zeros(people, codes))
        else:
            self.posterior_net = two_layers(POSTERIORS[posterior] * width, width, codes)

    def prior_logits(self, prompt: Tensor) -> Tensor:
        """[b, K] of prompt states [b, d]."""
        logits: Tensor = self.prior_net(normed(prompt))
        return logits

    def posterior_logits(self, states: PairStates) -> Tensor:
        """[b, K] of b pairs' states. Without evidence the posterior "people" is the prior."""
        if self.posterior == PEOPLE:
            prior = self.prior_logits(states.prompt).log_softmax(-1)
            return prior if states.evidence is None else prior + states.evidence.to(prior)
        won, lost = normed(states.chosen), normed(states.rejected)
        seen = {"concat": (won, lost), "difference": (won - lost,), "both": (won, lost, won - lost)}[self.posterior]
        logits: Tensor = self.posterior_net(torch.cat(seen, -1))
        return logits

    def z(self, weights: Tensor) -> Tensor:
        """[b, d]: the mixture of codes with weights [b, K]."""
        return weights @ self.codebook

    def draw(self, states: PairStates, g: float) -> Draw:
        """z from g Gumbel-softmax(prior) + (1 - g) Gumbel-softmax(posterior), and KL[posterior || prior].

        The posterior "people" needs no draw and no schedule, since it has not seen the label that z is to explain:
        z is its expectation, and the KL teaches the prior what the people who ask x have in common.
        """
        prior = self.prior_logits(states.prompt)
        if self.posterior == PEOPLE:
            posterior = self.posterior_logits(states).detach()
            weights = posterior.softmax(-1)
        else:
            posterior = self.posterior_logits(states)
            weights = g * self._gumbel(prior, states.among) + (1 - g) * self._gumbel(posterior, states.among)
        kl = kl_divergence(posterior, prior)
        return Draw(self.z(weights), kl, prior.detach().softmax(-1), posterior.detach().softmax(-1))

    def expected(self, prompt: Tensor) -> Tensor:
        return self.z(self.prior_logits(prompt).softmax(-1))

    def _gumbel(self, logits: Tensor, among: tuple[int, int] | None) -> Tensor:
        """F.gumbel_softmax, with the noise of these rows of the batch."""
        b = len(logits)
        first, n = among or (0, b)
        noise = -logits.new_empty(n, self.codes).exponential_().log()
        return ((logits + noise[first : first + b]) / self.temperature).softmax(-1)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL[softmax(logits) || softmax(other)] of rows [b, K], in nats [b]."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1)


def normed(states: Tensor) -> Tensor:
    """Each state [d] brought to mean 0 and deviation 1."""
    return F.layer_norm(states.float(), states.shape[-1:])


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Its last layer starts at zero, so that every code is equally likely."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), last)
