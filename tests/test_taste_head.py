"""A taste a person: what a few pairs tell, people side by side, going on from what is known."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penchant.errors import InputError, RecipeMismatch
from penchant.heads import PCAHead, TasteHead, load_head
from penchant.heads import tastes as module
from penchant.heads.base import pair_accuracy
from penchant.heads.tastes import PRIORS, PSEUDO, Taste, newton, packed, posteriors, spread, unpacked
from penchant.latents import LatentPairs, Recipe

WIDTH = 10
VIEWS = ("10:last", "10:mean")


def own_tastes(ways: int, start: int, people: int) -> np.ndarray:
    """Each person's own vector [people, 2 WIDTH], of one length whatever the number of ways in which they differ."""
    own = np.random.default_rng(98).normal(size=(1000, 2 * WIDTH))[start : start + people]
    turned = np.linalg.qr(np.random.default_rng(97).normal(size=(2 * WIDTH, 2 * WIDTH)))[0][:ways]
    return own if ways == 2 * WIDTH else np.sqrt(2 * WIDTH / ways) * own @ turned.T @ turned


def make_people(
    people: int, each: int, apart: float = 1.5, seed: int = 0, start: int = 0, ways: int = 2 * WIDTH
) -> LatentPairs:
    """Pairs judged by people whose tastes are `apart` times a person's own vector away from a common one."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(size=2 * WIDTH)
    tastes = np.repeat(common + apart * own_tastes(ways, start, people), each, axis=0)
    good, bad = rng.normal(size=(2, people * each, 2 * WIDTH))
    swap = rng.random(len(good)) > 1 / (1 + np.exp(-((good - bad) * tastes).sum(1)))
    good[swap], bad[swap] = bad[swap], good[swap].copy()
    recipe = Recipe("model", "revision", VIEWS, WIDTH, "none", 512, "float32")
    names = np.repeat([f"person {i + start}" for i in range(people)], each).astype(object)
    sides = good.astype(np.float32), bad.astype(np.float32)
    return LatentPairs(*sides, np.zeros_like(sides[0]), recipe, np.arange(len(good)) // 2, user_id=names)


def accuracy(head: TasteHead, pairs: LatentPairs, tastes: dict[str, Taste] | None = None) -> float:
    """Mean over people, by their tastes or by the population's."""
    found = []
    for name in np.unique(pairs.user_id):
        part, taste = pairs.take(pairs.user_id == name), tastes[name] if tastes else None
        found.append(pair_accuracy(head.score(part.chosen, taste) - head.score(part.rejected, taste)))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def fitted() -> TasteHead:
    return TasteHead().fit(make_people(30, 30))


def test_more_pairs_of_a_new_person_tell_more_and_none_is_the_population(fitted: TasteHead) -> None:
    few, test = make_people(20, 60, seed=1, start=500), make_people(20, 100, seed=2, start=500)
    place = np.tile(np.arange(60), 20)
    found = [accuracy(fitted, test, fitted.fit_people(few.take(place < n))) for n in (5, 20, 60)]
    before = accuracy(fitted, test)
    assert before < 0.72
    assert before + 0.03 < found[0] < found[1] - 0.03
    assert found[1] < found[2] - 0.03
    assert np.array_equal(fitted.score(test.chosen), PCAHead(40).fit(make_people(30, 30)).score(test.chosen))


def test_how_far_people_are_from_each_other_is_learned(fitted: TasteHead) -> None:
    alike = TasteHead().fit(make_people(30, 30, apart=0.0))
    assert np.linalg.eigvalsh(alike.precision_)[0] > 10 * np.linalg.eigvalsh(fitted.precision_)[-1]
    test = make_people(20, 100, apart=0.0, seed=2, start=500)
    few = make_people(20, 10, apart=0.0, seed=1, start=500)
    assert accuracy(alike, test, alike.fit_people(few)) > accuracy(alike, test) - 0.01


def test_in_what_people_differ_is_learned_from_others() -> None:
    few, test = make_people(40, 10, seed=1, start=500, ways=2), make_people(40, 100, seed=2, start=500, ways=2)
    head = TasteHead().fit(make_people(60, 60, ways=2))
    leading = np.linalg.eigh(np.linalg.inv(head.precision_))[1][:, -2:].T @ head.components_
    spanned = np.linalg.lstsq(leading.T, own_tastes(2, 500, 40).T, rcond=None)[0].T @ leading
    assert np.square(spanned).sum() > 0.5 * np.square(own_tastes(2, 500, 40)).sum()
    found = []
    for prior in PRIORS:
        alike = copy.copy(head)
        alike.precision_ = prior * np.eye(len(head.mean_))
        found.append(accuracy(alike, test, alike.fit_people(few)))
    assert accuracy(head, test, head.fit_people(few)) > max(found) + 0.02


def test_the_spread_of_tastes_is_a_step_of_em_and_leaves_each_person_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sides, mean = [rng.normal(size=(n, 4)) for n in (3, 5, 9)], rng.normal(size=4)
    monkeypatch.setattr(module, "ROUNDS", 1)
    whole, others = spread(sides, mean, 2.0)
    part = []
    for each in sides:
        w, second = newton(each[None], mean[None], 2 * np.eye(4)[None])
        part.append(np.linalg.inv(second[0]) + np.outer(w[0] - mean, w[0] - mean))
    assert np.allclose(whole, (PSEUDO * np.eye(4) / 2 + sum(part)) / (PSEUDO + 3), atol=1e-9)
    assert np.allclose(others[1], (PSEUDO * np.eye(4) / 2 + part[0] + part[2]) / (PSEUDO + 2), atol=1e-9)
    monkeypatch.setattr(module, "ROUNDS", 3)
    again, others = spread([*sides[:2], 50 * sides[2]], mean, 2.0)
    assert not np.allclose(again, whole, atol=1e-2)
    assert np.linalg.eigvalsh(others).min() > 0


def test_one_persons_taste_is_the_mode_that_pca_head_finds(fitted: TasteHead) -> None:
    pairs = make_people(30, 30)
    fitted, alone = copy.copy(fitted), PCAHead(40, prior=0.7).fit(pairs)
    fitted.precision_ = 0.7 * np.eye(len(fitted.mean_))
    few = make_people(1, 25, seed=1, start=500)
    (taste,) = fitted.fit_people(few).values()
    assert np.allclose(taste.mean, alone.adapt(few).taste_, atol=1e-4)
    assert taste.pairs == 25


def test_people_side_by_side_are_fitted_as_one_by_one(fitted: TasteHead, monkeypatch: pytest.MonkeyPatch) -> None:
    few = make_people(12, 20, seed=1, start=500)
    few = few.take(np.random.default_rng(0).permutation(len(few))[:150])  # unequal numbers, mixed order
    together = fitted.fit_people(few)
    monkeypatch.setattr(module, "MEMORY", 60_000)  # batches of a few people
    batched = fitted.fit_people(few)
    assert set(together) == set(np.unique(few.user_id))
    for name, taste in together.items():
        (alone,) = fitted.fit_people(few.take(few.user_id == name)).values()
        for other in (alone, batched[name]):
            assert np.array_equal(taste.mean, other.mean)
            assert np.array_equal(taste.precision, other.precision)
            assert taste.pairs == other.pairs


def test_feedback_of_others_moves_nobody(fitted: TasteHead) -> None:
    few = make_people(5, 20, seed=1, start=500)
    spoiler = make_people(3, 40, seed=3, start=700)
    spoiler = replace(spoiler, chosen=spoiler.rejected, rejected=spoiler.chosen)
    alone, among = fitted.fit_people(few), fitted.fit_people(LatentPairs.concatenate([spoiler, few]))
    for name, taste in alone.items():
        assert np.array_equal(taste.mean, among[name].mean)


def test_fewer_pairs_than_others_have_are_fitted_as_alone_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(n, 40)) for n in (3, 37, 700)]
    start = Taste(np.zeros(40), packed(np.eye(40)), 0)
    for number, taste, precision in posteriors(sides, [start] * 3):
        ((_, alone, bent),) = posteriors([sides[number]], [start])
        assert np.array_equal(taste, alone)
        assert np.array_equal(precision, bent)


def test_one_persons_thousand_pairs_have_one_vote() -> None:
    pairs = make_people(10, 30, apart=0.3)
    spoiler = make_people(1, 3000, apart=0.3, seed=3, start=700)
    spoiler = replace(spoiler, chosen=spoiler.rejected, rejected=spoiler.chosen)
    test = make_people(20, 50, apart=0.3, seed=2, start=500)
    both = LatentPairs.concatenate([pairs, replace(spoiler, group=spoiler.group + 10_000)])
    honest, spoiled = (accuracy(TasteHead().fit(each), test) for each in (pairs, both))
    assert honest > 0.8
    assert spoiled > honest - 0.05
    assert accuracy(TasteHead().fit(replace(both, user_id=np.resize(["a", "b"], len(both)).astype(object))), test) < 0.3


def test_more_pairs_go_on_from_what_is_known_without_forgetting(fitted: TasteHead) -> None:
    pairs, test = make_people(20, 60, seed=1, start=500), make_people(20, 100, seed=2, start=500)
    place = np.tile(np.arange(60), 20)
    first, second = pairs.take(place < 50), pairs.take(place >= 50)
    known = fitted.fit_people(first)
    later, whole = fitted.fit_people(second, known), fitted.fit_people(pairs)
    assert {taste.pairs for taste in later.values()} == {60}
    assert accuracy(fitted, test, later) > accuracy(fitted, test, fitted.fit_people(second)) + 0.05
    assert abs(accuracy(fitted, test, later) - accuracy(fitted, test, whole)) < 0.01
    name = next(iter(later))
    assert np.corrcoef(later[name].mean, whole[name].mean)[0, 1] > 0.98
    # Somebody else goes on from the population.
    (new,) = fitted.fit_people(make_people(1, 5, seed=4, start=800), known).values()
    assert new.pairs == 5


def test_swapping_what_was_chosen_turns_a_taste_around() -> None:
    pairs = make_people(10, 30)
    head = TasteHead().fit(
        LatentPairs.concatenate([pairs, replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)])
    )
    assert np.abs(head.mean_).max() < 1e-6
    few = make_people(1, 20, seed=1)
    (one,) = head.fit_people(few).values()
    (other,) = head.fit_people(replace(few, chosen=few.rejected, rejected=few.chosen)).values()
    assert np.abs(one.mean).max() > 1e-3
    assert np.allclose(one.mean, -other.mean, atol=1e-6)


def test_newtons_end_is_a_minimum_even_from_far_away() -> None:
    rng = np.random.default_rng(0)
    block = 30 * rng.normal(size=(3, 8, 4))  # steps must be shortened
    mean, prior = 5 * rng.normal(size=(3, 4)), np.repeat(0.01 * np.eye(4)[None], 3, 0)
    w, second = newton(block, mean, prior)

    def value(w: np.ndarray) -> np.ndarray:
        away = w - mean
        pull = 0.005 * np.square(away).sum(1)
        return np.logaddexp(0, -np.einsum("bnk,bk->bn", block, w)).sum(1) + pull

    for _ in range(50):
        assert np.all(value(w + 0.01 * rng.normal(size=w.shape)) >= value(w))
    step = 1e-3 * rng.normal(size=w.shape)
    bent = value(w + step) + value(w - step) - 2 * value(w)
    assert np.allclose(bent, np.einsum("bk,bkl,bl->b", step, second, step), rtol=0.05)


def test_newtons_weights_count_as_so_many_equal_rows() -> None:
    rng = np.random.default_rng(0)
    block, mean = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 4))
    prior = np.repeat(0.3 * np.eye(4)[None], 2, 0)
    times = np.array([[1, 2, 3, 1, 0, 5], [1, 1, 4, 0, 2, 2]])
    w, second = newton(block, mean, prior, times.astype(float))
    for one in range(2):
        repeated = np.repeat(block[one], times[one], axis=0)[None]
        alone, bent = newton(repeated, mean[one : one + 1], prior[one : one + 1])
        assert np.allclose(w[one], alone[0], atol=1e-9)
        assert np.allclose(second[one], bent[0], atol=1e-9)
    plain, even = newton(block, mean, prior), newton(block, mean, prior, np.ones((2, 6)))
    assert all(np.array_equal(one, other) for one, other in zip(plain, even, strict=True))
    assert not np.allclose(w, plain[0], atol=0.1)


def test_nobody_beside_a_person_moves_them_by_a_bit() -> None:
    rng = np.random.default_rng(0)
    block, prior = rng.normal(size=(2, 8, 4)), np.repeat(np.eye(4)[None], 2, 0)
    easy, hard = ((block * np.array([1.0, other])[:, None, None]) for other in (0.1, 300.0))
    found = [newton(each, np.zeros((2, 4)), 0.01 * prior) for each in (easy, hard)]
    assert np.array_equal(found[0][0][0], found[1][0][0])
    assert np.array_equal(found[0][1][0], found[1][1][0])


def test_a_person_is_small() -> None:
    taste = next(iter(TasteHead().fit(make_people(3, 30)).fit_people(make_people(1, 5)).values()))
    k = 40
    assert 4 * (k + k * (k + 1) // 2) < 4096
    assert taste.mean.dtype == taste.precision.dtype == np.float32
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    assert np.array_equal(unpacked(packed(matrix + matrix.T), 5), matrix + matrix.T)


def test_saved_and_loaded_it_knows_the_same(tmp_path: Path, fitted: TasteHead) -> None:
    fitted.save_pretrained(tmp_path)
    again = load_head(tmp_path)
    assert isinstance(again, TasteHead)
    few = make_people(2, 10, seed=1, start=500)
    for name, taste in fitted.fit_people(few).items():
        assert np.array_equal(taste.mean, again.fit_people(few)[name].mean)
        assert np.array_equal(fitted.score(few.chosen, taste), again.score(few.chosen, taste))
    assert again.prior_ == fitted.prior_
    assert np.array_equal(again.precision_, fitted.precision_)
    assert np.linalg.matrix_rank(fitted.precision_) == len(fitted.mean_)
    assert np.array_equal(fitted.precision_, fitted.precision_.T)


def test_wrong_input_is_named(fitted: TasteHead) -> None:
    pairs = make_people(4, 10)
    assert pairs.user_id is not None
    with pytest.raises(InputError, match="not been fitted"):
        TasteHead().score(pairs.chosen)
    with pytest.raises(InputError, match="one person"):
        TasteHead().fit(make_people(1, 20))
    with pytest.raises(InputError, match="no user_id"):
        TasteHead().fit(replace(pairs, user_id=None))
    gap = pairs.user_id.copy()
    gap[7] = None
    with pytest.raises(InputError, match="pair 7 has no user_id"):
        fitted.fit_people(replace(pairs, user_id=gap))
    with pytest.raises(InputError, match="components is 0"):
        TasteHead(0).fit(pairs)
    with pytest.raises(RecipeMismatch, match="width 20, got 10"):
        fitted.fit_people(pairs.select(("10:mean",)))
    bad = pairs.chosen.copy()
    bad[3] = np.nan
    with pytest.raises(InputError, match="row 3 holds NaN"):
        fitted.fit_people(replace(pairs, chosen=bad))
