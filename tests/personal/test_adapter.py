"""The latent adapters: where they start, what they do to the LLM, and that it is the same by hand, one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from penchant.backbone import decoder_layers, load_whole
from penchant.decoding import Decoder, shifted_layers
from penchant.generation import Generator
from penchant.personal.adapter import LatentPositions, LatentShift, last_states
from penchant.personal.clap import AdapterKind
from tests.personal.tiny import ADAPTERS, KINDS, VOCABULARY, ids, made, opened, sequence, tiny_llm
from tests.tiny_llm import save_tiny_llm


def in_front(llm: Any, front: Any, start: torch.Tensor) -> transformers.DynamicCache:
    """A prompt's start [1, t] as the LLM alone reads it at positions 4 and on, with z's four positions put in front."""
    read, both = transformers.DynamicCache(), transformers.DynamicCache()
    if start.shape[1]:
        llm(input_ids=start, position_ids=4 + torch.arange(start.shape[1])[None], past_key_values=read)
    for number, layer in enumerate(front.layers):
        parts = [(layer.keys, layer.values)] + [(own.keys, own.values) for own in read.layers[number : number + 1]]
        both.update(*(torch.cat(part, 2) for part in zip(*parts, strict=True)), number)
    return both


def logits_by_hand(llm: Any, adapter: Any, z: torch.Tensor, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Logits behind the tokens [t] from number `start` on, these alone steered by z [1, 8], of the one sequence."""
    if isinstance(adapter, LatentPositions):
        cache, places = in_front(llm, adapter(z).front, ids[None, :start]), 4 + torch.arange(start, len(ids))
        return llm(input_ids=ids[None, start:], past_key_values=cache, position_ids=places[None]).logits[0]
    handles = []
    for layer, axes in zip(decoder_layers(llm), adapter.axes, strict=True):

        def add(_module: Any, _inputs: Any, output: Any, moved: torch.Tensor = z @ axes) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[:, start:] += moved
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handles.append(layer.register_forward_hook(add))
    logits = llm(input_ids=ids[None], use_cache=False).logits[0, start:]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_before_training_z_says_nothing_and_the_llm_has_positions_of_zeros_in_front(kind: str) -> None:
    llm = tiny_llm(kind)
    adapter = LatentPositions(llm, latent=8)
    z, text = torch.randn(2, 8), ids(6).expand(2, -1)
    first = llm(input_ids=text, past_key_values=adapter(z).front).logits
    assert (first - llm(input_ids=text).logits).abs().max() > 0.01  # positions of zeros are not nothing
    by_hand = transformers.DynamicCache()
    for number, layer in enumerate(adapter(z).front.layers):
        by_hand.update(torch.zeros_like(layer.keys), torch.zeros_like(layer.values), number)
    assert by_hand.get_seq_length() == 4
    assert torch.equal(llm(input_ids=text, past_key_values=by_hand).logits, first)


@torch.no_grad()
def test_keys_and_values_are_the_layers_own_of_the_same_vectors() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    llm: Any = tiny_llm("llama")
    adapter = opened(LatentPositions(llm, latent=8))
    z = torch.randn(3, 8)
    u = adapter.net(z).view(3, 4, 32)
    turn = llm.model.rotary_emb(u, torch.arange(4)[None])
    for number, (layer, cached) in enumerate(zip(llm.model.layers, adapter(z).front.layers, strict=True)):
        normed = layer.input_layernorm(u)
        keys, values = (
            project(normed).view(3, 4, 2, 8).transpose(1, 2)
            for project in (layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        keys = apply_rotary_pos_emb(keys, keys, *turn)[0]
        assert torch.allclose(cached.keys, adapter.gates[0, number] * keys, atol=1e-5)
        assert torch.allclose(cached.values, adapter.gates[1, number] * values, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@torch.no_grad()
def test_log_probabilities_are_those_of_the_sequences_one_by_one(kind: str, adapter: AdapterKind) -> None:
    llm = tiny_llm(kind)
    steer = made(llm, adapter)
    items = [sequence(5, 3), sequence(2, 9, 1), sequence(0, 4, 2)]
    items.append(replace(items[0], response=items[1].response[:2]))  # another answer to the first prompt, of another z
    z = torch.randn(4, 8)
    states, targets, owner = last_states(llm, steer(z), items)
    logits = llm.get_output_embeddings()(states)
    for row, item in enumerate(items):
        whole = torch.tensor([*item.prompt, *item.response]).long()
        start = max(1, len(item.prompt))
        alone = logits_by_hand(llm, steer, z[row : row + 1], whole, start - 1)
        assert torch.allclose(logits[owner == row], alone[:-1], atol=1e-4)
        assert torch.equal(targets[owner == row], whole[start:])
    assert len(targets) == 3 + 9 + 3 + 2
    plain, *_ = last_states(llm, None, items[:1])
    assert torch.allclose(
        llm.get_output_embeddings()(plain),
        llm(input_ids=torch.tensor([[*items[0].prompt, *items[0].response]])).logits[0, 4:-1],
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_generate_takes_the_cache_with_left_padding(kind: str) -> None:
    llm: Any = tiny_llm(kind)
    llm.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None)
    adapter = opened(LatentPositions(llm, latent=8))
    prompts, z, new, m = [ids(6), ids(2, 1)], torch.randn(2, 8), 5, 4
    longest = max(map(len, prompts))
    padded = torch.stack([torch.cat([torch.zeros(m + longest - len(p), dtype=torch.long), p]) for p in prompts])
    mask = torch.stack([torch.cat([torch.ones(m), torch.zeros(longest - len(p)), torch.ones(len(p))]) for p in prompts])
    out = llm.generate(
        padded, attention_mask=mask.long(), past_key_values=adapter(z).front, max_new_tokens=new, do_sample=False
    )[:, -new:]
    for row, prompt in enumerate(prompts):
        grown = prompt
        for _ in range(new):
            cache = adapter(z[row : row + 1]).front
            grown = torch.cat([grown, llm(input_ids=grown[None], past_key_values=cache).logits[0, -1].argmax()[None]])
        assert torch.equal(out[row], grown[len(prompt) :])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_reach_the_adapter_and_z_and_not_the_llm(kind: AdapterKind) -> None:
    llm = tiny_llm("llama")
    adapter = made(llm, kind)
    z = torch.randn(2, 8, requires_grad=True)
    states, targets, _ = last_states(llm, adapter(z), [sequence(4, 5), sequence(3, 2, 1)])
    torch.nn.functional.cross_entropy(llm.get_output_embeddings()(states), targets).backward()
    assert z.grad is not None and z.grad.abs().max() > 0  # noqa: PT018
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert all(p.grad is None for p in llm.parameters())
    assert not any("embed" in name for name in adapter.state_dict())
    assert sum(p.numel() for p in adapter.parameters()) < 2 * VOCABULARY * 32
    assert not any(layer._forward_hooks for layer in decoder_layers(llm))  # nothing of z stays behind


@torch.no_grad()
def test_a_shift_begins_behind_the_layers_it_is_told_and_moves_their_states_by_z_times_the_axes() -> None:
    llm: Any = tiny_llm("llama")
    adapter = LatentShift(llm, latent=8)
    assert not adapter(torch.randn(2, 8)).shifts.any()
    axes, z = torch.randn(8, 32), torch.randn(2, 8)
    adapter.begin({1: axes})
    steering = adapter(z)
    assert torch.allclose(steering.shifts[0], z @ axes, atol=1e-5)
    assert not steering.shifts[1:].any()
    assert list(steering.layers) == list(llm.model.layers)
    seen: list[torch.Tensor] = []
    llm.model.layers[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    text = ids(5).expand(2, -1)
    llm(input_ids=text)
    with shifted_layers(steering):
        llm(input_ids=text)
    assert torch.allclose(seen[1] - seen[0], (z @ axes)[:, None].expand(-1, 5, -1), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_answers_sampled_side_by_side_are_those_of_each_z_alone(tmp_path: Path, adapter: AdapterKind) -> None:
    model, backbone = load_whole(str(save_tiny_llm(tmp_path)), dtype="float32")
    steer = made(model, adapter)
    prompts, z = ["Name a tree", "And a much longer one, please", "Name a tree", "x"], torch.randn(4, 8)
    generator = Generator(model, backbone, steer)
    found = generator.sample(prompts, answers=2, max_new_tokens=6, temperature=0, z=z, show_progress=False)
    assert found[0] != found[2]  # one prompt, two z
    assert generator.sample(prompts[:1], answers=2, max_new_tokens=6, temperature=0, show_progress=False) != found[:1]
    backbone.config._attn_implementation = backbone.plain_attention
    for row, item in enumerate(backbone.chat.encode(prompts, ["a"] * 4)):
        grown = torch.from_numpy(item.prompt).long()
        for _ in range(6):
            token = logits_by_hand(model, steer, z[row : row + 1], grown, len(item.prompt) - 1)[-1].argmax()
            if int(token) in backbone.chat.ends:
                break
            grown = torch.cat([grown, token[None]])
        text = backbone.chat.tokenizer.decode(grown[len(item.prompt) :], skip_special_tokens=True)
        assert found[row] == [text, text]


@torch.no_grad()
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_prompts_that_are_left_keep_their_own_z(tmp_path: Path, adapter: AdapterKind) -> None:
    model, backbone = load_whole(str(save_tiny_llm(tmp_path)), dtype="float32")
    steer = made(model, adapter)
    prompts, z, tokens = [ids(1), ids(4, 1), ids(6, 2), ids(9, 3)], torch.randn(4, 8), ids(16, 4).view(2, 4, 2)
    decoder = Decoder(model, backbone, prompts, 2, 64, steering=steer(z))
    decoder.step(decoder.first)
    decoder.step(tokens[0])
    decoder.keep(torch.tensor([1, 3]))
    found = decoder.step(tokens[1, [1, 3]])
    decoder.keep(torch.tensor([1]))
    last = decoder.step(tokens[0, 3:])
    for row, column in ((1, 0), (1, 1), (3, 0), (3, 1)):
        grown = torch.cat([prompts[row], tokens[:, row, column]])
        alone = logits_by_hand(model, steer, z[row : row + 1], grown, len(prompts[row]) - 1)[-1]
        assert torch.allclose(found[row // 2, column], alone, atol=1e-4)
        if row == 3:
            grown = torch.cat([grown, tokens[0, 3, column, None]])
            alone = logits_by_hand(model, steer, z[3:], grown, len(prompts[3]) - 1)[-1]
            assert torch.allclose(last[0, column], alone, atol=1e-4)
