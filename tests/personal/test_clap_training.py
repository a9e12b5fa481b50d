"""Training CLaP on tiny LLMs: z comes to carry how a response is written, a run can be resumed, and what of the LLM
trains, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penchant.errors import InputError
from penchant.personal import clap_training as module
from penchant.personal.clap import AdapterKind, Clap
from penchant.personal.clap_figures import evaluate_clap
from penchant.personal.clap_training import Beginning, ClapSettings, Run, Training, train_clap
from penchant.personal.groups import Group, groups_of
from penchant.personal.start import Start, principal_start
from tests.personal.tiny import ADAPTERS, ANSWERS, KINDS, make_clap, opened, prompts, save_tiny_gpt2
from tests.tiny_llm import save_tiny_llm

SETTINGS = ClapSettings.published(epochs=2, prompts=2, others=1, llm_learning_rate=1e-3)
"""Six steps on `five`, three a stage."""


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llm")
    return {"llama": save_tiny_llm(folder / "llama"), "gpt2": save_tiny_gpt2(folder / "gpt2")}


def five(clap: Clap) -> list[Group]:
    return groups_of(clap, prompts(5), [ANSWERS[:3]] * 5)


def random_start(groups: list[Group]) -> Start:
    """z of a response by its place, whatever the prompt."""
    random = torch.Generator().manual_seed(7)
    axes, z = torch.randn(8, 32, generator=random), torch.randn(3, 8, generator=random)
    return Start({2: axes}, [z[: len(group)] for group in groups], torch.zeros(32, z.shape[1]))


def weights(clap: Clap) -> dict[str, Tensor]:
    """A copy of all of CLaP's and all of the LLM's."""
    both = {**clap.state_dict(), **{f"llm.{name}": value for name, value in clap._llm[0].state_dict().items()}}
    return {name: value.clone() for name, value in both.items()}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_z_comes_to_say_which_response_it_is(
    llms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: AdapterKind
) -> None:
    """The paper's way, and ours."""
    monkeypatch.setattr(module, "BEGIN_RATE", 1e-2)
    clap = make_clap(llms["llama"], adapter=adapter)
    before = weights(clap)
    groups = groups_of(clap, prompts(12), [ANSWERS] * 12)
    if adapter == "positions":
        settings = ClapSettings.published(epochs=25, prompts=4, learning_rate=3e-2, encoder_rate=3e-2)
        log = train_clap(clap, groups[:8], settings, show_progress=False)
        half = len(log) // 2
        assert not any(row["contrastive"] for row in log[:half])
        assert all(row["contrastive"] > 0 for row in log[half:])
    else:
        settings = ClapSettings(begin_epochs=25, epochs=25, learning_rate=3e-2)
        log = train_clap(
            clap, groups[:8], settings, start=principal_start(clap, groups[:8], tmp_path), show_progress=False
        )
        assert not any(row["contrastive"] for row in log)
    figures = evaluate_clap(clap, groups[8:])
    assert figures["nats_per_token"] < figures["plain"] - 0.3
    assert figures["nats_per_token"] < figures["prior"] - 0.1  # it is z that tells, not the adapter alone
    assert figures["gain_ci_low"] > 0
    assert figures["contrastive_accuracy"] > 0.7
    assert figures["mutual_information"] > 0.5
    assert figures["active_units"] >= 2
    assert all(torch.equal(value, before[name]) for name, value in weights(clap).items() if name.startswith("llm."))


KILLED = [
    ("positions", SETTINGS, Training, 4),
    ("positions", replace(SETTINGS, unfreeze=True), Training, 2),
    ("shift", replace(SETTINGS, unfreeze=True), Training, 4),
    ("shift", replace(SETTINGS, first_stage=0.0, others=0, begin_epochs=2), Beginning, 4),
    ("shift", replace(SETTINGS, first_stage=0.0, others=0, begin_epochs=2), Training, 0),
    ("shift", replace(SETTINGS, unfreeze=True, begin_epochs=2), Training, 5),
    ("positions", replace(SETTINGS, begin_epochs=2), Training, 1),
]


@pytest.mark.parametrize(("adapter", "settings", "part", "killed"), KILLED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    llms: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    adapter: AdapterKind,
    settings: ClapSettings,
    part: type[Run],
    killed: int,
) -> None:
    """In the start or in either stage; GPT-2 would drop out at random if it were ever in training mode."""

    def run(folder: Path) -> tuple[Clap, list[dict[str, float]]]:
        clap = make_clap(llms[kind], adapter=adapter).train()
        groups = five(clap)
        start = random_start(groups) if settings.begin_epochs else None
        return clap, train_clap(clap, groups, settings, folder, start, save_seconds=0, show_progress=False)

    whole, log = run(tmp_path / "whole")
    assert len(log) == 6
    step, taken = part.step, [0]

    def stopping(run: Run) -> str:
        if len(run.log) == killed:
            raise KeyboardInterrupt
        return step(run)

    def counting(run: Run) -> str:
        taken[0] += 1
        return step(run)

    monkeypatch.setattr(part, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again")
    monkeypatch.setattr(part, "step", counting)
    again, resumed = run(tmp_path / "again")
    assert taken == [6 - killed]  # it went on, and did not begin anew
    assert resumed == log
    expected = weights(whole)
    for name, value in weights(again).items():
        assert torch.equal(value, expected[name]), name
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == ["beginning.safetensors", "training.safetensors"][not settings.begin_epochs :]
    for name in files:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "again"))
        assert one == other, name


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_beginning_teaches_the_encoder_alone(
    llms: dict[str, Path], monkeypatch: pytest.MonkeyPatch, adapter: AdapterKind
) -> None:
    clap: Any = make_clap(llms["llama"], adapter=adapter)
    groups = five(clap)
    start = random_start(groups)
    before = weights(clap)
    monkeypatch.setattr(module, "BEGIN_RATE", 1e-2)

    def no_pass(*_: Any) -> None:
        raise AssertionError("a layer of the LLM was run")

    handles = [layer.register_forward_pre_hook(no_pass) for layer in clap.backbone.layers]
    run = Beginning(clap, groups, ClapSettings(begin_epochs=30), start.targets)
    while len(run.log) < run.steps:
        run.step()
    for handle in handles:
        handle.remove()
    assert run.log[0]["loss"] == pytest.approx(
        -float(torch.distributions.Normal(0, 1).log_prob(torch.cat([start.targets[i] for i in first_batch(run)])).sum())
        / 12,
        rel=1e-4,
    )  # from the standard normal
    assert run.log[-1]["loss"] < run.log[0]["loss"] - 2
    for name, value in weights(clap).items():
        # An encoder's own embeddings are not used.
        assert torch.equal(value, before[name]) == (not name.startswith("posterior.") or "embed_tokens" in name), name
    # Which of a prompt's responses it is shows in z.
    found, wanted = clap.read(groups[0]).mean.detach(), start.targets[0]
    assert torch.cdist(found, wanted).argmin(1).tolist() == [0, 1, 2]
    # What trains CLaP goes on from there, and from the axes, if the adapter is a shift.
    monkeypatch.setattr(Training, "step", lambda run: run.log.append({}) or "")
    fresh: Any = make_clap(llms["llama"], adapter=adapter)
    old = weights(fresh)
    train_clap(fresh, groups, ClapSettings(begin_epochs=30), start=start, show_progress=False)
    assert torch.equal(fresh.posterior.head.weight, clap.posterior.head.weight)
    for name, value in weights(fresh).items():
        if name == "adapter.axes":
            assert torch.equal(value[1], start.axes[2])
            assert not value[[0, 2]].any()
        elif name.startswith("adapter."):
            assert torch.equal(value, old[name])


def first_batch(run: Run) -> list[int]:
    log, run.log = run.log, []
    try:
        return run._batch()
    finally:
        run.log = log


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("first_stage", [0.0, 1.0])
def test_what_runs_at_once_changes_nothing_but_rounding(
    llms: dict[str, Path], monkeypatch: pytest.MonkeyPatch, adapter: AdapterKind, first_stage: float
) -> None:
    settings = ClapSettings(epochs=1, prompts=4, first_stage=first_stage, others=2)
    found = []
    for tokens in (2048, 60 if first_stage else 120, 1):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", tokens)
        clap = make_clap(llms["llama"], adapter=adapter)
        opened(clap.adapter)
        torch.nn.init.normal_(clap.posterior.head.weight, std=0.3)
        runs: list[int] = []
        clap.register_forward_pre_hook(lambda _module, inputs, runs=runs: runs.append(len(inputs[0])))
        # Of different sizes: how many others there are is up to the smallest of the step.
        training = Training(
            clap, groups_of(clap, prompts(4), [ANSWERS, ANSWERS[:3], ANSWERS[1:], ANSWERS[:2]]), settings
        )
        monkeypatch.setattr(training.adam, "step", lambda: None)
        monkeypatch.setattr(training.adam, "zero_grad", lambda: None)
        training.step()
        gradients = {name: p.grad for name, p in clap.named_parameters() if p.grad is not None}
        found.append((runs, training.log[0], gradients))
    assert [len(runs) for runs, *_ in found] == [1, len(found[1][0]), 4]
    assert 1 < len(found[1][0]) < 4
    for _, row, gradients in found[1:]:
        assert row == pytest.approx(found[0][1], rel=1e-4)
        assert set(gradients) == set(found[0][2])
        for name, gradient in gradients.items():
            expected = found[0][2][name]
            assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name


def test_a_checkpoint_of_another_run_is_refused(llms: dict[str, Path], tmp_path: Path) -> None:
    clap = make_clap(llms["llama"])
    groups = five(clap)
    settings = replace(SETTINGS, begin_epochs=1)
    for begun in (False, True):  # of the beginning, or of training
        folder, start = tmp_path / str(begun), random_start(groups) if begun else None
        train_clap(clap, groups, settings, folder, start, show_progress=False)
        for other, says in (
            ({"learning_rate": 1e-4}, "another learning_rate"),
            ({"begin_epochs": 2}, "another begin_epochs"),
            ({"unfreeze": True}, "another unfreeze"),
            ({"unfreeze": True, "llm_learning_rate": 1.0}, "another unfreeze, llm_learning_rate"),
        ):
            with pytest.raises(InputError, match=says):
                train_clap(clap, groups, replace(settings, **other), folder, start)
        with pytest.raises(InputError, match="another texts"):
            train_clap(clap, groups[:4], settings, folder, start)
        coarse = make_clap(llms["llama"], dtype="bfloat16")
        with pytest.raises(InputError, match="another dtype"):
            train_clap(coarse, five(coarse), settings, folder, start)
        with pytest.raises(InputError, match="another adapter"):
            train_clap(make_clap(llms["llama"], adapter="positions"), groups, settings, folder, start)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_first_stage_is_that_of_a_frozen_llm_and_the_second_trains_its_layers(
    llms: dict[str, Path], adapter: AdapterKind
) -> None:
    def training(unfreeze: bool) -> Training:
        clap = make_clap(llms["llama"], adapter=adapter)
        return Training(clap, five(clap), replace(SETTINGS, unfreeze=unfreeze, llm_learning_rate=1e-4))

    def trained(run: Training) -> Iterator[str]:
        return (name for name, p in run.clap._llm[0].named_parameters() if p.requires_grad)

    frozen, thawed = training(False), training(True)
    start = weights(thawed.clap)
    for _ in range(3):
        frozen.step(), thawed.step()
        assert not list(trained(thawed))  # no gradients, and no memory for them
    assert frozen.log == thawed.log
    expected = weights(frozen.clap)
    for name, value in weights(thawed.clap).items():
        assert torch.equal(value, expected[name]), name
        assert torch.equal(value, start[name]) == (name.startswith("llm.") or "embed_tokens" in name), name
    frozen.step(), thawed.step()
    mine, theirs = frozen.log[-1], thawed.log[-1]
    assert mine["loss"] == theirs["loss"]  # before the first step that differs
    assert mine["gradient"] < theirs["gradient"]
    assert not list(trained(frozen))
    layers = {name for name, _ in thawed.clap._llm[0].named_parameters() if ".layers." in name}
    assert set(trained(thawed)) == layers
    for name, value in thawed.clap._llm[0].named_parameters():
        assert torch.equal(value, start[f"llm.{name}"]) == (name not in layers), name
        assert (value - start[f"llm.{name}"]).abs().max() < 1.1e-4  # by their own learning rate


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_llm_that_trains_fits_better_and_is_frozen_again(llms: dict[str, Path], adapter: AdapterKind) -> None:
    settings = replace(SETTINGS, epochs=12, learning_rate=1e-2, encoder_rate=1e-2, llm_learning_rate=3e-3)
    last = {}
    for unfreeze in (False, True):
        clap = make_clap(llms["llama"], adapter=adapter)
        log = train_clap(clap, five(clap), replace(settings, unfreeze=unfreeze), show_progress=False)
        last[unfreeze] = log[-1]["nats_per_token"]
        own = clap.backbone.layers[0].state_dict()
        copied = clap.posterior.layers.layers[0].state_dict()  # type: ignore[union-attr, index]
        assert not any(torch.equal(value, copied[name]) for name, value in own.items())
        parameters = [*clap.parameters(), *clap._llm[0].parameters()]
        assert all(p.grad is None for p in parameters)
        assert not any(p.requires_grad for p in clap._llm[0].parameters())
    assert last[True] < 0.9 * last[False]


def test_what_cannot_be_used_is_named(llms: dict[str, Path]) -> None:
    for wrong in (
        {"epochs": -1},
        {"prompts": 0},
        {"begin_epochs": -1},
        {"learning_rate": 0.0},
        {"encoder_rate": float("nan")},
        {"llm_learning_rate": float("inf")},
        {"first_stage": 1.5},
        {"others": -1},
    ):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            ClapSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both 0"):
        ClapSettings(epochs=0, begin_epochs=0)
    with pytest.raises(InputError, match="second stage"):
        ClapSettings(epochs=1, unfreeze=True, first_stage=1.0)
    coarse = make_clap(llms["llama"], dtype="bfloat16")
    with pytest.raises(InputError, match="loaded as bfloat16; give dtype float32"):
        train_clap(coarse, five(coarse), replace(SETTINGS, unfreeze=True))
