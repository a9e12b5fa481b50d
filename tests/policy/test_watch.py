"""Collapse is seen where it is, in the right words, and nowhere else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from penchant.policy.watch import LEAST_PROMPTS, best_codes, code_figures, warnings

RNG = np.random.default_rng(0)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def healthy(n=200, codes=8):
    """Each prompt likes one code of its own, and the pair moves the weights."""
    likes = 2.0 * np.eye(codes)[RNG.integers(codes, size=n)]
    return softmax(likes), softmax(likes + RNG.normal(size=(n, codes)))


def test_figures_are_those_of_the_definitions():
    p, q = healthy()
    found = code_figures(p, q)
    mean = p.mean(0)
    assert found["n"] == 200
    assert found["kl"] == pytest.approx((q * np.log(q / p)).sum(1).mean())
    assert found["perplexity"] == pytest.approx(math.exp(-(mean * np.log(mean)).sum()))
    assert found["prior_entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean())
    assert found["usage"] == pytest.approx(np.bincount(p.argmax(1), minlength=8) / 200)
    assert found["top_share"] == max(found["usage"])
    # What the mean's entropy exceeds the rows' by is what the prompt tells about the code.
    assert found["prior_spread"] == pytest.approx(math.log(found["perplexity"]) - found["prior_entropy"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_codes_have_no_order_and_rows_neither():
    p, q = healthy()
    one = code_figures(p, q)
    codes, rows = RNG.permutation(8), RNG.permutation(200)
    other = code_figures(p[rows][:, codes], q[rows][:, codes])
    assert [other["usage"][i] for i in np.argsort(codes)] == pytest.approx(one.pop("usage"))
    other.pop("usage")
    assert other == pytest.approx(one)


def test_tensors_and_arrays_give_the_same():
    p, q = healthy()
    tensors = torch.tensor(p, dtype=torch.float32, requires_grad=True), torch.tensor(q, dtype=torch.float32)
    for name, value in code_figures(*tensors).items():
        assert value == pytest.approx(code_figures(p, q)[name], rel=1e-4), name


def test_the_same_weights_twice_are_no_divergence():
    p, _ = healthy()
    assert code_figures(p.astype(np.float32), p.astype(np.float32))["kl"] == 0
    constant = np.tile(p[:1], (50, 1)).astype(np.float32)
    assert code_figures(constant)["prior_spread"] == pytest.approx(0, abs=1e-9)
    assert "kl" not in code_figures(p)


def test_weights_of_exactly_zero_stay_finite():
    found = code_figures(np.eye(4), np.roll(np.eye(4), 1, 0))
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["kl"] > 50
    assert found["perplexity"] == pytest.approx(4)
    assert found["prior_entropy"] == pytest.approx(0)


def test_ties_share_so_that_an_untrained_prior_is_not_all_on_one_code():
    even = np.full((50, 8), 1 / 8, np.float32)
    found = code_figures(even)
    assert found["usage"] == pytest.approx([1 / 8] * 8)
    assert found["perplexity"] == pytest.approx(8)
    assert best_codes([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]) == pytest.approx(np.array([[0.5, 0.5, 0], [0, 0, 1]]))


# Warnings


def said(p, q=None, *accuracies):
    return warnings(code_figures(p, q), *accuracies)


def test_codes_in_use_are_left_alone():
    p, q = healthy()
    assert said(p, q, 0.62, 0.65) == []
    assert said(p) == []


def test_two_codes_of_many_are_no_collapse():
    """Two objectives in conflict need no more than two."""
    p = softmax(np.eye(64)[RNG.integers(2, size=200)] * 9)
    assert code_figures(p)["perplexity"] < 3
    assert said(p) == []


def test_posterior_collapse():
    p, q = healthy()
    (sentence,) = said(p, p)
    assert sentence.startswith("The posterior has collapsed")
    assert "kl_weight" in sentence
    nearly = said(p, 0.99 * p + 0.01 * q)
    assert [s.split(":")[0] for s in nearly] == ["The posterior has collapsed"]
    assert said(p, 0.5 * p + 0.5 * q) == []


def test_one_code_for_all():
    p, q = healthy()
    everywhere = softmax(np.log(p) + np.array([8.0] + [0.0] * 7))
    (sentence,) = said(everywhere, q)
    assert sentence.startswith("Nearly all prompts use one code: it is the best one for 100% of them")
    mostly = p.copy()
    mostly[:170] = softmax(np.array([2.0] + [0.0] * 7))
    assert [s[:10] for s in said(mostly, q)] == ["Nearly all"]
    assert code_figures(mostly)["perplexity"] > 3, "the best code alone gives it away here"
    mostly[120:170] = p[:50]
    assert said(mostly, q) == []


def test_a_prior_that_ignores_the_prompt_is_named_as_that():
    """Its best code is the same everywhere however little it is preferred; that is not what is wrong."""
    _, q = healthy()
    constant = np.tile(softmax(np.linspace(0, 0.5, 8)), (200, 1))
    assert code_figures(constant)["top_share"] == 1
    (sentence,) = said(constant, q)
    assert sentence.startswith("The prior does not depend on the prompt")
    both = said(constant, constant)
    assert [s[:13] for s in both] == ["The posterior", "The prior doe"]


def test_what_only_the_posterior_knows():
    p, q = healthy()
    (sentence,) = said(p, q, 0.60, 0.71)
    assert sentence.startswith("The posterior is 11.0 points better than the prior")
    assert said(p, q, 0.71, 0.60) == []
    assert said(p, q, None, 0.9) == []


def test_a_single_code_and_a_handful_of_prompts_give_no_warning():
    one = np.ones((200, 1))
    assert code_figures(one, one)["perplexity"] == 1
    assert said(one, one, 0.5, 0.9) == []
    constant = np.full((LEAST_PROMPTS, 4), 0.25)
    assert said(constant[:-1], constant[:-1], 0.5, 0.9) == []
    assert len(said(constant, constant, 0.5, 0.9)) == 3
