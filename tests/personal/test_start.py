"""Where z starts: the principal directions of what tells responses to one prompt apart, from one reading of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penchant.decoding import Steering
from penchant.errors import InputError
from penchant.personal import start as module
from penchant.personal.adapter import LatentShift
from penchant.personal.clap import Clap
from penchant.personal.groups import Group, groups_of
from penchant.personal.start import moved_layers, principal_start, principal_z, shift_scores
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
    targets, projection = principal_z(clap, groups, tmp_path)
    assert [z.shape for z in targets] == [(len(group), 8) for group in groups]
    z = torch.cat(targets).double()
    assert torch.allclose(z.T @ z / len(z), torch.eye(8, dtype=torch.float64), atol=1e-3)
    for own in targets:
        assert torch.allclose(own.mean(0), torch.zeros(8), atol=1e-3)  # of no prompt, but of its responses
    apart = apart_by_hand(clap, groups)
    assert torch.allclose(apart @ projection.double(), z, atol=1e-2)
    rest = apart - z @ (z.T @ apart / len(z))
    # No eight directions leave less (Eckart and Young).
    least = torch.linalg.svdvals(apart)[8:].norm()
    assert 0.01 * apart.norm() < rest.norm() < 1.001 * least


@torch.no_grad()
def test_a_score_is_what_a_small_shift_does_to_the_likelihood(llm: Path) -> None:
    clap = make_clap(llm)
    (group, *_), layers = read(clap), (1, 3)
    with torch.enable_grad():
        g = shift_scores(clap, group, layers)
    assert g.shape == (len(group), 64)
    modules = [clap.backbone.layers[layer - 1] for layer in layers]
    random = torch.Generator().manual_seed(3)
    for _ in range(4):
        step = torch.randn(len(layers), 1, 32, generator=random)
        there, back = (
            clap.steered(group, Steering(layers=modules, shifts=(sign * 1e-2 * step).expand(-1, len(group), -1)))
            for sign in (1, -1)
        )
        rise = (there - back) / 2e-2
        expected = g @ step[:, 0].flatten()
        assert torch.allclose(rise - rise.mean(), expected, atol=0.02 * float(expected.abs().max()))


def test_axes_bring_most_of_z_for_their_nats(llm: Path, tmp_path: Path) -> None:
    """In a step of given cost s (F + ridge) s' no direction gains more of z_j than A_j, by E[g' z_j]."""
    clap = make_clap(llm)
    groups = read(clap)
    axes, targets, _ = principal_start(clap, groups, tmp_path)
    layers = moved_layers(clap.backbone.depth)
    assert tuple(axes) == layers
    a = torch.cat(list(axes.values()), 1).double()
    g = torch.cat([shift_scores(clap, group, layers) for group in groups]).double()
    z = torch.cat(targets).double()
    fisher, cross = g.T @ g / len(g), z.T @ g / len(g)
    assert float(((a @ fisher) * a).sum(1).mean()) == pytest.approx(1, abs=1e-4)  # half a nat a unit
    held = fisher + module.RIDGE * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=torch.float64)

    def gain(step: torch.Tensor) -> torch.Tensor:
        return (cross * step).sum(1) / ((step @ held) * step).sum(1).sqrt()

    random = torch.Generator().manual_seed(0)
    for length in (0.05, 0.5, 5.0):
        away = length * torch.randn(a.shape, generator=random, dtype=torch.float64) * a.norm() / a.numel() ** 0.5
        assert (gain(a + away) < gain(a)).all()
    assert (gain(a) > 0).all()


def test_an_answer_of_more_z_is_likelier_under_it(llm: Path, tmp_path: Path) -> None:
    """log p(y | x, z) rises, in the mean, along the responses' own z: what the axes are for."""
    clap = make_clap(llm)
    groups = read(clap)
    axes, targets, _ = principal_start(clap, groups, tmp_path)
    assert isinstance(clap.adapter, LatentShift)
    clap.adapter.begin(axes)
    with torch.no_grad():
        own, other, plain = (
            torch.cat([clap.log_probs(group, z) for group, z in zip(groups, zs, strict=True)]).mean()
            for zs in (
                [0.3 * z for z in targets],
                [-0.3 * z for z in targets],
                [0 * z for z in targets],
            )
        )
    assert other < plain < own


def test_layers_of_any_depth() -> None:
    assert module.read_layer(30) == 16
    assert moved_layers(30) == (20, 24)
    for depth in range(1, 100):
        layers = moved_layers(depth)
        assert 1 <= module.read_layer(depth) <= max(layers) <= depth
        assert min(layers) >= 1
        assert sorted(set(layers)) == list(layers)


def test_every_text_is_read_once_and_no_further_than_the_layer(llm: Path, tmp_path: Path) -> None:
    clap = make_clap(llm)
    groups = read(clap)
    tokens = runs_of(clap)
    first, _ = principal_z(clap, groups, tmp_path)
    assert clap.backbone.packed
    once = sum(len(group[0].prompt) + sum(len(item.response) for item in group) for group in groups)
    assert tokens == [once, once, 0]
    again, _ = principal_z(clap, groups, tmp_path)
    assert tokens == [once, once, 0]  # from the cache
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_too_few_directions_are_named(llm: Path, tmp_path: Path) -> None:
    clap = make_clap(llm)
    groups = groups_of(clap, prompts(3), [ANSWERS] * 3)  # 12 rows of 3 means: 9 directions
    assert principal_start(clap, groups, tmp_path).axes[LAYER].shape == (8, 32)
    for few in (groups[:1], groups[:2]):  # fewer rows than directions, and fewer directions than rows
        with pytest.raises(InputError, match="fewer than 8 directions"):
            principal_start(clap, few, tmp_path)
