"""What LENS has to beat: synthesis without an autoencoder, by noise, a Gaussian, real latents paired anew, or PCA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA

from penchant.errors import InputError
from penchant.latents import SAMPLE_PAIRS, LatentPairs
from penchant.synthesis.base import Standardiser, Synthesizer, mixture

Array = NDArray[Any]


class DirectNoise(Synthesizer, kind="noise"):
    """e~ = e + scale * std * eta, eta ~ N(0, I): noise that is isotropic in standardised latents.

    Args:
        scale: the noise's standard deviation in each dimension, as a share of the latents' own.
        norm: where given, every noise vector is stretched to exactly this Euclidean norm, in the latents' units, and
            `scale` does not matter: the control "noise of the same norm" (see `theory.displacement`).
        mix_real: as in `Lens`; False makes both sides synthetic.

    Attributes:
        standardiser_: mean and deviation [d] of chosen, rejected and unlabelled latents together.
    """

    standardiser_: Standardiser

    def __init__(self, scale: float = 0.1, norm: float | None = None, mix_real: bool = True) -> None:
        self.scale = scale
        self.norm = norm
        self.mix_real = mix_real

    def check_arguments(self) -> None:
        for name, value in (("scale", self.scale), ("norm", 0.0 if self.norm is None else self.norm)):
            if not 0 <= value < np.inf:
                raise InputError(f"{name} is {value}; give a finite number of at least 0")

    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        self.standardiser_ = Standardiser.of(pairs.chosen, pairs.rejected, unlabelled)

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        synthetic = mixture(rng, len(pairs), self.mix_real)[:, :, None]
        chosen, rejected = (self._noise(e.shape, rng) * real for e, real in zip(_sides(pairs), synthetic, strict=True))
        return replace(pairs, chosen=pairs.chosen + chosen, rejected=pairs.rejected + rejected)

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        noise: Array = self.standardiser_.scale * rng.standard_normal(shape, dtype=np.float32)
        if self.norm is None:
            return np.float32(self.scale) * noise
        stretched: Array = noise * (np.float32(self.norm) / np.linalg.norm(noise, axis=1, keepdims=True))
        return stretched


class Gaussian(NamedTuple):
    """N(mean, factor' factor + floor^2 I), whose d x d covariance is never written out."""

    mean: Array
    """[d]"""
    factor: Array
    """[r, d], r = min(n, d)."""
    floor: float

    @classmethod
    def ledoit_wolf(cls, rows: Array) -> Gaussian:
        """Covariance (1 - a) S + a tr(S) / d I of rows [n, d], a by Ledoit and Wolf (2004)."""
        (n, d), mean = rows.shape, rows.mean(axis=0)
        centered = rows - mean
        shrinkage = float(ledoit_wolf_shrinkage(centered, assume_centered=True))
        variance = float(np.square(centered).sum() / (n * d))
        # S = R'R / n for the R of a QR decomposition, which is the smaller factor where there are more rows than d.
        factor = np.linalg.qr(centered, mode="r") if n > d else centered
        return cls(mean, np.sqrt((1 - shrinkage) / n) * factor, float(np.sqrt(shrinkage * variance)))

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """[n, d], float32."""
        inside = rng.standard_normal((n, len(self.factor)), dtype=np.float32) @ self.factor.astype(np.float32)
        outside = np.float32(self.floor) * rng.standard_normal((n, len(self.mean)), dtype=np.float32)
        drawn: Array = self.mean.astype(np.float32) + inside + outside
        return drawn


class GaussianSynthesis(Synthesizer, kind="gaussian"):
    """chosen ~ one Gaussian, rejected ~ another, independently: only the seeds' groups and columns remain.

    Mean and Ledoit-Wolf covariance of the chosen and of the rejected latents, in standardised units; of pairs in files
    5,000 give them. Unlabelled latents belong to neither and are not used.

    Attributes:
        standardiser_: mean and deviation [d] of both sides together.
        chosen_, rejected_: the two `Gaussian`s.
    """

    takes_unlabelled = False

    standardiser_: Standardiser
    chosen_: Gaussian
    rejected_: Gaussian

    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        self.standardiser_ = Standardiser.of(pairs.chosen, pairs.rejected)
        pairs = pairs.sample(SAMPLE_PAIRS) if pairs.mapped else pairs
        chosen, rejected = (self.standardiser_.apply(e).astype(np.float64) for e in _sides(pairs))
        self.chosen_, self.rejected_ = Gaussian.ledoit_wolf(chosen), Gaussian.ledoit_wolf(rejected)

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        chosen, rejected = (
            self.standardiser_.undo(gaussian.sample(len(pairs), rng)) for gaussian in (self.chosen_, self.rejected_)
        )
        return replace(pairs, chosen=chosen, rejected=rejected)


class CrossPairs(Synthesizer, kind="cross"):
    """The chosen latent of one pair against the rejected one of another: no latent is new, only the pairing.

    The other pair shares the prompt where the block has one that does; each rejected latent of a prompt is then used
    once a round. `batches` draws block by block (4,096 pairs), so a prompt's pairs should stand together.

    Args:
        same_prompt_only: a pair whose prompt has no other pair keeps its own partner, instead of meeting the rejected
            latent of a random pair.
    """

    takes_unlabelled = False

    def __init__(self, same_prompt_only: bool = False) -> None:
        self.same_prompt_only = same_prompt_only

    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        return

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        n = len(pairs)
        partner = _next_in_group(pairs.group, rng)
        alone = partner == np.arange(n)
        if not self.same_prompt_only and n > 1:
            other = (np.arange(n) + rng.integers(1, n, size=n)) % n
            partner = np.where(alone, other, partner)
        return replace(pairs, rejected=pairs.rejected[partner])


def _next_in_group(group: Array, rng: np.random.Generator) -> Array:
    """For each row another row [n] of its group: the next one round a random circle; itself if it is the only one."""
    order = rng.permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    last = first + size - 1
    following = np.arange(1, len(group) + 1)
    following[last] = first
    partner = np.empty(len(group), int)
    partner[order] = order[following]
    return partner


class PCANoise(Synthesizer, kind="pca"):
    """e~ = mean + sum_k axis_k sd_k (y_k + eta_k), y_k the whitened k-th principal coordinate, eta ~ N(0, noise^2 I).

    LENS with a linear autoencoder: the principal axes of standardised latents (of pairs in files: of 5,000 pairs), and
    noise in a space where the data has variance 1 in each direction.

    Args:
        components: principal axes, fewer where the data has fewer.
        noise: standard deviation of eta.
        keep_residual: add what the axes leave out, so that noise 0 returns the seed itself.
        mix_real: as in `Lens`; False makes both sides synthetic.

    Attributes:
        standardiser_: mean and deviation [d] of chosen, rejected and unlabelled latents together.
        axes_: float32 [components, d], orthonormal.
        deviation_: float32 [components], the standard deviation sd_k along each axis.
    """

    standardiser_: Standardiser
    axes_: Array
    deviation_: Array

    def __init__(
        self, components: int = 16, noise: float = 0.1, keep_residual: bool = False, mix_real: bool = True
    ) -> None:
        self.components = components
        self.noise = noise
        self.keep_residual = keep_residual
        self.mix_real = mix_real

    def check_arguments(self) -> None:
        if self.components < 1:
            raise InputError(f"components is {self.components}; give at least 1")
        if not 0 <= self.noise < np.inf:
            raise InputError(f"noise is {self.noise}; give a finite number of at least 0")

    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        self.standardiser_ = Standardiser.of(pairs.chosen, pairs.rejected, unlabelled)
        some = pairs.sample(SAMPLE_PAIRS) if pairs.mapped else pairs
        x = self.standardiser_.apply(np.concatenate([some.chosen, some.rejected, unlabelled]))
        pca = PCA(min(self.components, *x.shape), random_state=0).fit(x)
        self.axes_ = pca.components_.astype(np.float32)
        self.deviation_ = np.sqrt(pca.explained_variance_).astype(np.float32)

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        synthetic = mixture(rng, len(pairs), self.mix_real)[:, :, None]
        chosen, rejected = (
            np.where(new, self._perturb(e, rng), e) for e, new in zip(_sides(pairs), synthetic, strict=True)
        )
        return replace(pairs, chosen=chosen, rejected=rejected)

    def _perturb(self, latents: Array, rng: np.random.Generator) -> Array:
        x = self.standardiser_.apply(latents)
        coordinates = x @ self.axes_.T
        eta = np.float32(self.noise) * rng.standard_normal(coordinates.shape, dtype=np.float32)
        start = x if self.keep_residual else coordinates @ self.axes_
        return self.standardiser_.undo(start + (eta * self.deviation_) @ self.axes_)


def _sides(pairs: LatentPairs) -> tuple[Array, Array]:
    return pairs.chosen, pairs.rejected
