"""Synthesis inside training: no fold sees another, real pairs alone decide, and off means off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from penchant.errors import InputError
from penchant.evaluate import learning_curve
from penchant.heads import AutoHead, ContextHead, LinearHead
from penchant.heads.base import prompt_folds
from penchant.latents import LatentPairs, Recipe
from penchant.reward_model import RewardModel
from penchant.synthesis import DirectNoise, Lens, PCANoise, Synthesizer
from penchant.synthesis.augmented import Augmented, choose_synthesis, held_out_margins
from penchant.synthesis.base import SYNTHESIZERS
from penchant.synthesis.reduced import fit_reduced
from penchant.synthesis.training import order_facts, train_head

W = 12
TASTE = np.random.default_rng(7).normal(size=W)


def make_pairs(n: int, seed: int = 0, views: tuple[str, ...] = ("2:mean",), noise: float = 2.0) -> LatentPairs:
    """Two pairs a prompt; the chosen response is the better one by TASTE on the first view, and some noise."""
    rng = np.random.default_rng(seed)
    d = W * len(views)
    sides = rng.normal(size=(2, n, d)).astype(np.float32)
    group = np.arange(n) // 2
    prompt = rng.normal(size=(n // 2 + 1, d)).astype(np.float32)[group]
    recipe = Recipe("m", "r", views, W, "none", 512, "float32")
    if recipe.prompt_views:
        sides[:, :, recipe.columns(recipe.prompt_views)] = prompt[:, recipe.columns(recipe.prompt_views)]
    gain = (sides[0] - sides[1])[:, :W] @ TASTE + noise * rng.normal(size=n)
    swap = (gain < 0)[:, None]
    chosen, rejected = np.where(swap, sides[1], sides[0]), np.where(swap, sides[0], sides[1])
    return LatentPairs(chosen, rejected, prompt, recipe, group)


class Recording(DirectNoise, kind="test-recording"):
    """Remembers what it was fitted on and what it drew from."""

    fits: ClassVar[list[set[int]]] = []
    draws: ClassVar[list[set[int]]] = []

    def learn(self, pairs: LatentPairs, unlabelled: Any) -> None:
        self.fits.append(set(pairs.group.tolist()))
        super().learn(pairs, unlabelled)

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        self.draws.append(set(pairs.group.tolist()))
        return super().draw(pairs, rng)


class Copies(Synthesizer, kind="test-copies"):
    def learn(self, pairs: LatentPairs, unlabelled: Any) -> None:
        return

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        return pairs


class Rubbish(Copies, kind="test-rubbish"):
    """Pairs the wrong way round half the time, and far away."""

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        shape = pairs.chosen.shape
        return replace(pairs, chosen=5 * rng.normal(size=shape), rejected=5 * rng.normal(size=shape))


class Oracle(Copies, kind="test-oracle"):
    """New responses in the right order."""

    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        a, b = rng.normal(size=(2, *pairs.chosen.shape)).astype(np.float32)
        swap = (a @ TASTE < b @ TASTE)[:, None]
        return replace(pairs, chosen=np.where(swap, b, a), rejected=np.where(swap, a, b))


for _kind in ("recording", "copies", "rubbish", "oracle"):
    del SYNTHESIZERS[f"test-{_kind}"]


@pytest.fixture(autouse=True)
def _forget() -> None:
    Recording.fits.clear()
    Recording.draws.clear()


class TestAugmented:
    def test_no_fold_sees_another(self) -> None:
        pairs = make_pairs(40)
        choose_synthesis(pairs, LinearHead(), [Recording()], 3)
        fold = prompt_folds(pairs.group, 5, 0)
        outside = [set(pairs.group[fold != k].tolist()) for k in range(5)]
        assert Recording.fits == outside
        assert all(drawn in outside for drawn in Recording.draws)

    def test_a_held_out_label_changes_nothing_but_its_own_sign(self) -> None:
        """With the synthesizer that learns most from labels."""
        pairs = make_pairs(60)
        fold = prompt_folds(pairs.group, 5, 0)
        flip = (fold == 2)[:, None]
        other = replace(
            pairs,
            chosen=np.where(flip, pairs.rejected, pairs.chosen),
            rejected=np.where(flip, pairs.chosen, pairs.rejected),
        )
        augmented = Augmented(LinearHead(), SYNTHESIZERS["gaussian"](), 4)
        before, after = (held_out_margins(augmented, p, fold, [2]) for p in (pairs, other))
        np.testing.assert_array_equal(before, -after)

    def test_factor_1_and_no_synthesizer_are_the_head_itself(self) -> None:
        pairs = make_pairs(60)
        weight = LinearHead().fit(pairs).weight_
        np.testing.assert_array_equal(Augmented(LinearHead(), Lens(), 1).fit(pairs).head_.weight_, weight)
        np.testing.assert_array_equal(Augmented(LinearHead(), None, 8).fit(pairs).head_.weight_, weight)

    @pytest.mark.parametrize("head", [LinearHead(), LinearHead(strength=3.0)], ids=["cross-validated", "fixed"])
    def test_copies_change_nothing(self, head: LinearHead) -> None:
        pairs = make_pairs(60)
        found = Augmented(head, Copies(), 8).fit(pairs).head_
        head.fit(pairs)
        assert found.strength_ == pytest.approx(8 * head.strength_)
        np.testing.assert_allclose(found.weight_, head.weight_, rtol=1e-5, atol=1e-7)

    def test_prompt_views_stay_the_prompts(self) -> None:
        pairs = make_pairs(40, views=("2:mean", "2:prompt"))
        augmented = Augmented(ContextHead(), PCANoise(components=3), 4)
        made = PCANoise(components=3).fit(pairs).sample(pairs, 4)
        columns = pairs.recipe.columns(("2:prompt",))
        for side in (made.chosen, made.rejected):
            np.testing.assert_array_equal(side[:, columns], np.tile(pairs.chosen[:, columns], (4, 1)))
        assert not np.allclose(made.chosen[40:, :W], np.tile(pairs.chosen[:, :W], (3, 1)))
        assert np.isfinite(augmented.fit(pairs).score(pairs.chosen)).all()

    def test_stands_in_a_learning_curve(self) -> None:
        augmented = Augmented(LinearHead(), Recording(), 3)
        curve = learning_curve(augmented.seeded, make_pairs(40), make_pairs(40, 1), [20, 40], [0, 1])
        assert [point["n"] for point in curve] == [20, 40]
        assert sorted(map(len, Recording.fits)) == [10, 10, 20, 20]

    def test_bad_factor(self) -> None:
        for factor in (0, -1, 1.5):
            with pytest.raises(InputError, match="factor is"):
                Augmented(LinearHead(), Lens(), factor).fit(make_pairs(10))  # type: ignore[arg-type]


def test_reduced_fit_is_exact_when_nothing_is_left_out_and_near_otherwise() -> None:
    """Width 60; the differences vary in 20 directions, and a little in the others."""
    rng = np.random.default_rng(0)
    pairs = make_pairs(200, views=("1:mean", "1:last", "2:mean", "2:last", "3:mean"))
    axes = rng.normal(size=(20, 60)).astype(np.float32)
    turned = replace(
        pairs,
        chosen=pairs.chosen[:, :20] @ axes + 0.02 * pairs.chosen,
        rejected=pairs.rejected[:, :20] @ axes + 0.02 * pairs.rejected,
    )
    whole = LinearHead(strength=10.0).fit(turned)
    np.testing.assert_array_equal(fit_reduced(LinearHead(strength=10.0), turned, 60).weight_, whole.weight_)
    near = fit_reduced(LinearHead(strength=10.0), turned, 25)
    margins = [h.score(turned.chosen) - h.score(turned.rejected) for h in (near, whole)]
    np.testing.assert_allclose(*margins, atol=0.02 * float(np.abs(margins[1]).mean()))


class TestChoice:
    def test_rubbish_is_left_alone(self) -> None:
        decision = choose_synthesis(make_pairs(120), LinearHead(), [Rubbish(), DirectNoise()], 4)
        assert decision.synthesizer is None
        assert [row["chosen"] for row in decision.rows] == [True, False, False]
        assert decision.rows[1]["gain"] < 0
        assert decision.says.startswith("No synthesis: none of test-rubbish, noise lowers")

    def test_a_synthesizer_that_helps_is_kept(self) -> None:
        pairs = make_pairs(60, noise=0.5)
        decision = choose_synthesis(pairs, LinearHead(), [Rubbish(), None, Oracle()], 8)
        none, _, oracle = decision.rows
        assert isinstance(decision.synthesizer, Oracle)
        assert oracle["chosen"]
        assert oracle["gain"] == pytest.approx(none["cv_loss"] - oracle["cv_loss"])
        assert oracle["gain"] > 1.5 * oracle["error"] > 0
        assert decision.margins is not None
        assert oracle["cv_accuracy"] == pytest.approx((decision.margins > 0).mean())
        assert decision.says.startswith("test-oracle is used")

    def test_stretched_scores_gain_nothing(self) -> None:
        """Copies with a fixed penalty only: the same scores at every temperature."""
        pairs = make_pairs(60)
        rows = choose_synthesis(pairs, LinearHead(strength=1.0), [Copies()], 8).rows
        assert abs(rows[1]["gain"]) < 1e-5
        assert rows[0]["chosen"]

    def test_one_prompt_leaves_no_choice(self) -> None:
        pairs = replace(make_pairs(20), group=np.zeros(20, int))
        decision = choose_synthesis(pairs, LinearHead(strength=1.0), [Oracle()], 8)
        assert decision.synthesizer is None
        assert decision.margins is None
        assert decision.says == "No synthesis: 20 pairs of 1 prompts leave nothing to choose by."


class TestRewardModel:
    @pytest.mark.parametrize("off", [None, "none"])
    def test_off_is_off(self, off: str | None) -> None:
        pairs = make_pairs(60)
        plain, rm = RewardModel.fit(pairs), RewardModel.fit(pairs, synthesis=off, factor=5)
        np.testing.assert_array_equal(rm.head.score(pairs.chosen), AutoHead().fit(pairs).score(pairs.chosen))
        assert rm.temperature == plain.temperature
        assert "synthesis" not in rm.facts
        assert rm.augmented is None

    @pytest.mark.filterwarnings("ignore:the VAE has collapsed")
    def test_a_saved_model_needs_no_synthesizer(self, tmp_path: Any) -> None:
        pairs = make_pairs(60, views=("2:mean", "2:prompt"))
        rm = RewardModel.fit(pairs, synthesis=Lens(latent=3, hidden=8, steps=20), factor=3, unlabelled=pairs.chosen)
        rm.save_pretrained(tmp_path)
        latents = make_pairs(30, 1, views=("2:mean", "2:prompt"))
        again = RewardModel.from_pretrained(tmp_path)
        scores = rm.score_latents(latents.chosen, latents.recipe)
        np.testing.assert_array_equal(again.score_latents(latents.chosen, latents.recipe), scores)
        facts = again.facts["synthesis"]
        assert (facts["kind"], facts["factor"], facts["real"], facts["unlabelled"]) == ("lens", 3, 60, 60)
        assert facts["arguments"]["steps"] == 20
        assert "120 synthetic pairs by lens" in (tmp_path / "README.md").read_text()

    def test_temperature_comes_from_pairs_that_nobody_saw(self) -> None:
        """Cross-pairing puts held-out responses into other prompts' pairs; noise labels must not look learnable."""
        pairs = make_pairs(60)
        swap = np.random.default_rng(0).random(60) < 0.5
        chosen = np.where(swap[:, None], pairs.rejected, pairs.chosen)
        pairs = replace(pairs, chosen=chosen, rejected=np.where(swap[:, None], pairs.chosen, pairs.rejected))
        rm = RewardModel.fit(pairs, LinearHead(), synthesis="cross", factor=8)
        assert rm.facts["head"]["cv_accuracy"] < 0.65

    def test_a_context_head_takes_what_it_can(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penchant.synthesis.training.CONTEXT_TO", 100)
        pairs = make_pairs(40, views=("2:mean", "2:prompt"))
        rm = RewardModel.fit(pairs, ContextHead(), synthesis="pca", factor=8)
        assert rm.facts["synthesis"]["factor"] == 2
        assert "lowered from 8 to 2" in rm.facts["synthesis"]["says"]

    def test_a_named_kind_is_made_even_where_auto_picked_a_head_that_takes_few(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pairs = make_pairs(60, views=("2:mean", "2:prompt"), noise=100)
        assert train_head(None, pairs, "noise", 3, None).head.name == "context"
        monkeypatch.setattr("penchant.synthesis.training.CONTEXT_TO", 100)
        made = train_head(None, pairs, "noise", 3, None)
        assert (made.head.name, made.views, made.facts["factor"]) == ("linear", ("2:mean",), 3)
        assert train_head(ContextHead(), pairs, "noise", 3, None).facts["factor"] == 1

    def test_unlabelled_are_counted_only_where_they_are_read(self) -> None:
        pairs = make_pairs(60)
        others = pairs.chosen[:7]
        for kind, count in (("gaussian", 0), ("cross", 0), ("noise", 7)):
            assert train_head(LinearHead(), pairs, kind, 2, others).facts["unlabelled"] == count

    def test_wrong_arguments(self) -> None:
        pairs = make_pairs(20)
        for arguments, reason in (
            ({"synthesis": "lenz"}, "synthesis is 'lenz'"),
            ({"factor": 0}, "factor is 0"),
            ({"synthesis": Lens(keep=2.0)}, "keep is 2.0"),
            ({"head": LinearHead(), "unlabelled": pairs.chosen}, "add --synthesis or drop them"),
        ):
            with pytest.raises(InputError, match=reason):
                RewardModel.fit(pairs, **arguments)  # type: ignore[arg-type]


def test_order_is_judged_by_the_other_half() -> None:
    pairs = make_pairs(60)
    exact = order_facts(Copies().fit(pairs), pairs)
    assert exact["order"]["order_kept"] == 1.0
    assert exact["theory"] == []
    wide = make_pairs(60, views=("1:mean", "1:last", "2:mean", "2:last", "3:mean"), noise=100.0)
    assert order_facts(Copies().fit(wide), wide)["order"]["seed_accuracy"] < 0.7  # the labels are noise
    far = order_facts(DirectNoise(scale=30.0).fit(pairs), pairs)
    assert far["order"]["order_kept"] < 0.9
    theory = order_facts(Lens(latent=3, hidden=8, steps=20).fit(pairs), pairs)["theory"]
    assert [row["noise"] for row in theory][:2] == [0.0, 0.03]
    assert order_facts(Copies().fit(pairs), pairs.take(slice(0, 2))) == {"order": None, "theory": []}
