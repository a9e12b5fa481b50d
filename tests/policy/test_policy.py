"""A policy on a tiny LLM: what it reads, that z does what it should, and that it comes back from disk as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from penchant.backbone import Backbone, load_whole
from penchant.chat import Tokens
from penchant.errors import InputError, PenchantError, RecipeMismatch
from penchant.policy.batches import TokenPair, batches_of, lay_out, token_pairs
from penchant.policy.codes import PairStates
from penchant.policy.policy import Policy
from penchant.policy.trunk import Trunk
from penchant.writing import seal
from tests.policy.conftest import Maker
from tests.tiny_llm import save_tiny_llm, tiny_tokenizer


def by_hand(policy: Policy, item: Tokens, z: Tensor | None = None) -> Tensor:
    """Log-probabilities of the response's tokens from a plain forward pass with a plain softmax."""
    ids = torch.from_numpy(np.concatenate([item.prompt, item.response])).long()
    model: Any = policy.model
    policy.backbone.config._attn_implementation = "eager"
    h = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
    log_p = policy.lm_head(h if z is None else h + z).float().log_softmax(-1)
    at = len(item.prompt) - 1
    return log_p[at:-1].gather(1, ids[at + 1 :, None])[:, 0].sum()


def perturbed(policy: Policy) -> Policy:
    """Adapters and codes as after training: none of them at its start."""
    torch.manual_seed(5)
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3 if "lora" not in name else 0.1)
    return policy


def test_equal_to_a_plain_forward_pass_under_any_z(make: Maker) -> None:
    policy, tokens = make()
    perturbed(policy).eval()
    z = torch.randn(len(tokens), 32)
    _, under = policy.run(lay_out(tokens, packed=True))
    for given in (None, z):
        found = under(given)
        for i in (0, 1, 7):
            for side, values in ((0, found.chosen), (1, found.rejected)):
                expected = by_hand(policy, tokens[i][side], None if given is None else z[i])
                assert values[i].item() == pytest.approx(expected.item(), abs=2e-4)


def test_counts_are_of_response_tokens(make: Maker) -> None:
    policy, tokens = make()
    found = policy.run(lay_out(tokens, packed=True))[1](None)
    assert found.chosen_tokens.tolist() == [len(c.response) for c, _ in tokens]
    assert found.rejected_tokens.tolist() == [len(r.response) for _, r in tokens]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_scores_do_not_depend_on_batch_neighbours(make: Maker, size: int) -> None:
    policy, tokens = make()
    perturbed(policy).eval()
    whole = policy.score(tokens, {"": policy.expected})[1][""]
    for first in range(0, len(tokens), size):
        part = policy.score(tokens[first : first + size], {"": policy.expected})[1][""]
        assert torch.allclose(part.chosen, whole.chosen[first : first + size], atol=1e-4)


def test_swapping_the_sides_swaps_all_that_is_read(make: Maker) -> None:
    policy, tokens = make()
    states, found = policy.score(tokens, {"": lambda _: None})
    other, swapped = policy.score([(r, c) for c, r in tokens], {"": lambda _: None})
    assert torch.allclose(states.chosen, other.rejected, atol=1e-5)
    assert torch.allclose(found[""].chosen, swapped[""].rejected, atol=1e-4)
    assert torch.allclose(states.prompt, other.prompt, atol=1e-5)


def test_padded_models_read_the_same(make: Maker) -> None:
    policy, tokens = make()
    perturbed(policy).eval()
    packed = policy.score(tokens, {"": policy.expected})
    policy.backbone.packed = False
    padded = policy.score(tokens, {"": policy.expected})
    for a, b in zip((*packed[0][:3], *packed[1][""]), (*padded[0][:3], *padded[1][""]), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=2e-4)


def test_prompts_shared_by_both_sides_are_run_once(make: Maker) -> None:
    _, tokens = make()
    layout = lay_out(tokens, packed=True)
    assert len(layout.trees) == len({pair[0].prompt_key for pair in tokens}) < len(tokens)
    assert layout.tokens < sum(len(c) + len(r) for c, r in tokens)


def test_pairs_with_an_empty_prompt_have_no_prompt_state(make: Maker) -> None:
    policy, _ = make()
    ids = lambda *values: np.array(values, np.int32)  # noqa: E731
    pair = (Tokens(ids(), ids(5, 6, 7), 4), Tokens(ids(), ids(5, 9), 4))
    states, under = policy.run(lay_out([pair], packed=True))
    assert torch.equal(states.prompt, torch.zeros(1, 32))
    h = policy.backbone.final_states([(torch.tensor([], dtype=torch.long), [torch.tensor([5, 6, 7])])])
    expected = policy.lm_head(h[:2]).log_softmax(-1)[[0, 1], [6, 7]].sum()  # nothing predicts the first token
    assert under(None).chosen.item() == pytest.approx(expected.item(), abs=1e-4)


def test_only_the_top_layers_are_run_and_all_is_as_before(make: Maker) -> None:
    policy, tokens = make(top_layers=1)
    whole, _ = make(top_layers=None)
    assert policy.trunk is not None
    ran: list[int] = []
    for number, layer in enumerate(policy.backbone.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    states, found = policy.score(tokens, {"": lambda _: None})
    assert set(ran) == {2}
    expected_states, expected = whole.score(tokens, {"": lambda _: None})
    assert torch.allclose(states.chosen, expected_states.chosen, atol=1e-4)
    assert torch.allclose(found[""].chosen, expected[""].chosen, atol=1e-3)
    trained = {name.split("layers.")[1][0] for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {"2"}


def test_the_trunk_is_kept_and_found_again(make: Maker) -> None:
    policy, _ = make(top_layers=1)
    assert policy.trunk is not None
    kept = policy.trunk.states.clone()
    again, _ = make(top_layers=1, seed=3)
    assert again.trunk is not None
    assert torch.equal(again.trunk.states, kept)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_trunk_of_which_a_bit_has_changed_is_made_again(make: Maker, tmp_path: Path, damage: str) -> None:
    policy, _ = make(top_layers=1)
    assert policy.trunk is not None
    kept = policy.trunk.states.clone()
    (path,) = tmp_path.rglob("*.states")
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"bit": bytes(flipped), "cut": content[:-20], "empty": b""}[damage])
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged"):
        again, _ = make(top_layers=1)
    assert again.trunk is not None
    assert torch.equal(again.trunk.states, kept)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room on a disk")
def test_a_disk_that_is_full_is_known_before_a_trunk_is_mapped(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a memory map it would kill the process."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PenchantError, match=r"states cannot be written \(No space left on device\): make room"):
        make(top_layers=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_batches_hold_every_pair_once_within_the_budget(make: Maker) -> None:
    _, tokens = make()
    batches = list(batches_of(tokens, 150))
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    size = lambda pair: len(pair[0]) + len(pair[1].response)  # noqa: E731
    assert len(batches) > 1
    assert all(len(b) == 1 or sum(size(tokens[i]) for i in b) <= 150 for b in batches)


@pytest.mark.parametrize("settings", [{}, {"lora": 0}, {"codes": 0}, {"lora": 0, "top_layers": 1}])
def test_saved_and_loaded_scores_are_equal_bit_for_bit(make: Maker, tmp_path: Path, settings: dict[str, int]) -> None:
    policy, tokens = make(**settings)
    perturbed(policy).eval()
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    policy.trunk = None  # what is loaded runs all layers
    a, b = (each.score(tokens, {"": each.expected})[1][""] for each in (policy, loaded))
    assert torch.equal(a.chosen, b.chosen)
    assert torch.equal(a.rejected, b.rejected)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_no_pickle_and_no_second_copy_of_the_llm_beside_adapters(make: Maker, tmp_path: Path) -> None:
    policy, _ = make()
    policy.save_pretrained(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "codes.safetensors", "adapter/adapter_config.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert "model/model.safetensors" not in names


def test_another_base_model_is_refused(make: Maker, tmp_path: Path, tiny_llm: Path) -> None:
    policy, _ = make()
    policy.save_pretrained(tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    config["base"] = str(save_tiny_llm(tmp_path / "other", seed=1))
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json is damaged, or was not saved to the end; save the policy again"):
        Policy.from_pretrained(tmp_path / "policy")
    seal(tmp_path / "policy")
    with pytest.raises(RecipeMismatch, match="get the same weights"):
        Policy.from_pretrained(tmp_path / "policy")


def test_what_is_not_a_policy_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no policy"):
        Policy.from_pretrained(tmp_path)


def test_prior_and_posterior_over_prompts_and_pairs(make: Maker, pairs: Dataset) -> None:
    policy, tokens = make()
    perturbed(policy).eval()
    prior, posterior = policy.prior(pairs["prompt"]), policy.posterior(pairs)
    assert prior.shape == posterior.shape == (len(tokens), 4)
    assert torch.allclose(prior.sum(1), torch.ones(len(tokens)))
    states = policy.score(tokens, {})[0]
    assert torch.allclose(prior, policy.codes.prior_logits(states.prompt).softmax(-1), atol=1e-5)
    z = policy.codes.z(prior)
    one_by_one = policy.log_probs(pairs, z)
    together = policy.score(tokens, {"": policy.expected})[1][""]
    assert torch.allclose(one_by_one.chosen, together.chosen, atol=1e-4)


def test_without_codes_there_is_no_prior(make: Maker, pairs: Dataset) -> None:
    policy, _ = make(codes=0)
    with pytest.raises(InputError, match="without codes"):
        policy.prior(pairs["prompt"])


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "gpt2", "qwen2", "gemma2"])
def test_other_architectures_run_without_a_change_to_their_code(kind: str) -> None:
    """Learned positions, a head with a bias, parallel blocks, biased projections, soft caps and sliding windows."""
    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    if kind == "qwen2":
        sizes |= {"num_key_value_heads": 2}
    if kind == "gemma2":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 2.0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if kind == "phi":
        nn.init.normal_(model.lm_head.bias)
    policy = Policy(model, Backbone(model, tokenizer, kind, "1", max_length=128))
    pairs = [policy.backbone.chat.encode(["Name a river."] * 2, ["The long one.", "No."])]
    item: TokenPair = (pairs[0][0], pairs[0][1])
    found = policy.score([item], {"": lambda _: None})[1][""]
    ids = torch.from_numpy(np.concatenate([item[0].prompt, item[0].response])).long()
    policy.backbone.config._attn_implementation = "eager"
    with torch.no_grad():
        log_p = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    at = len(item[0].prompt) - 1
    expected = log_p[at:-1].gather(1, ids[at + 1 :, None]).sum()
    assert found.chosen.item() == pytest.approx(expected.item(), abs=1e-3)


def test_a_head_that_does_more_is_refused(tiny_llm: Path) -> None:
    llm, backbone = load_whole(str(tiny_llm), "float32")
    llm.lm_head.register_forward_hook(lambda _module, _inputs, output: output**2)
    with pytest.raises(InputError, match="does more to its logits"):
        Policy(llm, backbone)


def test_z_of_a_control_is_used_as_it_is(make: Maker) -> None:
    policy, tokens = make(codes=0)

    class Constant:
        def expected(self, prompt: Tensor) -> Tensor:
            return torch.full_like(prompt, 0.3)

    plain = policy.score(tokens, {"": policy.expected})[1][""]
    policy.codes = Constant()
    moved = policy.score(tokens, {"": policy.expected})[1][""]
    by_z = policy.score(tokens, {"": lambda s: torch.full_like(s.prompt, 0.3)})[1][""]
    assert torch.equal(moved.chosen, by_z.chosen)
    assert not torch.allclose(moved.chosen, plain.chosen, atol=1e-3)


def test_pair_states_are_those_at_the_last_tokens(make: Maker, pairs: Dataset) -> None:
    policy, tokens = make()
    states: PairStates = policy.pair_states(pairs)
    item = tokens[3][0]
    ids = torch.from_numpy(np.concatenate([item.prompt, item.response])).long()
    h = policy.backbone.run_padded([ids], (policy.backbone.depth,))[0][0]
    assert torch.allclose(states.chosen[3], h[-1], atol=1e-4)
    assert torch.allclose(states.prompt[3], h[len(item.prompt) - 1], atol=1e-4)
    assert torch.allclose(policy.prompt_states(pairs["prompt"])[3], states.prompt[3], atol=1e-4)


def test_a_row_the_template_cannot_take_is_named(make: Maker) -> None:
    policy, _ = make()
    bad = Dataset.from_list([{"prompt": "a", "chosen": "same", "rejected": "same"}])
    with pytest.raises(InputError, match="row 0"):
        token_pairs(policy.backbone, bad)


def test_texts_the_trunk_has_not_seen_are_run_whole(make: Maker) -> None:
    policy, _ = make(top_layers=1)
    whole, _ = make(top_layers=None)
    asked = ["A prompt that is in no pair."]
    assert torch.allclose(policy.prompt_states(asked), whole.prompt_states(asked), atol=1e-5)


def test_the_model_can_be_used_plainly_after_it_was_run_packed(make: Maker) -> None:
    policy, tokens = make()
    policy.score(tokens, {"": policy.expected})
    assert policy.backbone.packed
    model: Any = policy.model
    assert torch.isfinite(model(input_ids=torch.arange(5)[None]).logits).all()


def test_scoring_leaves_the_mode_as_it_was(make: Maker) -> None:
    policy, tokens = make()
    assert not policy.training
    for mode in (True, False):
        policy.train(mode)
        policy.score(tokens[:2], {"": policy.expected})
        assert policy.training == policy.model.training == mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_whose_rotation_goes_by_their_place_cannot_start_from_states(dtype: torch.dtype, tmp_path: Path) -> None:
    """Gemma 3 turns each layer by its place in the list: its upper half alone would be off by a hundredth."""
    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "head_dim": 8}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 8, "max_position_embeddings": 256}
    config = AutoConfig.for_model("gemma3_text", vocab_size=len(tokenizer), initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    backbone = Backbone(model, tokenizer, "gemma3", "1", max_length=128)
    pair = tuple(backbone.chat.encode(["Name a river."] * 2, ["The long one.", "No."]))
    with pytest.raises(InputError, match="cannot start from the states of a layer"):
        Trunk(backbone, 4, [pair], tmp_path)  # type: ignore[list-item]
