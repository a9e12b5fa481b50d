"""What is known of a person, for z and for rewards, as the arrays that the database keeps.

With a latent size of 32 and 40 directions of taste the compact form takes about 2.2 KB:

    latent                  float16 [latent]            m_u of `fitting`
    taste.REWARDS           float32 [k]                 mean of the taste
    certainty.REWARDS       float16 [k (k + 1) / 2]     its precision's Cholesky factor, the lower triangle row by row

The factor and not the precision itself, so that what comes back is positive definite, and as roots of the precision's
entries its numbers stay inside float16 (below 65,504) for up to 4e9. Margins move by less than a thousandth (a test).
REWARDS names the directions: the taste of other ones is not used. In the full form (`full_encoder`) the person has
`encoder.NAME` float32 in place of `latent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from penchant.heads.tastes import Taste, packed, unpacked
from penchant.personal.records import Person, Vectors

LATENT, TASTE, CERTAINTY, ENCODER = "latent", "taste.", "certainty.", "encoder."


class Known(NamedTuple):
    """A person; nobody in particular where all is None."""

    weights: Tensor | None = None
    """m_u [latent]: the compact form."""
    encoder: Mapping[str, Tensor] | None = None
    """A whole encoder's weights by name: the full form."""
    taste: Taste | None = None

    @classmethod
    def of(cls, person: Person, rewards: str | None) -> Known:
        """What a row says; `rewards` names the directions in use."""
        vectors = {name: value.astype(np.float32) for name, value in person.vectors.items()}
        prefix = len(ENCODER)
        encoder = {name[prefix:]: torch.from_numpy(v) for name, v in vectors.items() if name.startswith(ENCODER)}
        taste = None
        if rewards is not None and TASTE + rewards in vectors:
            mean = vectors[TASTE + rewards]
            lower = np.zeros((len(mean), len(mean)))
            lower[np.tril_indices(len(mean))] = vectors[CERTAINTY + rewards]
            taste = Taste(mean, packed(lower @ lower.T).astype(np.float32), person.pairs)
        return cls(None if encoder else torch.from_numpy(vectors[LATENT]), encoder or None, taste)

    def vectors(self, rewards: str | None) -> Vectors:
        """What a row keeps."""
        found: dict[str, Any] = {}
        if self.weights is not None:
            found[LATENT] = self.weights.numpy().astype(np.float16)
        for name, value in (self.encoder or {}).items():
            found[ENCODER + name] = value.numpy()
        if self.taste is not None and rewards is not None:
            k = len(self.taste.mean)
            lower = np.linalg.cholesky(unpacked(self.taste.precision, k))
            found[TASTE + rewards] = self.taste.mean
            found[CERTAINTY + rewards] = lower[np.tril_indices(k)].astype(np.float16)
        return found
