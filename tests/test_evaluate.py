"""Evaluation: figures against closed forms and brute force, intervals against repeated experiments."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from datasets import Dataset
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from penchant.errors import InputError
from penchant.evaluate import (
    Gold,
    NgramLength,
    accuracy,
    accuracy_interval,
    baselines,
    best_of_n,
    bootstrap_mean,
    calibration,
    candidates,
    correctness,
    evaluate_scores,
    fit_temperature,
    learning_curve,
    length_bias,
    mistakes,
    paired_difference,
)
from penchant.evaluate.accuracy import crossed_mean
from penchant.evaluate.baselines import STRENGTHS
from penchant.evaluate.best_of_n import expected_best
from penchant.evaluate.calibration import log_loss, reliability_curve
from penchant.evaluate.learning_curve import seeds_and_prompts_interval
from penchant.evaluate.mistakes import LONGEST
from penchant.latents import LatentPairs, Recipe


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Accuracy


def test_correctness_counts_ties_one_half_and_mirrors(rng):
    a, b = rng.integers(0, 5, (2, 200)).astype(float)
    assert correctness(np.array([2.0, 1, 1]), np.array([1.0, 2, 1])).tolist() == [1, 0, 0.5]
    np.testing.assert_array_equal(correctness(a, b) + correctness(b, a), 1)
    np.testing.assert_array_equal(correctness(a, b), correctness(np.exp(a), np.exp(b)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_named_not_counted_wrong(bad):
    with pytest.raises(InputError, match="rejected in row 1"):
        correctness(np.ones(3), np.array([0.0, bad, 0.0]))


def test_interval_of_single_pair_prompts_matches_the_binomial(rng):
    correct = (rng.random(1000) < 0.7).astype(float)
    value, low, high, n = bootstrap_mean(correct, np.arange(1000))
    half = 1.96 * math.sqrt(value * (1 - value) / 1000)
    assert (value, n) == (correct.mean(), 1000)
    assert value - low == pytest.approx(half, rel=0.1)
    assert high - value == pytest.approx(half, rel=0.1)


def test_intervals_cover_the_truth_when_pairs_share_prompts():
    """With 8 pairs a prompt that mostly agree, intervals over pairs would cover far less than 95%."""
    rng = np.random.default_rng(1)
    covered = over_pairs = 0
    for trial in range(150):
        share = rng.beta(0.6, 0.3, 80)  # mean 2/3: each prompt is mostly right or mostly wrong
        correct = (rng.random((80, 8)) < share[:, None]).astype(float).ravel()
        interval = bootstrap_mean(correct, np.repeat(np.arange(80), 8), draws=400, seed=trial)
        covered += interval.low <= 2 / 3 <= interval.high
        naive = bootstrap_mean(correct, np.arange(640), draws=400, seed=trial)
        over_pairs += naive.low <= 2 / 3 <= naive.high
    assert covered >= 0.89 * 150
    assert over_pairs <= 0.8 * 150


def test_intervals_do_not_depend_on_the_order_of_pairs(rng):
    correct, groups = rng.random(300), rng.integers(0, 60, 300) * 10**15
    order = rng.permutation(300)
    np.testing.assert_allclose(bootstrap_mean(correct, groups), bootstrap_mean(correct[order], groups[order]))


def test_blocks_of_draws_are_exhaustive_and_seeded(rng):
    correct = rng.random(5000)  # 2,000 draws of 5,000 prompts take several blocks
    assert bootstrap_mean(correct, np.arange(5000), seed=3) == bootstrap_mean(correct, np.arange(5000), seed=3)
    assert bootstrap_mean(correct, np.arange(5000), seed=3) != bootstrap_mean(correct, np.arange(5000), seed=4)


def test_all_right_is_not_certain():
    """The exact bound: 0.025 ** (1 / prompts), and pairs of one prompt add nothing."""
    assert accuracy_interval(np.ones(30), np.arange(30)).low == pytest.approx(0.025 ** (1 / 30))
    assert accuracy_interval(np.ones(30), np.zeros(30)).low == pytest.approx(0.025)
    assert accuracy_interval(np.zeros(30), np.arange(30)).high == pytest.approx(1 - 0.025 ** (1 / 30))


def test_people_and_prompts_crossed_is_prompts_alone_for_one_person(rng):
    values, groups = rng.random(200), rng.integers(0, 40, 200)
    assert crossed_mean(values, np.full(200, 7), groups) == pytest.approx(bootstrap_mean(values, groups))
    turned = crossed_mean(values, groups, np.zeros(200))
    assert turned.low == pytest.approx(bootstrap_mean(values, groups).low, abs=0.02)


def test_crossed_intervals_cover_the_truth_where_people_and_prompts_differ():
    """Resampling one of both alone covers far less than 95%."""
    rng = np.random.default_rng(1)
    covered = prompts_alone = 0
    for trial in range(150):
        of_people, of_prompts = rng.normal(0, 1, 15), rng.normal(0, 1, 40)
        values = (of_people[:, None] + of_prompts + rng.normal(0, 1, (15, 40))).ravel()
        people, groups = np.repeat(np.arange(15), 40), np.tile(np.arange(40), 15)
        interval = crossed_mean(values, people, groups, draws=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
        alone = bootstrap_mean(values, groups, draws=300, seed=trial)
        prompts_alone += alone.low <= 0 <= alone.high
    assert covered >= 0.88 * 150
    assert prompts_alone <= 0.8 * 150


def test_few_people_with_prompts_of_their_own_still_have_an_interval():
    found = crossed_mean(np.array([1.0, 0.0]), np.array([0, 1]), np.array([0, 1]))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    with pytest.raises(InputError, match="no pairs"):
        crossed_mean(np.zeros(0), np.zeros(0), np.zeros(0))


def test_sources_average_to_the_whole(rng):
    chosen, rejected = rng.integers(0, 4, (2, 200)).astype(float)
    found = accuracy(chosen, rejected, np.arange(200), np.array(["a", "b", None, "b"] * 50, dtype=object))
    parts = found["by_source"]
    assert set(parts) == {"a", "b", "unknown"}
    assert sum(p["n"] for p in parts.values()) == found["overall"]["n"] == 200
    assert sum(p["ties"] for p in parts.values()) == found["overall"]["ties"] == np.sum(chosen == rejected)
    assert sum(p["value"] * p["n"] for p in parts.values()) / 200 == pytest.approx(found["overall"]["value"])


def test_paired_difference_uses_the_pairing(rng):
    a = (rng.random(400) < 0.7).astype(float)
    b = np.where(rng.random(400) < 0.05, 1 - a, a)
    groups = np.arange(400)
    difference = paired_difference(a, b, groups)
    alone = bootstrap_mean(a, groups)
    assert difference.value == pytest.approx(a.mean() - b.mean())
    assert difference.high - difference.low < 0.7 * (alone.high - alone.low)
    assert paired_difference(a, a, groups)[:3] == (0, 0, 0)


def test_no_pairs_is_an_input_error():
    with pytest.raises(InputError):
        bootstrap_mean(np.array([]), np.array([]))


# Calibration


def choices(rng, n, temperature):
    """Margins of a model whose scores are `temperature` times too large, with labels drawn from the true odds."""
    true = rng.normal(0, 1.5, n)
    return np.where(rng.random(n) < expit(true), true, -true) * temperature


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_temperature_is_recovered(rng, temperature):
    assert fit_temperature(choices(rng, 20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_temperature_scales_with_the_scores_and_lowers_the_loss(rng):
    margins = choices(rng, 3000, 4.0)
    fitted = fit_temperature(margins)
    assert fit_temperature(1e-6 * margins) == pytest.approx(1e-6 * fitted, rel=1e-4)
    assert log_loss(margins, fitted) < min(log_loss(margins, t) for t in (1.0, 0.5 * fitted, 2 * fitted))


def test_temperature_of_margins_that_are_all_alike():
    """All right with one size: sigmoid(m / T) is Laplace's (n + 1) / (n + 2). All zero: 1. All wrong: finite."""
    assert expit(3 / fit_temperature(np.full(8, 3.0))) == pytest.approx(9 / 10, rel=1e-4)
    assert fit_temperature(np.zeros(5)) == 1.0
    assert fit_temperature(np.full(8, -3.0)) == pytest.approx(3000, rel=0.01)
    with pytest.raises(InputError):
        fit_temperature(np.array([1.0, np.nan]))


def test_calibration_tells_calibrated_from_overconfident(rng):
    margins = choices(rng, 5000, 1.0)
    zeros = np.zeros_like(margins)
    good, sure = calibration(margins, zeros), calibration(margins * 5, zeros)
    assert good["ece"] < 2 * good["ece_if_perfect"]
    assert sure["ece"] > 5 * good["ece"]
    assert sure["nll"] > good["nll"]
    assert sure["brier"] > good["brier"]
    repaired = calibration(margins * 5, zeros, temperature=5.0)
    assert repaired["ece"] == pytest.approx(good["ece"])
    assert repaired["ece_before"] == pytest.approx(sure["ece"])


def test_reliability_bins_partition_the_pairs_whatever_their_order(rng):
    margins = np.round(choices(rng, 997, 1.0), 1)  # many equal confidences
    curve = reliability_curve(margins)
    again = reliability_curve(rng.permutation(margins))
    assert [b["n"] for b in curve] == [b["n"] for b in again]
    np.testing.assert_allclose([b["accuracy"] for b in curve], [b["accuracy"] for b in again])
    assert sum(b["n"] for b in curve) == 997
    assert np.all(np.diff([b["confidence"] for b in curve]) > 0)
    assert max(b["n"] for b in curve) < 2.5 * 997 / 10
    mean = sum(b["n"] * b["accuracy"] for b in curve) / 997
    assert mean == pytest.approx(correctness(margins, np.zeros(997)).mean())


def test_a_coin_has_the_coins_losses():
    found = calibration(np.zeros(40), np.zeros(40))
    assert (found["brier"], found["nll"], found["ece"]) == pytest.approx((0.25, math.log(2), 0))
    assert len(found["curve"]) == 1


# Length


def test_a_scorer_of_length_is_seen_through(rng):
    a, b = rng.integers(1, 500, (2, 300))
    found = length_bias(a * 2.0, b * 2.0, a, b, np.arange(300))
    assert found["correlation"] == pytest.approx(1)
    assert found["chosen_longer"]["value"] == 1
    assert found["chosen_shorter"]["value"] == 0
    assert found["chosen_longer"]["n"] + found["chosen_shorter"]["n"] == np.sum(a != b)
    assert found["share_chosen_longer"] == np.mean(a > b)


def test_equal_lengths_have_no_parts_and_no_correlation():
    found = length_bias(np.arange(4.0), np.ones(4), np.full(4, 9), np.full(4, 9), np.arange(4))
    assert found == {"chosen_longer": None, "chosen_shorter": None, "correlation": 0.0, "share_chosen_longer": 0.0}


# Baselines


def planted(rng, n, word="please", messages=False):
    """Pairs whose chosen response has one word more often, with a prompt for every two pairs."""
    words = np.array(["the", "a", "of", "to", "in", "it", "is", "was", "for", "on", "with", "as", "by", "at", "from"])

    def text(extra):
        drawn = rng.choice(words, 12)
        return " ".join([*drawn, word] if extra else drawn)

    rows = []
    for i in range(n):
        chosen, rejected = text(rng.random() < 0.8), text(rng.random() < 0.2)
        if messages:
            chosen, rejected = ([{"role": "assistant", "content": t}] for t in (chosen, rejected))
        prompt = [{"role": "user", "content": f"q{i // 2}"}] if messages else f"q{i // 2}"
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


def test_ngram_baseline_learns_words_and_only_from_labels(rng):
    train, test = planted(rng, 400), planted(rng, 300)
    intervals, correct = baselines(train, test, draws=200)
    assert intervals["n-gram + length"].value > 0.75
    assert intervals["chance"][:3] == (0.5, 0.5, 0.5)
    assert {name: c.mean() for name, c in correct.items()} == {name: i.value for name, i in intervals.items()}
    flips = rng.random(400) < 0.5
    rows = [
        r | ({"chosen": r["rejected"], "rejected": r["chosen"]} if f else {}) for r, f in zip(train, flips, strict=True)
    ]
    assert baselines(Dataset.from_list(rows), test, draws=200)[0]["n-gram + length"].value < 0.65


def test_ngram_baseline_reads_messages_like_strings():
    plain = baselines(planted(np.random.default_rng(5), 60), planted(np.random.default_rng(6), 60), draws=50)[0]
    said = baselines(
        planted(np.random.default_rng(5), 60, messages=True),
        planted(np.random.default_rng(6), 60, messages=True),
        draws=50,
    )[0]
    assert plain == said


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngram_baseline_takes_very_few_pairs_and_empty_texts(rng, n):
    train = planted(rng, n).add_item({"prompt": "q", "chosen": "", "rejected": ""})
    assert np.isfinite(NgramLength().fit(train).score(["", "please", "\x00"])).all()


def test_ngram_solver_equals_the_mirrored_problem(rng):
    """One zero row in the second class, against every difference once with each sign at half the weight."""
    x = rng.normal(0.2, 1, (60, 5))
    mirrored = LogisticRegression(C=0.5 * 0.02, fit_intercept=False, tol=1e-10)
    mirrored.fit(np.concatenate([x, -x]), np.repeat([1, -1], 60))
    np.testing.assert_allclose(NgramLength()._solve(csr_matrix(x), 0.02), mirrored.coef_[0], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("best", STRENGTHS)
def test_ngram_strength_is_the_best_on_held_out_prompts(rng, monkeypatch, best):
    """Only one strength is left able to learn; it must be the one that is chosen."""
    solve = NgramLength._solve
    monkeypatch.setattr(
        NgramLength, "_solve", lambda self, x, c: solve(self, x, c) if c == best else -solve(self, x, c)
    )
    assert NgramLength().fit(planted(rng, 60)).strength_ == best


def test_ngram_folds_split_by_prompt(rng, monkeypatch):
    sizes = []
    solve = NgramLength._solve
    monkeypatch.setattr(NgramLength, "_solve", lambda self, x, c: sizes.append(x.shape[0]) or solve(self, x, c))
    rows = [{**row, "prompt": "a" if i < 30 else "b"} for i, row in enumerate(planted(rng, 40))]
    NgramLength().fit(Dataset.from_list(rows))
    assert set(sizes) == {30, 10, 40}


def test_ngram_baseline_samples_where_there_is_much(rng, monkeypatch):
    sizes = []
    fit = NgramLength.fit
    monkeypatch.setattr(sys.modules["penchant.evaluate.baselines"], "MOST_PAIRS", 50)
    monkeypatch.setattr(NgramLength, "fit", lambda self, pairs: sizes.append(len(pairs)) or fit(self, pairs))
    for n in (40, 90):
        baselines(planted(rng, n), planted(rng, 10), draws=20)
    assert sizes == [40, 50]


def test_longer_text_counts_characters_and_ties():
    rows = [("aaa", "b"), ("a", "bbb"), ("aa", "bb")]
    test = Dataset.from_list([{"prompt": f"p{i}", "chosen": c, "rejected": r} for i, (c, r) in enumerate(rows)])
    intervals, correct = baselines(None, test, draws=50)
    assert correct["longer text"].tolist() == [1, 0, 0.5]
    assert intervals["longer text"].value == 0.5


def test_ngrams_without_training_pairs_are_judged_on_prompts_they_have_not_seen(rng, monkeypatch):
    intervals, _ = baselines(None, planted(rng, 120), draws=50)
    assert intervals["n-gram + length"].value > 0.65
    seen = []
    fit, score = NgramLength.fit, NgramLength.score
    monkeypatch.setattr(NgramLength, "fit", lambda self, pairs: seen.append(set(pairs["prompt"])) or fit(self, pairs))
    monkeypatch.setattr(
        NgramLength, "score", lambda self, responses: seen.append(set(responses)) or score(self, responses)
    )
    test = planted(rng, 40)
    prompt_of = {text: row["prompt"] for row in test for text in (row["chosen"], row["rejected"])}
    baselines(None, test, draws=20)
    fitted = None
    for each in seen:
        if each <= set(test["prompt"]):
            fitted = each
        else:
            assert not {prompt_of[text] for text in each} & fitted
    assert sum(each <= set(test["prompt"]) for each in seen) == 5


# Learning curve


def latent_pairs(rng, groups, dim=4):
    n = len(groups)
    recipe = Recipe("m", "r", ("1:last",), dim, "none", 16, "float32")
    chosen, rejected = rng.normal(0.3, 1, (n, dim)), rng.normal(0, 1, (n, dim))
    chosen[:, 0] = np.arange(n)  # names the pair
    f = np.float32
    return LatentPairs(chosen.astype(f), rejected.astype(f), np.zeros((n, dim), f), recipe, np.asarray(groups))


class Recorder:
    """A head that notes which pairs it saw and scores by a fixed direction."""

    seen: list = []  # noqa: RUF012

    def __init__(self, seed):
        self.seed = seed

    def fit(self, pairs):
        Recorder.seen.append((self.seed, pairs.chosen[:, 0].astype(int).tolist(), pairs.group.tolist()))

    def score(self, latents):
        return latents[:, 1]


def test_learning_curve_subsets_are_nested_by_seed_and_keep_prompts_together(rng):
    Recorder.seen = []
    groups = rng.integers(0, 25, 90)
    points = learning_curve(
        Recorder, latent_pairs(rng, groups), latent_pairs(rng, np.arange(50)), [10, 40, 5000], (0, 1), 50
    )
    assert [p["n"] for p in points] == [10, 40, 90]
    for seed in (0, 1):
        subsets = [(ids, g) for s, ids, g in Recorder.seen if s == seed]
        assert [len(ids) for ids, _ in subsets] == [10, 40, 90]
        assert subsets[0][0] == subsets[1][0][:10]
        assert set(subsets[1][0]) < set(subsets[2][0])
        for ids, g in subsets:
            cut = [p for p in set(g) if g.count(p) < np.sum(groups == p)]
            assert len(cut) <= 1, "only the last prompt may be cut"
            assert len(set(ids)) == len(ids)
    assert Recorder.seen[0][1] != Recorder.seen[1][1], "seeds draw different subsets"


def test_interval_leaves_out_what_a_seed_did_not_test(rng):
    correct = (rng.random((3, 60)) < 0.7).astype(float)
    groups = np.arange(60) // 2
    split = np.vstack([correct, correct])
    split[:3, :30] = split[3:, 30:] = np.nan  # six seeds, each of which tested one half
    whole, halves = (seeds_and_prompts_interval(c, groups) for c in (correct, split))
    assert halves.value == pytest.approx(whole.value)
    assert halves.n == whole.n == 60
    assert halves.high - halves.low > 0.9 * (whole.high - whole.low)
    split[0, 45] = 1 - split[0, 45]
    assert seeds_and_prompts_interval(split, groups).value != pytest.approx(halves.value)


def test_learning_curve_interval_covers_seeds_and_prompts(rng):
    """With no spread between seeds it is the bootstrap over prompts; spread between seeds widens it."""
    groups = np.repeat(np.arange(100), 2)
    row = (rng.random(200) < 0.7).astype(float)
    same = seeds_and_prompts_interval(np.stack([row] * 5), groups)
    alone = bootstrap_mean(row, groups)
    assert same[:3] == pytest.approx(alone[:3], abs=0.01)
    spread = seeds_and_prompts_interval(np.stack([row, row, row, 1 - row, 1 - row]), groups)
    assert spread.high - spread.low > 2 * (same.high - same.low)
    assert spread.low < spread.value < spread.high


def test_learning_curve_needs_sizes(rng):
    pairs = latent_pairs(rng, np.arange(5))
    with pytest.raises(InputError):
        learning_curve(Recorder, pairs, pairs, [0, 3])


# Best of n


def brute_force(scores, gold, n):
    """Mean over every subset of n, ties broken every way."""
    total = []
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        total.append(np.mean([gold[i] for i in subset if scores[i] == top]))
    return np.mean(total)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_expected_best_equals_enumeration(rng, n):
    gold = rng.normal(size=7)
    for scores in (rng.normal(size=7), np.array([1.0, 1, 2, 0, 2, 2, 0]), np.zeros(7)):
        assert expected_best(scores, gold, n) == pytest.approx(brute_force(scores, gold, n))


def test_best_of_n_lies_between_random_and_oracle(rng):
    groups = rng.permutation(np.repeat(np.arange(60), 8))
    gold = rng.normal(size=480)
    good = best_of_n(gold + rng.normal(size=480), gold, groups)
    assert good["n"] == [1, 2, 4, 8]
    assert good["picked"][0]["value"] == pytest.approx(good["random"][0])
    assert len({round(r, 12) for r in good["random"]}) == 1
    picked = [p["value"] for p in good["picked"]]
    assert picked == sorted(picked)
    assert all(r <= p + 1e-12 <= o + 2e-12 for r, p, o in zip(good["random"], picked, good["oracle"], strict=True))
    assert all(p["low"] <= p["value"] <= p["high"] for p in good["picked"])
    perfect = best_of_n(np.exp(gold), gold, groups)
    assert [p["value"] for p in perfect["picked"]] == pytest.approx(perfect["oracle"])


def test_best_of_n_measures_every_n_on_the_same_prompts():
    sizes = [1, 2, 4, 5, 6, 8]
    groups = np.repeat(np.arange(6), sizes)
    found = best_of_n(np.arange(26.0), np.arange(26.0), groups)
    assert found["n"] == [1, 2, 4]  # the median of 2, 4, 5, 6, 8 is 5
    assert found["prompts"] == 4
    assert best_of_n(np.ones(3), np.ones(3), np.arange(3)) is None
    with pytest.raises(InputError, match="my_gold"):
        best_of_n(np.ones(2), np.array([1.0, np.nan]), np.zeros(2), "my_gold")


def test_candidates_counts_a_response_once_a_prompt():
    groups, scores, gold = candidates(
        np.array([1, 1, 2, 1]), ["a", "b", "a", "a"], np.array([0.0, 1, 2, 0]), np.array([5.0, 6, 7, 5])
    )
    assert sorted(zip(groups, scores, gold, strict=True)) == [(1, 0, 5), (1, 1, 6), (2, 2, 7)]


# Mistakes and the whole


def test_mistakes_are_the_wrong_pairs_worst_first(rng):
    test = planted(rng, 50)
    chosen, rejected = rng.normal(size=(2, 50))
    found = mistakes(test, chosen, rejected, most=5)
    gaps = [m["score_rejected"] - m["score_chosen"] for m in found]
    assert gaps == sorted(rejected - chosen, reverse=True)[:5]
    assert all(m["chosen"] == test[m["row"]]["chosen"] for m in found)
    assert mistakes(test, np.ones(50), np.zeros(50)) == mistakes(test, np.ones(50), np.ones(50)) == []


def test_mistakes_keep_the_end_of_a_long_prompt():
    long = "start" + "x" * 3 * LONGEST + "end"
    found = mistakes(Dataset.from_list([{"prompt": long, "chosen": long, "rejected": "r"}]), [0.0], [1.0])[0]
    assert found["prompt"].endswith("xend")
    assert "start" not in found["prompt"]
    assert found["chosen"].startswith("startx")
    assert len(found["chosen"]) < LONGEST + 40


def test_evaluate_scores_gives_every_part_as_json(rng):
    train, test = planted(rng, 80), planted(rng, 60).add_column("source", ["a", "b"] * 30)
    chosen, rejected = rng.normal(0.5, 1, 60), rng.normal(size=60)
    gold = Gold("gold_score", chosen, rejected)
    found = evaluate_scores(test, chosen, rejected, train=train, temperature=1.5, gold=gold, draws=100)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        *("accuracy", "baselines", "over_baseline", "calibration", "length_bias", "best_of_n", "mistakes")
    }
    assert set(found["baselines"]) == {"chance", "longer text", "n-gram + length"}
    best = max(found["baselines"].values(), key=lambda f: f["value"])["value"]
    assert found["over_baseline"]["value"] == pytest.approx(found["accuracy"]["overall"]["value"] - best)
    assert found["best_of_n"]["picked"][-1]["value"] == pytest.approx(found["best_of_n"]["oracle"][-1])
    assert found == evaluate_scores(test, chosen, rejected, train=train, temperature=1.5, gold=gold, draws=100)


def test_evaluate_scores_wants_one_score_a_pair(rng):
    with pytest.raises(InputError, match="3 scores for 4 test pairs"):
        evaluate_scores(planted(rng, 4), np.ones(3), np.ones(3))
