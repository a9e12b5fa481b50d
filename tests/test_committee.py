"""A committee of heads: what a bootstrap draws, the mean and the spread, and out-of-bag margins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from penchant import RewardModel
from penchant.cli.train import make_head
from penchant.errors import InputError, RecipeMismatch
from penchant.evaluate import fit_temperature
from penchant.heads import AutoHead, CommitteeHead, ContextHead, Head, LinearHead, MLPHead, PCAHead, load_head
from penchant.heads.base import pair_accuracy
from penchant.heads.committee import bootstrap
from penchant.latents import LatentPairs
from tests.test_heads import make_pairs, swapped

FAST: dict[str, Head] = {
    "linear": LinearHead(strength=1.0),
    "mlp": MLPHead(hidden=8, batch_size=16, epochs=3),
    "auto": AutoHead(),
    "pca": PCAHead(5),
}
RNG = np.random.default_rng


class Unchanging(LinearHead, kind="unchanging"):
    """Learns the same from whatever it is given; sees only what it is asked to score."""

    def fit(self, pairs: LatentPairs) -> Unchanging:
        self.weight_, self.strength_, self.cv_accuracy_ = np.arange(1.0, pairs.recipe.dim + 1), 1.0, None
        return self


def margins(head: Head, pairs: LatentPairs) -> np.ndarray:
    return head.score(pairs.chosen).astype(np.float64) - head.score(pairs.rejected)


# --- the bootstrap


def test_a_bootstrap_takes_whole_prompts_as_often_as_they_were_drawn() -> None:
    group = np.array([7, 3, 3, 7, 5, 9, 9, 7, 1, 2, 4, 6])
    seen = set()
    for seed in range(50):
        rows = bootstrap(group, RNG(seed))
        seen |= set(rows)
        assert 0 < len(rows) <= len(group)
        counts = np.bincount(rows, minlength=len(group))
        if len(rows) < len(group):  # nothing was cut
            assert all(len(set(counts[group == g])) == 1 for g in group)
        assert len(set(group[rows])) > 1
        assert np.array_equal(rows, bootstrap(group, RNG(seed)))
    assert seen == set(range(len(group)))
    one_each = bootstrap(np.arange(1000), RNG(0))
    assert len(one_each) == 1000
    assert 0.61 < len(set(one_each)) / 1000 < 0.66  # 1 - 1/e


def test_a_bootstrap_of_very_uneven_prompts_still_has_two_of_them() -> None:
    group = np.repeat([0, 1, 2], [50, 1, 1])
    assert all(len(set(group[bootstrap(group, RNG(seed))])) > 1 for seed in range(100))


# --- the committee


@pytest.mark.parametrize("kind", FAST)
def test_members_are_the_head_on_their_own_bootstrap_with_their_own_seed(kind: str) -> None:
    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    committee = CommitteeHead(FAST[kind], members=3, random_state=4).fit(pairs)
    rng, scores = RNG(4), []
    for b in range(3):
        alone: Any = clone(FAST[kind])
        alone.random_state = b
        alone.fit(pairs.take(bootstrap(pairs.group, rng)))
        assert np.array_equal(committee.members_[b].score(test.chosen), alone.score(test.chosen))
        scale = np.sqrt(np.mean(margins(alone, pairs) ** 2))
        scores.append(alone.score(test.chosen).astype(np.float64) / scale)
    np.testing.assert_allclose(committee.score(test.chosen), np.mean(scores, axis=0), rtol=1e-5, atol=1e-6)
    assert committee.parameters == sum(member.parameters for member in committee.members_)


@pytest.mark.parametrize("kind", FAST)
def test_margins_and_spread_are_mean_and_deviation_over_the_members(kind: str) -> None:
    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    committee = CommitteeHead(FAST[kind], members=4).fit(pairs)
    each = [margins(member, test) / scale for member, scale in zip(committee.members_, committee.scales_, strict=True)]
    mean, spread = (of(test.chosen, test.rejected) for of in (committee.margins, committee.spread))
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(spread, np.std(each, axis=0, ddof=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(margins(committee, test), mean, rtol=1e-4, atol=1e-5)
    order = RNG(0).permutation(20)
    assert np.array_equal(committee.spread(test.chosen[order], test.rejected[order]), spread[order])
    one_by_one = [committee.spread(test.chosen[i : i + 1], test.rejected[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(one_by_one, spread, rtol=1e-6)
    assert (spread > 0).all()


def test_identical_members_have_no_spread_and_agree_with_the_head_alone() -> None:
    pairs = make_pairs(30)
    committee, alone = CommitteeHead(Unchanging()).fit(pairs), Unchanging().fit(pairs)
    assert not committee.spread(pairs.chosen, pairs.rejected).any()
    np.testing.assert_allclose(committee.score(pairs.chosen) * committee.scales_[0], alone.score(pairs.chosen), 1e-5)
    assert np.sqrt(np.mean(margins(committee, pairs) ** 2)) == pytest.approx(1, rel=1e-5)


def test_members_in_other_units_weigh_the_same() -> None:
    class Loud(LinearHead, kind="loud"):
        def fit(self, pairs: LatentPairs) -> Loud:
            super().fit(pairs)
            self.weight_ = self.weight_ * 10.0**self.random_state
            return self

    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    # The seed only says how loud a member is, as a given strength needs no cross-validation.
    plain, loud = (CommitteeHead(kind(strength=1.0), 3).fit(pairs) for kind in (LinearHead, Loud))
    np.testing.assert_allclose(loud.score(test.chosen), plain.score(test.chosen), rtol=1e-4)


def test_swapping_all_pairs_flips_margins_and_leaves_the_spread() -> None:
    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    head, mirror = (CommitteeHead(LinearHead(), 3).fit(p) for p in (pairs, swapped(pairs)))
    sides = test.chosen, test.rejected
    np.testing.assert_allclose(head.margins(*sides), -mirror.margins(*sides), rtol=1e-5)
    np.testing.assert_allclose(head.spread(*sides), mirror.spread(*sides), rtol=1e-4)


def test_the_spread_is_smaller_with_more_pairs() -> None:
    test = make_pairs(100, seed=9)
    few, many = (CommitteeHead(LinearHead(strength=1.0)).fit(make_pairs(n)) for n in (40, 1000))
    assert many.spread(test.chosen, test.rejected).mean() < 0.6 * few.spread(test.chosen, test.rejected).mean()


def test_held_out_margins_are_of_members_that_never_saw_the_prompt() -> None:
    pairs = make_pairs(60)
    committee = CommitteeHead(LinearHead(strength=1.0), members=6).fit(pairs)
    rng, total, judges = RNG(0), np.zeros(60), np.zeros(60)
    for member, scale in zip(committee.members_, committee.scales_, strict=True):
        unseen = ~np.isin(pairs.group, pairs.group[bootstrap(pairs.group, rng)])
        total[unseen] += margins(member, pairs)[unseen] / scale
        judges += unseen
    assert committee.cv_margins_ is not None
    np.testing.assert_allclose(committee.cv_margins_, (total / np.maximum(judges, 1))[judges > 0], rtol=1e-6)
    assert 0 < (judges == 0).sum() < 60
    assert committee.cv_accuracy_ == pair_accuracy(committee.cv_margins_)
    rm = RewardModel.fit(pairs, CommitteeHead(LinearHead(strength=1.0), members=6))
    assert rm.temperature == fit_temperature(committee.cv_margins_)


def test_two_prompts_leave_nobody_to_judge() -> None:
    pairs = replace(make_pairs(20), group=np.arange(20) % 2)
    committee = CommitteeHead(LinearHead(strength=1.0), members=2).fit(pairs)
    assert committee.cv_margins_ is None
    assert committee.cv_accuracy_ is None


# --- with the rest


@pytest.mark.parametrize("kind", FAST)
def test_saved_and_loaded_scores_are_equal_bit_for_bit(kind: str, tmp_path: Path) -> None:
    pairs, test = make_pairs(60), make_pairs(20, seed=1)
    committee = CommitteeHead(FAST[kind], members=3, random_state=2).fit(pairs)
    committee.save_pretrained(tmp_path)
    again = load_head(tmp_path)
    assert isinstance(again, CommitteeHead)
    assert np.array_equal(committee.score(test.chosen), again.score(test.chosen))
    sides = test.chosen, test.rejected
    assert np.array_equal(committee.spread(*sides), again.spread(*sides))
    assert (again.members, again.random_state) == (3, 2)
    assert again.head.get_params() == committee.head.get_params()
    assert np.array_equal(clone(again).fit(pairs).score(test.chosen), committee.score(test.chosen))


def test_the_prompts_view_and_unlabelled_latents_reach_members_that_use_them() -> None:
    from tests.test_context_head import make_pairs as prompt_pairs

    pairs, other = prompt_pairs(40), prompt_pairs(200, seed=5)
    assert CommitteeHead(ContextHead()).takes_unlabelled
    assert not CommitteeHead(LinearHead()).takes_unlabelled
    alone = CommitteeHead(ContextHead(), 2).fit(pairs)
    helped = CommitteeHead(ContextHead(), 2).fit(pairs, other.chosen)
    assert not np.allclose(alone.score(pairs.chosen), helped.score(pairs.chosen))


def test_auto_picks_once_and_its_pick_is_the_members_kind() -> None:
    pairs = make_pairs(60, ("10:last", "10:mean"), informative="10:mean")
    alone = RewardModel.fit(pairs, AutoHead())
    rm = RewardModel.fit(pairs, CommitteeHead(AutoHead(), 3))
    assert rm.recipe == alone.recipe
    assert isinstance(rm.head, CommitteeHead)
    assert {type(member) for member in rm.head.members_} == {type(alone.head)}
    assert rm.facts["head"]["tried"] == alone.facts["head"]["tried"]
    assert rm.facts["head"]["name"] == "committee"


def test_wrong_use_is_named() -> None:
    pairs = make_pairs(20)
    with pytest.raises(InputError, match="members is 1; give at least 2"):
        CommitteeHead(LinearHead(), members=1).fit(pairs)
    with pytest.raises(InputError, match="strength is -1"):
        CommitteeHead(LinearHead(strength=-1.0)).fit(pairs)
    with pytest.raises(InputError, match="at least 2 prompts"):
        CommitteeHead(LinearHead()).fit(replace(pairs, group=np.zeros(20, int)))
    with pytest.raises(InputError, match="not been fitted"):
        CommitteeHead(LinearHead()).score(pairs.chosen)
    with pytest.raises(RecipeMismatch, match="width 24, got 12"):
        CommitteeHead(LinearHead(strength=1.0), 2).fit(pairs).spread(pairs.chosen[:, :12], pairs.rejected[:, :12])
    with pytest.raises(InputError, match="leave out the committee or the synthesis"):
        RewardModel.fit(pairs, CommitteeHead(LinearHead()), synthesis="noise")


def test_the_command_line_makes_committees_of_every_head() -> None:
    head = make_head("pca", False, 0.0, 3, committee=5)
    assert isinstance(head, CommitteeHead)
    assert isinstance(head.head, PCAHead)
    assert (head.members, head.random_state, head.head.random_state) == (5, 3, 3)
    assert isinstance(make_head("pca", False, 0.0, 3), PCAHead)
    with pytest.raises(InputError, match="members is 1"):
        make_head("linear", False, 0.0, 0, committee=1)
