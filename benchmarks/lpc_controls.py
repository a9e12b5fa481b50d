"""Controls in place of latent codes: parameters before the LM head that are no discrete latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penchant.policy.codes import Draw, PairStates, normed, two_layers

SCALE = 0.1


class Bias(nn.Module):
    """One z for every sequence: a bias on the vocabulary's logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def draw(self, states: PairStates, g: float) -> Draw:
        return Draw(self.expected(states.prompt), states.prompt.new_zeros(len(states.prompt)))

    def expected(self, prompt: Tensor) -> Tensor:
        return self.bias.expand(len(prompt), -1)


class PromptMLP(nn.Module):
    """z is a function of the prompt alone, two layers as wide as the codes' prior and codebook together are large.

    Its last layer learns as fast as a codebook does, which is what stands in its place.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.out = nn.Parameter(torch.zeros(hidden, width))

    def draw(self, states: PairStates, g: float) -> Draw:
        return Draw(self.expected(states.prompt), states.prompt.new_zeros(len(states.prompt)))

    def expected(self, prompt: Tensor) -> Tensor:
        z: Tensor = self.net(normed(prompt)) @ self.out
        return z


class Gaussian(nn.Module):
    """A continuous z: prior N(m(x), s(x)^2), posterior N(m(x, w, l), s(x, w, l)^2), the same schedule and KL."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.prior_net = two_layers(width, width, 2 * dims)
        self.posterior_net = two_layers(2 * width, width, 2 * dims)
        self.out = nn.Parameter(SCALE * torch.randn(dims, width))

    def draw(self, states: PairStates, g: float) -> Draw:
        p, q = self.prior_net(normed(states.prompt)), self._posterior(states)
        (mp, sp), (mq, sq) = (each.chunk(2, -1) for each in (p, q))
        kl = (sp - sq + (torch.exp(2 * sq) + (mq - mp) ** 2) / (2 * torch.exp(2 * sp)) - 0.5).sum(-1)
        drawn = [m + torch.exp(s) * torch.randn_like(m) for m, s in ((mp, sp), (mq, sq))]
        return Draw((g * drawn[0] + (1 - g) * drawn[1]) @ self.out, kl)

    def expected(self, prompt: Tensor) -> Tensor:
        mean: Tensor = self.prior_net(normed(prompt)).chunk(2, -1)[0]
        return mean @ self.out

    def _posterior(self, states: PairStates) -> Tensor:
        found: Tensor = self.posterior_net(torch.cat((normed(states.chosen), normed(states.rejected)), -1))
        return found


def make(kind: str, width: int, codes: int) -> nn.Module:
    """A control with as many numbers as `codes` latent codes use at inference (the bias cannot have as many)."""
    prior = width * width + width + (width + 1) * codes + codes * width
    makers = {
        "bias": lambda: Bias(width),
        "mlp": lambda: PromptMLP(width, prior // (2 * width)),
        "gaussian": lambda: Gaussian(width, codes // 2),
    }
    return makers[kind]()
