"""LENS (arXiv 2509.26074): a small variational autoencoder of latents, perturbed in its own latent space."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch.nn.functional import gelu

from penchant.errors import InputError
from penchant.heads.base import check_latents, prompt_folds
from penchant.latents import LatentPairs
from penchant.mapped import read
from penchant.synthesis.base import CHUNK, Standardiser, Synthesizer, mixture

Array = NDArray[Any]

LIKELIHOODS = ("prior", "elbo")
PAIRINGS = ("same-prompt", "all")
LEAST_TO_HOLD_OUT = 50
"""With fewer pairs the VAE learns from all of them."""
COLLAPSED_SHARE = 0.05
WIDTH_AT_FULL_RATE = 512


class Weights(NamedTuple):
    """A hidden layer and an output layer: f(x) = output (gelu(hidden x + hidden_bias)) + output_bias."""

    hidden: Any
    hidden_bias: Any
    output: Any
    output_bias: Any


class Lens(Synthesizer, kind="lens"):
    """A VAE with encoder e -> (mu, log sigma^2) and decoder g, one for chosen and rejected, on standardised latents.

    It minimises, over N pairs,

        L = 1/N sum_i [VAE(e+_i) + VAE(e-_i)] + gamma L_div,   L_div = -1/N sum_i W2(q(z|e+_i), q(z|e-_i)),
        VAE(e) = 1/2 |e - g(z)|^2 + beta KL(q(z|e) || N(0, I)),   z ~ q(z|e) = N(mu, diag(sigma^2)),

    with |.|^2 summed over all d standardised dimensions (a Gaussian likelihood of unit variance). Unlabelled latents
    add their VAE(e) and nothing else. A synthetic latent is e~ = g(z + eta), eta ~ N(0, noise^2 I), back in the
    latents' units. The VAE is trained by Adam with a learning rate that falls linearly to 0 and is 512 / d of itself
    in the encoder's first layer where d > 512; the decoder starts at the mean. Same seed, same machine, same result;
    torch's global random state is neither read nor changed.

    Args:
        latent: dimensions of z.
        hidden: width of the encoder's and of the decoder's hidden layer.
        beta: weight of the KL term.
        gamma: weight of L_div; 0 is a plain VAE. Of two means m and -m the KL costs beta |m|^2 and W2 gains
            2 gamma |m|, so L is bounded below for any gamma if beta > 0.
        squared: W2^2 instead of W2. It gains 4 gamma |m|^2, so that L has no lower bound once gamma > beta / 4 and the
            encoder can send a pair to m and -m (gamma > beta / 2 if only to m and 0), and training may diverge.
        noise: standard deviation of eta; 0 leaves the reconstruction.
        sample_posterior: perturb a sample of q(z|e) instead of its mean mu.
        keep: share of the drawn pairs that the filter keeps: 1 / keep (rounded) are drawn for each, and the most
            likely, by the sum over its synthetic sides, is taken, so that no seed loses its copies; above 2/3 none is
            dropped.
        likelihood: of a synthetic latent, up to constants. "prior" is log N(z + eta; 0, I), of its z; "elbo" is the
            evidence lower bound of e~ = g(z + eta) read anew, with g taken at the posterior's mean:
            -1/2 |e~ - g(mu(e~))|^2 - KL(q(z|e~) || N(0, I)).
        pairing: "same-prompt" makes both sides from one seed pair; "all", as printed in the paper, takes the rejected
            side from a random pair of the block, of whatever prompt. The prompt's latent is the chosen's then.
        mix_real: a pair is (synthetic, synthetic), (real, synthetic) or (synthetic, real) with equal chances; False
            makes both sides synthetic.
        learning_rate: Adam's first.
        batch_size: responses a step, a pair being two.
        steps: of Adam.
        warmup: share of the steps over which the weights of KL and L_div rise linearly from 0 to beta and gamma; 0 is
            none. They rise together because KL is all that holds L_div.
        random_state: held-out prompts, initial weights, batches and posterior samples of the training.

    Attributes:
        standardiser_: center and scale [d] of the latents.
        encoder_, decoder_: float32 `Weights`; encoder_.output gives mu, then log sigma^2.
        diagnostics_: reconstruction_share (of the standardised variance, decoded from mu; below 0 is worse than the
            mean), reconstruction_on ("held-out": a tenth of the prompts that the VAE has not seen, "training" below
            50 pairs or 10 prompts), kl_by_dimension (mean over at most 4,096 training pairs), active_units (dimensions
            of mu whose variance over them is above 0.01; Burda et al. 2016), steps, seconds, parameters.
        collapsed_: whether no unit is active or less than .05 is reconstructed; `fit` warns of it.
    """

    standardiser_: Standardiser
    encoder_: Weights
    decoder_: Weights
    diagnostics_: dict[str, Any]
    collapsed_: bool

    def __init__(
        self,
        latent: int = 16,
        hidden: int = 64,
        beta: float = 1.0,
        gamma: float = 0.1,
        squared: bool = False,
        noise: float = 0.1,
        sample_posterior: bool = False,
        keep: float = 0.5,
        likelihood: str = "prior",
        pairing: str = "same-prompt",
        mix_real: bool = True,
        learning_rate: float = 1e-2,
        batch_size: int = 128,
        steps: int = 200,
        warmup: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.latent = latent
        self.hidden = hidden
        self.beta = beta
        self.gamma = gamma
        self.squared = squared
        self.noise = noise
        self.sample_posterior = sample_posterior
        self.keep = keep
        self.likelihood = likelihood
        self.pairing = pairing
        self.mix_real = mix_real
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.steps = steps
        self.warmup = warmup
        self.random_state = random_state

    def check_arguments(self) -> None:
        for name, least in (("latent", 1), ("hidden", 1), ("batch_size", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")
        for name in ("beta", "gamma", "noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number of at least 0")
        if not 0 < self.learning_rate < np.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; give a finite number above 0")
        if not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}; give a share above 0 and at most 1")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup is {self.warmup}; give a share of the steps between 0 and 1")
        for name, known in (("likelihood", LIKELIHOODS), ("pairing", PAIRINGS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; give {' or '.join(map(repr, known))}")

    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        start = time.perf_counter()
        fold = prompt_folds(pairs.group, 10, self.random_state)
        held_out = (fold == 9) & (len(pairs) >= LEAST_TO_HOLD_OUT)
        chosen, rejected = (side[~held_out] if held_out.any() else side for side in (pairs.chosen, pairs.rejected))
        self.standardiser_ = Standardiser.of(chosen, rejected, unlabelled)
        self.encoder_, self.decoder_ = self._train(chosen, rejected, unlabelled)
        if not all(np.isfinite(w).all() for w in self.encoder_ + self.decoder_):
            raise InputError("the VAE's training diverged to NaN or inf; lower gamma or learning_rate")

        training = np.concatenate([read(side[:CHUNK]) for side in (chosen, rejected)])
        unseen = np.flatnonzero(held_out)[:CHUNK]
        sides = (pairs.chosen[unseen], pairs.rejected[unseen])
        measured = np.concatenate([read(side) for side in sides]) if len(unseen) else training
        mu, sigma = self.encode(training)
        share = self._reconstruction_share(measured)
        active = int((mu.var(axis=0) > 0.01).sum())
        self.diagnostics_ = {
            "reconstruction_share": share,
            "reconstruction_on": "held-out" if held_out.any() else "training",
            "kl_by_dimension": [float(kl) for kl in kl_to_prior(torch.tensor(mu), torch.tensor(sigma)).mean(dim=0)],
            "active_units": active,
            "steps": self.steps,
            "seconds": time.perf_counter() - start,
            "parameters": sum(w.size for w in self.encoder_ + self.decoder_),
        }
        self.collapsed_ = active == 0 or share < COLLAPSED_SHARE
        if self.collapsed_:
            warnings.warn(
                f"the VAE has collapsed: {active} of its {self.latent} dimensions are active and it reconstructs "
                f"{max(share, 0):.0%} of the {self.diagnostics_['reconstruction_on']} latents' variance, so its pairs "
                "carry little of their seeds; lower beta or gamma, or give more pairs or unlabelled latents",
                UserWarning,
                stacklevel=3,
            )

    def encode(self, latents: Array) -> tuple[Array, Array]:
        """mu and sigma, float32 [n, latent] each, of latents [n, d]."""
        x = self.standardiser_.apply(check_latents(latents, len(self.standardiser_.center)))
        mu, log_variance = np.split(_layers(x, self.encoder_), 2, axis=1)
        return mu, np.exp(log_variance / 2)

    def decode(self, z: Array) -> Array:
        """Latents, float32 [n, d], of z [n, latent]."""
        return self.standardiser_.undo(_layers(z.astype(np.float32), self.decoder_))

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        n = len(pairs)
        synthetic = mixture(rng, n, self.mix_real)
        rejected = pairs.rejected[rng.permutation(n)] if self.pairing == "all" else pairs.rejected
        seeds = np.concatenate([pairs.chosen, rejected])
        mu, sigma = self.encode(seeds)
        best, most = mu, np.full(n, -np.inf)
        for _ in range(round(1 / self.keep)):
            z = mu + sigma * rng.standard_normal(mu.shape, dtype=np.float32) if self.sample_posterior else mu
            z = z + np.float32(self.noise) * rng.standard_normal(mu.shape, dtype=np.float32)
            likelihood = (self._log_likelihood(z).reshape(2, n) * synthetic).sum(axis=0)
            better = likelihood > most
            best, most = np.where(np.tile(better, 2)[:, None], z, best), np.where(better, likelihood, most)
        latents = np.where(synthetic.reshape(-1, 1), self.decode(best), seeds)
        return replace(pairs, chosen=latents[:n], rejected=latents[n:])

    def _log_likelihood(self, z: Array) -> Array:
        """[n], of z + eta [n, latent]; nothing to choose from needs none."""
        if self.keep == 1:
            return np.zeros(len(z))
        if self.likelihood == "prior":
            prior: Array = -np.square(z).sum(axis=1) / 2
            return prior
        latents = self.decode(z)
        mu, sigma = self.encode(latents)
        again = self.standardiser_.apply(self.decode(mu))
        error = np.square(self.standardiser_.apply(latents) - again).sum(axis=1) / 2
        bound: Array = -error - kl_to_prior(torch.from_numpy(mu), torch.from_numpy(sigma)).sum(dim=1).numpy()
        return bound

    def _reconstruction_share(self, latents: Array) -> float:
        x, again = self.standardiser_.apply(latents), self.standardiser_.apply(self.decode(self.encode(latents)[0]))
        return float(1 - np.square(x - again).sum() / max(np.square(x).sum(), 1e-12))

    def _train(self, chosen: Array, rejected: Array, unlabelled: Array) -> tuple[Weights, Weights]:
        """Encoder and decoder after `steps` of Adam on pairs [n, d] and unlabelled latents [m, d]."""
        generator = torch.Generator().manual_seed(self.random_state)
        (n, d), m = chosen.shape, len(unlabelled)
        center = torch.from_numpy(self.standardiser_.center)
        scale = torch.from_numpy(np.where(self.standardiser_.scale > 0, self.standardiser_.scale, 1))

        def linear(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.randn(outputs, inputs, generator=generator) / inputs**0.5, torch.zeros(outputs)

        encoder = Weights(*linear(self.hidden, d), *linear(2 * self.latent, self.hidden))
        decoder = Weights(*linear(self.hidden, self.latent), torch.zeros(d, self.hidden), torch.zeros(d))
        for w in encoder + decoder:
            w.requires_grad_()
        # Adam moves each of a unit's d weights equally far, so at one rate its sum would move further the larger d is.
        wide = {"params": [encoder.hidden], "share": min(1.0, WIDTH_AT_FULL_RATE / d)}
        rest = {"params": [*encoder[1:], *decoder], "share": 1.0}
        optimiser = torch.optim.Adam([wide, rest], lr=self.learning_rate, fused=True)

        # Pairs and unlabelled responses enter a batch in the proportion in which they are there.
        k = min(n, max(1, round(self.batch_size * n / (2 * n + m))))
        pair_batches = _order(n, k, self.steps, generator)
        other_batches = _order(m, min(m, max(self.batch_size - 2 * k, 1)), self.steps, generator)
        for step, (i, j) in enumerate(zip(pair_batches, other_batches, strict=True)):
            seen = [read(side[rows.numpy()]) for side, rows in ((chosen, i), (rejected, i), (unlabelled, j))]
            x = (torch.from_numpy(np.concatenate(seen, dtype=np.float32)) - center) / scale
            mu, log_variance = _forward(x, encoder).chunk(2, dim=1)
            sigma = (log_variance / 2).exp()
            z = mu + sigma * torch.randn(mu.shape, generator=generator)
            latent_terms = self.beta * kl_to_prior(mu, sigma).sum()
            if self.gamma:
                distance = wasserstein(mu[:k], sigma[:k], mu[k : 2 * k], sigma[k : 2 * k], self.squared)
                latent_terms = latent_terms - self.gamma * distance.sum()
            warm = min(1.0, (step + 1) / (self.warmup * self.steps)) if self.warmup else 1.0
            loss = (x - _forward(z, decoder)).square().sum() / 2 + warm * latent_terms
            for group in optimiser.param_groups:
                group["lr"] = group["share"] * self.learning_rate * (1 - step / self.steps)
            optimiser.zero_grad()
            (loss / (len(x) / 2)).backward()
            optimiser.step()
        return Weights(*(w.detach().numpy() for w in encoder)), Weights(*(w.detach().numpy() for w in decoder))


def kl_to_prior(mu: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each dimension [n, latent]."""
    return (mu.square() + sigma.square() - 1) / 2 - sigma.log()


def wasserstein(
    mu_a: torch.Tensor, sigma_a: torch.Tensor, mu_b: torch.Tensor, sigma_b: torch.Tensor, squared: bool = False
) -> torch.Tensor:
    """W2 [n] between diagonal Gaussians [n, latent]: W2^2 = |mu_a - mu_b|^2 + |sigma_a - sigma_b|^2."""
    square = (mu_a - mu_b).square().sum(dim=1) + (sigma_a - sigma_b).square().sum(dim=1)
    # The root has no slope at 0, where two responses have one latent.
    return square if squared else (square + 1e-12).sqrt()


def _forward(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    hidden = gelu(torch.addmm(weights.hidden_bias, x, weights.hidden.T))
    return torch.addmm(weights.output_bias, hidden, weights.output.T)


def _layers(x: Array, weights: Weights) -> Array:
    """`_forward` in numpy."""
    a = x @ weights.hidden.T + weights.hidden_bias
    gelu_a = a * (0.5 + 0.5 * erf(a * np.float32(0.5**0.5)))
    out: Array = gelu_a @ weights.output.T + weights.output_bias
    return out


def _order(n: int, k: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Row numbers [steps, k] in [0, n): pass after pass, each in a new random order."""
    passes = -(-steps * k // n) if n else 0
    rows = [torch.randperm(n, generator=generator) for _ in range(passes)]
    return torch.cat([*rows, torch.empty(0, dtype=torch.int64)])[: steps * k].view(steps, k)
