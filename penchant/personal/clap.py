"""CLaP: a frozen decoder-only LLM becomes the decoder of a VAE, with z from a latent encoder, into a latent adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.personal.adapter import LatentPositions, LatentShift, last_states
from penchant.personal.clap_losses import contrastive, contrastive_accuracy, dg_kld, kld
from penchant.personal.encoder import LATENT, Gaussian, LatentEncoder
from penchant.policy.log_probs import Vocabulary

AdapterKind = Literal["positions", "shift"]
DRAWS = 16
"""M, draws of each posterior for DG-KLD."""


class ClapTerms(NamedTuple):
    """The parts of the loss for N responses to one prompt, in nats, each a number."""

    reconstruction: Tensor
    """-log p(y | x, z) of a response, its tokens summed."""
    kl: Tensor
    contrastive: Tensor
    accuracy: Tensor
    """Of the contrastive choice; nan without one."""
    tokens: float
    """Tokens of a response."""

    @property
    def loss(self) -> Tensor:
        return self.reconstruction + self.kl + self.contrastive


class Clap(nn.Module):
    """q(z | x, y), p(y | x, z) and, for training alone, a way for gradients around the LLM.

        L = -log p(y | x, z) + DG-KLD(q) [+ contrastive term],   z ~ q(z | x, y)

    Args:
        llm: causal transformers model; frozen here, but for its layers where `train_clap` is to train them too. The
            adapter's keys and values are then by the layers as they are trained; the encoder's layers are a copy from
            before.
        backbone: made from the same model.
        latent: size of z.
        adapter: what z does to the LLM, "positions" (the paper's) or "shift" (ours).
    """

    def __init__(
        self,
        llm: transformers.PreTrainedModel,
        backbone: Backbone,
        latent: int = LATENT,
        adapter: AdapterKind = "shift",
    ) -> None:
        super().__init__()
        llm.requires_grad_(False)
        self._llm, self.backbone = [llm.eval()], backbone
        self.posterior = LatentEncoder(llm, latent)
        self.adapter: LatentPositions | LatentShift
        self.adapter = LatentShift(llm, latent) if adapter == "shift" else LatentPositions(llm, latent)
        n = backbone.width
        self.skip = nn.Sequential(nn.Linear(latent, n), nn.GELU(), nn.Linear(n, n), nn.LayerNorm(n))
        self.vocabulary = Vocabulary.of(llm)
        self.to(backbone.device)

    @property
    def latent(self) -> int:
        return self.posterior.latent

    def read(self, items: Sequence[Tokens]) -> Gaussian:
        """q(z | x, y) of b sequences."""
        prompts, responses = (
            [torch.from_numpy(part).long() for part in parts]
            for parts in zip(*((item.prompt, item.response) for item in items), strict=True)
        )
        found: Gaussian = self.posterior(responses, prompts)
        return found

    def log_probs(self, items: Sequence[Tokens], z: Tensor | None, skip: bool = False) -> Tensor:
        """log p(y | x, z) [b], summed over tokens, for z [b, latent]; for the LLM as it is where z is None.

        `skip` adds s - stopgrad(s), s = LayerNorm(MLP(z)), to the last hidden states: nothing at all for the value,
        and for the gradient a way from the vocabulary to z that does not pass the LLM.
        """
        # A backbone that ran packed leaves its own attention switched on.
        self.backbone.config._attn_implementation = self.backbone.plain_attention
        steering = self.adapter(z) if z is not None else None
        states, targets, owner = last_states(self._llm[0], steering, items)
        shift = None
        if skip and z is not None:
            s = self.skip(z)
            shift = s - s.detach()
        each = self.vocabulary.log_probs(states, targets, shift, owner)
        return each.new_zeros(len(items)).index_add(0, owner, each)

    def forward(
        self,
        items: Sequence[Tokens],
        noise: Tensor,
        others: Tensor | None = None,
        *,
        skip: bool = False,
        standard_kl: bool = False,
    ) -> ClapTerms:
        """The loss of N responses to one prompt.

        Args:
            items: the prompt with each of its responses.
            noise: standard normal [M, N, latent]; the first of M makes the z that reconstructs.
            others: int [N, c]: for each response the responses whose z it is told apart from; None leaves the
                contrastive term out. The LLM reads c more copies of every response for it.
            skip: with the gradient-only skip (the paper's first stage).
            standard_kl: the usual KL in place of DG-KLD.
        """
        q = self.read(items)
        z = q.draw(noise[0])
        own = self.log_probs(items, z, skip)
        kl = kld(q) if standard_kl else dg_kld(q, noise)
        term, accuracy = own.new_zeros(()), own.new_full((), torch.nan)
        if others is not None:
            repeated = [item for item in items for _ in range(others.shape[1])]
            against = self.log_probs(repeated, z[others.flatten()], skip).view(others.shape)
            table = torch.cat([own[:, None], against], 1)
            term, accuracy = contrastive(table), contrastive_accuracy(table.detach())
        tokens = sum(len(item.response) for item in items) / len(items)
        return ClapTerms(-own.mean(), kl, term, accuracy, tokens)
