"""Prompts that are read once: what stands behind them gets what it gets behind a prompt of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.personal.adapter import last_states
from penchant.personal.encoder import LatentEncoder
from penchant.personal.prefix import distinct
from tests.personal.tiny import KINDS, ids, sequence, tiny_llm

ALL = (*KINDS, "mistral")


def rows_run(layer: torch.nn.Module) -> list[int]:
    """How many rows each pass from now on runs through a layer."""
    found: list[int] = []
    layer.register_forward_hook(lambda _module, inputs, _output: found.append(len(inputs[0])))
    return found


def test_distinct_keys_stand_where_they_are_first() -> None:
    first, number = distinct([b"b", b"a", b"b", b"", b"a"])
    assert first == [0, 1, 3]
    assert number.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("kind", ALL)
def test_a_text_behind_a_prompt_is_the_whole_text_whatever_runs_beside_it(kind: str) -> None:
    encoder = LatentEncoder(tiny_llm(kind), latent=8)
    prompts = [ids(12), ids(3, 1), ids(0), ids(12), ids(5, 2), ids(0)]
    texts = [ids(4, 3), ids(9, 4), ids(6, 5), ids(2, 6), ids(0), ids(0)]
    wholes = [torch.cat(pair) for pair in zip(prompts, texts, strict=True)]

    def gradients(features: torch.Tensor) -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    alone = torch.cat([encoder.features([whole]) for whole in wholes])
    expected = gradients(alone)
    for found in (encoder.features(texts, prompts), encoder.features(wholes)):
        assert torch.allclose(found, alone, atol=1e-5)
        ours = gradients(found)
        assert set(ours) == set(expected)
        for name, gradient in ours.items():
            assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_where_no_token_stands_before_another_nothing_is_predicted(kind: str) -> None:
    llm = tiny_llm(kind)
    for items in ([sequence(0, 1)], [sequence(0, 1), sequence(0, 1, 1)]):
        states, targets, owner = last_states(llm, None, items)
        assert states.shape == (0, 32)
        assert len(targets) == len(owner) == 0


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_log_probabilities_are_those_of_whole_sequences_by_the_llm_itself(kind: str) -> None:
    llm = tiny_llm(kind)
    items = [sequence(20, 4), sequence(3, 9, 1), sequence(0, 4, 2), sequence(1, 5, 3), sequence(11, 2, 4)]
    states, _, owner = last_states(llm, None, items)
    for row, item in enumerate(items):
        whole = torch.tensor([[*item.prompt, *item.response]])
        theirs = llm.base_model(input_ids=whole)[0][0, max(0, len(item.prompt) - 1) : -1]
        assert torch.allclose(states[owner == row], theirs, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_different_prompt_is_run_once(kind: str) -> None:
    llm: Any = tiny_llm(kind)
    encoder: Any = LatentEncoder(llm, latent=8)
    prompts, texts = [ids(5), ids(7, 1), ids(5), ids(5)], [ids(3, n) for n in range(4)]
    layers = encoder.layers.layers if kind == "llama" else encoder.layers.h
    rows = rows_run(layers[0])
    encoder.features(texts, prompts)
    assert rows == [2, 4]
    rows.clear()
    encoder.features(texts)
    assert rows == [4]  # nothing is read in front of nothing
    rows = rows_run(llm.model.layers[0] if kind == "llama" else llm.transformer.h[0])
    same = sequence(5, 4)
    other = same.__class__(same.prompt, same.response[:2], 0)
    last_states(llm, None, [same, other, sequence(6, 2, 1), same])
    assert rows == [2, 4]
