"""SparseRM: what is selected, that no held-out pair has a say in it, and what is kept on disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from penchant.errors import InputError
from penchant.heads import Head, LinearHead, SAELinearHead, SparseHead, load_head, sae_features
from penchant.heads.base import pair_accuracy
from penchant.latents import LatentPairs, Recipe
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.formats import save_sae

WIDTH = 24
BOTH = ("10:last", "10:mean")
SAE = SparseAutoencoder.random(SAEConfig(WIDTH, 300, k=12, layer=10), seed=1)
PAPER: dict[str, Any] = {"selection": "frequency", "features": "projection"}
ACTIVE: dict[str, Any] = {"selection": "activation", "features": "activation"}
KINDS: dict[str, Any] = {
    "linear": lambda sae: SparseHead(sae, k=10),
    "activation": lambda sae: SparseHead(sae, k=10, **ACTIVE),
    "mlp": lambda sae: SparseHead(sae, k=10, **ACTIVE, inner="mlp", hidden=16),
    "paper": lambda sae: SparseHead(sae, k=10, **PAPER, inner="mlp", hidden=16, loss="margin"),
    "random": lambda sae: SparseHead(sae, k=10, directions="random"),
    "sae": SAELinearHead,
}


def make_pairs(
    n: int, views: tuple[str, ...] = ("10:last",), taste: float = 2.0, seed: int = 0, width: int = WIDTH
) -> LatentPairs:
    """Two pairs a prompt; the chosen state is longer by `taste` in a few coordinates, and 0 is pure chance."""
    rng = np.random.default_rng(seed)
    d = width * len(views)
    chosen, rejected, prompt = rng.normal(size=(3, n, d)).astype(np.float32)
    chosen[:, :3] += taste
    recipe = Recipe("model", "revision", views, width, "none", 512, "float32")
    return LatentPairs(chosen, rejected, prompt, recipe, np.arange(n) // 2)


def eye(layer: int = 10, signed: bool = False) -> SparseAutoencoder:
    """Latent i is the positive part of coordinate i; with `signed`, latent d + i that of minus it."""
    rows = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)][: 1 + signed])
    sae = SparseAutoencoder(SAEConfig(WIDTH, len(rows), "jumprelu", layer=layer), "eye")
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    return sae


def swapped(pairs: LatentPairs) -> LatentPairs:
    return replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)


def accuracy(head: Head, pairs: LatentPairs) -> float:
    return pair_accuracy(head.score(pairs.chosen) - head.score(pairs.rejected))


@pytest.fixture(params=list(KINDS))
def head(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param](SAE)


# --- selection


@torch.inference_mode()
def test_the_latents_with_the_largest_frequency_differences_are_selected() -> None:
    pairs = make_pairs(150, BOTH, taste=0.7)
    head = SparseHead(SAE, k=9, **PAPER).fit(pairs)
    active = [
        np.concatenate([(SAE.encode(torch.from_numpy(side[:, v : v + WIDTH])) > 0).numpy() for v in (0, WIDTH)], axis=1)
        for side in (pairs.chosen, pairs.rejected)
    ]
    mu_w, mu_l = (side.mean(axis=0) for side in active)
    order = sorted(range(600), key=lambda j: (-round(150 * (mu_w - mu_l)[j]), j))
    less = sorted(range(600), key=lambda j: (round(150 * (mu_w - mu_l)[j]), j))
    kept = sorted(order[:9] + less[:9])
    assert len(set(kept)) == 18
    assert [300 * view + latent for view, latent in zip(head.feature_view_, head.features_, strict=True)] == kept
    assert head.feature_views_ == tuple(BOTH[j // 300] for j in kept)
    np.testing.assert_allclose(head.frequencies_, np.stack([mu_w[kept], mu_l[kept]], axis=1))
    np.testing.assert_allclose(head.directions_, SAE.W_dec.numpy()[head.features_], atol=1e-6)
    states = pairs.chosen.reshape(-1, 2, WIDTH)[:, head.feature_view_]
    np.testing.assert_allclose(head.activations(pairs.chosen), (states * head.directions_).sum(2), atol=1e-5)


@torch.inference_mode()
def test_or_those_whose_activations_differ_most_for_their_spread() -> None:
    pairs = make_pairs(150, BOTH, taste=0.3)
    rank = []
    for v in (0, WIDTH):
        chosen, rejected = (SAE.encode(torch.from_numpy(s[:, v : v + WIDTH])) for s in (pairs.chosen, pairs.rejected))
        difference = (chosen - rejected).double().numpy()
        square = (difference**2).sum(axis=0)
        rank.append(difference.sum(axis=0) / np.sqrt(square + square[square > 0].mean()))
    both = np.concatenate(rank)
    kept = sorted([*np.argsort(-both)[:9], *np.argsort(both)[:9]])
    head = SparseHead(SAE, k=9, **ACTIVE).fit(pairs)
    assert (300 * head.feature_view_ + head.features_).tolist() == kept
    codes = SAE.encode(torch.from_numpy(pairs.chosen.reshape(-1, WIDTH))).numpy().reshape(-1, 600)
    np.testing.assert_allclose(head.activations(pairs.chosen), codes[:, kept], atol=1e-5)
    np.testing.assert_allclose(head.frequencies_[:, 0], (codes[:, kept] > 0).mean(axis=0))


@pytest.mark.parametrize("arguments", [PAPER, ACTIVE])
def test_the_linear_head_is_a_ridge_head_on_what_it_sees(arguments: dict[str, Any]) -> None:
    pairs = make_pairs(100, BOTH, taste=0.5)
    head = SparseHead(SAE, k=9, **arguments).fit(pairs)
    sides = head.activations(pairs.chosen), head.activations(pairs.rejected)
    recipe = replace(pairs.recipe, views=BOTH[:1], width=18)
    plain = LinearHead(strength=head.strength_)
    plain.fit(replace(pairs, chosen=sides[0], rejected=sides[1], prompt=sides[0], recipe=recipe))
    np.testing.assert_allclose(head.score(pairs.chosen), plain.score(sides[0]), atol=1e-6)


def test_ties_go_to_the_lower_index_and_equal_frequencies_are_never_kept() -> None:
    ones = np.ones((4, WIDTH), np.float32)
    more, none = ones.copy(), -ones
    more[:, 5:] = none[:, 5:]  # chosen: coordinates 0-4 active; rejected: 2-10
    less = none.copy()
    less[:, 2:11] = 1
    rng = np.random.default_rng(0)
    pairs = replace(make_pairs(4), chosen=more * rng.uniform(1, 2, more.shape).astype(np.float32), rejected=less)
    assert SparseHead(eye(), k=1, **PAPER).fit(pairs).features_.tolist() == [0, 5]
    assert SparseHead(eye(), k=4, **PAPER).fit(pairs).features_.tolist() == [0, 1, 5, 6, 7, 8]
    with pytest.raises(InputError, match="no latent of the SAE 'eye' tells chosen from rejected"):
        SparseHead(eye(), **PAPER).fit(replace(pairs, chosen=less * 2))


def leaky(sae: SparseAutoencoder, pairs: LatentPairs, k: int, **arguments: Any) -> float:
    """Out-of-fold accuracy where all pairs had a say in the selection."""
    kept = SparseHead(sae, k=k, **arguments).fit(pairs)
    sides = [kept.activations(side) for side in (pairs.chosen, pairs.rejected)]
    recipe = replace(pairs.recipe, width=sides[0].shape[1])
    found = LinearHead().fit(replace(pairs, chosen=sides[0], rejected=sides[1], prompt=sides[0], recipe=recipe))
    assert found.cv_accuracy_ is not None
    return found.cv_accuracy_


@pytest.mark.parametrize("arguments", [PAPER, ACTIVE, {"inner": "mlp", "hidden": 16}])
def test_out_of_fold_pairs_have_no_say_in_the_selection(arguments: dict[str, Any]) -> None:
    """On labels that are pure chance the cross-validation finds nothing, where a selection that has seen all does."""
    sae = SparseAutoencoder.random(SAEConfig(200, 1000, k=100, layer=10))
    chance = [make_pairs(80, taste=0, seed=seed, width=200) for seed in range(6)]
    honest = [SparseHead(sae, k=3, **arguments).fit(pairs).cv_accuracy_ for pairs in chance]
    assert np.mean(np.array(honest)) < 0.57
    assert np.mean([leaky(sae, pairs, 3, **arguments) for pairs in chance]) > 0.63


def test_with_every_latent_kept_it_is_the_linear_head() -> None:
    pairs = make_pairs(101, taste=0)
    pairs = replace(pairs, chosen=pairs.chosen + np.float32(0.5))  # every latent is more often active in chosen states
    head, plain = SparseHead(eye(), k=WIDTH, **PAPER).fit(pairs), LinearHead().fit(pairs)
    assert head.features_.tolist() == list(range(WIDTH))
    assert head.strength_ == plain.strength_
    np.testing.assert_allclose(head.score(pairs.chosen), plain.score(pairs.chosen), atol=1e-6)
    np.testing.assert_allclose(head.cv_margins_, plain.cv_margins_, atol=1e-3)


def test_random_directions_are_of_the_same_number_and_unit_length() -> None:
    pairs = make_pairs(100, BOTH)
    head = SparseHead(SAE, k=10, directions="random").fit(pairs)
    assert head.directions_.shape == (20, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(head.directions_, axis=1), 1, atol=1e-6)
    assert np.bincount(head.feature_view_).tolist() == [10, 10]
    assert (head.features_ == -1).all()
    other = SparseHead(SAE, k=10, directions="random", random_state=1).fit(pairs)
    assert not np.allclose(head.directions_, other.directions_)


def test_selected_directions_find_a_sparse_taste_that_few_random_ones_miss() -> None:
    train, test = make_pairs(300, taste=0.8), make_pairs(600, taste=0.8, seed=1)
    selected = accuracy(SparseHead(eye(), k=2).fit(train), test)
    chance = [SparseHead(eye(), k=2, directions="random", random_state=seed).fit(train) for seed in range(5)]
    assert selected > np.mean([accuracy(head, test) for head in chance]) + 0.1


# --- every head on an SAE


def test_swapping_chosen_and_rejected_flips_every_score_difference(head: Any) -> None:
    pairs, test = make_pairs(100, BOTH), make_pairs(20, BOTH, seed=1)
    mirror = clone(head).fit(swapped(pairs))
    head.fit(pairs)
    assert np.array_equal(mirror.features_, head.features_)
    margins = [each.score(test.chosen) - each.score(test.rejected) for each in (head, mirror)]
    if getattr(head, "inner", "linear") == "linear":
        assert np.abs(margins[0]).max() > 0
        np.testing.assert_allclose(margins[0], -margins[1], atol=1e-6)
    else:  # the sides' dropout differs
        assert (margins[0] > 0).mean() > 0.7 > 0.3 > (margins[1] > 0).mean()


def test_saved_and_loaded_scores_are_equal_bit_for_bit(head: Any, tmp_path: Path) -> None:
    pairs, test = make_pairs(100, BOTH), make_pairs(30, BOTH, seed=1).chosen
    head.fit(pairs).save_pretrained(tmp_path / "first")
    loaded: Any = load_head(tmp_path / "first")
    assert type(loaded) is type(head)
    assert np.array_equal(loaded.score(test), head.score(test))
    assert np.array_equal(loaded.activations(test), head.activations(test))
    assert np.array_equal(loaded.contributions(test), head.contributions(test))
    assert (loaded.parameters, loaded.base_, loaded.feature_views_) == (
        head.parameters,
        head.base_,
        head.feature_views_,
    )
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_it_takes_a_folder_and_needs_it_no_more_once_fitted(head: Any, tmp_path: Path) -> None:
    pairs = make_pairs(60)
    save_sae(SAE, tmp_path / "sae")
    named = type(head)(**{**head.get_params(), "sae": str(tmp_path / "sae")})
    named.fit(pairs).save_pretrained(tmp_path / "head")
    shutil.rmtree(tmp_path / "sae")
    assert np.array_equal(load_head(tmp_path / "head").score(pairs.chosen), head.fit(pairs).score(pairs.chosen))
    assert np.array_equal(clone(named).fit(pairs).score(pairs.chosen), head.score(pairs.chosen))  # read once
    fresh: Any = load_head(tmp_path / "head")
    with pytest.raises(InputError, match="there is no"):
        fresh.fit(pairs)


def test_scores_do_not_depend_on_the_batch(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae_features, "BLOCK_ROWS", 16)
    pairs = make_pairs(60, BOTH)
    scores = head.fit(pairs).score(pairs.chosen)
    assert scores.dtype == np.float32
    assert np.array_equal(np.concatenate([head.score(row[None]) for row in pairs.chosen]), scores)
    order = np.random.default_rng(0).permutation(60)
    assert np.array_equal(head.score(pairs.chosen[order]), scores[order])
    assert head.score(pairs.chosen[:0]).shape == (0,)


def test_same_seed_same_scores_and_the_sae_is_not_copied(head: Any) -> None:
    pairs = make_pairs(60, BOTH)
    before = torch.get_rng_state()
    again = clone(head)
    assert again.sae is SAE
    assert np.array_equal(again.fit(pairs).score(pairs.chosen), head.fit(pairs).score(pairs.chosen))
    assert torch.equal(torch.get_rng_state(), before)


def test_contributions_sum_to_the_score(head: Any) -> None:
    pairs, test = make_pairs(100, BOTH), make_pairs(40, BOTH, seed=1)
    shares = head.fit(pairs).contributions(test.chosen)
    assert shares.dtype == np.float64
    assert shares.shape == head.activations(test.chosen).shape == (40, len(head.features_))
    np.testing.assert_allclose(shares.sum(axis=1) + head.base_, head.score(test.chosen), rtol=1e-5, atol=1e-5)
    if head.additive and head.encoder_ is not None:
        assert head.base_ == 0
        assert not shares[head.activations(test.chosen) == 0].any()  # what is silent adds nothing
    assert head.additive == (getattr(head, "inner", "linear") == "linear")


def test_the_mlps_contributions_are_integrated_gradients() -> None:
    head = KINDS["mlp"](SAE).fit(make_pairs(200))
    inner, x = head.head_, head.activations(make_pairs(3, seed=1).chosen)
    shares, steps, h = np.zeros_like(x), 200, 1e-3 * inner.scale_
    for t in (np.arange(steps) + 0.5) / steps:
        at = inner.center_ + t * (x - inner.center_)
        for j in range(x.shape[1]):
            step = np.zeros(x.shape[1])
            step[j] = h[j]
            slope = (inner.score(at + step).astype(float) - inner.score(at - step)) / (2 * h[j])
            shares[:, j] += slope * (x - inner.center_)[:, j] / steps
    np.testing.assert_allclose(head.contributions(make_pairs(3, seed=1).chosen), shares, atol=2e-3 * abs(shares).max())


def test_what_the_sae_does_not_read_is_refused_and_prompts_are_ignored(head: Any) -> None:
    pairs = make_pairs(60, ("10:last", "10:prompt"))
    head.fit(pairs)
    narrow = clone(head).fit(pairs.select(("10:last",)))
    np.testing.assert_array_equal(head.score(pairs.chosen), narrow.score(pairs.chosen[:, :WIDTH]))
    for views, reason in (
        (("11:last",), "layer 10"),
        (("10:last", "11:last"), "one layer"),
        (("10:prompt",), "one layer"),
    ):
        with pytest.raises(InputError, match=reason):
            clone(head).fit(make_pairs(20, views))
    wide = replace(make_pairs(20, BOTH).recipe, views=("10:last",), width=2 * WIDTH)
    with pytest.raises(InputError, match="width 24, model has 48"):
        clone(head).fit(replace(make_pairs(20, BOTH), recipe=wide))


def test_one_prompt_only_still_fits() -> None:
    pairs = replace(make_pairs(30), group=np.zeros(30, int))
    for kind in ("linear", "sae"):
        with pytest.warns(UserWarning, match="one prompt"):
            assert KINDS[kind](SAE).fit(pairs).cv_margins_ is None
    assert accuracy(KINDS["paper"](SAE).fit(pairs), pairs) > 0.9


def test_the_papers_setting_has_the_papers_size() -> None:
    sae = SparseAutoencoder.random(SAEConfig(WIDTH, 2000, k=100, layer=10))
    head = SparseHead(sae, k=128, **PAPER, inner="mlp", loss="margin").fit(make_pairs(60))
    assert len(head.features_) == 256
    assert head.parameters == 132_097 - 1  # the paper's output bias cancels in every difference


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"inner": "tree"}, "inner is 'tree'"),
        ({"features": "both"}, "features is 'both'"),
        ({"selection": "first"}, "selection is 'first'"),
        ({"directions": "up"}, "directions is 'up'"),
        ({"k": 0}, "k is 0"),
        ({"folds": 1}, "folds is 1"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"margin": 0.0}, "margin is 0"),
        ({"strengths": (0.0,)}, "strength is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SparseHead(SAE, **arguments).fit(make_pairs(20))
