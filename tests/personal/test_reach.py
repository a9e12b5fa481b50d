"""How far z may go: a border of equal cost, what it is measured on, and what it is where there is little to measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from penchant.chat import Tokens
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.personal.clap import Clap
from penchant.personal.groups import Group, groups_of
from penchant.personal.reach import DRAWS, FARTHEST, FLOOR, LIMIT, Reach, first_terms, per_token
from penchant.personal.system import PersonalLLM
from tests.personal.test_system import PROMPTS, pretrain
from tests.personal.tiny import ANSWERS, make_clap, opened, prompts
from tests.tiny_llm import save_tiny_llm

LATENT = 8
MOST = math.log(LIMIT)


def reaches() -> list[Reach]:
    random = torch.Generator().manual_seed(0)
    slope = torch.randn(LATENT, generator=random)
    part = torch.randn(LATENT, LATENT, generator=random)
    metrics = torch.eye(LATENT), part @ part.T / LATENT + 0.1 * torch.eye(LATENT)
    bends = (1e-6, 1e-3, 0.05, 3.0)
    return [Reach(a * slope, bend, metric) for a in (0.0, 0.01, 1.0) for bend in bends for metric in metrics]


def plain(slope: Tensor, bend: float) -> Reach:
    """In the usual length."""
    return Reach(slope, bend, torch.eye(LATENT))


def directions(n: int = 200) -> Tensor:
    z = torch.randn(n, LATENT, generator=torch.Generator().manual_seed(1))
    return z / z.norm(dim=1, keepdim=True)


def cost(reach: Reach, z: Tensor) -> Tensor:
    z = z.double()
    return z @ reach.slope.double() + reach.bend * ((z @ reach.metric.double()) * z).sum(1)


@pytest.mark.parametrize("reach", reaches())
def test_a_z_that_is_too_far_is_held_at_the_border_and_any_other_stays(reach: Reach) -> None:
    unit = directions()
    held = reach.within(1000 * unit)
    assert torch.allclose(held, held.norm(dim=1, keepdim=True) * unit, atol=1e-4)  # the direction stays
    length = reach.length(held)
    farthest = length > FARTHEST - 1e-4
    assert torch.allclose(length[farthest], torch.tensor(FARTHEST, dtype=torch.float64))
    assert (cost(reach, held)[farthest] <= MOST + 1e-4).all()
    at_border = cost(reach, held)[~farthest]
    assert torch.allclose(at_border, torch.full_like(at_border, math.log(1.1)), rtol=1e-4)
    for share in (0.0, 1e-6, 0.5, 0.99):
        assert torch.equal(reach.within(share * held), share * held)
    for far in (1.01, 3.0):
        assert torch.allclose(reach.within(far * held), held, rtol=1e-4)
    assert torch.isfinite(reach.within(torch.zeros(1, LATENT))).all()


def test_answers_may_go_farther_where_they_grow_likelier() -> None:
    reach = plain(torch.tensor([0.1] + [0.0] * (LATENT - 1)), 0.01)
    there, back = (float(reach.within(100 * z[None]).norm()) for z in (reach.slope, -reach.slope))
    assert there < 1 < FARTHEST - 0.1 < back  # likelier is against the slope, a cost
    mild = plain(torch.zeros(LATENT), 0.01)
    assert float(mild.within(100 * reach.slope[None]).norm()) == pytest.approx(math.sqrt(MOST / 0.01), rel=1e-4)
    flipped = plain(-reach.slope, reach.bend)
    z = 100 * directions()
    assert torch.equal(flipped.within(-z), -reach.within(z))


def test_a_limit_is_where_the_cost_is_its_logarithm_and_no_limit_is_none() -> None:
    reach, z = plain(torch.linspace(-0.2, 0.2, LATENT), 0.05), 100 * directions()
    near, usual, far = (reach.within(z, limit) for limit in (1.01, LIMIT, 1.5))
    assert torch.equal(usual, reach.within(z))
    for limit, held in ((1.01, near), (1.5, far)):
        border = held[reach.length(held) < FARTHEST - 1e-4]
        assert len(border) > 10
        assert torch.allclose(cost(reach, border).exp(), torch.tensor(limit, dtype=torch.float64), rtol=1e-4)
    assert (near.norm(dim=1) <= usual.norm(dim=1) + 1e-6).all()
    assert (usual.norm(dim=1) <= far.norm(dim=1) + 1e-6).all()
    for limit in (1.0, 0.5, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match=r"limit of perplexity is .*; give a number above 1"):
            reach.within(z, limit)


class Planted:
    """A CLaP under which z makes a response likelier, by z . v, the more, the likelier it is among its prompt's."""

    latent, backbone = LATENT, SimpleNamespace(device="cpu")

    def __init__(self, toward: Tensor, groups: int, each: int = 8) -> None:
        random = torch.Generator().manual_seed(2)
        rows = groups * each
        owner = torch.arange(groups).repeat_interleave(each)
        apart = torch.randn(rows, generator=random)
        self.said = apart + 3 * torch.randn(groups, generator=random)[owner] - 3
        of_prompt = torch.randn(groups, LATENT, generator=random)[owner]
        self.g = apart[:, None] * toward + of_prompt + 0.1 * torch.randn(rows, LATENT, generator=random)
        ids = np.arange(3, dtype=np.int32)
        # A row's number stands in the prompt; responses are of 1 to 3 tokens.
        items = [Tokens(np.array([row], np.int32), ids[: 1 + row % 3], cut=0) for row in range(rows)]
        self.groups: list[Group] = [items[first : first + each] for first in range(0, rows, each)]

    def log_probs(self, items: Sequence[Tokens], z: Tensor) -> Tensor:
        rows = torch.tensor([int(item.prompt[0]) for item in items])
        lengths = torch.tensor([len(item.response) for item in items])
        return self.said[rows] * lengths + (self.g[rows] * z.sin()).sum(1)


def test_what_makes_answers_likelier_is_found_whatever_their_prompts_do() -> None:
    toward = torch.linspace(-0.3, 0.4, LATENT)
    made = Planted(toward, 600)
    share = 1 - 1 / 8  # of the variance is within prompts of eight
    likelier, metric = first_terms(cast(Clap, made), made.groups)
    assert torch.allclose(likelier, share * toward, atol=0.05)
    strays = share * (toward[:, None] * toward + 0.01 * torch.eye(LATENT)) + FLOOR * torch.eye(LATENT)
    assert torch.allclose(metric, strays, atol=0.02)
    nothing = Planted(torch.zeros(LATENT), 600)
    assert first_terms(cast(Clap, nothing), nothing.groups)[0].abs().max() < 0.05


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("reach"))


@pytest.fixture
def clap(llm: Path) -> Clap:
    clap = make_clap(llm, LATENT).eval()
    opened(clap.adapter)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.2)
    return clap


def parts(clap: Clap, n: int = 3) -> tuple[Generator, list[str], list[Group]]:
    asked = prompts(n)
    return Generator(clap._llm[0], clap.backbone, clap.adapter), asked, groups_of(clap, asked, [ANSWERS] * n)


def check(reach: Reach) -> None:
    assert torch.isfinite(reach.slope).all()
    assert math.isfinite(reach.bend)
    assert reach.bend > 0
    held = reach.within(100 * directions())
    assert torch.isfinite(held).all()
    assert (cost(reach, held) <= MOST + 1e-3).all()


def test_the_same_answers_are_looked_at_again(clap: Clap) -> None:
    generator, asked, groups = parts(clap)
    first, same, other = (Reach.of(clap, generator, asked, groups, seed) for seed in (2, 2, 0))
    check(first)
    assert torch.equal(first.slope, same.slope)
    assert first.bend == same.bend
    assert first.bend != other.bend or not torch.equal(first.slope, other.slope)


def test_the_bend_is_what_answers_cost_on_the_mean(clap: Clap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer's cost is known, cost(z) is it: here .02 |z|^2, less v . z."""
    generator, asked, groups = parts(clap, 12)
    toward, seen = torch.linspace(-0.1, 0.1, LATENT), []

    def sample(rows: list[str], *, z: Tensor, **settings: Any) -> list[list[str]]:
        seen.append((rows, z, settings))
        return [[f"row {row}"] for row in range(len(rows))]

    def known(_clap: Clap, items: Sequence[Tokens]) -> Tensor:
        z = seen[0][1]
        return z @ toward - 0.02 * z.square().sum(1) - torch.arange(len(z) // (1 + DRAWS)).repeat_interleave(1 + DRAWS)

    monkeypatch.setattr(generator, "sample", sample)
    monkeypatch.setattr("penchant.personal.reach.per_token", known)
    monkeypatch.setattr("penchant.personal.reach.first_terms", lambda *_: (0.5 * toward, torch.eye(LATENT)))
    reach = Reach.of(clap, generator, [*asked, *asked], groups, 0)
    assert reach.bend == pytest.approx(0.02, rel=1e-3)
    assert torch.allclose(reach.slope, -toward, atol=1e-4)
    ((rows, z, settings),) = seen
    assert rows == [prompt for prompt in asked for _ in range(1 + DRAWS)]  # each once
    assert settings["max_new_tokens"] == max(len(item.response) for group in groups for item in group)
    length = z.norm(dim=1).view(-1, 1 + DRAWS)
    assert not length[:, 0].any()
    assert length.max() <= FARTHEST + 1e-4
    assert length[:, 1:].min() >= FARTHEST / 2 - 1e-4
    assert length[:, 1:].std() > 0.4
    # A prior against which answers grow likelier is taken for none.
    monkeypatch.setattr("penchant.personal.reach.first_terms", lambda *_: (-0.5 * toward, torch.eye(LATENT)))
    assert not Reach.of(clap, generator, asked, groups, 0).slope.any()


def test_where_v_is_no_guide_the_bend_alone_is_what_fits_best(clap: Clap, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, asked, groups = parts(clap, 12)
    toward, seen = torch.linspace(-0.3, 0.3, LATENT), []
    monkeypatch.setattr(generator, "sample", lambda rows, *, z, **_: seen.append(z) or [["a"] for _ in rows])

    def known(_clap: Clap, items: Sequence[Tokens]) -> Tensor:
        return seen[0] @ toward - 0.02 * seen[0].square().sum(1)

    monkeypatch.setattr("penchant.personal.reach.per_token", known)
    monkeypatch.setattr("penchant.personal.reach.first_terms", lambda *_: (-toward, torch.eye(LATENT)))
    bend = Reach.of(clap, generator, asked, groups, 0).bend
    squares = seen[0].square().sum(1)
    cost = 0.02 * squares - seen[0] @ toward
    squares, cost = (
        part.view(-1, 1 + DRAWS) - part.view(-1, 1 + DRAWS).mean(1, keepdim=True) for part in (squares, cost)
    )
    squares, cost = squares.flatten(), cost.flatten()
    assert bend == pytest.approx(float(squares @ cost / (squares @ squares)), rel=1e-4)
    assert bend != pytest.approx(0.02, rel=1e-2)  # what a fit beside k says


@pytest.mark.parametrize("said", ["", " \n"])
@pytest.mark.parametrize("n", [1, 3])
def test_where_all_answers_are_empty_nothing_breaks(
    clap: Clap, monkeypatch: pytest.MonkeyPatch, said: str, n: int
) -> None:
    generator, asked, groups = parts(clap, n)
    monkeypatch.setattr(generator, "sample", lambda rows, **_: [[said] for _ in rows])
    check(Reach.of(clap, generator, asked, groups, 0))


def test_where_there_is_little_to_look_at_nothing_breaks(clap: Clap) -> None:
    generator, asked, groups = parts(clap, 1)
    check(Reach.of(clap, generator, asked, groups, 0))
    check(Reach.of(clap, generator, asked, [groups[0][:2]], 0))
    torch.nn.init.zeros_(clap.adapter.axes)  # z does nothing
    reach = Reach.of(clap, generator, asked, groups, 0)
    check(reach)
    assert not reach.slope.any()


def test_responses_as_long_as_the_window_leave_prompts_their_room(llm: Path) -> None:
    clap = make_clap(llm, LATENT).eval()
    clap.backbone.chat.max_length = 24
    generator = Generator(clap._llm[0], clap.backbone, clap.adapter)
    groups = groups_of(clap, ["Say a", "Say b"], [["ab " * 40, "cd " * 40]] * 2)
    assert max(len(item.response) for item in groups[0]) >= 24
    check(Reach.of(clap, generator, ["Say a", "Say b"], groups, 0))


@torch.no_grad()
def test_likelihoods_are_a_tokens_mean(clap: Clap) -> None:
    items = groups_of(clap, ["Say a"], [ANSWERS])[0]
    found = per_token(clap, items)
    for item, value in zip(items, found, strict=True):
        alone = clap.log_probs([item], None)[0] / len(item.response)
        assert float(value) == pytest.approx(float(alone), abs=1e-4)


def test_a_system_knows_its_reach_again_and_holds_z_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_llm(tmp_path / "llm")
    made = pretrain(tmp_path, "system")
    system = PersonalLLM.load(tmp_path / "system")
    assert torch.equal(system.reach.slope, made.reach.slope)
    assert torch.equal(system.reach.metric, made.reach.metric)
    assert system.reach.bend == made.reach.bend
    assert pretrain(tmp_path, "system").facts["reach"] == made.facts["reach"]
    system.reach = plain(torch.linspace(-0.2, 0.2, LATENT), 0.05)
    seen: list[Tensor] = []
    fake = SimpleNamespace(sample=lambda prompts, z, **_: seen.append(z) or [["a"]] * len(prompts))
    monkeypatch.setattr(system, "generator", fake)
    for length, changed in ((100.0, True), (0.01, False)):
        z = torch.full((LATENT,), length)
        system.population = z
        system.generate(PROMPTS)
        system.generate(PROMPTS, perplexity_limit=1.01)
        assert torch.equal(seen.pop(), system.reach.within(z.expand(len(PROMPTS), -1), 1.01))
        assert torch.equal(system.z(PROMPTS)[0], z)  # what is known of a person stays
        assert torch.equal(seen[-1], system.reach.within(z.expand(len(PROMPTS), -1)))
        assert torch.equal(seen[-1][0], z) != changed
