"""CLaP: a frozen decoder-only LLM becomes the decoder of a VAE, with z from a latent encoder, into a latent adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.decoding import Steering
from penchant.errors import InputError
from penchant.personal.adapter import LatentPositions, LatentShift, last_states
from penchant.personal.clap_losses import contrastive, contrastive_accuracy, dg_kld, kld
from penchant.personal.encoder import LATENT, Gaussian, LatentEncoder
from penchant.policy.log_probs import Vocabulary

AdapterKind = Literal["positions", "shift"]
ADAPTERS: dict[str, type[LatentPositions] | type[LatentShift]] = {"positions": LatentPositions, "shift": LatentShift}
DRAWS = 16
"""M, draws of each posterior for DG-KLD."""
FIGURES = ("loss", "reconstruction", "kl", "contrastive", "tokens")
"""Of `ClapTerms.figures`."""


class ClapTerms(NamedTuple):
    """The parts of the loss, in nats: each a number, the mean over prompts of the mean over their responses."""

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

    def figures(self) -> dict[str, float]:
        """What may be averaged over parts of a batch, as plain numbers."""
        own = {name: getattr(self, name) for name in FIGURES[:-1]}
        return {**{name: float(part.detach()) for name, part in own.items()}, "tokens": self.tokens}


class Clap(nn.Module):
    """q(z | x, y), p(y | x, z) and, for training alone, a way for gradients around the LLM.

        L = -log p(y | x, z) + DG-KLD(q) [+ contrastive term],   z ~ q(z | x, y)

    Args:
        llm: causal transformers model; frozen here, but for its layers where `train_clap` is to train them too. The
            adapter's keys and values are then by the layers as they are trained; the encoder's layers are a copy from
            before.
        backbone: made from the same model.
        latent: size of z.
        adapter: what z does to the LLM, "positions" (the paper's) or "shift" (ours); InputError for another.
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
        if adapter not in ADAPTERS:
            raise InputError(f"adapter is {adapter!r}; give one of {', '.join(ADAPTERS)}.")
        self.adapter: LatentPositions | LatentShift = ADAPTERS[adapter](llm, latent)
        n = backbone.width
        self.skip = nn.Sequential(nn.Linear(latent, n), nn.GELU(), nn.Linear(n, n), nn.LayerNorm(n))
        self.vocabulary = Vocabulary.of(llm)
        self.to(backbone.device)

    @property
    def latent(self) -> int:
        return self.posterior.latent

    @property
    def llm(self) -> transformers.PreTrainedModel:
        """The LLM itself, which is not among this module's own weights."""
        found: transformers.PreTrainedModel = self._llm[0]
        return found

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
        shift = None
        if skip and z is not None:
            s = self.skip(z)
            shift = s - s.detach()
        return self.steered(items, self.adapter(z) if z is not None else None, shift)

    def steered(self, items: Sequence[Tokens], steering: Steering | None, shift: Tensor | None = None) -> Tensor:
        """log p(y | x) [b], summed over tokens, of the LLM under a steering of b rows; `shift` [b, n] is added to its
        last hidden states."""
        # A backbone that ran packed leaves its own attention switched on.
        self.backbone.config._attn_implementation = self.backbone.plain_attention
        states, targets, owner = last_states(self.llm, steering, items)
        each = self.vocabulary.log_probs(states, targets, shift, owner)
        return each.new_zeros(len(items)).index_add(0, owner, each)

    def forward(
        self,
        groups: Sequence[Sequence[Tokens]],
        noise: Tensor,
        others: Tensor | None = None,
        *,
        skip: bool = False,
        standard_kl: bool = False,
    ) -> ClapTerms:
        """The loss of some prompts with the responses to each, R in all.

        Args:
            groups: each prompt with each of its responses.
            noise: standard normal [M, R, latent]; the first of M makes the z that reconstructs.
            others: int [R, c]: for each response those to the same prompt whose z it is told apart from; None leaves
                the contrastive term out. The LLM reads c more copies of every response for it.
            skip: with the gradient-only skip (the paper's first stage).
            standard_kl: the usual KL in place of DG-KLD.
        """
        items, sizes = [item for group in groups for item in group], [len(group) for group in groups]
        q = self.read(items)
        z = q.draw(noise[0])
        rows = torch.arange(len(items), device=z.device)[:, None]
        if others is not None:
            rows = torch.cat([rows, others], 1)
        repeated = [item for item in items for _ in range(rows.shape[1])]
        table = self.log_probs(repeated, z[rows.flatten()], skip).view(rows.shape)  # column 0: under its own z
        parts = zip(*(part.split(sizes, -2) for part in (*q, noise)), strict=True)
        each = [kld(Gaussian(*of)) if standard_kl else dg_kld(Gaussian(*of), e) for *of, e in parts]
        own = [part[:, 0] for part in table.split(sizes)]
        term, accuracy = table.new_zeros(()), table.new_full((), torch.nan)
        if others is not None:
            term = torch.stack([contrastive(part) for part in table.split(sizes)]).mean()
            accuracy = torch.stack([contrastive_accuracy(part.detach()) for part in table.split(sizes)]).mean()
        tokens = sum(sum(len(item.response) for item in group) / len(group) for group in groups) / len(groups)
        reconstruction = -torch.stack([part.mean() for part in own]).mean()
        return ClapTerms(reconstruction, torch.stack(each).mean(), term, accuracy, tokens)
