"""Explanations: parts that add up to the score, figures that a plain computation gives too, tokens that do not move."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from penchant import InputError, load_pairs
from penchant.encode import encode_pairs
from penchant.explain import Reading
from penchant.explain.figures import LISTED, SHOWN, measure, pick
from penchant.explain.reading import REST
from penchant.explain.texts import token_activations
from penchant.sae import SAEConfig, SparseAutoencoder
from tests.tiny_explain import LAYER, NORMALIZING, SAE, THROUGH, VIEWS, backbone, explained, made, pairs, reward_model
from tests.tiny_llm import tiny_pairs

KINDS = ("sae", "sparse", "projection", "mlp", "linear", "normalizing")
ADDITIVE = tuple(kind for kind in KINDS if kind != "mlp")


def latents(kind: str) -> Any:
    return encode_pairs(backbone(), pairs(), reward_model(kind).recipe.views, show_progress=False)


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(one) for key, one in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))


# The score as a sum


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_pair_add_up_to_the_scores_of_its_texts(kind: str) -> None:
    found = explained(kind)
    assert found["pairs"]
    for pair in found["pairs"]:
        row = pairs()[pair["row"]]
        score = reward_model(kind).score(row["prompt"], [row["chosen"], row["rejected"]])
        for i, side in enumerate(("chosen", "rejected")):
            parts = [pair["base"], pair["others"][side], *(part[side] for part in pair["features"])]
            parts += [pair["rest"][side]] if pair["rest"] else []
            if found["model"]["additive"]:
                assert sum(parts) == pytest.approx(score[i], abs=2e-6)
                assert abs(pair["left_over"][side]) < 2e-6
            assert sum(parts) + pair["left_over"][side] == pytest.approx(score[i], abs=1e-4)
        differences = [abs(part["difference"]) for part in pair["features"]]
        assert differences == sorted(differences, reverse=True)
        assert len(differences) <= LISTED
        for part in [*pair["features"], pair["others"], pair["score"]]:
            assert part["difference"] == pytest.approx(part["chosen"] - part["rejected"])


@pytest.mark.parametrize("kind", ADDITIVE)
def test_every_contribution_adds_up_to_the_score(kind: str) -> None:
    rm, data = reward_model(kind), latents(kind)
    parts = Reading(rm, THROUGH.get(kind)).parts
    np.testing.assert_allclose(parts.contributions(data.chosen).sum(1) + parts.base_, rm.head.score(data.chosen), 1e-5)


@pytest.mark.parametrize("sae", [SAE, NORMALIZING, made(scale=0.5), made(normalize="constant_norm")])
def test_the_rest_of_a_linear_head_is_what_the_sae_does_not_reconstruct(sae: SparseAutoencoder) -> None:
    rm, data = reward_model("linear"), latents("linear")
    parts = Reading(rm, sae).parts
    given = parts.contributions(data.chosen)
    for place, view in enumerate(VIEWS):
        states = torch.from_numpy(data.select((view,)).chosen)
        weight = rm.head.weight_.reshape(2, -1)[place]  # type: ignore[attr-defined]
        with torch.inference_mode():
            left = (states - sae(states)).double().numpy() @ weight
            seen = sae.normalized(states)
            if sae.config.normalize != "none":  # whose mean, and whose decoder's bias, vary with the state
                left += (sae.b_dec * seen.std + seen.mean).double().numpy() @ weight
        rest = (parts.features_ == REST) & (np.array(parts.feature_views_) == view)
        np.testing.assert_allclose(given[:, rest][:, 0], left, rtol=1e-4, atol=1e-5)


# Figures


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_all_pairs_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.explain.figures.CHUNK", 7)
    rm, data = reward_model(kind), latents(kind)
    reading = Reading(rm, THROUGH.get(kind))
    found = measure(reading, data)
    given = reading.parts.contributions(data.chosen) - reading.parts.contributions(data.rejected)
    np.testing.assert_allclose(found.strength, np.abs(given).mean(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.mean, given.mean(0), rtol=1e-6, atol=1e-12)
    some = (given != 0).any(0)
    right = np.array([(column[column != 0] > 0).mean() for column in given[:, some].T])
    np.testing.assert_allclose(found.right[some], right)
    assert np.isnan(found.right[~some]).all()
    states = {view: torch.from_numpy(data.select((view,)).chosen) for view in VIEWS}
    with torch.inference_mode():
        active = {view: reading.sae.encode(x).numpy() > 0 for view, x in states.items()}
    for i in np.flatnonzero(reading.parts.features_ != REST):
        view, latent = reading.parts.feature_views_[i], reading.parts.features_[i]
        assert found.chosen[i] == pytest.approx(active[view][:, latent].mean())


def test_weights_are_the_heads_own() -> None:
    head: Any = reward_model("sae").head
    found = measure(Reading(reward_model("sae")), latents("sae"))
    known = np.isfinite(found.weight)
    assert known.sum() > 20
    np.testing.assert_allclose(found.weight[known], head.weight_[known], rtol=1e-5)
    head = reward_model("linear").head
    found = measure(Reading(reward_model("linear"), SAE), latents("linear"))
    weights = np.concatenate([[*(SAE.W_dec.detach().numpy() @ w), 0] for w in head.weight_.reshape(2, -1)])
    known = np.isfinite(found.weight) & (np.tile(np.arange(65), 2) < 64)
    np.testing.assert_allclose(found.weight[known], weights[known], rtol=1e-4)


def test_shares_cover_the_whole_score() -> None:
    found = explained("linear", top=5)
    assert len(found["features"]) == 5
    assert 0 < found["rest"] < 1
    shares = [one["share"] for one in found["features"]]
    assert sum(shares) + found["others"]["share"] + found["rest"] == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert explained("sae")["rest"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_is_plain_finite_json(kind: str) -> None:
    found = explained(kind)
    assert plain(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_an_explanation_is_made_again_alike_and_steering_shows() -> None:
    first = explained("sae")
    assert explained("sae") == first
    feature = first["features"][0]["feature"]
    head: Any = reward_model("sae").head
    rm = type(reward_model("sae"))(reward_model("sae").recipe, head.steer(feature, 0.0), backbone=backbone())
    steered = measure(Reading(rm), latents("sae"))
    assert (steered.strength[head.features_ == feature] == 0).all()


# Pairs


def test_a_handful_of_telling_pairs_is_picked() -> None:
    rows = pick(np.array([0.5, -3.0, 2.0, 0.1, -1.0, 9.0, -0.2, -2.0]))
    assert rows == {5: SHOWN[0][0], 2: SHOWN[0][0], 3: SHOWN[1][0], 1: SHOWN[2][0], 7: SHOWN[2][0], 4: SHOWN[2][0]}
    assert pick(np.array([0.0, 0.0])) == {0: SHOWN[1][0]}
    assert pick(np.array([2.0])) == {0: SHOWN[0][0]}


def test_one_pair_may_be_asked_for() -> None:
    found = explained("sae", row=7, token_pairs=3)
    (pair,) = found["pairs"]
    assert (pair["row"], pair["why"]) == (7, "asked for")
    text = found["texts"]["7"]
    assert pairs()[7]["chosen"] in "".join(text["chosen"]["pieces"])
    assert pairs()[7]["prompt"] in "".join(text["prompt"]["pieces"])
    assert found["token_pairs"] == 3


# Tokens


def spans(token_budget: int = 1024, llm: Any = None) -> dict[bytes, Any]:
    llm = llm or backbone()
    some = pairs()[:10]
    tokens = llm.chat.encode(some["prompt"] * 2, some["chosen"] + some["rejected"])
    which = np.arange(64)
    found = list(token_activations(llm, SAE, LAYER, which, tokens, token_budget=token_budget))
    assert len({span.key for span in found}) == len(found)
    assert {span.key for span in found} == {item.key for item in tokens} | {item.prompt_key for item in tokens}
    return {span.key: span for span in found}


@pytest.mark.parametrize("token_budget", [1, 200, 100_000])
def test_a_tokens_activations_do_not_depend_on_its_company(token_budget: int) -> None:
    together, alone = spans(), spans(token_budget)
    for key, span in together.items():
        np.testing.assert_array_equal(span.ids, alone[key].ids)
        np.testing.assert_allclose(span.activations, alone[key].activations, rtol=1e-4, atol=1e-4)


def test_models_that_run_padded_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = spans()
    monkeypatch.setattr(backbone(), "packed", False)
    for key, span in spans(400).items():
        np.testing.assert_allclose(span.activations, packed[key].activations, rtol=1e-3, atol=1e-3)


def test_the_last_token_is_the_state_that_the_view_last_reads() -> None:
    found, some = spans(), pairs()[:10]
    tokens = backbone().chat.encode(some["prompt"], some["chosen"])
    states = latents("sae").select((VIEWS[0],)).chosen[:10]
    with torch.inference_mode():
        expected = SAE.encode(torch.from_numpy(states)).numpy()
    assert [found[item.key].start for item in tokens] == [len(item.prompt) for item in tokens]
    assert {found[item.prompt_key].start for item in tokens} == {0}
    last = [found[item.key].activations[-1] for item in tokens]
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-4)


def test_examples_are_the_strongest_tokens_of_all_texts() -> None:
    found = explained("sae")
    for latent, one in found["latents"].items():
        strengths = [example["activations"][example["peak"]] for example in one["examples"]]
        assert strengths == sorted(strengths, reverse=True)
        for example in one["examples"]:
            end = example["side"] != "prompt" and example["peak"] == len(example["pieces"]) - 1
            assert example["content"][example["peak"]] or end, "no token of the chat template"
            assert "".join(example["pieces"]).strip("\n")
        everywhere = [
            value
            for text in found["texts"].values()
            for tokens in text.values()
            for place, value in tokens["activations"][latent]
            if tokens["content"][place]
        ]
        assert max(everywhere, default=0.0) <= max(strengths, default=0.0) + 1e-5
    assert found["tokens"] > 1000


def test_a_prompt_that_is_cut_away_is_no_trouble() -> None:
    data = load_pairs([{**row, "chosen": row["chosen"] * 40, "prompt": "Why? " * 60} for row in tiny_pairs(4)])
    found = explained("sae", data, row=1)
    assert set(found["texts"]["1"]) == {"prompt", "chosen", "rejected"}, "the prompt is that of the shorter response"
    assert len(found["texts"]["1"]["chosen"]["pieces"]) == backbone().chat.max_length


# Refusals


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("dense mlp", {}, "kind 'mlp' has no features"),
        ("linear", {"sae": None}, "name its folder with --sae"),
        ("linear", {"sae": SparseAutoencoder.random(SAEConfig(32, 64, k=6, layer=1))}, "trained at layer 1"),
        ("linear", {"sae": SparseAutoencoder.random(SAEConfig(16, 64, k=6))}, "width 16"),
        ("random", {}, "random directions"),
        ("sae", {"sae": SAE}, "leave --sae out"),
        ("projection", {"sae": made(seed=5)}, "was not made from the SAE"),
        ("projection", {"sae": SparseAutoencoder.random(SAEConfig(32, 8, k=6, layer=LAYER))}, "was not made from"),
        ("sae", {"row": 40}, "there is no pair 40; the data has 40"),
        ("sae", {"row": -1}, "there is no pair -1"),
        ("sae", {"top": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_sentence(kind: str, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        explained(kind, **more)
    assert "\n" not in str(refused.value)
