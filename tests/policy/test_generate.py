"""Answers under z: the head sees h + z at every token, for each prompt its own, whatever else is in the batch."""

from __future__ import annotations

import hashlib
from typing import Any

import peft
import pytest
import torch
import transformers as hf

from penchant.backbone import Backbone
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import choose_z, generate, shifted
from penchant.policy.policy import Policy
from tests import tiny

PROMPTS = ["Name a tree.", "Say hello to the people who live next door and ask them how they are.", "Why?", "Sing me"]
CODES = 5


def policy(family: str = "llama", codes: int = CODES, lora: bool = False) -> Policy:
    """Random weights; the prior is far from uniform, and codes are large enough to change what is said."""
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(tiny.FAMILIES[family]()).float()
    if lora:
        model = peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1 if "lora" in name else 0.3)
    whole = model.get_base_model() if lora else model
    backbone = Backbone(whole, tiny.tokenizer(), f"tiny-{family}", "0", max_length=256)
    latent = LatentCodes(backbone.width, codes, scale=1.0) if codes else None
    if latent is not None:
        torch.nn.init.normal_(latent.prior_net[-1].weight, std=0.5)
    return Policy(model, backbone, latent, {"base": f"tiny-{family}", "loss": "dpo"}).eval()


def by_transformers(made: Policy, prompt: str, z: torch.Tensor | None, tokens: int = 20) -> str:
    """The likeliest answer, step by step from whole forward passes, with z added by hand."""
    chat = made.backbone.chat
    ids = torch.from_numpy(chat.encode([prompt], ["a"])[0].prompt).long()
    start = len(ids)
    model: Any = made.model
    with torch.no_grad(), shifted(made, None):
        for _ in range(tokens):
            h = model(input_ids=ids[None], output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
            logits = made.lm_head(h if z is None else h + z)
            ids = torch.cat((ids, logits.argmax()[None]))
            if int(ids[-1]) in chat.ends:
                break
    return str(chat.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.fixture(scope="module")
def llama() -> Policy:
    return policy()


@pytest.mark.parametrize(("family", "lora"), [("llama", False), ("llama", True), ("gpt2", False), ("bloom", False)])
@pytest.mark.parametrize("code", ["expectation", "best", 3, [0.5, 0.25, 0.25, 0, 0]])
def test_the_likeliest_answers_are_those_of_h_plus_z(family: str, lora: bool, code: Any) -> None:
    """From the fast sampler, and (BLOOM) from transformers' own `generate`."""
    made = policy(family, lora=lora)
    made.model.generation_config.repetition_penalty = 5.0  # answers are drawn from the policy's own probabilities
    z = choose_z(made, PROMPTS, code)
    assert z is not None
    found = generate(made, PROMPTS, code=code, max_new_tokens=20, answers=2)
    assert found == [[by_transformers(made, prompt, row)] * 2 for prompt, row in zip(PROMPTS, z, strict=True)]
    assert found != [[by_transformers(made, prompt, None)] * 2 for prompt in PROMPTS]


def test_models_alike_but_for_the_sampler_agree(llama: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = generate(llama, PROMPTS, max_new_tokens=30)
    monkeypatch.setattr(Generator, "_sharing_is_exact", lambda self: False)
    assert generate(llama, PROMPTS, max_new_tokens=30) == fast


@torch.no_grad()
def test_within_shifted_the_logits_are_those_of_h_plus_z(llama: Policy) -> None:
    model: Any = llama.model
    ids = torch.randint(tiny.VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))
    with shifted(llama, None):
        plain = model(input_ids=ids, output_hidden_states=True)
    z = torch.randn(2, llama.backbone.width, generator=torch.Generator().manual_seed(1))
    with shifted(llama, z):
        logits = model(input_ids=ids).logits
    by_hand = llama.lm_head(plain.hidden_states[-1] + z[[0, 0, 1, 1], None])
    assert torch.allclose(logits, by_hand, atol=1e-5)
    with shifted(llama, z[1]):
        assert torch.allclose(model(input_ids=ids).logits[2:], by_hand[2:], atol=1e-5)
    with shifted(llama, None):
        assert torch.equal(model(input_ids=ids).logits, plain.logits)
    with shifted(llama, z.repeat(2, 1)[:3]), pytest.raises(InputError, match="3 shifts cannot be shared by 4 rows"):
        model(input_ids=ids)
    with pytest.raises(InputError, match="z is 31 wide"), shifted(llama, z[:, 1:]):
        pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_codes_that_do_nothing_change_nothing(family: str, temperature: float) -> None:
    none, zero = policy(family, codes=0), policy(family)
    torch.nn.init.zeros_(zero.codes.codebook)
    settings: dict[str, Any] = {"answers": 3, "max_new_tokens": 30, "temperature": temperature}
    assert choose_z(none, PROMPTS) is None
    found = generate(none, PROMPTS, **settings)
    assert found == generate(zero, PROMPTS, **settings)
    if family == "llama":
        sampled = Generator(none.model, none.backbone).sample(PROMPTS, top_p=1.0, show_progress=False, **settings)
        assert found == sampled


@pytest.mark.parametrize("code", ["expectation", "sample"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_answers_do_not_depend_on_what_else_is_asked(family: str, temperature: float, code: str) -> None:
    made = policy(family)
    settings: dict[str, Any] = {"answers": 2, "max_new_tokens": 25, "temperature": temperature, "code": code}
    whole = generate(made, [*PROMPTS, PROMPTS[0]], **settings)
    assert whole[-1] == whole[0]
    assert generate(made, PROMPTS[::-1], **settings) == whole[-2::-1]
    assert [generate(made, [prompt], **settings)[0] for prompt in PROMPTS] == whole[:-1]
    assert all(len(row) == 2 for row in whole)
    assert (whole[1][0] == whole[1][1]) == (temperature == 0)


def test_rows_that_are_dropped_take_their_shift_along(llama: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt under many shifts is as many prompts; most answers end early here, and the rest goes on alone."""
    generator = Generator(llama.model, llama.backbone)
    monkeypatch.setattr(type(llama.backbone.chat), "ends", frozenset(range(0, tiny.VOCABULARY, 12)))
    z = torch.randn(20, llama.backbone.width, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"answers": 1, "temperature": 0, "max_new_tokens": 60, "show_progress": False}
    prompts = ["Why?"] * 10 + ["Name a tree."] * 10
    found = generator.sample(prompts, shift=z, **settings)
    alone = [generator.sample([prompt], shift=row[None], **settings)[0] for prompt, row in zip(prompts, z, strict=True)]
    assert found == alone
    assert len({row[0] for row in found}) > 10


def test_the_prior_chooses(llama: Policy) -> None:
    prior, book = llama.prior(PROMPTS), llama.codes.codebook.detach()
    assert torch.allclose(choose_z(llama, PROMPTS), prior @ book, atol=1e-5)
    assert torch.equal(choose_z(llama, PROMPTS, "best"), book[prior.argmax(-1)])
    assert torch.equal(choose_z(llama, PROMPTS, 2), book[[2] * 4])
    sharp = policy()
    sharp.codes.prior_net[-1].bias.data[:] = torch.tensor([0, 0, 0, 1e4, 0])
    for code in ("expectation", "best", "sample"):
        assert torch.equal(choose_z(sharp, PROMPTS, code), sharp.codes.codebook[[3] * 4])


def test_the_sampled_code_follows_the_prior_and_depends_on_seed_and_prompt_alone(llama: Policy) -> None:
    def codes(prompts: list[str], seed: int) -> list[int]:
        z = choose_z(llama, prompts, "sample", seed)
        assert z is not None
        return [int((row == llama.codes.codebook).all(-1).nonzero()) for row in z]

    whole = codes(PROMPTS, 0)
    assert [codes([prompt], 0)[0] for prompt in PROMPTS[::-1]] == whole[::-1]
    draws = torch.tensor([codes(["Why?", "Sing me"], seed) for seed in range(300)])
    prior = llama.prior(["Why?", "Sing me"])
    for column in (0, 1):
        share = torch.bincount(draws[:, column], minlength=CODES) / 300
        assert torch.allclose(share, prior[column], atol=0.1)  # three deviations of a share of a half
    flat = policy()
    torch.nn.init.zeros_(flat.codes.prior_net[-1].weight)
    assert len({tuple(row.tolist()) for row in choose_z(flat, [f"Name {n}." for n in range(9)], "sample")}) > 2


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_was_trained_can_be_trained_on(family: str) -> None:
    """And dropout, which a policy in training has, is no part of its answers."""
    made = policy(family, lora=family == "llama")
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    calm = generate(made, PROMPTS[:1], max_new_tokens=10)
    made.train()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("lora" in name or "mlp" in name)
    before = {name: (p.requires_grad, digest(p)) for name, p in made.named_parameters()}
    modes = [module.training for module in made.modules()]
    assert generate(made, PROMPTS[:1], max_new_tokens=10) == calm
    assert {name: (p.requires_grad, digest(p)) for name, p in made.named_parameters()} == before
    assert any(trained for trained, _ in before.values())
    assert [module.training for module in made.modules()] == modes


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": CODES}, "no code 5; this policy has codes 0 to 4"),
        ({"code": -1}, "no code -1"),
        ({"code": "worst"}, "'worst' is not expectation"),
        ({"code": [0.5, 0.5]}, "2 weights for 5 codes"),
        ({"code": [0.5] * 5}, "sum to one"),
        ({"code": [2, -1, 0, 0, 0]}, "must not be negative"),
        ({"answers": 0}, "answers is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
    ],
)
def test_wrong_wishes_are_said(llama: Policy, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        generate(llama, PROMPTS, **change)


def test_a_policy_without_codes_has_none_to_choose() -> None:
    plain = policy(codes=0)
    for code in ("best", "sample", 0):
        with pytest.raises(InputError, match="trained without codes"):
            generate(plain, PROMPTS, code=code)
    assert generate(plain, []) == []
