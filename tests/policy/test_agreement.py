"""Agreement with labels is above chance where there is some, and nowhere else, however the pairs hang together."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from penchant.policy import agreement as measured
from penchant.policy.agreement import shuffled

RNG = np.random.default_rng(0)


def agreement(*parts, shuffles=50, seed=0):
    return measured.agreement(*parts, shuffles=shuffles, seed=seed)


def one_hot(codes, k=4):
    return np.eye(k)[codes] * 0.9 + 0.1 / k


def test_codes_that_follow_the_label():
    labels = RNG.integers(3, size=300)
    prior, posterior = agreement([f"s{i}" for i in labels], np.arange(300), one_hot(labels), one_hot(3 - labels))
    assert prior["nmi"] == posterior["nmi"] == pytest.approx(1)
    assert prior["above"]
    assert [prior["weights"], posterior["weights"]] == ["prior", "posterior"]
    assert [prior["unit"], posterior["unit"]] == ["prompts", "pairs"]
    assert prior["values"] == 3
    noisy = np.where(RNG.random(300) < 0.5, labels, RNG.integers(3, size=300))
    found = agreement(labels, np.arange(300), one_hot(noisy), one_hot(noisy))[0]
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, noisy))
    assert found["chance"]["mean"] < found["chance"]["high"] < found["nmi"] < 1


def test_a_prior_is_judged_prompt_by_prompt_where_the_label_is_the_prompts():
    """A prompt with many pairs is one prompt: repeating its pairs changes nothing for the prior."""
    labels, codes = RNG.integers(2, size=40), RNG.integers(4, size=40)
    once = agreement(labels, np.arange(40), one_hot(codes), one_hot(codes))[0]
    copies = RNG.permutation(np.repeat(np.arange(40), 1 + np.arange(40) % 5))
    again = agreement(labels[copies], copies, one_hot(codes[copies]), one_hot(codes[copies]))
    assert again[0]["n"] == 40
    assert again[0]["nmi"] == pytest.approx(once["nmi"])
    assert again[1]["n"] == len(copies)


def test_where_annotators_share_prompts_the_pairs_are_the_unit():
    prompts = np.repeat(np.arange(60), 3)
    users = np.tile(np.arange(3), 60)
    by_prompt = one_hot(np.repeat(RNG.integers(4, size=60), 3))
    prior, posterior = agreement([f"u{i}" for i in users], prompts, by_prompt, one_hot(users))
    assert prior["unit"] == posterior["unit"] == "pairs"
    assert prior["nmi"] == pytest.approx(0, abs=1e-9), "one prompt has one code and all users"
    assert not prior["above"]
    assert posterior["nmi"] == pytest.approx(1)
    assert posterior["above"]


@pytest.mark.parametrize("pairs_each", [1, 6])
def test_chance_is_rarely_exceeded_without_agreement(pairs_each):
    """Six pairs of one prompt are no six witnesses; moved pair by pair, their labels would make them so."""
    rejected = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(30), pairs_each)
        labels, codes = (generator.integers(3, size=30)[prompts] for _ in range(2))
        found = agreement(labels, prompts, one_hot(codes), one_hot(codes), shuffles=40, seed=seed)
        rejected += found[1]["above"]
    assert rejected <= 4, "5% of 20 are expected"


def test_labels_that_say_nothing():
    codes = one_hot(RNG.integers(4, size=20))
    assert agreement(["a"] * 20, np.arange(20), codes, codes) == []
    assert agreement([None] * 20, np.arange(20), codes, codes) == []
    some = ["a", None, "b", None] * 5
    assert agreement(some, np.arange(20), codes, codes)[0]["n"] == 10
    even = np.full((20, 4), 0.25)
    assert not agreement(["a", "b"] * 10, np.arange(20), even, even)[0]["above"]


def test_a_shuffle_moves_blocks_whole_and_mixes_them():
    prompts = RNG.permutation(np.repeat(np.arange(20), [1, 2, 3, 3] * 5))
    orders = [shuffled(prompts, RNG) for _ in range(50)]
    for order in orders:
        assert sorted(order) == list(range(len(prompts)))
        for prompt in range(20):
            source = prompts[order[prompts == prompt]]
            assert len(set(source)) == 1, "from one prompt"
            assert (prompts == source[0]).sum() == (prompts == prompt).sum(), "with as many pairs"
    inside = [tuple(order[prompts == 2]) for order in orders]
    assert len({tuple(sorted(one)) for one in inside}) == 10, "any of the prompts with three pairs"
    assert len(set(inside)) > 25, "in any order"
    assert (shuffled(prompts, np.random.default_rng(1)) == shuffled(prompts, np.random.default_rng(1))).all()
