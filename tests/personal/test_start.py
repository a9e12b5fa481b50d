"""Where z starts: the principal directions of what tells responses to one prompt apart, from one reading of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penchant.errors import InputError
from penchant.personal import start as module
from penchant.personal.clap import Clap
from penchant.personal.groups import Group, groups_of
from penchant.personal.start import principal_start
from tests.personal.tiny import ANSWERS, make_clap, prompts
from tests.tiny_llm import save_tiny_llm

LAYER = 2
"""The middle of three, which z is of."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def read(clap: Clap) -> list[Group]:
    return groups_of(clap, prompts(5), [ANSWERS, ANSWERS[:2], ANSWERS[1:], ANSWERS, ANSWERS[:3]])


def runs_of(clap: Clap) -> list[int]:
    """Tokens that each layer runs from now on."""
    tokens = [0] * clap.backbone.depth
    for number, layer in enumerate(clap.backbone.layers):

        def count(_module: object, inputs: tuple[torch.Tensor], _output: object, at: int = number) -> None:
            tokens[at] += inputs[0].shape[0] * inputs[0].shape[1]

        # First of all: the backbone's own hook stops at the layer that was asked for.
        layer.register_forward_hook(count, prepend=True)
    return tokens


@torch.no_grad()
def apart_by_hand(clap: Clap, groups: list[Group], layer: int = LAYER) -> torch.Tensor:
    """Mean states of the responses behind a layer, by the LLM itself, less their prompt's mean; [R, n]."""
    found = []
    for group in groups:
        means = []
        for item in group:
            whole = torch.tensor([[*item.prompt, *item.response]])
            clap.backbone.config._attn_implementation = clap.backbone.plain_attention
            states = clap._llm[0](input_ids=whole, output_hidden_states=True).hidden_states[layer][0]
            means.append(states[len(item.prompt) :].mean(0))
        found.append(torch.stack(means) - torch.stack(means).mean(0))
    return torch.cat(found).double()


def test_z_is_the_widest_directions_with_variance_one(llm: Path, tmp_path: Path) -> None:
    clap = make_clap(llm)
    groups = read(clap)
    axes, targets = principal_start(clap, groups, tmp_path)
    assert list(axes) == [LAYER]
    assert axes[LAYER].shape == (8, 32)
    assert [z.shape for z in targets] == [(len(group), 8) for group in groups]
    z, a = torch.cat(targets).double(), axes[LAYER].double()
    gram = a @ a.T
    assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-4 * float(gram[0, 0]))
    assert (gram.diagonal().diff() < 0).all()
    assert torch.allclose(z.T @ z / len(z), torch.eye(8, dtype=torch.float64), atol=1e-3)
    for own in targets:
        assert torch.allclose(own.mean(0), torch.zeros(8), atol=1e-3)  # of no prompt, but of its responses
    apart = apart_by_hand(clap, groups)
    rest = apart - z @ a
    assert (rest @ a.T).abs().max() < 1e-3 * float(gram[0, 0])
    # No eight directions leave less (Eckart and Young).
    least = torch.linalg.svdvals(apart)[8:].norm()
    assert 0.01 * apart.norm() < rest.norm() < 1.001 * least


def test_what_z_is_behind_other_layers_is_found_by_regression(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clap = make_clap(llm)
    groups = read(clap)
    (alone, targets) = principal_start(clap, groups, tmp_path)
    monkeypatch.setattr(module, "start_layers", lambda _depth: (1, LAYER, 3))
    axes, same = principal_start(clap, groups, tmp_path)
    z = torch.cat(same).double()
    assert torch.allclose(z, torch.cat(targets).double(), atol=1e-4)
    assert torch.allclose(3 * axes[LAYER], alone[LAYER], atol=1e-4)  # the push is shared among the layers
    for layer, own in axes.items():
        least = torch.linalg.lstsq(z, apart_by_hand(clap, groups, layer)).solution
        assert torch.allclose(3 * own.double(), least, atol=1e-3 * float(least.abs().max()))


def test_the_layers_lie_about_the_middle() -> None:
    assert module.start_layers(30) == (12, 16, 20)
    for depth in range(1, 100):
        first, middle, last = module.start_layers(depth)
        assert 1 <= first <= middle <= last <= depth


def test_every_text_is_read_once_and_no_further_than_the_layer(llm: Path, tmp_path: Path) -> None:
    clap = make_clap(llm)
    groups = read(clap)
    tokens = runs_of(clap)
    first = principal_start(clap, groups, tmp_path)
    assert clap.backbone.packed
    once = sum(len(group[0].prompt) + sum(len(item.response) for item in group) for group in groups)
    assert tokens == [once, once, 0]
    again = principal_start(clap, groups, tmp_path)
    assert tokens == [once, once, 0]  # from the cache
    assert torch.equal(again.axes[LAYER], first.axes[LAYER])


def test_too_few_directions_are_named(llm: Path, tmp_path: Path) -> None:
    clap = make_clap(llm)
    groups = groups_of(clap, prompts(3), [ANSWERS] * 3)  # 12 rows of 3 means: 9 directions
    assert principal_start(clap, groups, tmp_path).axes[LAYER].shape == (8, 32)
    for few in (groups[:1], groups[:2]):  # fewer rows than directions, and fewer directions than rows
        with pytest.raises(InputError, match="fewer than 8 directions"):
            principal_start(clap, few, tmp_path)
