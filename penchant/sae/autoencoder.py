"""A sparse autoencoder: writes a hidden state as a sum of few out of many directions (TopK, BatchTopK, JumpReLU)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penchant.errors import InputError

ARCHITECTURES = ("topk", "batchtopk", "jumprelu")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm")
LAYER_NORM_EPSILON = 1e-5
"""SAELens' value, so that its files mean the same here; SARM has 1e-6."""


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is and where in which LLM it belongs."""

    d_in: int
    """Width d of the hidden state."""
    d_sae: int
    """Number m of latents."""
    architecture: str = "topk"
    """"topk" keeps a state's k largest pre-activations; "batchtopk" is trained on the k per state that are largest in
    the whole batch, and, like "jumprelu", keeps what exceeds a threshold once trained. A plain ReLU is "jumprelu" with
    thresholds 0."""
    k: int = 0
    """Latents active in a state, for topk and batchtopk."""
    layer: int | None = None
    """Index into transformers' `hidden_states`, as in a recipe's views; SAELens' blocks.L.hook_resid_post is L + 1."""
    model: str | None = None
    """The LLM whose states it reads."""
    revision: str | None = None
    """Which weights of that LLM, where known."""
    subtract_decoder_bias: bool = True
    """Whether b_dec is subtracted from the state before encoding."""
    normalize: str = "none"
    """Of every state by itself, undone after decoding: "layer_norm" encodes (x - mean) / (std + 1e-5), "constant_norm"
    x sqrt(d) / |x|."""
    scale: float = 1.0
    """Every state is multiplied by it before all else, and the reconstruction divided; 1 beside a `normalize`."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"the SAE's architecture is {self.architecture!r}; known are {', '.join(ARCHITECTURES)}")
        if self.normalize not in NORMALIZATIONS:
            raise InputError(f"the SAE's normalisation is {self.normalize!r}; known are {', '.join(NORMALIZATIONS)}")
        if self.d_in < 1 or self.d_sae < 1:
            raise InputError(
                f"an SAE of width {self.d_in} with {self.d_sae} latents cannot be; give at least 1 of each"
            )
        if self.architecture != "jumprelu" and not 1 <= self.k <= self.d_sae:
            raise InputError(f"k is {self.k}; give at least 1 and at most the number of latents, {self.d_sae}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"the SAE's scale is {self.scale}; give a finite number above 0")
        if self.normalize != "none" and self.scale != 1:
            raise InputError(f"{self.normalize} undoes a scale; this SAE has both, leave scale at 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Normalized(NamedTuple):
    """States as the encoder sees them, and what undoes it."""

    states: Tensor
    """[n, d]"""
    mean: Tensor | float
    std: Tensor | float
    """[n, 1], or 0 and 1 where states are not normalised one by one."""


class Sparse(NamedTuple):
    """The k latents that were kept in each of n states."""

    values: Tensor
    """[n, k], never negative; 0 where fewer than k are active."""
    latents: Tensor
    """[n, k], which."""


class SparseAutoencoder(nn.Module):
    """x ~ W_dec a + b_dec with a = sigma(W_enc (x - b_dec) + b_enc), a >= 0 and mostly 0.

    Parameters: `W_enc` [m, d] (one row a latent, unlike SAELens' [d, m]), `W_dec` [m, d], `b_enc` [m], `b_dec` [d]; the
    buffer `threshold` [m] serves batchtopk and jumprelu. `source` says where it was loaded from, `facts` what its
    training recorded; both are for people and change nothing.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(self, config: SAEConfig, source: str = "") -> None:
        super().__init__()
        self.config, self.source = config, source
        self.facts: dict[str, Any] = {}
        m, d = config.d_sae, config.d_in
        self.W_enc = nn.Parameter(torch.zeros(m, d))
        self.W_dec = nn.Parameter(torch.zeros(m, d))
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.register_buffer("threshold", torch.zeros(m))

    @classmethod
    def random(cls, config: SAEConfig, seed: int = 0) -> SparseAutoencoder:
        """Random unit decoder directions, the encoder their transpose; where training starts, and a control."""
        sae = cls(config, "random")
        generator = torch.Generator().manual_seed(seed)
        rows = F.normalize(torch.randn(config.d_sae, config.d_in, generator=generator), dim=1)
        with torch.no_grad():
            sae.W_dec.copy_(rows)
            sae.W_enc.copy_(rows)
        return sae

    def normalized(self, x: Tensor) -> Normalized:
        """States [n, d] scaled, and normalised one by one where the SAE was trained so."""
        x = x.to(self.W_enc.dtype) * self.config.scale
        if self.config.normalize == "none":
            return Normalized(x, 0.0, 1.0)
        if self.config.normalize == "constant_norm":
            size = x.norm(dim=-1, keepdim=True).clamp_min(1e-12) / math.sqrt(self.config.d_in)
            return Normalized(x / size, 0.0, size)
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        return Normalized((x - mean) / (std + LAYER_NORM_EPSILON), mean, std)

    def pre_activations(self, states: Tensor) -> Tensor:
        """W_enc (x - b_dec) + b_enc [n, m] of normalised states [n, d]."""
        bias = self.b_enc
        if self.config.subtract_decoder_bias:
            bias = bias - self.W_enc @ self.b_dec
        return F.linear(states, self.W_enc, bias)

    def encode(self, x: Tensor) -> Tensor:
        """Activations [n, m] of states [n, d]; not negative. Raises InputError for another width."""
        self.check_width(x)
        pre = self.pre_activations(self.normalized(x).states)
        if self.config.architecture == "topk":
            values, latents = top_k(pre, self.config.k)
            return torch.zeros_like(pre).scatter_(-1, latents, values)
        return torch.where(pre > self.threshold, pre, 0.0).relu()

    def decode(self, activations: Tensor) -> Tensor:
        """W_dec a + b_dec, in the encoder's normalised space [n, d]."""
        return activations @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction [n, d] of states [n, d], in their own scale."""
        return self.reconstruct(self.encode(x), x)

    def reconstruct(self, activations: Tensor, x: Tensor) -> Tensor:
        """The states [n, d] that activations [n, m] stand for, in the scale of the states x [n, d] they come from."""
        seen = self.normalized(x)
        return (self.decode(activations) * seen.std + seen.mean) / self.config.scale

    def check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.config.d_in:
            raise InputError(
                f"this SAE reads states of width {self.config.d_in}, not {x.shape[-1]}; it belongs to another LLM"
            )


def top_k(pre: Tensor, k: int) -> Sparse:
    """The k largest of each state's pre-activations [n, m], those below 0 as 0, like SAELens and sparsify."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return Sparse(values.relu(), index)
