"""The order a synthetic pair keeps: measured with a judge, next to the bound that LENS's theorem gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from penchant.heads import Head, LinearHead
from penchant.heads.base import pair_accuracy
from penchant.latents import LatentPairs
from penchant.synthesis.base import Synthesizer
from penchant.synthesis.lens import Lens

Array = NDArray[Any]

GELU_SLOPE = 1.13
"""Just above the steepest slope of gelu, 1.1289."""
NOISES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)


def order_kept(
    synthesizer: Synthesizer, pairs: LatentPairs, judge: Head, rounds: int = 1, random_state: int = 0
) -> dict[str, Any]:
    """How far a judge, fitted on other pairs, orders synthetic pairs as it orders their seeds.

    Returns `order_kept` (share of the synthetic pairs of rightly ordered seeds that it orders rightly too, None where
    it orders none), `seed_accuracy` and `synthetic_accuracy` (a tie counting one half), and `rounds`.
    """
    everything = synthesizer.sample(pairs, rounds + 1, random_state)
    margins = judge.score(everything.chosen) - judge.score(everything.rejected)
    seeds, synthetic = margins[: len(pairs)], margins[len(pairs) :]
    right = np.tile(seeds > 0, rounds)
    return {
        "order_kept": pair_accuracy(synthetic[right]) if right.any() else None,
        "seed_accuracy": pair_accuracy(seeds),
        "synthetic_accuracy": pair_accuracy(synthetic),
        "rounds": rounds,
    }


def displacement(synthesizer: Synthesizer, pairs: LatentPairs, random_state: int = 0) -> float:
    """Mean Euclidean distance of a synthetic latent from its seed, in the latents' units; sides left real not counted.

    `DirectNoise(norm=displacement(lens, pairs))` is the control that moves every latent as far as LENS does.
    """
    moved = synthesizer.sample(pairs, 2, random_state).take(slice(len(pairs), None))
    distance = np.linalg.norm(
        np.concatenate([moved.chosen - pairs.chosen, moved.rejected - pairs.rejected]).astype(np.float64), axis=1
    )
    return float(distance[distance > 0].mean()) if distance.any() else 0.0


def decoder_lipschitz(lens: Lens) -> float:
    """No two z's decoded latents lie further apart than this number times the distance between the z's.

    The product of the layers' spectral norms, the last one in the latents' units, and gelu's steepest slope.
    """
    output = lens.standardiser_.scale[:, None] * lens.decoder_.output
    return GELU_SLOPE * _spectral_norm(output) * _spectral_norm(lens.decoder_.hidden)


def jacobian_norm(lens: Lens, z: Array) -> float:
    """Largest spectral norm of the decoder's Jacobian at z [n, latent]: a lower bound of its Lipschitz constant."""
    weights = lens.decoder_
    output = lens.standardiser_.scale[:, None].astype(np.float64) * weights.output
    a = z.astype(np.float64) @ weights.hidden.T + weights.hidden_bias
    slope = 0.5 * (1 + erf(a / np.sqrt(2))) + a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    # |O D W| for each row's diagonal D of slopes; R of O = QR has the same norms and fewer rows.
    small = np.linalg.qr(output, mode="r")
    return max(_spectral_norm((small * row) @ weights.hidden) for row in slope)


def order_preservation(
    lens: Lens, pairs: LatentPairs, judge: LinearHead, noises: tuple[float, ...] = NOISES, random_state: int = 0
) -> list[dict[str, float]]:
    """For each noise level: what perturbing both sides of every pair does to the judge's margins, and the bound on it.

    A score with Lipschitz constant L (here |w| of a linear judge, fitted on other pairs) and latents that decoding
    moves by at most e_rec + L_g |eta| let a pair's margin move by at most 2 L (e_rec + L_g |eta|). e_rec is the
    largest reconstruction error of these pairs, |eta| the larger norm of a pair's two draws, L_g `decoder_lipschitz`.

    Each row has `noise`, `order_kept` (share of pairs that the judge orders as before), `movement_mean` and
    `movement_max` (of the margin, in the judge's units, beside `margin_mean`, the mean size of a real margin),
    `bound_mean`, `tightness` (largest movement / bound, never above 1), `guaranteed` (share of pairs whose margin is
    above their bound), and, with the largest Jacobian norm seen in place of L_g, which proves nothing but is nearer
    the truth, `sampled_bound_mean` and `sampled_guaranteed`; `error_max` is e_rec.
    """
    seeds = np.concatenate([pairs.chosen, pairs.rejected])
    mu, n = lens.encode(seeds)[0], len(pairs)
    error = float(np.linalg.norm(lens.decode(mu) - seeds, axis=1).max())
    constant, slope = float(np.linalg.norm(judge.weight_)), decoder_lipschitz(lens)
    margin = (seeds[:n].astype(np.float64) - seeds[n:]) @ judge.weight_
    rows = []
    for noise in noises:
        eta = noise * np.random.default_rng(random_state).standard_normal(mu.shape)
        moved = lens.decode(mu + eta).astype(np.float64)
        now = (moved[:n] - moved[n:]) @ judge.weight_
        length = np.linalg.norm(eta, axis=1).reshape(2, n).max(axis=0)
        movement, bound = np.abs(now - margin), 2 * constant * (error + slope * length)
        near = np.concatenate([mu, mu + eta])
        sampled = 2 * constant * (error + jacobian_norm(lens, near[:: -(-len(near) // 256)]) * length)
        rows.append(
            {
                "noise": float(noise),
                "order_kept": float((np.sign(now) == np.sign(margin)).mean()),
                "margin_mean": float(np.abs(margin).mean()),
                "movement_mean": float(movement.mean()),
                "movement_max": float(movement.max()),
                "error_max": error,
                "bound_mean": float(bound.mean()),
                "tightness": float((movement / bound).max()),
                "guaranteed": float((np.abs(margin) > bound).mean()),
                "sampled_bound_mean": float(sampled.mean()),
                "sampled_guaranteed": float((np.abs(margin) > sampled).mean()),
            }
        )
    return rows


def _spectral_norm(matrix: Array) -> float:
    return float(np.linalg.norm(matrix.astype(np.float64), ord=2))
