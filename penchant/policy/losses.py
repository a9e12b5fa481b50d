"""Losses of direct preference optimisation: DPO, IPO and SimPO, as functions of sequence log-probabilities.

Each turns pairs into margins (how much more the policy's implicit reward likes the chosen response; above zero is
right) and margins into losses. With latent codes the same losses hold, the policy's log-probabilities being given z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.errors import InputError


class PairLogProbs(NamedTuple):
    """What one model makes of b pairs, all [b]."""

    chosen: Tensor
    """Sum over the response's tokens of log p(token | what stands before it), in nats."""
    rejected: Tensor
    chosen_tokens: Tensor
    """Tokens of the response, its end included."""
    rejected_tokens: Tensor


class Loss(Protocol):
    """A preference loss."""

    @property
    def needs_reference(self) -> bool: ...
    def margins(self, policy: PairLogProbs, reference: PairLogProbs | None) -> Tensor: ...
    def __call__(self, margins: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DPO:
    """-(1 - e) log s(m) - e log s(-m), m = beta [log pi(w)/ref(w) - log pi(l)/ref(l)], s the logistic function.

    e is the share of labels taken to be the wrong way round (arXiv 2305.18290, eq. 7; e as in cDPO).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs_reference = True

    def margins(self, policy: PairLogProbs, reference: PairLogProbs | None) -> Tensor:
        assert reference is not None
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        return self.beta * (chosen - rejected)

    def __call__(self, margins: Tensor) -> Tensor:
        e = self.label_smoothing
        return -(1 - e) * logsigmoid(margins) - e * logsigmoid(-margins)


@dataclass(frozen=True)
class IPO:
    """(m - 1 / (2 beta))^2, m = log[pi(w)/ref(w)] / |w| - log[pi(l)/ref(l)] / |l| (arXiv 2310.12036, eq. 17).

    Each response counts with its mean over tokens, as the authors' experiments had it; beta is the paper's tau.
    """

    beta: float = 0.1
    needs_reference = True

    def margins(self, policy: PairLogProbs, reference: PairLogProbs | None) -> Tensor:
        assert reference is not None
        chosen = (policy.chosen - reference.chosen) / policy.chosen_tokens
        rejected = (policy.rejected - reference.rejected) / policy.rejected_tokens
        return chosen - rejected

    def __call__(self, margins: Tensor) -> Tensor:
        return (margins - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class SimPO:
    """-log s(m - gamma), m = beta [log pi(w) / |w| - log pi(l) / |l|] (arXiv 2405.14734, eq. 6). No reference."""

    beta: float = 2.0
    gamma: float = 0.5
    needs_reference = False

    def margins(self, policy: PairLogProbs, reference: PairLogProbs | None) -> Tensor:
        return self.beta * (policy.chosen / policy.chosen_tokens - policy.rejected / policy.rejected_tokens)

    def __call__(self, margins: Tensor) -> Tensor:
        return -logsigmoid(margins - self.gamma)


def make_loss(
    name: str, beta: float | None = None, label_smoothing: float = 0.0, gamma: float | None = None
) -> DPO | IPO | SimPO:
    """The loss called `name`, with its own defaults where an argument is None.

    Raises InputError for an unknown name, a number out of range, or an argument that the loss has not.
    """
    if beta is not None and not 0 < beta < float("inf"):
        raise InputError(f"beta is {beta}; give a finite number above 0.")
    if not 0 <= label_smoothing < 0.5:
        raise InputError(f"label_smoothing is {label_smoothing}; give a share from 0 to below 0.5.")
    if label_smoothing and name != "dpo":
        raise InputError(f"label_smoothing belongs to the dpo loss, not to {name}; leave it out.")
    if gamma is not None and name != "simpo":
        raise InputError(f"gamma belongs to the simpo loss, not to {name}; leave it out.")
    given = {} if beta is None else {"beta": beta}
    if name == "dpo":
        return DPO(**given, label_smoothing=label_smoothing)
    if name == "ipo":
        return IPO(**given)
    if name == "simpo":
        return SimPO(**given, **({} if gamma is None else {"gamma": gamma}))
    raise InputError(f"loss {name!r} is not one of dpo, ipo, simpo.")
