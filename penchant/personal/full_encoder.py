"""The paper's form of a person: a whole latent encoder p(z | x), trained by Latent DPO; it reads the prompt alone.

It owns two layers of the LLM, where the compact form of `fitting` owns one vector: of SmolLM2-135M 28 MB a person and
version, against 64 bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian, LatentEncoder
from penchant.personal.latent_dpo import CANDIDATES, candidates, latent_dpo_losses
from penchant.personal.reading import Judged, in_batches


@dataclass(frozen=True)
class FullEncoderSettings:
    """How a person's whole encoder is trained; rate and batch as printed."""

    steps: int = 200
    """Of Adam; the paper makes one pass over thousands of pairs."""
    batch: int = 64
    """Pairs a step, at most; all of a person's pairs come before any comes again."""
    learning_rate: float = 1e-4
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("learning_rate", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")


def encoder_of(clap: Clap, weights: Mapping[str, Tensor] | None = None) -> LatentEncoder:
    """A person's encoder; of somebody new the posterior with a zeroed head, which is N(0, I) at every prompt."""
    posterior = clap.posterior
    shared = {id(module): module for module in posterior._embedding}  # the LLM's own, not copied
    encoder = copy.deepcopy(posterior, shared).eval()
    if weights is None:
        nn.init.zeros_(encoder.head.weight)
        nn.init.zeros_(encoder.head.bias)
    else:
        encoder.load_state_dict(weights, strict=False)
    return encoder


def fit_encoder(
    clap: Clap,
    judged: Judged,
    prompts: Sequence[Tokens],
    settings: FullEncoderSettings,
    start: Mapping[str, Tensor] | None = None,
    label: str | None = None,
) -> dict[str, Tensor]:
    """The trained weights of one person's encoder, by name, on the CPU; a `label` shows progress.

    Args:
        judged: what n pairs say. prompts: their prompts, each with any response.
        start: weights to go on from. Old pairs are held by nothing but short steps.
    """
    encoder = encoder_of(clap, start)
    device, n = clap.backbone.device, len(prompts)
    random = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(3, CANDIDATES, 1, clap.latent, generator=random).to(device)
    adam = torch.optim.Adam(encoder.parameters(), settings.learning_rate)
    size = min(settings.batch, n)
    passes = [torch.randperm(n, generator=random) for _ in range(-(-settings.steps * size // n))]
    batches = torch.cat(passes).split(size)[: settings.steps]
    for rows in tqdm(batches, desc=label, disable=label is None, leave=False):
        seen = judged.take(rows)
        chosen, rejected = (Gaussian(*(part.to(device) for part in q)) for q in (seen.chosen, seen.rejected))
        person = encoder([torch.from_numpy(prompts[row].prompt).long() for row in rows.tolist()])
        loss = latent_dpo_losses(person, candidates(chosen, rejected, noise), settings.beta).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {name: value.detach().cpu() for name, value in encoder.named_parameters() if value.requires_grad}


@torch.no_grad()
def read_prompts(encoder: LatentEncoder, prompts: Sequence[Tokens]) -> Gaussian:
    """A person's p(z | x) [n, latent] at n prompts, on the CPU."""
    parts = in_batches(encoder, [torch.from_numpy(item.prompt).long() for item in prompts])
    return Gaussian(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
