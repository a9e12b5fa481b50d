"""What heads on a sparse autoencoder share: which views they read, and a state's activations in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, vstack
from torch import Tensor
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs
from penchant.latents import POOLINGS, LatentPairs, Recipe
from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder
from penchant.sae.formats import load_sae
from penchant.sae.place import check_place, check_reconstruction

if TYPE_CHECKING:
    from penchant.backbone import Backbone

Array = NDArray[Any]

ENCODER = ("W_enc", "b_enc", "b_dec", "threshold")
"""The SAE's tensors that activations depend on."""
LEAST_EXPLAINED = -1.0
"""Variance of last tokens explained, at least. They are much alike, and an SAE of the right place may explain little of
what tells them apart; one of another layer adds several times as much error as there is variance."""
CHECKED_PAIRS = 100
"""Pairs by which that is judged; with fewer it is not."""
BLOCK_ROWS = 256
"""States encoded at once, always: with 65,536 latents their activations take 67 MB."""


class SAEHead(Head):
    """A head on response views of one layer, through a sparse autoencoder of that layer.

    Views of the prompt are ignored. What a fitted head scores with is its own: the SAE's folder is needed no more.

    Attributes:
        recipe_: the recipe of the latents it was fitted on.
        features_: int [f], the SAE latent behind each feature.
        feature_view_: int [f], the place in `views_` of the view it is read in.
        encoder_: the SAE less its decoder, where scores depend on activations, else None.
    """

    sae: str | Path | SparseAutoencoder
    recipe_: Recipe
    features_: Array
    feature_view_: Array
    encoder_: SparseAutoencoder | None = None

    _loaded: SparseAutoencoder | None = None

    def autoencoder(self) -> SparseAutoencoder:
        """The SAE, read once where `sae` names one. Raises InputError where there is none."""
        if isinstance(self.sae, SparseAutoencoder):
            return self.sae
        if self._loaded is None:
            self._loaded = load_sae(self.sae)
        return self._loaded

    @property
    def views_(self) -> tuple[str, ...]:
        """The views it reads."""
        return self.recipe_.response_views

    @property
    def feature_views_(self) -> tuple[str, ...]:
        """The view in which each feature is read."""
        return tuple(self.views_[place] for place in self.feature_view_)

    def default_views(self, backbone: Backbone) -> tuple[str, ...]:
        """Both poolings at the SAE's layer."""
        layer = check_place(self.autoencoder(), backbone)
        return tuple(f"{layer}:{pooling}" for pooling in POOLINGS)

    def check_encoding(self, backbone: Backbone, recipe: Recipe, pairs: int) -> None:
        check_views(self.autoencoder(), recipe)

    def start(self, pairs: LatentPairs) -> SparseAutoencoder:
        """What every fit begins with: pairs and SAE are checked, the recipe is kept."""
        self.check_arguments()
        check_pairs(pairs)
        sae = self.autoencoder()
        check_views(sae, pairs.recipe)
        self.recipe_ = pairs.recipe
        check_last_tokens(sae, pairs)
        return sae

    def states(self, latents: Array) -> list[Array]:
        """The columns [n, d] of each of `views_` in latents [n, recipe.dim], checked."""
        latents = check_latents(latents, self.recipe_.dim)
        return [latents[:, self.recipe_.columns((view,))] for view in self.views_]

    def encoder(self) -> SparseAutoencoder:
        """`encoder_`; InputError where scores do not depend on activations and none was kept."""
        self._check_fitted()
        if self.encoder_ is None:
            raise InputError("this head scores projections and keeps no encoder; load the SAE it was made from")
        return self.encoder_

    def codes(self, latents: Array) -> csr_array:
        """Activations of the features' latents, float32 [n, f]."""
        m = self.encoder().config.d_sae
        return encode_views(self.encoder(), self.states(latents))[:, self.feature_view_ * m + self.features_]

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        config, tensors = super().state()
        if self.encoder_ is not None:
            config["learned"]["encoder_"] = self.encoder_.config.to_dict()
            tensors |= {f"encoder.{name}": getattr(self.encoder_, name).detach().numpy() for name in ENCODER}
        sae = self._loaded or self.sae
        config["sae"] = sae.source if isinstance(sae, SparseAutoencoder) else str(sae)
        config["learned"]["recipe_"] = self.recipe_.to_dict()
        return config, tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        learned = {k: v for k, v in config["learned"].items() if k not in ("recipe_", "encoder_")}
        own = {name: value for name, value in tensors.items() if not name.startswith("encoder.")}
        head = super().from_state({**config, "learned": learned}, own)
        head.recipe_ = Recipe.from_dict(config["learned"]["recipe_"])
        if "encoder_" in config["learned"]:
            kept = {name: torch.from_numpy(tensors[f"encoder.{name}"]) for name in ENCODER}
            head.encoder_ = encoder_of(SAEConfig(**config["learned"]["encoder_"]), kept, str(head.sae))
        return head

    def __sklearn_clone__(self) -> Self:
        """An unfitted head with the same arguments; the SAE is shared, where scikit-learn would copy it."""
        fresh = type(self)(**self.get_params())
        fresh._loaded = self._loaded
        return fresh


def check_views(sae: SparseAutoencoder, recipe: Recipe) -> None:
    """Raise InputError unless the recipe has views of the response, all at the SAE's own place."""
    layers = sorted({int(view.split(":")[0]) for view in recipe.response_views})
    if len(layers) != 1:
        given = ", ".join(recipe.views)
        raise InputError(
            f"an SAE reads the response's states at one layer, the views are {given}; give one such as 15:last"
        )
    check_place(sae, recipe, layers[0])


def check_last_tokens(sae: SparseAutoencoder, pairs: LatentPairs) -> None:
    """Raise InputError if the SAE reconstructs last tokens as only one of another layer or LLM would.

    A random SAE, which is a control, reconstructs nothing and is let through.
    """
    views = tuple(view for view in pairs.recipe.response_views if view.endswith(":last"))
    if views and sae.source != "random" and len(pairs) >= CHECKED_PAIRS:
        some = pairs.select(views).take(slice(CHECKED_PAIRS))
        states = torch.from_numpy(np.concatenate([some.chosen, some.rejected]).astype(np.float32))
        check_reconstruction(sae, states.to(sae.W_enc.device), LEAST_EXPLAINED)


def sparse_activations(sae: SparseAutoencoder, states: Array) -> csr_array:
    """The SAE's activations [n, m] of states [n, d], float32, zeros left out.

    Encoded in blocks of always the same size, the last one filled up: so a state's activations do not depend on its
    batch, not even where two latents are all but equally strong and only one can be kept.
    """
    blocks = [csr_array((0, sae.config.d_sae), dtype=np.float32)]
    for start in range(0, len(states), BLOCK_ROWS):
        block = states[start : start + BLOCK_ROWS]
        filled = np.zeros((BLOCK_ROWS, states.shape[1]), np.float32)
        filled[: len(block)] = block
        with torch.inference_mode():
            found = sae.encode(torch.from_numpy(filled).to(sae.W_enc.device)).float().cpu().numpy()
        blocks.append(csr_array(found[: len(block)]))
    return vstack(blocks, format="csr")


def encode_views(sae: SparseAutoencoder, states: Sequence[Array]) -> csr_array:
    """`sparse_activations` of the states [n, d] of each view, side by side: [n, views * m]."""
    return hstack([sparse_activations(sae, x) for x in states], format="csr")


def encoder_of(config: SAEConfig, tensors: dict[str, Tensor], source: str) -> SparseAutoencoder:
    """An SAE that can encode; its decoder is 0 and takes no memory."""
    with torch.device("meta"):
        sae = SparseAutoencoder(config, source)
    sae.load_state_dict({**tensors, "W_dec": torch.zeros(1).expand(config.d_sae, config.d_in)}, assign=True)
    return sae


def keep_encoder(sae: SparseAutoencoder) -> SparseAutoencoder:
    """A copy of the SAE in float32 that can encode."""
    copied = {name: getattr(sae, name).detach().float().cpu().clone() for name in ENCODER}
    return encoder_of(sae.config, copied, sae.source)
