"""The head of several tastes: codes found from preferences alone, or learned from known sources."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from penchant.cli.train import make_head
from penchant.errors import InputError, RecipeMismatch
from penchant.heads import CodedHead, ContextHead, Head, LinearHead
from penchant.heads.base import pair_accuracy
from penchant.heads.evidence import PRIOR, fit_gate, log_evidence
from penchant.latents import LatentPairs, Recipe

WIDTH = 16
VIEWS = ("10:last", "10:mean", "10:prompt", "10:prompt_last")


def make_pairs(n: int, kinds: int = 2, seed: int = 0, hidden_in: str = "10:prompt") -> LatentPairs:
    """Pairs of `kinds` sources with a taste each, opposite where there are two; one view tells the source, in one
    direction of middling variance, so that it is no cluster.
    """
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    tastes, directions = fixed.normal(size=(kinds, WIDTH)), np.linalg.qr(fixed.normal(size=(WIDTH, WIDTH)))[0]
    if kinds == 2:
        tastes[1] = -tastes[0]
    kind = rng.integers(kinds, size=n)
    views = {view: rng.normal(size=(2, n, WIDTH)) for view in VIEWS}
    for view in ("10:prompt", "10:prompt_last"):
        views[view][1] = views[view][0]
    corner = np.eye(kinds)[kind] @ directions[:kinds]
    views[hidden_in] = views[hidden_in] * 0.8 + 2 * corner
    good, bad = views["10:mean"]
    swap = np.einsum("nd,nd->n", good - bad, tastes[kind]) < 0
    sides = (np.concatenate([views[view] for view in VIEWS], axis=2) + 5).astype(np.float32)  # far from zero, as real
    sides[:, swap] = sides[::-1, swap]
    recipe = Recipe("model", "revision", VIEWS, WIDTH, "none", 512, "float32")
    source = np.array([f"source {k}" for k in kind], dtype=object)
    return LatentPairs(sides[0], sides[1], np.zeros_like(sides[0]), recipe, np.arange(n), source=source)


def margins(head: Head, pairs: LatentPairs) -> np.ndarray:
    return head.score(pairs.chosen).astype(np.float64) - head.score(pairs.rejected)


def accuracy(head: Head, pairs: LatentPairs) -> float:
    return pair_accuracy(margins(head, pairs))


def agreement(head: CodedHead, pairs: LatentPairs) -> float:
    """Share of pairs whose likelier code of two goes with their source, in the better of both orders."""
    share = float(np.mean(head.prior(pairs.chosen).argmax(axis=1) == (pairs.source == "source 1")))
    return max(share, 1 - share)


@pytest.fixture(scope="module")
def fitted() -> CodedHead:
    return CodedHead().fit(make_pairs(400))


def test_a_conflict_that_the_prompt_shows_is_found_without_any_label(fitted: CodedHead) -> None:
    test = make_pairs(1000, seed=1)
    assert accuracy(LinearHead().fit(make_pairs(400)), test) < 0.6
    assert accuracy(fitted, test) > 0.85
    assert agreement(fitted, test) > 0.9
    assert fitted.gate_views_ == ["10:prompt"]


def test_a_conflict_that_only_the_last_token_shows_is_found_there() -> None:
    head = CodedHead().fit(make_pairs(400, hidden_in="10:last"))
    test = make_pairs(1000, seed=1, hidden_in="10:last")
    assert head.gate_views_ == ["10:last"]
    assert accuracy(head, test) > 0.8
    assert agreement(head, test) > 0.9


def test_the_gate_reads_the_prompts_last_token_where_only_that_tells() -> None:
    head = CodedHead().fit(make_pairs(400, hidden_in="10:prompt_last"))
    test = make_pairs(1000, seed=1, hidden_in="10:prompt_last")
    assert head.gate_views_ == ["10:prompt", "10:prompt_last"]
    assert accuracy(head, test) > 0.8
    assert agreement(head, test) > 0.9


@pytest.mark.parametrize("kinds", [2, 3])
def test_known_sources_are_learned_and_not_needed_to_score(kinds: int) -> None:
    train, test = make_pairs(600, kinds), make_pairs(1000, kinds, seed=1)
    head = CodedHead(use_source=True).fit(train)
    assert accuracy(head, test) > accuracy(CodedHead(codes=1).fit(train), test) + 0.1
    prior = head.prior(test.chosen)
    names = np.array(head.sources_)
    assert prior.shape == (1000, kinds)
    assert np.mean(names[prior.argmax(axis=1)] == test.source) > 0.85
    # Each taste is the one of its source.
    for name, taste in zip(head.sources_, head.codebook_, strict=True):
        own = test.take(test.source == name)
        won = (head._features(own.chosen) - head._features(own.rejected)) @ taste > 0
        assert won.mean() > 0.85


def test_shuffled_sources_teach_nothing() -> None:
    train = make_pairs(400)
    shuffled = replace(train, source=np.random.default_rng(0).permutation(train.source))
    assert accuracy(CodedHead(use_source=True).fit(shuffled), make_pairs(1000, seed=1)) < 0.62


def test_three_codes_hold_three_tastes() -> None:
    train, test = make_pairs(600, 3), make_pairs(1000, 3, seed=1)
    three = CodedHead(codes=3).fit(train)
    assert three.prior(test.chosen).shape == (1000, 3)
    assert accuracy(three, test) > accuracy(CodedHead(codes=1).fit(train), test) + 0.1


def test_one_code_is_the_ridge_head_on_the_same_features() -> None:
    train, test = make_pairs(100), make_pairs(50, seed=1)
    head = CodedHead(codes=1).fit(train)
    ridge = ContextHead(context=0).fit(train.select(("10:mean", "10:prompt")))
    assert head.strength_ == ridge.strength_
    assert head.cv_accuracy_ == ridge.cv_accuracy_
    same = test.select(("10:mean", "10:prompt"))
    assert np.allclose(margins(head, test), margins(ridge, same), atol=1e-5)


def test_the_score_is_the_prior_times_the_tastes(fitted: CodedHead) -> None:
    latents = make_pairs(30, seed=1).chosen
    prior = softmax(latents @ fitted.gate_ + fitted.gate_bias_, axis=1)
    assert np.allclose(fitted.prior(latents), prior)
    assert np.allclose(prior.sum(axis=1), 1)
    x = latents[:, WIDTH : 2 * WIDTH] - fitted.center_
    tastes = np.concatenate([x, np.tanh(x / fitted.scale_)], axis=1) @ fitted.codebook_.T
    assert np.allclose(fitted.score(latents), (prior * tastes).sum(axis=1), atol=1e-5)


def test_the_tastes_are_the_least_of_the_stated_objective() -> None:
    """The gradient of the docstring's loss vanishes, computed from codebook and prior alone."""
    train = make_pairs(60)
    head = CodedHead(use_source=True).fit(train)
    code = (train.source == "source 1").astype(int)
    x = head._features(train.chosen) - head._features(train.rejected)
    gain = np.repeat([1 / np.sqrt((x[:, half] ** 2).sum(1).mean()) for half in np.s_[:WIDTH, WIDTH:]], WIDTH)
    x, tastes = x * gain, head.codebook_ / gain
    slope = 1 / (1 + np.exp((x * tastes[code]).sum(axis=1)))
    size = (x**2).sum(axis=1).mean()  # independent tastes: a pair's variance is that of its own features
    for k in range(2):
        assert np.allclose((slope * (code == k)) @ x, head.strength_ * size * tastes[k], atol=1e-6)


@pytest.mark.parametrize("use_source", [False, True])
def test_swapping_chosen_and_rejected_flips_every_taste_and_keeps_the_gate(use_source: bool) -> None:
    pairs, test = make_pairs(150), make_pairs(20, seed=1)
    swapped = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
    one, other = (CodedHead(use_source=use_source).fit(p) for p in (pairs, swapped))
    assert np.allclose(one.prior(test.chosen), other.prior(test.chosen), atol=1e-3)
    assert np.allclose(one.codebook_, -other.codebook_, atol=1e-3 * np.abs(one.codebook_).max())
    assert np.allclose(margins(one, test), -margins(other, test), atol=1e-2)


def test_names_of_the_sources_do_not_change_scores() -> None:
    pairs, latents = make_pairs(100), make_pairs(20, seed=1).chosen
    renamed = replace(pairs, source=np.where(pairs.source == "source 0", "z", "a").astype(object))
    one, other = (CodedHead(use_source=True).fit(p) for p in (pairs, renamed))
    assert one.sources_ == ["source 0", "source 1"]
    assert other.sources_ == ["a", "z"]
    assert np.allclose(one.score(latents), other.score(latents), atol=1e-5)


def test_fitting_again_and_loading_give_equal_scores_bit_for_bit(fitted: CodedHead, tmp_path: Path) -> None:
    latents = make_pairs(20, seed=1).chosen
    again = CodedHead().fit(make_pairs(400))
    assert np.array_equal(again.score(latents), fitted.score(latents))
    fitted.save_pretrained(tmp_path)
    loaded = CodedHead.from_pretrained(tmp_path)
    assert np.array_equal(loaded.score(latents), fitted.score(latents))
    assert loaded.gate_views_ == fitted.gate_views_
    one_by_one = np.concatenate([loaded.score(row[None]) for row in latents])
    assert np.allclose(fitted.score(latents), one_by_one, atol=1e-6)


def test_rows_held_and_pairs_of_the_gate_are_bounded(fitted: CodedHead, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, test = make_pairs(25, seed=1).chosen, make_pairs(500, seed=1)
    at_once = fitted.score(latents)
    monkeypatch.setattr("penchant.heads.coded.SCORED_ROWS", 10)
    assert np.allclose(fitted.score(latents), at_once, atol=1e-6)
    monkeypatch.setattr("penchant.heads.coded.GATE_PAIRS", 300)
    assert accuracy(CodedHead().fit(make_pairs(400)), test) > 0.8
    monkeypatch.setattr("penchant.heads.coded.MOST_PAIRS", 399)
    with pytest.raises(InputError, match="at most 399 pairs, got 400"):
        CodedHead().fit(make_pairs(400))


def test_the_gate_has_the_greatest_stated_likelihood() -> None:
    """No small step from the gate found is better, by the formula alone."""
    pairs = make_pairs(150)
    x = (pairs.chosen - pairs.rejected)[:, WIDTH : 2 * WIDTH].astype(np.float64)
    x /= np.sqrt((x**2).sum(axis=1).mean())
    z = pairs.chosen[:, 2 * WIDTH :].astype(np.float64) - 5
    z /= np.sqrt((z**2).sum(axis=1).mean())
    gate = fit_gate(x @ x.T, z, 2)

    def value(weight: np.ndarray, bias: np.ndarray, shared: float, own: float) -> float:
        spread = softmax(z @ weight + bias, axis=1) - 0.5
        gram = x @ x.T * (shared + own * spread @ spread.T)
        return log_evidence(gram) - PRIOR * float((weight**2).sum() + (bias**2).sum())

    best = value(*gate[:4])
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = 0.2 * rng.normal(size=gate.weight.shape)
        assert value(gate.weight + step, gate.bias, gate.shared, gate.own) < best
    for shared, own in ((1.5, 1.0), (1.0, 1.5), (1.0, 1 / 1.5)):
        assert value(gate.weight, gate.bias, gate.shared * shared, gate.own * own) < best + 0.05


def test_the_command_line_makes_it() -> None:
    head = make_head("coded", False, 0.0, 3, use_source=True)
    assert isinstance(head, CodedHead)
    assert (head.use_source, head.random_state) == (True, 3)
    with pytest.raises(InputError, match="add --head coded"):
        make_head("linear", False, 0.0, 3, use_source=True)


def test_one_prompt_only_has_one_code() -> None:
    pairs = make_pairs(30)
    alike = [np.concatenate([s[:, : 2 * WIDTH], s[:1, 2 * WIDTH :].repeat(30, 0)], 1) for s in (pairs.chosen,) * 2]
    alike[1][:, : 2 * WIDTH] = pairs.rejected[:, : 2 * WIDTH]
    same = replace(pairs, chosen=alike[0], rejected=alike[1], group=np.zeros(30, int))
    with pytest.warns(UserWarning, match="one prompt"):
        head = CodedHead().fit(same.select(("10:mean", "10:prompt")))
    assert head.gate_views_ == []
    assert np.all(head.prior(same.select(("10:mean", "10:prompt")).chosen) == 1)


def test_wrong_input_is_named() -> None:
    pairs = make_pairs(20)
    with pytest.raises(InputError, match="not been fitted"):
        CodedHead().prior(pairs.chosen)
    with pytest.raises(InputError, match="codes is 0"):
        CodedHead(codes=0).fit(pairs)
    with pytest.raises(InputError, match="strength is 0"):
        CodedHead(strengths=(0.0,)).fit(pairs)
    for views in (("10:mean",), ("10:prompt",)):
        with pytest.raises(InputError, match="add one such as 10:prompt"):
            CodedHead().fit(pairs.select(views))
    with pytest.raises(RecipeMismatch, match="width 64, got 16"):
        CodedHead(codes=1).fit(pairs).score(pairs.chosen[:, :WIDTH])
    with pytest.raises(InputError, match="add a source column"):
        CodedHead(use_source=True).fit(replace(pairs, source=None))
    with pytest.raises(InputError, match="all pairs have the source a;"):
        CodedHead(use_source=True).fit(replace(pairs, source=np.array(["a"] * 20, dtype=object)))
    gap = pairs.source.copy()
    gap[7] = None
    with pytest.raises(InputError, match="pair 7 has no source"):
        CodedHead(use_source=True).fit(replace(pairs, source=gap))


def people(n: int, seed: int) -> LatentPairs:
    """Two people with opposite tastes, asked the same things: no prompt tells them apart."""
    pairs = make_pairs(n, seed=seed)
    rng = np.random.default_rng(seed)
    prompts = pairs.recipe.columns(pairs.recipe.prompt_views)
    for side in (pairs.chosen, pairs.rejected):
        side[:, prompts] = 0
    pairs.chosen[:, prompts] = pairs.rejected[:, prompts] = rng.normal(size=(n, 2 * WIDTH))
    return pairs


def test_a_few_pairs_of_a_person_tell_their_code_where_prompts_cannot() -> None:
    known, others = people(400, 0), people(400, 1)
    head = CodedHead(use_source=True).fit(known)
    assert abs(accuracy(head, others) - 0.5) < 0.15
    for person in ("source 0", "source 1"):
        theirs = others.take(others.source == person)
        adapted = head.adapt(theirs.take(slice(0, 8)))
        assert accuracy(adapted, theirs.take(slice(8, None))) > 0.8
        assert adapted.prior(theirs.chosen[:1])[0, head.sources_.index(person)] > 0.95
        assert np.ptp(adapted.prior(others.chosen), axis=0).max() == 0  # whatever is asked
        turned = replace(theirs, chosen=theirs.rejected, rejected=theirs.chosen).take(slice(0, 8))
        assert accuracy(head.adapt(turned), theirs.take(slice(8, None))) < 0.2


def test_adapting_follows_bayes_and_leaves_the_head_alone(fitted: CodedHead) -> None:
    pairs = make_pairs(5, seed=3)
    before = fitted.gate_.copy()
    adapted = fitted.adapt(pairs)
    sides = (pairs.chosen, pairs.rejected)
    tastes = [np.stack([replace_gate(fitted, k).score(side) for k in range(2)], 1) for side in sides]
    prior = (fitted.prior(pairs.chosen) + fitted.prior(pairs.rejected)).mean(0)
    likelihood = (1 / (1 + np.exp(-(tastes[0] - tastes[1]).astype(np.float64)))).prod(0)
    expected = prior * likelihood / (prior * likelihood).sum()
    np.testing.assert_allclose(adapted.prior(pairs.chosen)[0], expected, rtol=1e-4)
    assert np.array_equal(fitted.gate_, before)
    with pytest.raises(RecipeMismatch):
        fitted.adapt(pairs.select(("10:mean", "10:prompt")))


def replace_gate(head: CodedHead, k: int) -> CodedHead:
    """The head as it scores under one code."""
    alone = copy.copy(head)
    alone.gate_, alone.gate_bias_ = np.zeros_like(head.gate_), np.where(np.arange(len(head.gate_bias_)) == k, 0.0, -1e9)
    return alone
