"""DRM: shared directions, pooled and personal taste, the two controls, and adapting a whole reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from penchant import RewardModel
from penchant.encode import encode_pairs
from penchant.errors import InputError, RecipeMismatch
from penchant.heads import Head, LinearHead, PCAHead, load_head
from penchant.heads.base import pair_accuracy
from penchant.heads.linear import column_scale
from penchant.heads.pca import adaptation_split
from penchant.latents import LatentPairs, Recipe
from penchant.pairs import load_pairs
from tests.tiny_llm import save_tiny_llm, tiny_pairs

WIDTH = 12
VIEWS = ("10:last", "10:mean")
VARIANTS = [
    {},
    {"weighting": "softmax"},
    {"weighting": "softmax", "center": True},
    {"weighting": "uniform"},
    {"weighting": "softmax", "directions": "random"},
    {"directions": "random"},
]


def make_pairs(n: int, turn: float = 0.0, seed: int = 0, views: tuple[str, ...] = VIEWS) -> LatentPairs:
    """Two pairs a prompt, uneven columns, a linear taste with noise; `turn` swings it within the widest columns."""
    rng = np.random.default_rng(seed)
    size = np.arange(1, WIDTH + 1) ** -0.5
    taste = np.zeros(WIDTH)
    taste[:2] = np.cos(turn), np.sin(turn)
    good, bad = rng.normal(size=(2, n, WIDTH))
    swap = rng.random(n) > expit(4 * (good - bad) @ taste)
    good[swap], bad[swap] = bad[swap], good[swap].copy()
    offset = np.repeat(rng.normal(size=(-(-n // 2), WIDTH)), 2, axis=0)[:n]
    sides = []
    for side in (good, bad):
        parts = [(side + 0.1 * rng.normal(size=side.shape) + offset) * size for _ in views]
        sides.append(np.concatenate(parts, axis=1).astype(np.float32))
    recipe = Recipe("model", "revision", views, WIDTH, "none", 512, "float32")
    return LatentPairs(sides[0], sides[1], np.zeros_like(sides[0]), recipe, np.arange(n) // 2)


def swapped(pairs: LatentPairs, rows: Any = slice(None)) -> LatentPairs:
    chosen, rejected = pairs.chosen.copy(), pairs.rejected.copy()
    chosen[rows], rejected[rows] = pairs.rejected[rows], pairs.chosen[rows]
    return replace(pairs, chosen=chosen, rejected=rejected)


def margins(head: Head, pairs: LatentPairs) -> np.ndarray:
    return head.score(pairs.chosen).astype(np.float64) - head.score(pairs.rejected)


def accuracy(head: Head, pairs: LatentPairs) -> float:
    return pair_accuracy(margins(head, pairs))


# --- directions


def test_directions_are_principal_axes_of_the_scaled_differences_and_know_no_labels() -> None:
    pairs = make_pairs(80)
    scale = column_scale(pairs.chosen.astype(np.float64) - pairs.rejected, WIDTH)
    head = PCAHead(components=5).fit(pairs)
    axes = head.components_ * scale
    np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-8)
    values = np.linalg.svd((pairs.chosen.astype(np.float64) - pairs.rejected) / scale)[1]
    projected = (pairs.chosen.astype(np.float64) - pairs.rejected) @ head.components_.T
    np.testing.assert_allclose(projected.T @ projected, np.diag(values[:5] ** 2), atol=1e-8 * values[0] ** 2)
    some = np.arange(80) % 3 == 0
    np.testing.assert_allclose(PCAHead(components=5).fit(swapped(pairs, some)).components_, head.components_, atol=1e-9)
    centered = PCAHead(components=5, weighting="softmax", center=True).fit(pairs).components_
    assert np.abs(centered - head.components_).max() > 0.01 * np.abs(head.components_).max()


@pytest.mark.parametrize("n", [10, 200])  # fewer and more pairs than columns
def test_all_directions_and_one_strength_make_it_the_linear_head(n: int) -> None:
    train, test = make_pairs(n), make_pairs(50, seed=1)
    head = PCAHead(components=1000, strengths=(2.0,)).fit(train)
    np.testing.assert_allclose(margins(head, test), margins(LinearHead(strength=2.0).fit(train), test), atol=1e-5)
    assert len(head.components_) == min(n, 2 * WIDTH)


def test_random_directions_are_as_many_of_unit_length_and_leave_the_prompts_view_out() -> None:
    pairs = make_pairs(60, views=("10:mean", "10:prompt"))
    pairs.rejected[:, WIDTH:] = pairs.chosen[:, WIDTH:]
    scale = column_scale(pairs.chosen.astype(np.float64) - pairs.rejected, WIDTH)
    one, again, other = (PCAHead(7, directions="random", random_state=s).fit(pairs) for s in (0, 0, 1))
    np.testing.assert_allclose(np.linalg.norm(one.components_ * scale, axis=1), np.ones(7))
    assert np.array_equal(one.components_, again.components_)
    assert not np.allclose(one.components_, other.components_)
    assert not one.components_[:, WIDTH:].any()


# --- weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_swapping_all_pairs_flips_every_score(variant: dict[str, Any]) -> None:
    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    head, mirror = PCAHead(8, **variant).fit(pairs), PCAHead(8, **variant).fit(swapped(pairs))
    assert np.abs(margins(head, test)).min() > 0
    np.testing.assert_allclose(head.score(test.chosen), -mirror.score(test.chosen), rtol=1e-4, atol=1e-6)
    few, other = pairs.take(slice(9)), make_pairs(9, seed=3)
    np.testing.assert_allclose(
        margins(head.adapt(other), few), -margins(mirror.adapt(swapped(other)), few), rtol=1e-4, atol=1e-6
    )


def test_softmax_weights_are_those_of_the_published_formula() -> None:
    """Recomputed head by head: 2 k heads, z-scores over the 2 n responses, summed logistic loss."""
    train, few, test = make_pairs(60), make_pairs(7, seed=1), make_pairs(30, seed=2)
    head = PCAHead(4, weighting="softmax", temperature=2.0).fit(train).adapt(few)
    expected, total = np.zeros(30), 0.0
    for u in [*head.components_, *-head.components_]:
        chosen, rejected = few.chosen @ u, few.rejected @ u
        every = np.concatenate([chosen, rejected])
        center, spread = every.mean(), every.std(ddof=1)
        loss = -np.log(expit((chosen - center) / spread - (rejected - center) / spread)).sum()
        weight = np.exp(-loss / 2.0)
        expected += weight * (test.chosen @ u - test.rejected @ u) / spread
        total += weight
    np.testing.assert_allclose(margins(head, test), expected / total, rtol=1e-4, atol=1e-6)


def test_uniform_weights_let_every_direction_vote_with_its_sign() -> None:
    few, test = make_pairs(7, seed=1), make_pairs(30, seed=2)
    head = PCAHead(4, weighting="uniform").fit(make_pairs(60)).adapt(few)
    expected = np.zeros(30)
    for u in head.components_:
        spread = np.concatenate([few.chosen @ u, few.rejected @ u]).std(ddof=1)
        sign = np.sign((few.chosen @ u - few.rejected @ u).mean())
        expected += sign * (test.chosen @ u - test.rejected @ u) / spread / 4
    np.testing.assert_allclose(margins(head, test), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", ["softmax", "uniform"])
def test_adapting_to_all_pairs_is_fitting(weighting: Any) -> None:
    pairs = make_pairs(60)
    head = PCAHead(8, weighting=weighting).fit(pairs)
    assert np.array_equal(head.adapt(pairs).taste_, head.taste_)


def test_map_ends_where_the_pull_to_the_pooled_taste_and_the_pairs_balance() -> None:
    few = make_pairs(15, turn=1.5, seed=1)
    head = PCAHead(8, prior=0.7).fit(make_pairs(200)).adapt(few)
    difference = (few.chosen.astype(np.float64) - few.rejected) @ head.components_.T
    pull = difference.T @ expit(-difference @ head.taste_)
    np.testing.assert_allclose(pull, 0.7 * (head.taste_ - head.pooled_), atol=1e-7)
    assert np.abs(pull).max() > 0.1
    stiff = PCAHead(8, prior=1e9).fit(make_pairs(200))
    np.testing.assert_allclose(stiff.adapt(few).taste_, stiff.pooled_, atol=1e-6)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.get("weighting") != "uniform"])
def test_fifteen_pairs_turn_the_head_to_a_person_of_another_taste(variant: dict[str, Any]) -> None:
    head = PCAHead(20, **variant).fit(make_pairs(300))
    person, test = make_pairs(15, turn=2.0, seed=1), make_pairs(500, turn=2.0, seed=2)
    assert accuracy(head.adapt(person), test) > accuracy(head, test) + 0.1


def test_adapting_leaves_the_head_and_starts_from_the_pooled_taste_each_time() -> None:
    head = PCAHead(8).fit(make_pairs(100))
    before = head.taste_.copy()
    one, two = make_pairs(9, seed=1), make_pairs(9, turn=2.0, seed=2)
    assert np.array_equal(head.adapt(two).adapt(one).taste_, head.adapt(one).taste_)
    assert np.array_equal(head.taste_, before)
    assert (head.adapted_, head.adapt(one).adapted_) == (0, 9)
    assert head.cv_margins_ is not None
    assert head.adapt(one).cv_margins_ is None


@pytest.mark.parametrize(
    ("weighting", "center"), [("map", False), ("softmax", False), ("softmax", True), ("uniform", False)]
)
def test_held_out_margins_do_not_know_their_own_prompt(weighting: Any, center: bool) -> None:
    pairs = make_pairs(60)
    turned = swapped(pairs, slice(0, 2))
    options: dict[str, Any] = {"weighting": weighting, "center": center, "folds": 30, "strengths": (1.0,)}
    options["temperature"] = 30.0
    head, other = PCAHead(6, **options).fit(pairs), PCAHead(6, **options).fit(turned)
    assert head.cv_margins_ is not None
    assert other.cv_margins_ is not None
    np.testing.assert_allclose(head.cv_margins_[:2], -other.cv_margins_[:2], rtol=1e-4)
    assert not np.allclose(head.cv_margins_[2:], other.cv_margins_[2:])
    assert head.cv_accuracy_ == pair_accuracy(head.cv_margins_)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_margins_give_finite_scores(variant: dict[str, Any]) -> None:
    head = PCAHead(6, **variant).fit(make_pairs(60))
    rows = np.zeros((3, 2 * WIDTH), np.float32)
    step = rows.copy()
    step[:, 0] = 1.0
    recipe = make_pairs(2).recipe
    same = LatentPairs(step, rows, rows, recipe, np.arange(3))
    assert (margins(head.adapt(same), same) > 0).all()


def test_a_direction_in_which_a_persons_pairs_hardly_differ_has_no_loud_vote() -> None:
    head, test = PCAHead(6, weighting="softmax").fit(make_pairs(60)), make_pairs(100, seed=4)
    few = make_pairs(5, seed=1)
    axis = head.components_[0] / np.linalg.norm(head.components_[0])
    noise = np.float32(1e-6)
    person = replace(few, chosen=(3 * axis + noise * few.chosen).astype(np.float32), rejected=noise * few.rejected)
    along = (test.chosen - test.rejected) @ head.components_[0]
    assert np.corrcoef(margins(head.adapt(person), test), along)[0, 1] > 0.95


# --- saving, splitting, refusing


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_scores_are_equal_and_it_still_adapts(variant: dict[str, Any], tmp_path: Path) -> None:
    pairs, few, test = make_pairs(60), make_pairs(8, turn=1, seed=1), make_pairs(20, seed=2)
    head = PCAHead(6, **variant).fit(pairs).adapt(few)
    head.save_pretrained(tmp_path)
    again = load_head(tmp_path)
    assert isinstance(again, PCAHead)
    assert again.get_params() == head.get_params()
    assert np.array_equal(head.score(test.chosen), again.score(test.chosen))
    assert np.array_equal(head.adapt(test).score(test.chosen), again.adapt(test).score(test.chosen))
    assert np.array_equal(head.score(test.chosen[3:4]), head.score(test.chosen)[3:4])


def test_a_split_shares_no_prompt_and_five_are_the_first_of_fifteen() -> None:
    pairs = replace(make_pairs(60), group=np.arange(60) // 5)
    few, rest = adaptation_split(pairs, 15)
    assert len(few) == 15
    assert not set(few.group) & set(rest.group)
    assert set(few.group) | set(rest.group) == set(pairs.group)
    assert len(rest) == sum(group not in set(few.group) for group in pairs.group)
    assert np.array_equal(adaptation_split(pairs, 5)[0].chosen, few.chosen[:5])
    assert not np.array_equal(adaptation_split(pairs, 15, 1)[0].chosen, few.chosen)
    with pytest.raises(InputError, match="half of the prompts have 30 pairs"):
        adaptation_split(pairs, 31)
    with pytest.raises(InputError, match="share one prompt"):
        adaptation_split(replace(pairs, group=np.zeros(60, int)), 5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"components": 0}, "components is 0"),
        ({"weighting": "mean"}, "give map, softmax or uniform"),
        ({"directions": "ica"}, "give pca or random"),
        ({"prior": 0.0}, "prior is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"strengths": (1.0, np.inf)}, "strength is inf"),
        ({"center": True}, "center=True is for DRM as published"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        PCAHead(**arguments).fit(make_pairs(10))


def test_wrong_pairs_are_named() -> None:
    head = PCAHead(4).fit(make_pairs(20))
    with pytest.raises(RecipeMismatch, match="width 24, got 12"):
        head.adapt(make_pairs(5, views=("10:mean",)))
    with pytest.raises(InputError, match="at least 2 pairs"):
        head.adapt(make_pairs(1))
    with pytest.raises(InputError, match="not been fitted"):
        PCAHead().adapt(make_pairs(5))
    same = make_pairs(4)
    same = replace(same, rejected=same.chosen - np.float32(0.5))
    with pytest.raises(InputError, match="center=False"):
        PCAHead(weighting="softmax", center=True).fit(
            replace(same, chosen=same.rejected * 0 + 1, rejected=same.rejected * 0)
        )


def test_a_reward_model_adapts_from_texts_as_from_latents(tmp_path: Path) -> None:
    rows = tiny_pairs(30, noise=0.2)
    views = ["2:mean", "3:mean"]
    rm = RewardModel.train(
        rows, model=str(save_tiny_llm(tmp_path)), dtype="float32", head=PCAHead(8), views=views,
        cache=tmp_path / "cache", show_progress=False,
    )  # fmt: skip
    latents = encode_pairs(rm.backbone, load_pairs(rows[:6]), ("3:mean", "2:mean"), show_progress=False)
    by_text, by_latents = rm.adapt(rows[:6]), rm.adapt(latents)
    answers = ["Gladly! Number 3.", "No."]
    assert np.array_equal(by_text.score("Name a river.", answers), by_latents.score("Name a river.", answers))
    assert not np.array_equal(by_text.score("Name a river.", answers), rm.score("Name a river.", answers))
    assert by_text.temperature == rm.temperature
    assert by_text.facts["adapted"] == 6
    by_text.save_pretrained(tmp_path / "saved")
    assert "with 6 pairs of theirs" in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(RecipeMismatch, match="made as"):
        rm.adapt(replace(latents, recipe=replace(latents.recipe, revision="other")))
    with pytest.raises(InputError, match="a linear head cannot adapt"):
        RewardModel.fit(latents, LinearHead()).adapt(latents)
