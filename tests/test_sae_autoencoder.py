"""The autoencoder itself: what is kept, what is undone, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from penchant.errors import InputError
from penchant.sae import SAEConfig, SparseAutoencoder

D, M, K = 12, 30, 5


def states(n: int = 40, seed: int = 1) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


def made(**facts: Any) -> SparseAutoencoder:
    """A random SAE with biases and thresholds that matter."""
    sae = SparseAutoencoder.random(SAEConfig(**{"d_in": D, "d_sae": M, "k": K, **facts}), seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(M, generator=generator))
        sae.b_dec.copy_(torch.randn(D, generator=generator))
        sae.threshold.copy_(torch.rand(M, generator=generator) + 0.5)
    return sae


def lossless(**facts: Any) -> SparseAutoencoder:
    """Two latents an axis, one for each sign: whatever is done to a state before encoding must be undone after."""
    sae = SparseAutoencoder(SAEConfig(D, 2 * D, "jumprelu", **facts))
    with torch.no_grad():
        for weight in (sae.W_enc, sae.W_dec):
            weight.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        sae.b_dec.copy_(torch.arange(D) / 7)
    return sae


def test_topk_keeps_the_k_largest_and_nothing_below_zero() -> None:
    sae, x = made(), states()
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    activations = sae.encode(x)
    for row, found in zip(pre, activations, strict=True):
        largest = row.argsort(descending=True)[:K]
        expected = torch.zeros(M)
        expected[largest] = row[largest].clamp_min(0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    few = SparseAutoencoder(replace(sae.config, k=M))
    few.load_state_dict(sae.state_dict())
    kept = few.encode(x)
    assert (kept >= 0).all()
    assert (kept == 0).any(), "with k = m what is below 0 still is 0"


def test_a_state_does_not_depend_on_its_batch() -> None:
    for architecture in ("topk", "batchtopk", "jumprelu"):
        for normalize in ("none", "layer_norm", "constant_norm"):
            sae, x = made(architecture=architecture, normalize=normalize), states()
            alone = torch.cat([sae(row[None]) for row in x])
            torch.testing.assert_close(sae(x), alone, atol=1e-5, rtol=1e-5)


def test_a_threshold_of_zero_is_a_relu_and_a_larger_one_only_removes() -> None:
    sae, x = made(architecture="jumprelu"), states()
    kept = sae.encode(x)
    sae.threshold.zero_()
    plain = sae.encode(x)
    relu = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    torch.testing.assert_close(plain, relu, atol=1e-5, rtol=1e-5)
    assert torch.equal(kept[kept > 0], plain[kept > 0])
    assert 0 < (kept > 0).sum() < (plain > 0).sum()


def test_batchtopk_is_jumprelu_once_trained() -> None:
    x = states()
    assert torch.equal(made(architecture="batchtopk")(x), made(architecture="jumprelu")(x))
    assert not torch.equal(made(architecture="batchtopk")(x), made(architecture="topk")(x))


@pytest.mark.parametrize("facts", [{}, {"scale": 0.3}, {"normalize": "layer_norm"}, {"normalize": "constant_norm"}])
@pytest.mark.parametrize("subtract", [True, False])
def test_what_is_done_to_a_state_is_undone(facts: dict[str, Any], subtract: bool) -> None:
    sae, x = lossless(subtract_decoder_bias=subtract, **facts), states()
    expected = x
    if not subtract:  # the bias was not taken off, so it comes on top, in the encoder's units
        seen = sae.normalized(x)
        expected = x + sae.b_dec * seen.std / sae.config.scale
    torch.testing.assert_close(sae(x), expected, atol=1e-4, rtol=1e-4)


def test_normalised_states_forget_their_length_and_layer_norm_their_mean() -> None:
    x = states()
    for normalize, other in (("layer_norm", 5 * x + 2), ("constant_norm", 5 * x)):
        sae = made(normalize=normalize)
        torch.testing.assert_close(sae.encode(other), sae.encode(x), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(made(normalize="constant_norm").encode(5 * x + 2), made().encode(x), atol=0.1)
    assert not torch.allclose(made().encode(5 * x), made().encode(x), atol=0.1)
    lengths = made(normalize="constant_norm").normalized(x).states.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((len(x),), D**0.5))


def test_states_of_zeros_stay_finite() -> None:
    for normalize in ("none", "layer_norm", "constant_norm"):
        assert made(normalize=normalize)(torch.zeros(2, D)).isfinite().all()


def test_scale_is_in_the_states() -> None:
    x = states()
    assert torch.equal(made(scale=0.25).encode(x), made().encode(x * 0.25))
    torch.testing.assert_close(made(scale=0.25)(x), made()(x * 0.25) * 4)


def test_random_has_unit_rows_and_a_seed() -> None:
    config = SAEConfig(D, M, k=K)
    first, again, other = (SparseAutoencoder.random(config, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(M))
    assert torch.equal(first.W_enc, first.W_dec)
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_states_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=f"width {D}.* {D + 1}"):
        made()(torch.zeros(3, D + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "gated"}, "'gated'; known are topk"),
        ({"normalize": "batch"}, "'batch'; known are none"),
        ({"d_in": 0}, "width 0"),
        ({"k": 0}, "k is 0"),
        ({"k": M + 1}, f"at most the number of latents, {M}"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2.0, "normalize": "layer_norm"}, "leave scale at 1"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(SAEConfig(D, M, k=K), **change)
    SAEConfig(D, M, architecture="jumprelu")  # needs no k
