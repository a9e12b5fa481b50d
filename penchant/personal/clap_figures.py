"""Whether CLaP's z is used at all: what it tells of a response, on prompts that were not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from penchant.evaluate.accuracy import bootstrap_mean
from penchant.personal.clap import Clap
from penchant.personal.clap_losses import contrastive_accuracy
from penchant.personal.encoder import Gaussian
from penchant.personal.groups import Group

ACTIVE = 0.01
"""A unit of z is active where the variance of its posterior means exceeds this (Burda et al.)."""


@torch.no_grad()
def plain_log_probs(clap: Clap, groups: Sequence[Group]) -> list[Tensor]:
    """log p(y | x) of each group's responses [N], under the LLM without z as it is now."""
    return [clap.log_probs(items, None) for items in groups]


@torch.no_grad()
def evaluate_clap(
    clap: Clap, groups: Sequence[Group], seed: int = 0, plain: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """Figures on prompts that were not trained on.

    nats_per_token: of responses under their own posterior's mean; `plain` under the LLM without z, `prior` under a z
    drawn from N(0, I). gain: nats by which a whole response is likelier under its own posterior's mean than without z,
    on average, from gain_ci_low to gain_ci_high (95%, prompts resampled; of a single prompt both are the gain itself).
    active_units: see ACTIVE. mutual_information: of z and the response, in nats, by minibatches of all responses here
    (it cannot exceed the logarithm of their number). contrastive_accuracy: share of responses that are likelier under
    their own z than under that of any other response to the prompt.

    Args:
        plain: `plain_log_probs` from before an LLM was trained as well; None asks the LLM as it is.
    """
    random = torch.Generator().manual_seed(seed)
    device = clap.backbone.device
    plain = plain if plain is not None else plain_log_probs(clap, groups)
    tokens, prior, right = 0, 0.0, 0.0
    own: list[Tensor] = []
    read: list[Gaussian] = []
    for items in groups:
        q = clap.read(items)
        n = len(items)
        table = clap.log_probs([item for item in items for _ in range(n)], q.mean.repeat(n, 1)).view(n, n)
        mine = table.diagonal()
        away = table[~torch.eye(n, dtype=torch.bool, device=device)].view(n, n - 1)
        right += float(contrastive_accuracy(torch.cat([mine[:, None], away], 1))) * n
        prior -= float(clap.log_probs(items, torch.randn(n, clap.latent, generator=random).to(device)).sum())
        tokens += sum(len(item.response) - (not len(item.prompt)) for item in items)
        own.append(mine)
        read.append(q)
    q = Gaussian(*(torch.cat(parts) for parts in zip(*read, strict=True)))
    count = len(q.mean)
    z = q.draw(torch.randn(count, clap.latent, generator=random).to(device))
    of_each = q.log_prob(z[:, None])  # [z, posterior]
    information = (of_each.diagonal() - of_each.logsumexp(1) + math.log(count)).mean()
    with_z, without = torch.cat(own).double(), torch.cat(list(plain)).double()
    prompt = np.repeat(np.arange(len(groups)), [len(items) for items in groups])
    gain = bootstrap_mean((with_z - without).cpu().numpy(), prompt, seed=seed)
    return {
        "nats_per_token": -float(with_z.sum()) / tokens,
        "plain": -float(without.sum()) / tokens,
        "prior": prior / tokens,
        "gain": gain.value,
        "gain_ci_low": gain.low,
        "gain_ci_high": gain.high,
        "active_units": float((q.mean.var(0) > ACTIVE).sum()),
        "mutual_information": float(information),
        "contrastive_accuracy": right / count,
        "responses": float(count),
    }
