"""The latent encoder: text to a Gaussian over a small z, by the LLM's own embeddings and first layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from penchant.errors import InputError
from penchant.personal.prefix import distinct, read_on, read_prefix

QUERIES = 4
LAYERS = 2
LATENT = 32
DEVIATIONS = (1e-3, 1e3)
"""Standard deviations outside of these are not told apart: the log densities that are compared would overflow."""


class Gaussian(NamedTuple):
    """Diagonal Gaussians over z [b, latent], float32."""

    mean: Tensor
    log_deviation: Tensor
    """Logarithm of the standard deviation."""

    @classmethod
    def of(cls, mean: Tensor, log_deviation: Tensor) -> Gaussian:
        """With deviations held between the ends of DEVIATIONS."""
        return cls(mean, log_deviation.clamp(*map(math.log, DEVIATIONS)))

    def draw(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise; noise broadcasts to [..., b, latent]."""
        return self.mean + self.log_deviation.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log density [..., b] of z [..., b, latent]."""
        return log_normal(z, self.mean, self.log_deviation).sum(-1)


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_deviation: Tensor | float = 0.0) -> Tensor:
    """log N(z; mean, deviation^2), entry by entry."""
    scale = log_deviation.exp() if isinstance(log_deviation, Tensor) else math.exp(log_deviation)
    return -0.5 * (((z - mean) / scale) ** 2 + math.log(2 * math.pi)) - log_deviation


class LatentEncoder(nn.Module):
    """q(z | text): token embeddings, m query vectors behind them, LayerNorm, the LLM's first two layers, and at each
    query's place LayerNorm and Linear(n, 2 latent / m), which gives that query's means and log deviations.

    The last linear layer starts at zero, so that every text starts at N(0, I). The same class is the posterior
    q(z | x, y), which reads a prompt and a response, and a person's p(z | x), which reads the prompt alone.

    The layers and the queries are trained; the token embeddings are the LLM's own and stay frozen (the authors copy and
    train them, which is most of their encoder's parameters).

    Args:
        llm: causal transformers model whose first layers are copied; it is not changed.
        latent: size of z, a multiple of `queries`.
        layers: how many of the LLM's layers, from the first.

    Raises InputError for sizes that do not fit.
    """

    def __init__(
        self, llm: transformers.PreTrainedModel, latent: int = LATENT, queries: int = QUERIES, layers: int = LAYERS
    ) -> None:
        super().__init__()
        config = llm.config.get_text_config()
        if latent < 1 or queries < 1 or latent % queries:
            raise InputError(
                f"latent is {latent} and queries {queries}; give a latent size that is a multiple of both."
            )
        if not 1 <= layers <= config.num_hidden_layers:
            raise InputError(f"layers is {layers}; give 1 to {config.num_hidden_layers}, the LLM's own number.")
        self.latent = latent
        embedding: Any = llm.get_input_embeddings()
        self._embedding = [embedding]  # in a list, so that it is not among this module's own weights
        # The layers run in the LLM's number type; their weights, and all that is compared, are float32.
        self._dtype = embedding.weight.dtype
        n = int(config.hidden_size)
        self.queries = nn.Parameter(torch.randn(queries, n) * embedding.weight.detach().float().std())
        self.before, self.after = nn.LayerNorm(n), nn.LayerNorm(n)
        self.layers = first_layers(llm, layers)
        self.head = nn.Linear(n, 2 * latent // queries)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, texts: Sequence[Tensor], behind: Sequence[Tensor] | None = None) -> Gaussian:
        """z's distribution for b texts, each int ids [t_i] (t_i may be 0); `behind` as in `features`."""
        return self.read(self.features(texts, behind))

    def features(self, texts: Sequence[Tensor], behind: Sequence[Tensor] | None = None) -> Tensor:
        """What the head reads: float32 [b, queries, n].

        `behind` are b prompts that the texts stand behind; each different one is read once.
        """
        first, owner = [0], torch.zeros(len(texts), dtype=torch.long)
        prompts = [torch.zeros(0, dtype=torch.long)]
        if behind is not None:
            first, owner = distinct([prompt.numpy().tobytes() for prompt in behind])
            prompts = [behind[row] for row in first]
        # Queries right behind each text: causal layers then never see the padding, which stands behind the queries.
        with torch.autocast(self.queries.device.type, self._dtype, enabled=self._dtype != torch.float32):
            prefix = read_prefix(self.layers, [self._embedded(prompt) for prompt in prompts])
            rows = [torch.cat([self._embedded(text), self.before(self.queries)]) for text in texts]
            states = read_on(self.layers, prefix, owner, rows)
        places = torch.tensor([len(text) for text in texts])[:, None] + torch.arange(len(self.queries))
        found: Tensor = self.after(states[torch.arange(len(texts))[:, None], places].float())
        return found

    def _embedded(self, ids: Tensor) -> Tensor:
        """What the layers get of a text [t]: [t, n]."""
        found: Tensor = self.before(self._embedding[0](ids.to(self.queries.device)).float())
        return found

    def read(self, features: Tensor) -> Gaussian:
        """The Gaussians that the head makes of features [b, queries, n]."""
        mean, log_deviation = self.head(features).chunk(2, -1)
        return Gaussian.of(mean.flatten(1), log_deviation.flatten(1))


def first_layers(llm: transformers.PreTrainedModel, layers: int) -> nn.Module:
    """A float32 copy of a decoder that ends after its first `layers` layers, without token embeddings, trainable."""
    base: Any = llm.base_model
    config = copy.deepcopy(base.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text._attn_implementation = "sdpa" if base._supports_sdpa else "eager"
    text.vocab_size = 1  # embeddings come from outside
    text.pad_token_id = None
    part: Any = type(base)(config).float()
    own = part.state_dict()
    part.load_state_dict(
        {k: v.float() for k, v in base.state_dict().items() if k in own and v.shape == own[k].shape}, strict=False
    )
    part.get_input_embeddings().requires_grad_(False)
    found: nn.Module = part.eval()  # what drops out would not be what a text says
    return found
