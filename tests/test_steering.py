"""SARM's light mode: the linear head it is, and a feature's weight turned without touching any other response."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penchant import Backbone, InputError, LinearHead, RewardModel
from penchant.cli.main import main
from penchant.heads import SAELinearHead, SparseHead, load_head, sae_linear
from penchant.latents import LatentPairs
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.formats import save_sae
from tests.test_sparse_heads import BOTH, SAE, WIDTH, eye, make_pairs, swapped
from tests.tiny_llm import save_tiny_llm, tiny_pairs


@pytest.fixture(scope="module")
def head() -> SAELinearHead:
    return SAELinearHead(SAE).fit(make_pairs(100, BOTH))


@pytest.fixture(scope="module")
def test() -> LatentPairs:
    return make_pairs(200, BOTH, seed=1)


def strongest(head: SAELinearHead) -> int:
    return int(head.features_[np.abs(head.weight_).argmax()])


# --- the head


@pytest.mark.parametrize("strength", [None, 0.3])
@pytest.mark.parametrize("views", [("10:last",), BOTH])
def test_on_an_sae_of_plain_coordinates_it_is_the_linear_head(views: tuple[str, ...], strength: float | None) -> None:
    pairs, test = make_pairs(90, views, taste=0.5), make_pairs(50, views, seed=1).chosen
    head = SAELinearHead(eye(signed=True), strength=strength).fit(pairs)

    def coordinates(latents: np.ndarray) -> np.ndarray:
        split = latents.reshape(len(latents), -1, WIDTH)
        return np.maximum(np.concatenate([split, -split], axis=2), 0).reshape(len(latents), -1)

    sides = coordinates(pairs.chosen), coordinates(pairs.rejected)
    wide = LatentPairs(*sides, sides[0], replace(pairs.recipe, width=2 * WIDTH), pairs.group)
    plain = LinearHead(strength=strength).fit(wide)
    assert head.strength_ == plain.strength_
    assert head.features_.tolist() == list(range(2 * WIDTH)) * len(views)
    assert head.feature_views_ == tuple(np.repeat(views, 2 * WIDTH))
    np.testing.assert_allclose(head.weight_, plain.weight_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(head.score(test), plain.score(coordinates(test)), atol=1e-5)
    np.testing.assert_allclose(head.activations(test), coordinates(test), atol=1e-6)
    if strength is None:
        np.testing.assert_allclose(head.cv_margins_, plain.cv_margins_, atol=1e-3)


def test_only_latents_that_were_active_are_features() -> None:
    pairs = make_pairs(60)
    silent = pairs.chosen.copy(), pairs.rejected.copy()
    for side in silent:
        side[:, 7] = -1
    head = SAELinearHead(eye()).fit(LatentPairs(*silent, silent[0], pairs.recipe, pairs.group))
    assert head.features_.tolist() == [j for j in range(WIDTH) if j != 7]
    assert head.parameters == WIDTH - 1
    nothing = -np.ones((3, WIDTH), np.float32)
    nothing[:, 7] = 50
    assert head.score(nothing).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="no training state activated latent 7"):
        head.steer(7, 2)


def test_pairs_in_which_no_feature_tells_the_sides_apart_are_refused() -> None:
    pairs = make_pairs(20)
    with pytest.raises(InputError, match="equally active in chosen and rejected states of all pairs"):
        SAELinearHead(eye()).fit(
            LatentPairs(-np.abs(pairs.chosen), -np.abs(pairs.rejected), pairs.prompt, pairs.recipe, pairs.group)
        )


def test_beyond_so_many_pairs_the_strength_is_picked_among_some_and_the_weights_from_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = make_pairs(120, taste=0.5)
    whole = SAELinearHead(SAE).fit(pairs)
    monkeypatch.setattr(sae_linear, "STRENGTH_PAIRS", 40)
    some = SAELinearHead(SAE).fit(pairs)
    assert whole.cv_margins_ is not None
    assert some.cv_margins_ is not None
    assert (len(whole.cv_margins_), len(some.cv_margins_)) == (120, 40)
    same = SAELinearHead(SAE, strength=some.strength_).fit(pairs)
    assert np.array_equal(some.weight_, same.weight_)


# --- steering


def test_responses_in_which_the_feature_is_silent_keep_their_score(head: SAELinearHead, test: LatentPairs) -> None:
    feature = strongest(head)
    own = head.features_ == feature
    active = head.activations(test.chosen)[:, own]
    silent = ~active.any(axis=1)
    assert 20 < silent.sum() < 180
    before, after = head.score(test.chosen), head.steer(feature, 3.0).score(test.chosen)
    assert np.array_equal(before[silent], after[silent])
    expected = before + 2 * active @ head.weight_[own]
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(after - before)[~silent].min() > 0


def test_a_factor_replaces_the_earlier_one_and_one_undoes_it(head: SAELinearHead, test: LatentPairs) -> None:
    first, second = strongest(head), int(head.features_[np.argsort(-np.abs(head.weight_))[3]])
    original, before = head.score(test.chosen), head.steering_
    twice = head.steer(first, 5.0).steer(first, 2.0)
    assert np.array_equal(twice.score(test.chosen), head.steer(first, 2.0).score(test.chosen))
    both = twice.steer(second, 0.0)
    assert both.steering_ == {first: 2.0, second: 0.0}
    np.testing.assert_allclose(
        both.score(test.chosen) - original,
        (twice.score(test.chosen) - original) + (head.steer(second, 0.0).score(test.chosen) - original),
        atol=1e-5,
    )
    assert both.steer(second, 1.0).steering_ == {first: 2.0}
    assert np.array_equal(both.steer(second, 1.0).steer(first, 1.0).score(test.chosen), original)
    assert (head.steering_, before) == ({}, {})  # the head itself is as it was
    np.testing.assert_allclose(both.contributions(test.chosen).sum(axis=1), both.score(test.chosen), atol=1e-5)


def test_steering_is_saved(head: SAELinearHead, test: LatentPairs, tmp_path: Path) -> None:
    steered = head.steer(strongest(head), -1.5)
    steered.save_pretrained(tmp_path)
    loaded: Any = load_head(tmp_path)
    assert loaded.steering_ == {strongest(head): -1.5}
    assert np.array_equal(loaded.score(test.chosen), steered.score(test.chosen))
    assert np.array_equal(loaded.steer(strongest(head), 1).score(test.chosen), head.score(test.chosen))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_must_be_finite(head: SAELinearHead, factor: float) -> None:
    with pytest.raises(InputError, match="give a finite number"):
        head.steer(strongest(head), factor)


def test_feature_scores_are_sarms(head: SAELinearHead, test: LatentPairs) -> None:
    c, j = head.activations(test.chosen).sum(0, dtype=float), head.activations(test.rejected).sum(0, dtype=float)
    np.testing.assert_allclose(head.feature_scores(test), (c - j) / (c + j + np.mean(c + j)), atol=1e-6)
    np.testing.assert_allclose(head.feature_scores(swapped(test)), -head.feature_scores(test), atol=1e-9)
    assert np.abs(head.feature_scores(test)).max() < 1


# --- whole reward models


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM, pairs and an SAE of layer 2 that keeps every coordinate."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_llm(folder / "llm")
    rows = torch.cat([torch.eye(32), -torch.eye(32)])
    sae = SparseAutoencoder(SAEConfig(32, 64, "jumprelu", layer=2))
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    save_sae(sae, folder / "sae")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_pairs(40)))
    return folder


def test_a_reward_model_is_steered_saved_and_loaded(work: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(work / "llm"), dtype="float32", max_length=256)
    head = SAELinearHead(str(work / "sae"))
    rm = RewardModel.train(tiny_pairs(40), model=backbone, head=head, cache=tmp_path / "c", show_progress=False)
    assert rm.recipe.views == ("2:last", "2:mean")
    assert isinstance(rm.head, SAELinearHead)
    prompts, answers = ["Name a river."] * 3, ["Gladly! The Po.", "No.", "Why?"]
    before, feature = rm.score(prompts, answers), strongest(rm.head)
    steered = rm.steer(feature, 4.0)
    assert np.array_equal(rm.score(prompts, answers), before)
    assert not np.array_equal(steered.score(prompts, answers), before)
    assert steered.temperature == rm.temperature
    steered.save_pretrained(tmp_path / "rm")
    loaded = RewardModel.from_pretrained(tmp_path / "rm", backbone=backbone)
    assert np.array_equal(loaded.score(prompts, answers), steered.score(prompts, answers))
    assert f"| {feature} by 4 |" in (tmp_path / "rm" / "README.md").read_text()
    assert np.array_equal(loaded.steer(feature, 1.0).score(prompts, answers), before)
    dense = RewardModel.train(
        tiny_pairs(40), model=backbone, head=LinearHead(), views=["2:last"], cache=tmp_path / "c", show_progress=False
    )
    with pytest.raises(InputError, match="a linear head has no features to steer"):
        dense.steer(feature, 2.0)


def test_an_sae_of_another_place_is_refused_before_the_llm_runs(work: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(work / "llm"), dtype="float32", max_length=256)
    for sae, views, reason in (
        (eye(), None, "width 24"),
        (SparseAutoencoder.random(SAEConfig(32, 40, k=4, layer=9)), None, "layers 1 to 3"),
        (SparseAutoencoder.random(SAEConfig(32, 40, k=4, layer=2)), ["3:last"], "layer 2"),
        (SparseAutoencoder.random(SAEConfig(32, 40, k=4)), None, "layer"),
    ):
        with pytest.raises(InputError, match=reason):
            RewardModel.train(
                tiny_pairs(4), model=backbone, head=SparseHead(sae), views=views, cache=tmp_path / "cache"
            )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", [SparseHead, SAELinearHead])
def test_an_sae_that_reconstructs_nothing_is_refused_unless_it_is_the_random_control(kind: Any) -> None:
    pairs = make_pairs(100)
    sae = eye(signed=True)
    kind(sae).fit(pairs)
    with torch.no_grad():
        sae.W_dec *= -1
    with pytest.raises(InputError, match="explains -"):
        kind(sae).fit(pairs)
    kind(SAE).fit(pairs)


@pytest.mark.parametrize("kind", ["sparse", "sae"])
def test_the_command_line_trains_both_heads(
    kind: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    given = ["train", str(work / "pairs.jsonl"), "--model", str(work / "llm"), "--dtype", "float32", "--curve", "false"]
    given += ["--head", kind, "--out", str(tmp_path / "run")]
    assert main(given) == 2
    assert f"the {kind} head stands on a sparse autoencoder; add --sae FOLDER" in capsys.readouterr().err
    assert main([*given, "--sae", str(work / "sae")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["head"]["views"] == ["2:last", "2:mean"]
    assert "% of the backbone's" in (tmp_path / "run" / "report.html").read_text()
    assert load_head(tmp_path / "run" / "model").name == kind
    given[given.index("--head") + 1] = "linear"
    assert main([*given, "--sae", str(work / "sae")]) == 2
    assert "the linear head has no use for --sae" in capsys.readouterr().err
