"""Codes that were built to call certain prompts and to raise certain tokens are read as just that."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import torch

from penchant.errors import InputError
from penchant.policy.policy import Policy
from penchant.policy.reading import CALLERS, callers_of, read_codes, shortened
from tests.policy.tiny_codes import CODES, LETTERS, pairs, plain_policy, policy, weights_of


@functools.cache
def found():
    return read_codes(policy(), pairs(), prompts=3, max_new_tokens=8, shuffles=40, show_progress=False)


def code(number, of=None):
    return next(one for one in (of or found())["codes"] if one["code"] == number)


def test_shares_are_those_of_the_prior_over_prompts():
    prompts = list(dict.fromkeys(pairs()["prompt"]))
    weights = np.array([weights_of(prompt) for prompt in prompts])
    for k in range(CODES):
        assert code(k)["weight"] == pytest.approx(weights[:, k].mean(), abs=1e-4)
        assert code(k)["best"] == pytest.approx((weights.argmax(1) == k).mean())
    assert [one["code"] for one in found()["codes"]] == np.argsort(-weights.mean(0)).tolist()
    assert sum(one["posterior_weight"] for one in found()["codes"]) == pytest.approx(1)
    assert found()["figures"]["n"] == len(prompts) == found()["data"]["prompts"]
    assert found()["figures"]["kl"] > 0.05


def test_each_code_is_called_by_its_prompts():
    texts = [one["text"] for one in code(0)["callers"]]
    assert len(texts) == len(set(texts)) == CALLERS
    assert all("river" in text for text in texts)
    assert all("colour" in one["text"] for one in code(1)["callers"][:5])
    for one in code(0)["callers"]:
        assert pairs()[one["row"]]["prompt"] == one["text"]
        assert one["weight"] == pytest.approx(0.7, abs=1e-4)
    assert [one["text"] for one in code(0)["words"]] == ["river"]


@pytest.fixture
def letters(monkeypatch):
    """Responses in which the bytes that the codes raise occur."""
    rows = [{**row, "chosen": f"{row['chosen']} {LETTERS}"} for row in pairs()]
    import penchant.policy.reading as module

    changed = pairs().from_list(rows)
    counts = module.response_tokens(policy().backbone.chat, changed, len(policy().lm_head.weight))
    monkeypatch.setattr(module, "response_tokens", lambda *_: counts)


def test_each_code_raises_its_token(letters):
    of = read_codes(policy(), pairs(), prompts=0, shuffles=2, show_progress=False)
    for k, letter in enumerate(LETTERS):
        assert code(k, of)["raises"][0]["text"] == letter
        assert all(one["effect"] > 0 for one in code(k, of)["raises"])
        assert all(one["effect"] < 0 for one in code(k, of)["lowers"])
        assert code(k, of)["lowers"][0]["effect"] == min(one["effect"] for one in code(k, of)["lowers"])
    assert code(0, of)["name"].startswith("asked “river”, says “Z")


def test_a_token_that_no_response_holds_is_not_shown():
    texts = {one["text"] for k in range(CODES) for one in (*code(k)["raises"], *code(k)["lowers"])}
    assert texts
    assert "Z" not in texts
    seen = "".join(row[side] for row in pairs() for side in ("chosen", "rejected"))
    assert all(text in seen or text in ("end of answer", "␣") for text in texts)


def test_switching_is_the_divergence_of_the_models_own_next_tokens():
    """Against whole forward passes with z added by hand."""
    from penchant.policy.generate import shifted

    made, prompts = policy(), list(dict.fromkeys(pairs()["prompt"]))
    ids = [torch.from_numpy(item.prompt).long() for item in made.backbone.chat.encode(prompts, ["a"] * len(prompts))]

    def next_token(row, z):
        with torch.no_grad(), shifted(made, z):
            return made.model(input_ids=ids[row][None]).logits[0, -1].log_softmax(-1)

    usual_z = made.codes.z(made.prior(prompts).clone()).detach()
    for k in (0, 3):
        by_hand = []
        for row in range(len(prompts)):
            own, usual = next_token(row, made.codes.codebook[k]), next_token(row, usual_z[row])
            by_hand.append(float((own.exp() * (own - usual)).sum()))
        assert code(k)["switch_kl"] == pytest.approx(np.mean(by_hand), rel=1e-3)
    assert code(0)["switch_kl"] > 5 * code(3)["switch_kl"]


def test_a_code_without_effect_is_called_that():
    idle = copy.deepcopy(policy().codes)
    with torch.no_grad():
        idle.codebook.mul_(1e-3)
    of = read_codes(with_codes(idle), pairs(), prompts=2, max_new_tokens=6, shuffles=2, show_progress=False)
    assert all("hardly changes answers" in one["name"] for one in of["codes"])
    assert all(one["answers"] == of["answers"]["expectation"] for one in of["codes"])
    assert "hardly" not in code(0)["name"]


def test_answers_stand_side_by_side():
    answers = found()["answers"]
    assert len(answers["prompts"]) == len(answers["expectation"]) == 3
    assert "river" in answers["prompts"][found()["shown"].index(0)]["text"], "the strongest caller of each code"
    assert all(len(code(k)["answers"]) == 3 for k in found()["shown"])
    assert code(0)["answers"] != code(1)["answers"]
    from penchant.policy.generate import generate

    own = generate(policy(), [one["text"] for one in answers["prompts"]], code=1, max_new_tokens=8)
    assert code(1)["answers"] == [texts[0] for texts in own]


def test_agreement_with_a_source_that_the_prior_follows_and_a_user_that_nothing_follows():
    by = {(one["label"], one["weights"]): one for one in found()["agreement"]}
    assert by["source", "prior"]["above"]
    assert by["source", "prior"]["unit"] == "prompts"
    assert by["source", "prior"]["nmi"] > 0.5
    assert by["user_id", "prior"]["unit"] == "pairs"
    assert not by["user_id", "prior"]["above"]
    assert len(by) == 4
    bare = pairs().remove_columns(["source", "user_id"])
    assert read_codes(policy(), bare, prompts=0, show_progress=False)["agreement"] == []


def test_what_comes_back_is_json_and_the_same_twice():
    assert json.loads(json.dumps(found(), allow_nan=False)) == found()
    again = read_codes(policy(), pairs(), prompts=3, max_new_tokens=8, shuffles=40, show_progress=False)
    assert again == found()


def test_few_rows_and_one_code_are_read_too():
    single = copy.deepcopy(policy().codes)
    single.codes = 1
    single.codebook = torch.nn.Parameter(single.codebook[:1].detach())
    single.prior_net.logits, single.posterior_net.logits = (net.logits[:, :1] for net in nets(single))
    of = read_codes(with_codes(single), pairs().select([0]), prompts=2, max_new_tokens=2, show_progress=False)
    assert [one["weight"] for one in of["codes"]] == [1.0]
    assert of["warnings"] == of["agreement"] == []
    assert of["codes"][0]["switch_kl"] == pytest.approx(0, abs=1e-5)
    assert len(of["answers"]["prompts"]) == 1


def nets(codes):
    return codes.prior_net, codes.posterior_net


def with_codes(codes):
    return Policy(policy().model, policy().backbone, codes, policy().facts)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(InputError, match="without codes"):
        read_codes(plain_policy(), pairs())
    with pytest.raises(InputError, match="no pairs"):
        read_codes(policy(), pairs().select([]))
    with pytest.raises(InputError, match="prompts is -1"):
        read_codes(policy(), pairs(), prompts=-1)


def test_callers_come_from_every_shown_code_in_turn():
    prior = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7]])
    assert callers_of(prior, [0, 1], 3) == [0, 2, 1]
    assert callers_of(prior, [1], 1) == [2]
    assert callers_of(prior, [0, 1], 0) == []


def test_long_prompts_keep_their_end():
    assert shortened("a" * 500 + "?") == "…" + "a" * 399 + "?"
    assert shortened([{"role": "user", "content": "Why?"}]) == "Why?"
