"""Heads: the optimum they claim, what they refuse, what they keep on disk, and what they find in planted data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from penchant.errors import InputError, RecipeMismatch
from penchant.heads import AutoHead, Head, LinearHead, MLPHead, linear, load_head
from penchant.heads.auto import candidate_views
from penchant.heads.base import pair_accuracy, prompt_folds
from penchant.latents import LatentPairs, Recipe

WIDTH = 24
TWO_VIEWS = ("10:last", "10:mean")
FAST = {"linear": LinearHead(), "mlp": MLPHead(hidden=8, batch_size=16), "auto": AutoHead()}


def make_pairs(
    n: int, views: tuple[str, ...] = ("10:mean",), informative: str | None = None, seed: int = 0, signal: float = 3.0
) -> LatentPairs:
    """Pairs in prompts of two, uneven column scales, and a linear taste that `informative` (or each view) shows."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, WIDTH + 1) ** -0.7
    spread[0] *= 5
    taste = np.random.default_rng(99).normal(size=WIDTH)
    chosen, rejected = [], []
    good, bad = rng.normal(size=(2, n, WIDTH))
    gap = (good - bad) @ taste / np.linalg.norm(taste)
    swap = rng.random(n) > 1 / (1 + np.exp(-signal * gap))
    good[swap], bad[swap] = bad[swap], good[swap].copy()
    for view in views:
        shown = (good, bad) if informative in (None, view) else rng.normal(size=(2, n, WIDTH))
        chosen.append(shown[0] * spread + 5 * spread)
        rejected.append(shown[1] * spread + 5 * spread)
    recipe = Recipe("model", "revision", views, WIDTH, "none", 512, "float32")
    x, y = (np.concatenate(side, axis=1).astype(np.float32) for side in (chosen, rejected))
    return LatentPairs(x, y, np.zeros_like(x), recipe, np.arange(n) // 2)


def swapped(pairs: LatentPairs) -> LatentPairs:
    return replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)


def accuracy(head: Head, pairs: LatentPairs) -> float:
    return pair_accuracy(head.score(pairs.chosen) - head.score(pairs.rejected))


def gradient(head: LinearHead, pairs: LatentPairs) -> np.ndarray:
    """Gradient of the plain penalised loss at weight_, in scaled features, recomputed from the formula alone."""
    difference = pairs.chosen.astype(np.float64) - pairs.rejected
    scale = linear.column_scale(difference, pairs.recipe.width)
    miss = 1 / (1 + np.exp(difference @ head.weight_))
    return -(difference / scale).T @ miss + head.strength_ * head.weight_ * scale


# --- LinearHead: the optimum


@pytest.mark.parametrize("n", [10, 200])  # fewer and more pairs than columns: both Gram matrices
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_gradient_vanishes_at_the_solution(n: int, strength: float) -> None:
    pairs = make_pairs(n)
    head = LinearHead(strength=strength).fit(pairs)
    assert np.linalg.norm(gradient(head, pairs)) <= 1e-8 * n
    head.weight_ = head.weight_ * 1.001  # the bound is tight enough to see a change of one in a thousand
    assert np.linalg.norm(gradient(head, pairs)) > 1e-8 * n


@pytest.mark.parametrize("n", [15, 300])
@pytest.mark.parametrize("strength", [0.03, 3.0])
def test_equals_sklearn_on_symmetrised_differences(n: int, strength: float) -> None:
    pairs = make_pairs(n)
    head = LinearHead(strength=strength).fit(pairs)
    difference = pairs.chosen.astype(np.float64) - pairs.rejected
    scale = linear.column_scale(difference, WIDTH)
    x = np.concatenate([difference, -difference]) / scale
    # Every pair stands twice in x, so the penalty is doubled to match.
    oracle = LogisticRegression(
        fit_intercept=False, C=1 / (2 * strength), tol=1e-10, max_iter=10_000, solver="newton-cg"
    )
    oracle.fit(x, np.repeat([1, 0], n))
    np.testing.assert_allclose(head.weight_ * scale, oracle.coef_[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [15, 300])
@pytest.mark.parametrize("strength", [None, 1.0])
def test_swapping_chosen_and_rejected_flips_the_weight_exactly(n: int, strength: float | None) -> None:
    pairs = make_pairs(n)
    head, mirror = LinearHead(strength=strength).fit(pairs), LinearHead(strength=strength).fit(swapped(pairs))
    assert np.abs(head.weight_).max() > 0
    assert np.array_equal(head.weight_, -mirror.weight_)
    assert head.strength_ == mirror.strength_


def test_multiplying_all_latents_changes_no_order_and_no_strength() -> None:
    pairs = make_pairs(100)
    large = replace(pairs, chosen=pairs.chosen * 1024, rejected=pairs.rejected * 1024)
    head, same = LinearHead().fit(pairs), LinearHead().fit(large)
    assert head.strength_ == same.strength_
    np.testing.assert_allclose(same.weight_ * 1024, head.weight_, rtol=1e-6)


def test_scaled_differences_have_unit_mean_square_and_no_view_outweighs_another() -> None:
    pairs = make_pairs(100, TWO_VIEWS)
    factor = np.repeat(np.float32([1024, 1]), WIDTH)  # one view in other units
    large = replace(pairs, chosen=pairs.chosen * factor, rejected=pairs.rejected * factor)
    for each in (pairs, large):
        difference = each.chosen.astype(np.float64) - each.rejected
        z = difference / linear.column_scale(difference, WIDTH)
        np.testing.assert_allclose((z * z).sum(axis=1).mean(), 1.0)
    head, same = LinearHead().fit(pairs), LinearHead().fit(large)
    assert head.strength_ == same.strength_
    np.testing.assert_allclose(same.weight_ * factor, head.weight_, rtol=1e-6, atol=1e-9)


def test_a_tie_counts_one_half() -> None:
    assert pair_accuracy(np.array([2.0, 0.0, -1.0, 0.0])) == 0.5
    assert pair_accuracy(np.array([1.0, 0.0])) == 0.75


def test_a_second_copy_of_each_pair_equals_half_the_strength() -> None:
    pairs = make_pairs(40)
    twice = pairs.take(np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(
        LinearHead(strength=2.0).fit(twice).weight_, LinearHead(strength=1.0).fit(pairs).weight_, rtol=1e-6
    )


def test_a_constant_column_gets_no_weight_and_harms_nothing() -> None:
    pairs = make_pairs(50)
    for side in (pairs.chosen, pairs.rejected):
        side[:, 3] = 7.0
    head = LinearHead().fit(pairs)
    assert abs(head.weight_[3]) < 1e-12 * np.abs(head.weight_).max()
    assert np.isfinite(head.weight_).all()


# --- LinearHead: margins and smoothing


def test_zero_margins_and_no_smoothing_equal_the_plain_loss_bit_for_bit() -> None:
    pairs = make_pairs(60)
    plain = LinearHead().fit(pairs).weight_
    assert np.array_equal(LinearHead(margin=True).fit(replace(pairs, margin=np.zeros(60))).weight_, plain)
    assert np.array_equal(LinearHead(margin=True).fit(replace(pairs, margin=np.full(60, np.nan))).weight_, plain)
    assert np.array_equal(LinearHead(margin=False).fit(replace(pairs, margin=np.ones(60))).weight_, plain)
    assert np.array_equal(LinearHead(label_smoothing=0.0).fit(pairs).weight_, plain)


def test_margins_pull_the_differences_apart() -> None:
    pairs = make_pairs(60)
    margin = np.zeros(60)
    margin[7] = 5.0
    plain, wider = (LinearHead(strength=0.01, margin=m).fit(replace(pairs, margin=margin)) for m in (False, True))
    seven = pairs.take(np.array([7]))
    gap = [float((h.score(seven.chosen) - h.score(seven.rejected))[0]) for h in (plain, wider)]
    assert gap[1] > gap[0] + 0.5


def test_smoothing_equals_adding_swapped_copies() -> None:
    pairs = make_pairs(60)
    # Three copies as labelled and one swapped are a quarter wrong: eps 1/4 with four times the data.
    four = pairs.take(np.tile(np.arange(60), 4))
    four.chosen[180:], four.rejected[180:] = pairs.rejected, pairs.chosen
    mixed = LinearHead(strength=4.0).fit(four)
    smooth = LinearHead(strength=1.0, label_smoothing=0.25).fit(pairs)
    np.testing.assert_allclose(smooth.weight_, mixed.weight_, rtol=1e-6, atol=1e-12)
    assert not np.allclose(smooth.weight_, LinearHead(strength=1.0).fit(pairs).weight_, rtol=0.01)


def test_slope_and_curvature_are_derivatives_of_the_loss() -> None:
    s = np.linspace(-8, 8, 41)[:, None]
    loss = linear.BradleyTerryLoss(np.linspace(0, 3, 41)[:, None], 0.2)
    h = 1e-5
    np.testing.assert_allclose(loss.slope(s), (loss.value(s + h) - loss.value(s - h)) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(loss.curvature(s), (loss.slope(s + h) - loss.slope(s - h)) / (2 * h), atol=1e-8)


# --- cross-validation


@pytest.mark.parametrize("seed", range(20))
def test_folds_keep_prompts_whole_and_parts_even(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, rng.integers(2, 40), size=200)
    fold = prompt_folds(group, 5, seed)
    for prompt in np.unique(group):
        assert len(set(fold[group == prompt])) == 1
    assert fold.max() >= 1
    assert np.array_equal(np.unique(fold), np.arange(fold.max() + 1))
    largest = np.bincount(group).max()
    assert np.bincount(fold).max() <= 200 / 5 + largest
    assert np.array_equal(fold, prompt_folds(group, 5, seed))


def test_two_prompts_of_any_sizes_give_two_folds() -> None:
    for first in (1, 5, 99):
        group = np.array([0] * first + [1] * (100 - first))
        assert prompt_folds(group, 5, 0).max() >= 1


def test_no_prompt_is_trained_on_and_scored_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = replace(make_pairs(90), group=np.random.default_rng(1).integers(0, 12, size=90))
    used: list[np.ndarray] = []
    solve = linear.solve

    def spy(spectrum: Any, loss: Any, use: np.ndarray, *rest: Any) -> np.ndarray:
        used.append(use)
        return solve(spectrum, loss, use, *rest)

    monkeypatch.setattr(linear, "solve", spy)
    LinearHead(strengths=(0.1, 1.0)).fit(pairs)
    in_folds, final = used
    assert (final == 1).all()
    assert in_folds.shape == (90, 5 * 2)
    for column in in_folds.T:
        assert not set(pairs.group[column == 0]) & set(pairs.group[column == 1])
    assert ((in_folds == 0).sum(axis=1) == 2).all()  # each pair is held out once for each strength


def test_out_of_fold_margins_equal_separate_fits() -> None:
    pairs = make_pairs(100)
    head = LinearHead(strengths=(0.5,)).fit(pairs)
    fold = prompt_folds(pairs.group, 5, 0)
    scale = linear.column_scale(pairs.chosen.astype(np.float64) - pairs.rejected, WIDTH)
    for k in range(5):
        rest = pairs.take(fold != k)
        x = (rest.chosen.astype(np.float64) - rest.rejected) / scale
        oracle = LogisticRegression(fit_intercept=False, C=1.0, tol=1e-10, max_iter=10_000, solver="newton-cg")
        oracle.fit(np.concatenate([x, -x]), np.repeat([1, 0], len(x)))
        held = pairs.take(fold == k)
        expected = (held.chosen.astype(np.float64) - held.rejected) / scale @ oracle.coef_[0]
        np.testing.assert_allclose(head.cv_margins_[fold == k], expected, atol=0.01)
    assert head.cv_accuracy_ == pair_accuracy(head.cv_margins_)


def test_noise_gets_a_strong_penalty_and_signal_a_weak_one() -> None:
    assert (
        LinearHead().fit(make_pairs(200, signal=0.0)).strength_
        > LinearHead().fit(make_pairs(200, signal=20.0)).strength_
    )


def test_one_prompt_only_falls_back_with_a_warning() -> None:
    pairs = replace(make_pairs(20), group=np.zeros(20, dtype=int))
    with pytest.warns(UserWarning, match="share one prompt"):
        head = LinearHead().fit(pairs)
    assert head.strength_ == linear.DEFAULT_STRENGTH
    assert head.cv_accuracy_ is None
    with pytest.warns(UserWarning, match="share one prompt"):
        auto = AutoHead().fit(pairs)
    assert np.isfinite(auto.score(pairs.chosen)).all()
    mlp = MLPHead(epochs=3).fit(pairs)
    assert mlp.epochs_ == 3
    assert mlp.validation_accuracy_ is None


# --- every head


@pytest.fixture(params=list(FAST))
def head(request: pytest.FixtureRequest) -> Head:
    fresh: Head = clone(FAST[request.param])
    return fresh


def test_saved_and_loaded_scores_are_equal_bit_for_bit(head: Head, tmp_path: Path) -> None:
    pairs = make_pairs(100, TWO_VIEWS)
    head.fit(pairs).save_pretrained(tmp_path / "new" / "folder")
    files = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert files == ["config.json", "model.safetensors"]
    for loaded in (load_head(tmp_path / "new" / "folder"), type(head).from_pretrained(tmp_path / "new" / "folder")):
        assert type(loaded) is type(head)
        assert repr(loaded.get_params()) == repr(head.get_params())
        assert np.array_equal(loaded.score(pairs.chosen), head.score(pairs.chosen))
        assert loaded.parameters == head.parameters
        loaded.save_pretrained(tmp_path / "again")
        for name in files:
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()


def test_same_seed_same_scores_and_global_random_state_untouched(head: Head) -> None:
    pairs = make_pairs(60, TWO_VIEWS)
    scores = head.fit(pairs).score(pairs.chosen)
    torch.manual_seed(12345)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(clone(head).fit(pairs).score(pairs.chosen), scores)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_scores_are_float32_vectors_and_do_not_depend_on_the_batch(head: Head) -> None:
    pairs = make_pairs(60, TWO_VIEWS)
    head.fit(pairs)
    scores = head.score(pairs.chosen)
    assert scores.dtype == np.float32
    assert scores.shape == (60,)
    one_by_one = np.concatenate([head.score(row[None]) for row in pairs.chosen])
    np.testing.assert_allclose(one_by_one, scores, rtol=1e-6, atol=1e-6)
    assert head.score(pairs.chosen[:0]).shape == (0,)


def test_one_column_latents_still_give_one_score_a_row(head: Head) -> None:
    rng = np.random.default_rng(0)
    rejected = rng.normal(size=(30, 1)).astype(np.float32)
    recipe = Recipe("model", "revision", ("10:mean",), 1, "none", 512, "float32")
    pairs = LatentPairs(rejected + 1, rejected, rejected, recipe, np.arange(30))
    head.fit(pairs)
    difference = head.score(pairs.chosen) - head.score(pairs.rejected)
    assert difference.shape == (30,)
    assert pair_accuracy(difference) > 0.9


def test_chosen_wins_where_the_signal_is_clear(head: Head) -> None:
    pairs = make_pairs(600, TWO_VIEWS, signal=10.0)
    head.fit(pairs.take(np.arange(300)))
    test = pairs.take(np.arange(300, 600))
    assert accuracy(head, test) > 0.8
    assert accuracy(head, swapped(test)) < 0.2


def test_wrong_width_and_wrong_shape_are_refused(head: Head) -> None:
    pairs = make_pairs(40, TWO_VIEWS)
    with pytest.raises(InputError, match="has not been fitted"):
        head.score(pairs.chosen)
    with pytest.raises(InputError, match="has not been fitted"):
        head.save_pretrained("unused")
    head.fit(pairs)
    with pytest.raises(RecipeMismatch, match="width 48, got 47"):
        head.score(pairs.chosen[:, :-1])
    with pytest.raises(InputError, match="shape"):
        head.score(pairs.chosen[0])


def test_non_finite_latents_name_their_row(head: Head) -> None:
    pairs = make_pairs(40, TWO_VIEWS)
    head.fit(pairs)
    broken = pairs.rejected.copy()
    broken[17, 3] = np.nan
    with pytest.raises(InputError, match="rejected latent of pair 17"):
        clone(head).fit(replace(pairs, rejected=broken))
    broken[17, 3] = np.inf
    with pytest.raises(InputError, match="row 17"):
        head.score(broken)


def test_too_little_to_learn_from_is_refused(head: Head) -> None:
    pairs = make_pairs(40, TWO_VIEWS)
    for n in (0, 1):
        with pytest.raises(InputError, match=f"at least 2 pairs, got {n}"):
            head.fit(pairs.take(np.arange(n)))
    with pytest.raises(InputError, match="equal latents in all 40"):
        head.fit(replace(pairs, rejected=pairs.chosen))


def test_two_pairs_and_duplicates_are_enough(head: Head) -> None:
    pairs = make_pairs(40, TWO_VIEWS)
    for rows in (np.array([0, 2]), np.array([0] * 10 + [2] * 10)):
        few = pairs.take(rows)
        head.fit(few)
        assert np.isfinite(head.score(pairs.chosen)).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_thirty_percent_wrong_labels_cost_accuracy_but_not_the_direction() -> None:
    pairs, test = make_pairs(800, signal=20.0), make_pairs(500, seed=1, signal=20.0)
    wrong = np.random.default_rng(3).random(800) < 0.3
    noisy = replace(
        pairs,
        chosen=np.where(wrong[:, None], pairs.rejected, pairs.chosen),
        rejected=np.where(wrong[:, None], pairs.chosen, pairs.rejected),
    )
    clean, hurt = accuracy(LinearHead().fit(pairs), test), accuracy(LinearHead().fit(noisy), test)
    assert clean > 0.93
    assert 0.8 < hurt < clean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strengths": (1.0, -1.0)}, "strength is -1.0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"folds": 1}, "folds is 1"),
    ],
)
def test_linear_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearHead(**arguments).fit(make_pairs(10))


def test_negative_or_infinite_margins_name_their_pair() -> None:
    pairs = make_pairs(10)
    for value in (-1.0, np.inf):
        margin = np.ones(10)
        margin[4] = value
        with pytest.raises(InputError, match="margin of pair 4"):
            LinearHead(margin=True).fit(replace(pairs, margin=margin))


def test_loading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_head(tmp_path)
    LinearHead(strength=1.0).fit(make_pairs(10)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a linear head, not MLPHead"):
        MLPHead.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head": "oracle"}))
    with pytest.raises(InputError, match="names the head 'oracle', known are auto, coded, committee, context, linear"):
        load_head(tmp_path)


# --- MLPHead


def test_mlp_learns_what_no_linear_head_can() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1500, 4)).astype(np.float32)
    better = np.abs(x[:, :1]) > np.abs(y[:, :1])  # larger is better in either direction
    recipe = Recipe("model", "revision", ("10:mean",), 4, "none", 512, "float32")
    pairs = LatentPairs(np.where(better, x, y), np.where(better, y, x), x, recipe, np.arange(1500))
    train, test = pairs.take(np.arange(1000)), pairs.take(np.arange(1000, 1500))
    assert accuracy(LinearHead().fit(train), test) < 0.6
    assert accuracy(MLPHead().fit(train), test) > 0.8


# --- AutoHead

VIEWS = tuple(f"{layer}:{pooling}" for layer in (10, 20, 30) for pooling in ("last", "mean"))


@pytest.mark.parametrize("informative", ["20:mean", "30:last"])
def test_auto_finds_the_only_informative_view_and_reports_it(informative: str) -> None:
    pairs = make_pairs(400, VIEWS, informative, signal=20.0)
    auto = AutoHead().fit(pairs)
    assert auto.views_ == (informative,)
    chosen = [row for row in auto.tried_ if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["views"] == [informative]
    assert chosen[0]["cv_accuracy"] == auto.cv_accuracy_ == pair_accuracy(auto.cv_margins_)
    assert chosen[0]["strength"] == auto.head_.strength_
    assert {tuple(row["views"]) for row in auto.tried_} == set(candidate_views(VIEWS))
    assert all(set(row) == {"views", "head", "strength", "cv_accuracy", "cv_loss", "chosen"} for row in auto.tried_)


def test_auto_keeps_all_views_when_they_differ_by_noise_only() -> None:
    kept = [AutoHead().fit(make_pairs(100, VIEWS, "none of them", seed=s)).views_ == VIEWS for s in range(8)]
    assert sum(kept) >= 7


def test_auto_equals_its_inner_head_on_the_chosen_columns() -> None:
    pairs = make_pairs(300, VIEWS, "20:mean", signal=20.0)
    auto = AutoHead().fit(pairs)
    head, views = auto.narrow()
    assert np.array_equal(head.score(pairs.select(views).chosen), auto.score(pairs.chosen))
    refit = LinearHead().fit(pairs.select(views))
    assert np.array_equal(refit.score(pairs.select(views).chosen), auto.score(pairs.chosen))
    assert auto.parameters == WIDTH


def test_auto_does_not_depend_on_which_side_is_called_chosen() -> None:
    pairs = make_pairs(200, VIEWS)
    auto, mirror = AutoHead().fit(pairs), AutoHead().fit(swapped(pairs))
    assert auto.views_ == mirror.views_
    assert np.array_equal(auto.score(pairs.chosen), -mirror.score(pairs.chosen))


def test_auto_takes_the_mlp_where_only_it_can_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, 4)).astype(np.float32)
    better = np.abs(x[:, :1]) > np.abs(y[:, :1])
    recipe = Recipe("model", "revision", ("10:mean",), 4, "none", 512, "float32")
    pairs = LatentPairs(np.where(better, x, y), np.where(better, y, x), x, recipe, np.arange(1000))
    auto = AutoHead().fit(pairs)
    assert isinstance(auto.head_, MLPHead)
    assert accuracy(auto, pairs) > 0.8
    assert auto.cv_accuracy_ > 0.75
    assert [row["head"] for row in auto.tried_ if row["chosen"]] == ["mlp"]


def test_candidate_views_of_one_view_is_that_view() -> None:
    assert candidate_views(("10:mean",)) == [("10:mean",)]
    assert candidate_views(("10:last", "10:mean")) == [("10:last",), ("10:mean",), ("10:last", "10:mean")]
