"""The head whose taste varies with the prompt, and the prompt's views it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penchant.errors import InputError, RecipeMismatch
from penchant.heads import AutoHead, ContextHead, Head, LinearHead, MLPHead
from penchant.heads.base import pair_accuracy
from penchant.latents import LatentPairs, Recipe

WIDTH = 16
VIEWS = ("10:mean", "10:prompt")


def make_pairs(n: int, conflict: bool = True, seed: int = 0) -> LatentPairs:
    """Two pairs a prompt. Prompts are of two kinds, far apart; with `conflict` the kinds' tastes are opposite."""
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(99).normal(size=WIDTH)
    kind = np.repeat(rng.choice([-1, 1], size=-(-n // 2)), 2)[:n]
    prompt = np.repeat(rng.normal(size=(-(-n // 2), WIDTH)), 2, axis=0)[:n]
    prompt += 2 * kind[:, None]
    good, bad = rng.normal(size=(2, n, WIDTH))
    swap = (good - bad) @ taste * (kind if conflict else 1) < 0
    good[swap], bad[swap] = bad[swap], good[swap].copy()
    recipe = Recipe("model", "revision", VIEWS, WIDTH, "none", 512, "float32")
    sides = [np.concatenate([side, prompt], axis=1).astype(np.float32) for side in (good, bad)]
    return LatentPairs(sides[0], sides[1], np.zeros_like(sides[0]), recipe, np.arange(n) // 2)


def margins(head: Head, pairs: LatentPairs) -> np.ndarray:
    return head.score(pairs.chosen).astype(np.float64) - head.score(pairs.rejected)


def accuracy(head: Head, pairs: LatentPairs) -> float:
    return pair_accuracy(margins(head, pairs))


def test_opposite_tastes_by_prompt_are_learned_where_a_linear_head_stays_at_chance() -> None:
    train, test = make_pairs(400), make_pairs(1000, seed=1)
    assert accuracy(LinearHead().fit(train), test) < 0.6
    assert accuracy(ContextHead(context=0).fit(train), test) < 0.6
    assert accuracy(ContextHead().fit(train), test) > 0.85


def test_its_cost_is_bounded_where_all_prompts_share_one_taste() -> None:
    train, test = make_pairs(200, conflict=False), make_pairs(1000, conflict=False, seed=1)
    linear = accuracy(LinearHead().fit(train), test)
    assert linear > 0.93
    assert linear - 0.1 < accuracy(ContextHead().fit(train), test) < linear


def test_margins_are_those_of_the_stated_covariance() -> None:
    """Score differences equal gram @ alpha with the docstring's kernel, computed here from the formula alone."""
    train, test = make_pairs(60), make_pairs(40, seed=1)
    head = ContextHead(context=2.0, components=5).fit(train)

    def features(latents: np.ndarray) -> np.ndarray:
        x = latents[:, :WIDTH].astype(np.float64)
        return np.concatenate([x, np.tanh((x - head.center_) / head.scale_)], axis=1)

    def context(latents: np.ndarray) -> np.ndarray:
        return (latents[:, WIDTH:] - head.prompt_center_) @ head.prompt_axes_

    own = features(train.chosen) - features(train.rejected)
    gain = np.repeat([1 / np.sqrt((own[:, half] ** 2).sum(1).mean()) for half in np.s_[:WIDTH, WIDTH:]], WIDTH)
    new = features(test.chosen) - features(test.rejected)

    def kernel(a: np.ndarray, za: np.ndarray) -> np.ndarray:
        return (a * gain) @ (own * gain).T * (1 + 2.0 * za @ context(train.chosen).T)

    gram = kernel(own, context(train.chosen))
    alpha = np.linalg.lstsq(gram, margins(head, train), rcond=None)[0]
    expected = kernel(new, context(test.chosen)) @ alpha
    assert np.allclose(margins(head, test), expected, atol=1e-3 * np.abs(expected).max())
    # Optimality: strength * mean variance * alpha_i = sigmoid(-margin_i), up to the dual's null space.
    slope = 1 / (1 + np.exp(gram @ alpha))
    variance = np.trace(gram) / len(gram)
    assert np.allclose(gram @ slope, head.strength_ * variance * (gram @ alpha), rtol=1e-3, atol=1e-3)


def test_context_coordinates_are_half_whitened_and_of_unit_mean_square() -> None:
    train = make_pairs(300)
    head = ContextHead(components=6).fit(train)
    prompts = np.unique(train.chosen[:, WIDTH:], axis=0)
    z = (prompts - head.prompt_center_) @ head.prompt_axes_
    assert np.square(z).sum(1).mean() == pytest.approx(1)
    covariance = z.T @ z
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6 * covariance.max())
    standard = (prompts - prompts.mean(0)) / prompts.std(0)
    size = np.linalg.svd(standard, compute_uv=False)[:6]
    assert np.allclose(np.diag(covariance) / covariance[0, 0], size / size[0])


def test_swapping_chosen_and_rejected_flips_every_score_difference() -> None:
    pairs, test = make_pairs(80), make_pairs(20, seed=1)
    swapped = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
    assert np.allclose(margins(ContextHead().fit(pairs), test), -margins(ContextHead().fit(swapped), test), atol=1e-5)


def test_unlabelled_latents_set_the_context_and_teach_no_taste() -> None:
    train, other = make_pairs(40), make_pairs(2000, seed=5)
    alone = ContextHead().fit(train)
    helped = ContextHead().fit(train, np.concatenate([other.chosen, other.rejected]))
    turned = ContextHead().fit(train, np.concatenate([other.rejected, other.chosen]))
    assert not np.allclose(alone.prompt_axes_[:, 0], helped.prompt_axes_[:, 0])
    test = make_pairs(50, seed=1)
    assert np.allclose(margins(helped, test), margins(turned, test), atol=1e-4)
    assert np.allclose(helped.center_, np.concatenate([other.chosen, other.rejected])[:, :WIDTH].mean(0), atol=0.1)


def test_saved_and_loaded_scores_are_equal_bit_for_bit(tmp_path: Path) -> None:
    head = ContextHead().fit(make_pairs(60))
    head.save_pretrained(tmp_path)
    latents = make_pairs(10, seed=1).chosen
    again = ContextHead.from_pretrained(tmp_path)
    assert np.array_equal(head.score(latents), again.score(latents))
    one_by_one = np.concatenate([again.score(row[None]) for row in latents])
    assert np.allclose(head.score(latents), one_by_one, atol=1e-6)


@pytest.mark.parametrize("views", [("10:mean",), ("10:prompt",)])
def test_latents_without_prompt_or_response_are_refused(views: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, WIDTH)).astype(np.float32)
    pairs = LatentPairs(x, y, x, Recipe("m", "r", views, WIDTH, "none", 9, "float32"), np.arange(6))
    with pytest.raises(InputError, match="add one such as 24:prompt"):
        ContextHead().fit(pairs)


def test_a_prompt_cut_on_one_side_moves_scores_little_and_an_empty_one_has_no_context() -> None:
    """Where truncation cuts a prompt for the longer response only, the two responses' prompt views differ."""
    offset = np.float32(100)  # latents are far from zero, and a taste must not feed on that
    train, test = make_pairs(400), make_pairs(500, seed=1)
    far = [replace(p, chosen=p.chosen + offset, rejected=p.rejected + offset) for p in (train, test)]
    head = ContextHead().fit(far[0])
    whole = margins(head, far[1])
    noise = np.random.default_rng(2).normal(size=(500, WIDTH)).astype(np.float32) / 3
    cut = far[1].rejected.copy()
    cut[:, WIDTH:] += noise
    assert pair_accuracy(margins(head, replace(far[1], rejected=cut))) > pair_accuracy(whole) - 0.05
    empty = far[1].rejected.copy()
    empty[:, WIDTH:] = 0
    assert np.abs(margins(head, replace(far[1], rejected=empty))).max() < 5 * np.abs(whole).max()
    both = [np.concatenate([side[:, :WIDTH], np.zeros((500, WIDTH), np.float32)], 1) for side in (far[1].chosen, empty)]
    shared = head._features(both[0]) @ head.weight_[0]
    assert np.allclose(head.score(both[0]), shared, atol=1e-5)


def test_scores_do_not_depend_on_how_many_rows_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head, latents = ContextHead().fit(make_pairs(60)), make_pairs(25, seed=1).chosen
    at_once = head.score(latents)
    monkeypatch.setattr("penchant.heads.context.SCORED_ROWS", 10)
    assert np.allclose(head.score(latents), at_once, atol=1e-6)


def test_auto_with_a_context_head_saves_and_loads(tmp_path: Path) -> None:
    head = AutoHead().fit(make_pairs(400))
    head.save_pretrained(tmp_path)
    latents = make_pairs(10, seed=1).chosen
    assert np.array_equal(AutoHead.from_pretrained(tmp_path).score(latents), head.score(latents))


def test_views_of_the_prompt_alone_are_refused_by_auto() -> None:
    pairs = make_pairs(20)
    alone = replace(pairs, rejected=pairs.rejected + 1).select(("10:prompt",))
    with pytest.raises(InputError, match="the same for every response"):
        AutoHead().fit(alone)


def test_wrong_input_is_named() -> None:
    pairs = make_pairs(20)
    with pytest.raises(RecipeMismatch, match="width 32, got 16"):
        ContextHead().fit(pairs).score(pairs.chosen[:, :WIDTH])
    with pytest.raises(RecipeMismatch):
        ContextHead().fit(pairs, pairs.chosen[:, :WIDTH])
    with pytest.raises(InputError, match="context is -1"):
        ContextHead(context=-1).fit(pairs)
    with pytest.raises(InputError, match="strength is 0"):
        ContextHead(strengths=(0.0,)).fit(pairs)
    broken = pairs.chosen.copy()
    broken[3] = np.nan
    with pytest.raises(InputError, match="3 holds NaN"):
        ContextHead().fit(pairs, broken)


def test_one_prompt_only_falls_back_with_a_warning() -> None:
    pairs = replace(make_pairs(6), group=np.zeros(6, int))
    with pytest.warns(UserWarning, match="one prompt"):
        head = ContextHead().fit(pairs)
    assert head.cv_margins_ is None


def test_auto_takes_the_context_head_where_tastes_conflict_and_keeps_the_linear_one_elsewhere() -> None:
    head = AutoHead().fit(make_pairs(400))
    assert isinstance(head.head_, ContextHead)
    assert head.views_ == VIEWS
    assert accuracy(head, make_pairs(500, seed=1)) > 0.85
    assert isinstance(AutoHead().fit(make_pairs(400, conflict=False)).head_, LinearHead)


def test_a_prompt_view_changes_nothing_for_a_linear_head_and_is_no_candidate_alone() -> None:
    pairs = make_pairs(60, conflict=False)
    with_prompt, without = LinearHead().fit(pairs), LinearHead().fit(pairs.select(("10:mean",)))
    assert np.allclose(with_prompt.weight_[:WIDTH], without.weight_)
    assert not with_prompt.weight_[WIDTH:].any()
    assert all(row["views"] != ["10:prompt"] for row in AutoHead().fit(pairs).tried_)
    # Equal on both sides of a pair, but input to an MLP all the same.
    assert accuracy(MLPHead(hidden=16, batch_size=16).fit(pairs), pairs) > 0.7
