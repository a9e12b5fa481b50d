"""How far z may go before answers become unlike the LLM's own: what a step of z costs in likelihood, known beforehand.

A step of z costs z' K z / 2 nats an answer of straying from the LLM, and along some directions answers read badly
sooner than along others. What it costs in nats a token under the LLM as it is, is taken as

    cost(z) = -k (v . z) + h z' K z,

K and v being the first terms of both, known from the LLM's own answers, and k and h two numbers fitted to answers that
are written under z of all directions and lengths. A person's z is then held where exp(cost(z)), by how much their
perplexity grows, is within a limit, at no pass of the LLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.chat import Text, Tokens
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.personal.clap import Clap
from penchant.personal.groups import Group
from penchant.personal.reading import in_batches
from penchant.processes import all_sum, share, whole

LIMIT = 1.1
"""Perplexity of answers may grow by a tenth."""
FARTHEST = 5.0
"""Longest z that is tried, and allowed, as a root of z' K z: by twice the nats. Answers under short ones differ too
little from the LLM's own to tell h (docs/LOG.md)."""
FLOOR = 0.01
"""What any unit of z counts at least in K, so that a z which does nothing has an end as well."""
PROMPTS, DRAWS, LONGEST = 96, 8, 32
"""Prompts whose answers are looked at, answers written to each under z and one without, and most tokens of one."""


class Reach:
    """Attributes: slope [latent], bend, and metric K [latent, latent], with cost(z) = slope . z + bend z' K z."""

    def __init__(self, slope: Tensor, bend: float, metric: Tensor) -> None:
        self.slope, self.bend, self.metric = slope, bend, metric

    def length(self, z: Tensor) -> Tensor:
        """A root of z' K z, float64 [n], for z [n, latent]: slopes by it are differences of large numbers."""
        z = z.double()
        return ((z @ self.metric.double()) * z).sum(1).clamp_min(0).sqrt()

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        clap: Clap,
        generator: Generator,
        prompts: Sequence[Text],
        groups: Sequence[Group],
        seed: int,
        show_progress: bool = False,
    ) -> Reach:
        """Measured on answers to some of the prompts, at most as long as those of the groups.

        The processes of a launch share prompts and answers out.
        """
        few, asked = list(groups[:PROMPTS]), list(dict.fromkeys(map(repr, prompts)))
        texts = {repr(prompt): prompt for prompt in prompts}
        rows = [texts[key] for key in asked[:PROMPTS] for _ in range(1 + DRAWS)]
        toward, metric = first_terms(clap, few, show_progress)
        reach, random = cls(toward, 1.0, metric), torch.Generator().manual_seed(seed)
        z = torch.randn(len(rows), clap.latent, generator=random)
        far = FARTHEST * (1 + torch.rand(len(rows), generator=random)) / 2
        z *= (far / reach.length(z).clamp_min(1e-9))[:, None]
        z[:: 1 + DRAWS] = 0  # what the LLM says by itself, by the same random numbers
        longest = min(LONGEST, max(len(item.response) for group in few for item in group))
        longest = min(longest, clap.backbone.chat.max_length // 2)  # given responses may leave a prompt no room
        sampling: dict[str, Any] = {"answers": 1, "max_new_tokens": longest, "temperature": 1.0, "top_p": 0.95}
        said = generator.sample(rows, z=z, seed=seed, show_progress=show_progress, shared=True, **sampling)
        whole = [each[0] if each[0].strip() else "." for each in said]
        cost = -per_token(clap, clap.backbone.chat.encode(rows, whole))
        features = torch.stack([-(z @ toward).double(), reach.length(z).square()], 1)
        features, cost = (
            part - part.view(-1, 1 + DRAWS, *part.shape[1:]).mean(1).repeat_interleave(1 + DRAWS, 0)
            for part in (features, cost)
        )  # prompts differ in what is likely
        k, h = fitted(features, cost)
        if k < 0:  # answers grew likelier against v, which is then no guide: h alone
            k, (h,) = 0.0, fitted(features[:, 1:], cost)
        return cls(-k * toward, max(1e-6, h), metric)

    def within(self, z: Tensor, limit: float = LIMIT) -> Tensor:
        """z [n, latent], shortened where exp(cost(z)) > limit or it is longer than FARTHEST.

        Raises InputError for a limit that is not a number above 1.
        """
        if not 1 < limit < math.inf:
            raise InputError(f"the limit of perplexity is {limit}; give a number above 1, such as {LIMIT}.")
        most = math.log(limit)
        length = self.length(z)[:, None].clamp_min(1e-9)
        rise = z / length @ self.slope.double()[:, None]
        # The root of bend l^2 + rise l = most, written so that a small bend beside a large rise loses no digits.
        border = 2 * most / (rise + (rise**2 + 4 * self.bend * most).sqrt())
        found: Tensor = z * (border.clamp_max(FARTHEST) / length).clamp_max(1).float()
        return found


def fitted(features: Tensor, values: Tensor) -> list[float]:
    """Weights of features [n, m] that give values [n] by least squares."""
    solution = torch.linalg.lstsq(features.double(), values.double()[:, None]).solution[:, 0]
    found: list[float] = solution.float().tolist()  # a double's last digits depend on where in memory it was computed
    return found


def first_terms(clap: Clap, groups: Sequence[Group], show_progress: bool = False) -> tuple[Tensor, Tensor]:
    """v [latent] and K [latent, latent], known from responses of the LLM as it is:

        v = d/dz E_{y ~ p_z}[l(y)] = E[l(y) g(y)],    K = E[g(y) g(y)'],
        l = log p(y | x) / tokens,    g = d log p_z(y | x) / dz at z = 0,

    both less their mean over a prompt's responses: by how many nats a token answers become likelier for a unit of z,
    and twice the nats by which they stray.
    """
    likelier = torch.zeros(clap.latent, dtype=torch.float64)
    strays = torch.zeros(clap.latent, clap.latent, dtype=torch.float64)
    own = groups[share(len(groups))]
    for group in tqdm(own, unit="prompt", desc="reach of z", disable=not show_progress, leave=False):
        z = torch.zeros(len(group), clap.latent, device=clap.backbone.device, requires_grad=True)
        with torch.enable_grad():
            said = clap.log_probs(group, z)
            (slopes,) = torch.autograd.grad(said.sum(), z)
        each = (said.detach() / torch.tensor([len(item.response) for item in group], device=said.device)).double().cpu()
        g = (slopes - slopes.mean(0)).double().cpu()
        likelier += (each - each.mean()) @ g
        strays += g.T @ g
    likelier, strays = all_sum(likelier), all_sum(strays)
    count = sum(map(len, groups))
    return (likelier / count).float(), (strays / count + FLOOR * torch.eye(clap.latent)).float()


def per_token(clap: Clap, items: Sequence[Tokens]) -> Tensor:
    """Mean log-probability a token [n] of responses under the LLM as it is."""
    parts = in_batches(lambda some: clap.log_probs(some, None).cpu(), items[share(len(items))])
    lengths = torch.tensor([len(item.response) for item in items])
    return whole(torch.cat([torch.zeros(0), *parts]), len(items)) / lengths
