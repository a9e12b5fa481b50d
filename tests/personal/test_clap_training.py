"""Training CLaP on tiny LLMs: z comes to carry how a response is written, a run can be resumed, and what of the LLM
trains, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.personal.clap_figures import evaluate_clap
from penchant.personal.clap_training import CHECKPOINT, ClapSettings, Trainer, train_clap
from penchant.personal.groups import groups_of
from tests.personal.tiny import ANSWERS, KINDS, make_clap, prompts, save_tiny_gpt2
from tests.tiny_llm import save_tiny_llm

SETTINGS = ClapSettings(epochs=2, prompts=2, others=1, llm_learning_rate=1e-3)
"""Six steps on `five`, three a stage."""


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llm")
    return {"llama": save_tiny_llm(folder / "llama"), "gpt2": save_tiny_gpt2(folder / "gpt2")}


def five(clap: Clap) -> list[list]:  # type: ignore[type-arg]
    return groups_of(clap, prompts(5), [ANSWERS[:3]] * 5)


def weights(clap: Clap) -> dict[str, Tensor]:
    """A copy of all of CLaP's and all of the LLM's."""
    both = {**clap.state_dict(), **{f"llm.{name}": value for name, value in clap._llm[0].state_dict().items()}}
    return {name: value.clone() for name, value in both.items()}


def test_z_comes_to_say_which_response_it_is(llms: dict[str, Path]) -> None:
    clap = make_clap(llms["llama"])
    before = weights(clap)
    groups = groups_of(clap, prompts(12), [ANSWERS] * 12)
    settings = ClapSettings(epochs=25, prompts=4, learning_rate=3e-2)
    log = train_clap(clap, groups[:8], settings, show_progress=False)
    figures = evaluate_clap(clap, groups[8:])
    assert figures["nats_per_token"] < figures["plain"] - 0.3
    assert figures["nats_per_token"] < figures["prior"] - 0.1  # it is z that tells, not the adapter alone
    assert figures["gain_ci_low"] > 0
    assert figures["contrastive_accuracy"] > 0.8
    assert figures["mutual_information"] > 0.5
    assert figures["active_units"] >= 2
    assert all(torch.equal(value, before[name]) for name, value in weights(clap).items() if name.startswith("llm."))
    half = len(log) // 2
    assert not any(row["contrastive"] for row in log[:half])
    assert all(row["contrastive"] > 0 for row in log[half:])


@pytest.mark.parametrize(("unfreeze", "killed"), [(False, 4), (True, 2), (True, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    llms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, unfreeze: bool, killed: int
) -> None:
    """In either stage; GPT-2 would drop out at random if it were ever in training mode."""
    settings = replace(SETTINGS, unfreeze=unfreeze)

    def run(folder: Path) -> tuple[Clap, list[dict[str, float]]]:
        clap = make_clap(llms[kind]).train()
        return clap, train_clap(clap, five(clap), settings, folder, save_seconds=0, show_progress=False)

    whole, log = run(tmp_path / "whole")
    assert len(log) == 6
    step = Trainer.step

    def stopping(trainer: Trainer) -> dict[str, float]:
        if len(trainer.log) == killed:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again")
    monkeypatch.setattr(Trainer, "step", step)
    again, resumed = run(tmp_path / "again")
    assert resumed == log
    expected = weights(whole)
    for name, value in weights(again).items():
        assert torch.equal(value, expected[name]), name
    one, other = ((tmp_path / name / CHECKPOINT).read_bytes() for name in ("whole", "again"))
    assert one == other


def test_a_checkpoint_of_another_run_is_refused(llms: dict[str, Path], tmp_path: Path) -> None:
    clap = make_clap(llms["llama"])
    groups = five(clap)
    train_clap(clap, groups, SETTINGS, tmp_path, show_progress=False)
    for other, says in (
        ({"learning_rate": 1e-4}, "another learning_rate"),
        ({"unfreeze": True}, "another unfreeze"),
        ({"unfreeze": True, "llm_learning_rate": 1.0}, "another unfreeze, llm_learning_rate"),
    ):
        with pytest.raises(InputError, match=says):
            train_clap(clap, groups, replace(SETTINGS, **other), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another texts"):
        train_clap(clap, groups[:4], SETTINGS, tmp_path)
    coarse = make_clap(llms["llama"], dtype="bfloat16")
    with pytest.raises(InputError, match="another dtype"):
        train_clap(coarse, five(coarse), SETTINGS, tmp_path)


def test_the_first_stage_is_that_of_a_frozen_llm_and_the_second_trains_its_layers(llms: dict[str, Path]) -> None:
    def trainer(unfreeze: bool) -> Trainer:
        clap = make_clap(llms["llama"])
        return Trainer(clap, five(clap), replace(SETTINGS, unfreeze=unfreeze, llm_learning_rate=1e-4))

    def trained(run: Trainer) -> Iterator[str]:
        return (name for name, p in run.clap._llm[0].named_parameters() if p.grad is not None)

    frozen, thawed = trainer(False), trainer(True)
    start = weights(thawed.clap)
    for _ in range(3):
        assert frozen.step() == thawed.step()
        assert not list(trained(thawed))  # no memory for what does not train
    expected = weights(frozen.clap)
    for name, value in weights(thawed.clap).items():
        assert torch.equal(value, expected[name]), name
        assert torch.equal(value, start[name]) == (name.startswith("llm.") or "embed_tokens" in name), name
    mine, theirs = frozen.step(), thawed.step()
    assert mine["loss"] == theirs["loss"]  # before the first step that differs
    assert mine["gradient"] < theirs["gradient"]
    assert not list(trained(frozen))
    layers = {name for name, _ in thawed.clap._llm[0].named_parameters() if ".layers." in name}
    assert set(trained(thawed)) == layers
    for name, value in thawed.clap._llm[0].named_parameters():
        assert torch.equal(value, start[f"llm.{name}"]) == (name not in layers), name
        assert (value - start[f"llm.{name}"]).abs().max() < 1.1e-4  # by their own learning rate


def test_an_llm_that_trains_fits_better_and_is_frozen_again(llms: dict[str, Path]) -> None:
    settings = ClapSettings(epochs=12, prompts=2, others=1, learning_rate=1e-2, llm_learning_rate=3e-3)
    last = {}
    for unfreeze in (False, True):
        clap = make_clap(llms["llama"])
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
        {"epochs": 0},
        {"prompts": 0},
        {"learning_rate": 0.0},
        {"llm_learning_rate": float("inf")},
        {"first_stage": 1.5},
        {"others": -1},
    ):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            ClapSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="second stage"):
        ClapSettings(unfreeze=True, first_stage=1.0)
    coarse = make_clap(llms["llama"], dtype="bfloat16")
    with pytest.raises(InputError, match="loaded as bfloat16; give dtype float32"):
        train_clap(coarse, five(coarse), replace(SETTINGS, unfreeze=True))
