"""Synthesizers: what stays of a seed, what is reproducible, and the formulas they claim to compute."""

from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf

from penchant.errors import InputError, RecipeMismatch
from penchant.heads import LinearHead
from penchant.latents import LatentPairs, Recipe
from penchant.synthesis import (
    SYNTHESIZERS,
    CrossPairs,
    DirectNoise,
    GaussianSynthesis,
    Lens,
    PCANoise,
    Synthesizer,
    displacement,
    lens,
    order_kept,
    order_preservation,
)
from penchant.synthesis.base import CHUNK, Standardiser
from penchant.synthesis.noise import Gaussian

D = 24
FAST: dict[str, Any] = {"latent": 4, "hidden": 16, "steps": 60}
ALL: list[Synthesizer] = [
    Lens(**FAST),
    Lens(**FAST, pairing="all", likelihood="elbo", sample_posterior=True),
    DirectNoise(),
    DirectNoise(norm=2.0),
    GaussianSynthesis(),
    CrossPairs(),
    PCANoise(components=4),
]
each = pytest.mark.parametrize("synthesizer", ALL, ids=repr)


def make_pairs(n: int, seed: int = 0, d: int = D, rank: int = 4) -> LatentPairs:
    """Pairs in prompts of three whose latents have low rank, a little noise, uneven scales and one huge dimension."""
    axes = np.random.default_rng(99).normal(size=(rank, d))
    spread = np.linspace(0.5, 3, d)
    spread[0] = 60
    rng = np.random.default_rng(seed)
    good, bad = rng.normal(size=(2, n, rank))
    swap = good[:, 0] < bad[:, 0]
    good[swap], bad[swap] = bad[swap], good[swap].copy()
    x, y = (((z @ axes + 0.2 * rng.normal(size=(n, d))) * spread + 3 * spread).astype(np.float32) for z in (good, bad))
    recipe = Recipe("model", "revision", ("10:mean",), d, "none", 512, "float32")
    extra = {
        "margin": rng.random(n),
        "user_id": np.array([f"u{i}" for i in range(n)]),
        "source": np.array(["s", "t"] * n)[:n],
    }
    return LatentPairs(x, y, rng.normal(size=(n, d)).astype(np.float32), recipe, np.arange(n) // 3, **extra)


def swapped(pairs: LatentPairs) -> LatentPairs:
    return replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)


def equal(a: LatentPairs, b: LatentPairs) -> bool:
    """Bit for bit, in every column."""
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name not in ("meta",))


def synthetic(synthesizer: Synthesizer, pairs: LatentPairs, factor: int = 2, random_state: int = 0) -> LatentPairs:
    return synthesizer.sample(pairs, factor, random_state).take(slice(len(pairs), None))


PAIRS = make_pairs(60)


# What every synthesizer promises


def test_every_kind_is_tested() -> None:
    assert {type(s) for s in ALL} >= set(SYNTHESIZERS.values())


@each
def test_the_seeds_come_first_and_their_columns_are_kept(synthesizer: Synthesizer) -> None:
    synthesizer.fit(PAIRS)
    assert equal(synthesizer.sample(PAIRS, 1), PAIRS)
    made = synthesizer.sample(PAIRS, 4)
    assert len(made) == 240
    assert equal(made.take(slice(0, 60)), PAIRS)
    for round_ in range(1, 4):
        part = made.take(slice(60 * round_, 60 * round_ + 60))
        for name in ("group", "margin", "user_id", "source", "prompt"):
            assert np.array_equal(getattr(part, name), getattr(PAIRS, name)), name
        assert not equal(part, PAIRS)
    assert made.chosen.dtype == made.rejected.dtype == np.float32
    assert made.recipe == PAIRS.recipe
    assert made.meta == {"synthesis": repr(synthesizer), "factor": 4}


@each
def test_sample_is_the_batches_in_one(synthesizer: Synthesizer) -> None:
    synthesizer.fit(PAIRS)
    assert equal(synthesizer.sample(PAIRS, 3), LatentPairs.concatenate(list(synthesizer.batches(PAIRS, 3))))
    small = list(synthesizer.batches(PAIRS, 3, rows=25))
    assert [len(part) for part in small] == [20] * 9
    assert equal(LatentPairs.concatenate(small[:3]), PAIRS)


@each
def test_a_view_of_the_prompt_is_left_alone_and_changes_nothing(synthesizer: Synthesizer) -> None:
    plain = make_pairs(30)
    prompt = np.repeat(np.random.default_rng(5).normal(size=(10, D)), 3, axis=0).astype(np.float32)
    both = replace(
        plain,
        recipe=replace(plain.recipe, views=("10:prompt", "10:mean")),
        **{name: np.hstack([prompt, getattr(plain, name)]) for name in ("chosen", "rejected", "prompt")},
    )
    others = make_pairs(20, seed=3).chosen
    expected = clone(synthesizer).fit(plain, others).sample(plain, 3)
    made = clone(synthesizer).fit(both, np.hstack([others, others])).sample(both, 3)
    for side in ("chosen", "rejected"):
        assert np.array_equal(getattr(made, side)[:, :D], np.tile(prompt, (3, 1)))
        assert np.allclose(getattr(made, side)[:, D:], getattr(expected, side), rtol=1e-3, atol=1e-3)


@each
def test_same_seed_same_bits(synthesizer: Synthesizer) -> None:
    state = torch.get_rng_state()
    first = clone(synthesizer).fit(PAIRS).sample(PAIRS, 3, random_state=5)
    torch.manual_seed(123)
    changed = torch.get_rng_state()
    again = clone(synthesizer).fit(PAIRS)
    assert torch.equal(torch.get_rng_state(), changed)
    torch.set_rng_state(state)
    assert equal(first, again.sample(PAIRS, 3, random_state=5))
    other = again.sample(PAIRS, 3, random_state=6)
    assert equal(other.take(slice(0, 60)), PAIRS)
    assert not np.array_equal(other.chosen[60:], first.chosen[60:]) or isinstance(synthesizer, CrossPairs)
    assert not np.array_equal(other.rejected[60:], first.rejected[60:])
    rounds = first.rejected[60:].reshape(2, 60, D)
    assert not np.array_equal(rounds[0], rounds[1])


@pytest.mark.parametrize("synthesizer", [Lens(**FAST), DirectNoise(), PCANoise()], ids=repr)
def test_a_third_of_the_pairs_each_keeps_no_side_its_chosen_or_its_rejected(synthesizer: Synthesizer) -> None:
    pairs = make_pairs(3000)
    made = synthetic(synthesizer.fit(pairs), pairs)
    real = np.stack([(made.chosen == pairs.chosen).all(axis=1), (made.rejected == pairs.rejected).all(axis=1)])
    shares = [(~real).all(axis=0).mean(), real[0].mean(), real[1].mean()]
    assert not real.all(axis=0).any()
    assert np.abs(np.array(shares) - 1 / 3).max() < 0.03


def test_swapped_seeds_give_swapped_pairs() -> None:
    """Without noise exactly; with noise, the noise that a side gets does not depend on what stands there."""
    autoencoder = Lens(**FAST, noise=0.0, mix_real=False).fit(PAIRS)
    assert equal(synthetic(autoencoder, swapped(PAIRS)), swapped(synthetic(autoencoder, PAIRS)))
    noise = DirectNoise(mix_real=False).fit(PAIRS)
    straight, crossed = synthetic(noise, PAIRS), synthetic(noise, swapped(PAIRS))
    assert crossed.chosen - PAIRS.rejected == pytest.approx(straight.chosen - PAIRS.chosen, abs=1e-4)
    assert crossed.rejected - PAIRS.chosen == pytest.approx(straight.rejected - PAIRS.rejected, abs=1e-4)


def test_every_block_has_its_own_noise() -> None:
    twice = LatentPairs.concatenate([PAIRS, PAIRS])
    parts = list(DirectNoise(mix_real=False).fit(PAIRS).batches(twice, 2, rows=60))
    assert equal(parts[0], parts[1])
    assert not np.isclose(parts[2].chosen, parts[3].chosen).any(axis=1).all()


@pytest.mark.parametrize("synthesizer", [DirectNoise(), PCANoise(), CrossPairs(), Lens(**FAST, keep=0.25)], ids=repr)
def test_batches_hold_a_chunk_at_a_time(synthesizer: Synthesizer) -> None:
    pairs = make_pairs(50_000, d=64)
    synthesizer.fit(pairs.take(slice(0, 500)))
    tracemalloc.start()
    rows = sum(len(part) for part in synthesizer.batches(pairs, 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 100_000
    # One side of a chunk is 1 MiB here, all pairs are 37; a draw needs a few copies of its two sides.
    assert peak < 14 * CHUNK * 64 * 4


BAD: list[tuple[Synthesizer, str]] = [
    (Lens(latent=0), "latent"),
    (Lens(batch_size=1), "batch_size"),
    (Lens(beta=-1.0), "beta"),
    (Lens(gamma=float("nan")), "gamma"),
    (Lens(noise=float("inf")), "noise"),
    (Lens(keep=0.0), "keep"),
    (Lens(warmup=2.0), "warmup"),
    (Lens(learning_rate=0.0), "learning_rate"),
    (Lens(likelihood="posterior"), "likelihood"),
    (Lens(pairing="none"), "pairing"),
    (DirectNoise(scale=-1.0), "scale"),
    (DirectNoise(norm=float("nan")), "norm"),
    (PCANoise(components=0), "components"),
    (PCANoise(noise=-0.1), "noise"),
]


@pytest.mark.parametrize(("synthesizer", "name"), BAD, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_an_argument_out_of_range_is_named(synthesizer: Synthesizer, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is .*; give [^.]*$"):
        synthesizer.fit(PAIRS)


def test_what_is_refused() -> None:
    broken = replace(PAIRS, rejected=PAIRS.rejected.copy())
    broken.rejected[7, 3] = np.nan
    fitted = DirectNoise().fit(PAIRS)
    for synthesizer in ALL:
        with pytest.raises(InputError, match="rejected latent of pair 7"):
            clone(synthesizer).fit(broken)
    with pytest.raises(InputError, match="row 2"):
        Lens(**FAST).fit(PAIRS, unlabelled=np.array([[0.0] * D, [1.0] * D, [np.inf] * D]))
    with pytest.raises(RecipeMismatch, match="width"):
        Lens(**FAST).fit(PAIRS, unlabelled=np.zeros((3, D + 1)))
    with pytest.raises(InputError, match="not been fitted"):
        DirectNoise().sample(PAIRS, 2)
    for factor in (0, 1.5):
        with pytest.raises(InputError, match="factor"):
            fitted.sample(PAIRS, factor)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no pairs"):
        fitted.sample(PAIRS.take(slice(0, 0)), 2)
    with pytest.raises(RecipeMismatch, match="template"):
        fitted.sample(replace(PAIRS, recipe=replace(PAIRS.recipe, template="other")), 2)


def test_concatenate_refuses_what_does_not_fit() -> None:
    both = LatentPairs.concatenate([PAIRS.take(slice(0, 20)), PAIRS.take(slice(20, 60))])
    assert equal(both, PAIRS)
    bare = replace(PAIRS, margin=None)
    assert LatentPairs.concatenate([bare, bare]).margin is None
    with pytest.raises(InputError, match="margin"):
        LatentPairs.concatenate([PAIRS, bare])
    with pytest.raises(RecipeMismatch):
        LatentPairs.concatenate([PAIRS, replace(PAIRS, recipe=replace(PAIRS.recipe, dtype="bfloat16"))])
    with pytest.raises(InputError):
        LatentPairs.concatenate([])


def test_standardiser_is_numpys_mean_and_deviation() -> None:
    rows = np.random.default_rng(0).normal(3, 2, size=(2 * CHUNK + 5, 20)).astype(np.float32)
    rows[:, 2:] = rows[0, 2:]
    found = Standardiser.of(rows[:100], rows[100:])
    assert found.center == pytest.approx(rows.mean(axis=0, dtype=np.float64), rel=1e-5)
    assert found.scale[:2] == pytest.approx(rows[:, :2].std(axis=0), rel=1e-5)
    assert (found.scale[2:] == 0).all()
    assert found.undo(found.apply(rows)) == pytest.approx(rows, rel=1e-4, abs=1e-4)


# LENS


def test_w2_and_kl_are_the_known_distances() -> None:
    rng = np.random.default_rng(0)
    mu_a, mu_b = torch.tensor(rng.normal(size=(2, 5, 3)))
    sigma_a, sigma_b = torch.tensor(rng.uniform(0.2, 2, size=(2, 5, 3)))
    # In one dimension W2^2 is the integral of the squared difference of the quantile functions.
    q = (np.arange(200_000) + 0.5) / 200_000
    expected = np.zeros(5)
    for i in range(5):
        for j in range(3):
            a = stats.norm.ppf(q, float(mu_a[i, j]), float(sigma_a[i, j]))
            b = stats.norm.ppf(q, float(mu_b[i, j]), float(sigma_b[i, j]))
            expected[i] += np.square(a - b).mean()
    assert lens.wasserstein(mu_a, sigma_a, mu_b, sigma_b, squared=True).numpy() == pytest.approx(expected, rel=1e-3)
    assert lens.wasserstein(mu_a, sigma_a, mu_b, sigma_b).numpy() == pytest.approx(expected**0.5, rel=1e-3)
    standard = torch.distributions.Normal(0.0, 1.0)
    reference = torch.distributions.kl_divergence(torch.distributions.Normal(mu_a, sigma_a), standard)
    torch.testing.assert_close(lens.kl_to_prior(mu_a, sigma_a), reference, check_dtype=False)


def test_gamma_0_is_a_vae_without_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, with_term = Lens(**FAST, gamma=0.0).fit(PAIRS), Lens(**FAST, gamma=0.5).fit(PAIRS)
    assert not np.array_equal(plain.encoder_.output, with_term.encoder_.output)
    gaps = [
        np.linalg.norm(each.encode(PAIRS.chosen)[0] - each.encode(PAIRS.rejected)[0]) for each in (plain, with_term)
    ]
    assert gaps[0] < gaps[1]
    monkeypatch.setattr(lens, "wasserstein", lambda mu, *_: mu.sum() * 0)
    without = Lens(**FAST, gamma=0.5).fit(PAIRS)
    for mine, theirs in zip(plain.encoder_ + plain.decoder_, without.encoder_ + without.decoder_, strict=True):
        assert np.array_equal(mine, theirs)


def test_squared_w2_has_no_lower_bound_above_a_quarter_of_beta() -> None:
    """Two responses told apart: 4 gamma |m|^2 is gained for beta |m|^2."""
    pairs = make_pairs(40)
    pairs = replace(pairs, chosen=pairs.chosen + 50, rejected=pairs.rejected - 50)
    apart = {}
    for gamma in (0.1, 0.2, 0.3):
        fitted = Lens(**FAST | {"steps": 400}, gamma=gamma, squared=True).fit(pairs)
        apart[gamma] = np.abs(fitted.encode(pairs.chosen)[0] - fitted.encode(pairs.rejected)[0]).max()
    assert apart[0.1] < 10
    assert apart[0.2] < 20
    assert apart[0.3] > 100


def test_without_noise_a_synthetic_latent_is_the_reconstruction() -> None:
    fitted = Lens(**FAST, noise=0.0, keep=1.0, mix_real=False).fit(PAIRS)
    made = synthetic(fitted, PAIRS)
    both = np.concatenate([PAIRS.chosen, PAIRS.rejected])
    assert np.array_equal(np.concatenate([made.chosen, made.rejected]), fitted.decode(fitted.encode(both)[0]))


@pytest.mark.parametrize("likelihood", ["prior", "elbo"])
def test_the_filter_keeps_the_more_likely(likelihood: str) -> None:
    pairs = make_pairs(400)
    means = []
    for keep in (1.0, 0.5, 0.1):
        fitted = Lens(latent=4, steps=150, noise=1.0, keep=keep, likelihood=likelihood, mix_real=False).fit(pairs)
        made = synthetic(fitted, pairs)
        x = fitted.standardiser_.apply(np.concatenate([made.chosen, made.rejected]))
        mu, sigma = (torch.from_numpy(v) for v in fitted.encode(fitted.standardiser_.undo(x)))
        again = fitted.standardiser_.apply(fitted.decode(mu.numpy()))
        bound = -np.square(x - again).sum(axis=1) / 2 - lens.kl_to_prior(mu, sigma).sum(dim=1).numpy()
        means.append(bound.mean())
    assert means[0] < means[1] - 0.1 < means[2] - 0.2


def test_likelihoods_are_what_they_say() -> None:
    z = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    prior = Lens(**FAST).fit(PAIRS)._log_likelihood(z)
    normal = stats.norm.logpdf(z).sum(axis=1)
    assert prior - prior[0] == pytest.approx(normal - normal[0], abs=1e-4)
    fitted = Lens(**FAST, likelihood="elbo").fit(PAIRS)
    latents = fitted.decode(z)
    mu, sigma = (torch.from_numpy(v) for v in fitted.encode(latents))
    error = (fitted.decode(mu.numpy()) - latents) / fitted.standardiser_.scale
    expected = -np.square(error).sum(axis=1) / 2 - lens.kl_to_prior(mu, sigma).sum(dim=1).numpy()
    assert fitted._log_likelihood(z) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_all_pairs_across_prompts() -> None:
    made = synthetic(Lens(**FAST, pairing="all").fit(PAIRS), PAIRS)
    real = [i for i in range(60) for row in made.rejected[i : i + 1] if (PAIRS.rejected == row).all(axis=1).any()]
    own = [i for i in real if np.array_equal(made.rejected[i], PAIRS.rejected[i])]
    assert len(real) > 10
    assert len(own) < 5


def test_unlabelled_latents_teach_the_vae() -> None:
    few, test, more = PAIRS.take(slice(0, 12)), make_pairs(500, seed=1), make_pairs(500, seed=2)
    settings = FAST | {"steps": 200}
    alone, helped = Lens(**settings).fit(few), Lens(**settings).fit(few, unlabelled=more.chosen)

    def error(fitted: Lens) -> float:
        x = test.chosen
        return float(np.square((fitted.decode(fitted.encode(x)[0]) - x) / x.std(axis=0)).mean())

    assert error(helped) < 0.7 * error(alone)


def test_even_one_unlabelled_latent_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    order = lens._order

    def spy(n: int, k: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        asked[n] = k
        return order(n, k, steps, generator)

    monkeypatch.setattr(lens, "_order", spy)
    Lens(**FAST).fit(make_pairs(200), unlabelled=make_pairs(3, seed=2).chosen[:1])
    assert asked.pop(1) == 1
    assert min(asked.values()) >= 1


def test_batches_refuses_before_the_first_block() -> None:
    with pytest.raises(InputError, match="factor is 0"):
        DirectNoise().fit(PAIRS).batches(PAIRS, 0)


def test_diagnostics_tell_a_working_vae_from_a_collapsed_one() -> None:
    pairs = make_pairs(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = Lens(latent=8).fit(pairs).diagnostics_
    assert good["reconstruction_share"] > 0.85
    assert good["reconstruction_on"] == "held-out"
    assert 4 <= good["active_units"] <= 8
    assert len(good["kl_by_dimension"]) == 8
    assert good["parameters"] == (D * 64 + 64) + (64 * 16 + 16) + (8 * 64 + 64) + (64 * D + D)
    with pytest.warns(UserWarning, match=r"the VAE has collapsed: 0 of its 8 .*lower beta"):
        bad = Lens(latent=8, beta=1e4).fit(pairs).diagnostics_
    assert bad["active_units"] == 0
    assert sum(bad["kl_by_dimension"]) < 0.1 < 1 < sum(good["kl_by_dimension"])
    assert Lens(**FAST).fit(PAIRS.take(slice(0, 40))).diagnostics_["reconstruction_on"] == "training"


def test_a_diverged_vae_is_an_error() -> None:
    with pytest.raises(InputError, match="diverged"):
        Lens(steps=400, gamma=100.0, squared=True, learning_rate=1.0).fit(PAIRS)


# The rivals


def test_direct_noise_has_the_scale_or_the_norm_asked_for() -> None:
    pairs = make_pairs(2000)
    deviation = np.concatenate([pairs.chosen, pairs.rejected]).std(axis=0)
    noise = synthetic(DirectNoise(scale=0.3, mix_real=False).fit(pairs), pairs).chosen - pairs.chosen
    assert noise.std(axis=0) == pytest.approx(0.3 * deviation, rel=0.1)
    equal_norm = DirectNoise(norm=7.0, mix_real=False).fit(pairs)
    made = synthetic(equal_norm, pairs)
    for moved in (made.chosen - pairs.chosen, made.rejected - pairs.rejected):
        assert np.linalg.norm(moved, axis=1) == pytest.approx(np.full(2000, 7.0), rel=0.02)
    assert displacement(equal_norm, pairs) == pytest.approx(7.0, rel=0.02)
    mixed = DirectNoise(norm=7.0).fit(pairs)
    assert displacement(mixed, pairs) == pytest.approx(7.0, rel=0.02)


@pytest.mark.parametrize("n", [15, 200])
def test_ledoit_wolf_in_factors_is_scikit_learns(n: int) -> None:
    rows = np.random.default_rng(0).normal(size=(n, D)) @ np.random.default_rng(1).normal(size=(D, D))
    found = Gaussian.ledoit_wolf(rows)
    covariance = found.factor.T @ found.factor + found.floor**2 * np.eye(D)
    assert covariance == pytest.approx(ledoit_wolf(rows)[0])
    assert len(found.factor) == min(n, D)


def test_gaussian_synthesis_has_the_moments_of_each_side() -> None:
    pairs = make_pairs(20_000, d=6)
    made = synthetic(GaussianSynthesis().fit(pairs), pairs)
    for drawn, real in ((made.chosen, pairs.chosen), (made.rejected, pairs.rejected)):
        deviation = real.std(axis=0)
        assert np.abs((drawn.mean(axis=0) - real.mean(axis=0)) / deviation).max() < 0.04
        assert drawn.std(axis=0) == pytest.approx(deviation, rel=0.04)
        assert np.abs(np.corrcoef(drawn.T) - np.corrcoef(real.T)).max() < 0.04
    assert abs(np.corrcoef(made.chosen[:, 1], made.rejected[:, 1])[0, 1]) < 0.03


def test_cross_pairs_meet_another_of_their_prompt() -> None:
    group = np.array([5, 1, 5, 2, 1, 5, 3, 1, 5])
    pairs = replace(PAIRS.take(slice(0, 9)), group=group)
    where = {row.tobytes(): i for i, row in enumerate(pairs.rejected)}
    seen = set()
    for random_state in range(30):
        made = synthetic(CrossPairs().fit(pairs), pairs, random_state=random_state)
        partner = np.array([where[row.tobytes()] for row in made.rejected])
        assert np.array_equal(made.chosen, pairs.chosen)
        assert (partner != np.arange(9)).all()
        together = np.isin(group, (1, 5))
        assert (group[partner] == group)[together].all()
        assert len(set(partner[together])) == together.sum()
        seen.add(tuple(partner))
    assert len(seen) > 20
    own = synthetic(CrossPairs(same_prompt_only=True).fit(pairs), pairs)
    assert np.array_equal(own.rejected[[3, 6]], pairs.rejected[[3, 6]])
    assert not (own.rejected[together] == pairs.rejected[together]).all(axis=1).any()


def test_pca_noise_moves_along_the_axes_only() -> None:
    pairs = make_pairs(500)
    kept = PCANoise(components=4, noise=0.5, keep_residual=True, mix_real=False).fit(pairs)
    moved = kept.standardiser_.apply(synthetic(kept, pairs).chosen) - kept.standardiser_.apply(pairs.chosen)
    along = moved @ kept.axes_.T
    assert along @ kept.axes_ == pytest.approx(moved, abs=1e-4)
    assert along.std(axis=0) == pytest.approx(0.5 * kept.deviation_, rel=0.1)
    still = PCANoise(components=4, noise=0.0, mix_real=False).fit(pairs)
    projection = still.standardiser_.apply(synthetic(still, pairs).chosen)
    x = still.standardiser_.apply(pairs.chosen)
    assert projection == pytest.approx(x @ still.axes_.T @ still.axes_, abs=1e-4)
    assert np.square(x - projection).sum() < 0.1 * np.square(x).sum()
    whole = PCANoise(components=D, noise=0.0, keep_residual=True, mix_real=False).fit(pairs)
    assert synthetic(whole, pairs).chosen == pytest.approx(pairs.chosen, rel=1e-4, abs=1e-3)


# The theorem


def test_no_margin_moves_further_than_the_bound() -> None:
    pairs = make_pairs(200)
    judge = LinearHead(strength=1.0).fit(make_pairs(200, seed=3))
    fitted = Lens(latent=4, steps=200).fit(pairs)
    rows = order_preservation(fitted, pairs, judge)
    assert [row["noise"] for row in rows] == [0, 0.03, 0.1, 0.3, 1, 3]
    for row in rows:
        assert 0 < row["tightness"] <= 1
        assert row["guaranteed"] <= row["sampled_guaranteed"] <= row["order_kept"]
        assert row["movement_max"] >= row["movement_mean"] > 0
        assert row["bound_mean"] >= row["sampled_bound_mean"]
    assert rows[0]["order_kept"] > rows[-1]["order_kept"] + 0.1
    assert rows[0]["movement_mean"] < rows[-1]["movement_mean"]


def test_the_sampled_slope_is_the_jacobians() -> None:
    from penchant.synthesis.theory import decoder_lipschitz, jacobian_norm

    fitted = Lens(**FAST).fit(PAIRS)
    z = fitted.encode(PAIRS.chosen[:5])[0].astype(np.float64)
    step = 1e-2
    norms = []
    for row in z:
        ends = np.concatenate([row + step * np.eye(4), row - step * np.eye(4)])
        up, down = np.split(fitted.decode(ends).astype(np.float64), 2)
        norms.append(np.linalg.norm((up - down) / (2 * step), ord=2))
    assert jacobian_norm(fitted, z) == pytest.approx(max(norms), rel=1e-2)
    assert jacobian_norm(fitted, z) <= decoder_lipschitz(fitted)


def test_order_kept_is_that_of_the_judge() -> None:
    pairs, judge = make_pairs(100), LinearHead(strength=1.0).fit(make_pairs(200, seed=3))
    still = order_kept(DirectNoise(scale=0.0).fit(pairs), pairs, judge, rounds=2)
    assert still["order_kept"] == 1
    assert still["seed_accuracy"] == still["synthetic_accuracy"] > 0.7
    wild = order_kept(DirectNoise(scale=100.0, mix_real=False).fit(pairs), pairs, judge, rounds=10)
    assert wild["order_kept"] == pytest.approx(0.5, abs=0.06)
    wrong = order_kept(DirectNoise().fit(swapped(pairs)), swapped(pairs).take(np.arange(1)), judge)
    assert wrong["order_kept"] is None
