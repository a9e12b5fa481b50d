"""CLaP on a tiny LLM: z comes to carry how a response is written, the LLM stays as it is, and a run can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.personal import clap_training as module
from penchant.personal.clap import DRAWS, Clap, ClapTerms
from penchant.personal.clap_training import CHECKPOINT, ClapSettings, evaluate_clap, groups_of, train_clap
from tests.tiny_llm import save_tiny_llm

ANSWERS = ["aaaa aaaa", "bbbb bbbb", "cccc", "dd dd dd d"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def make(llm: Path, latent: int = 8) -> Clap:
    torch.manual_seed(0)
    return Clap(*load_whole(str(llm), dtype="float32"), latent)


def prompts(n: int) -> list[str]:
    return [f"Say {i}" for i in range(n)]


def test_z_comes_to_say_which_response_it_is(llm: Path) -> None:
    clap = make(llm)
    before = {name: value.clone() for name, value in clap._llm[0].state_dict().items()}
    groups = groups_of(clap, prompts(12), [ANSWERS] * 12)
    settings = ClapSettings(epochs=25, prompts=4, learning_rate=3e-2)
    log = train_clap(clap, groups[:8], settings, show_progress=False)
    figures = evaluate_clap(clap, groups[8:])
    assert figures["nats_per_token"] < figures["plain"] - 0.3
    assert figures["nats_per_token"] < figures["prior"] - 0.1  # it is z that tells, not the adapter alone
    assert figures["contrastive_accuracy"] > 0.8
    assert figures["mutual_information"] > 0.5
    assert figures["active_units"] >= 2
    assert all(torch.equal(value, before[name]) for name, value in clap._llm[0].state_dict().items())
    half = len(log) // 2
    assert not any(row["contrastive"] for row in log[:half])
    assert all(row["contrastive"] > 0 for row in log[half:])


def test_an_untrained_z_says_nothing(llm: Path) -> None:
    clap = make(llm)
    figures = evaluate_clap(clap, groups_of(clap, prompts(3), [ANSWERS] * 3))
    assert figures["active_units"] == 0
    assert figures["contrastive_accuracy"] == 0  # all z are equal, and a tie is no success
    assert figures["mutual_information"] == pytest.approx(0, abs=1e-5)
    assert figures["nats_per_token"] == pytest.approx(figures["prior"], abs=1e-5)


def test_a_run_that_was_killed_ends_like_one_that_was_not(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ClapSettings(epochs=2, prompts=2, others=1)

    def run(folder: Path, clap: Clap) -> tuple[Clap, list[dict[str, float]]]:
        groups = groups_of(clap, prompts(5), [ANSWERS[:3]] * 5)
        return clap, train_clap(clap, groups, settings, folder, save_seconds=0, show_progress=False)

    whole, log = run(tmp_path / "whole", make(llm))
    assert len(log) == 6
    step = module._step

    def stopping(*args: object) -> dict[str, float]:
        if args[5] == 4:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", make(llm))
    monkeypatch.setattr(module, "_step", step)
    again, resumed = run(tmp_path / "again", make(llm))
    assert resumed == log
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    groups = groups_of(again, prompts(5), [ANSWERS[:3]] * 5)
    with pytest.raises(InputError, match="another learning_rate"):
        train_clap(again, groups, replace(settings, learning_rate=1e-4), tmp_path / "again")
    with pytest.raises(InputError, match="another texts"):
        train_clap(again, groups[:4], settings, tmp_path / "again")
    assert (tmp_path / "again" / CHECKPOINT).is_file()


def test_the_skip_changes_gradients_and_never_the_output(llm: Path) -> None:
    clap = make(llm)
    (items,) = groups_of(clap, prompts(1), [ANSWERS])
    noise = torch.randn(DRAWS, 4, 8)
    plain, skipped = clap(items, noise), clap(items, noise, skip=True)
    assert torch.equal(plain.loss, skipped.loss)

    def reaching(terms: ClapTerms) -> float:
        clap.zero_grad()
        terms.reconstruction.backward()
        grad = clap.posterior.head.weight.grad
        return 0.0 if grad is None else float(grad.abs().max())

    # At the start no gradient comes back through gates at zero; around the LLM it does.
    assert reaching(plain) == 0
    assert reaching(skipped) > 1e-3
    assert all(p.grad is None for p in clap._llm[0].parameters())


def test_log_probabilities_without_z_are_the_llms_and_do_not_depend_on_the_batch(llm: Path) -> None:
    clap = make(llm)
    torch.nn.init.normal_(clap.adapter.gates, 1.0, 0.1)
    (items,) = groups_of(clap, prompts(1), [ANSWERS])
    z = torch.randn(4, 8)
    together = clap.log_probs(items, z)
    for row, item in enumerate(items):
        assert torch.allclose(clap.log_probs([item], z[row : row + 1]), together[row : row + 1], atol=1e-4)
    ids = torch.tensor([[*items[0].prompt, *items[0].response]]).long()
    logits = clap._llm[0](input_ids=ids).logits[0].log_softmax(-1)
    start = len(items[0].prompt)
    expected = logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum()
    assert torch.allclose(clap.log_probs(items[:1], None)[0], expected, atol=1e-3)


def test_what_cannot_be_used_is_named(llm: Path) -> None:
    clap = make(llm)
    with pytest.raises(InputError, match="two different responses"):
        groups_of(clap, prompts(2), [["same", "same"], ["one", " "]])
    assert len(groups_of(clap, prompts(2), [["a", "a", "b"], ["one", " "]])) == 1
    for wrong in ({"epochs": 0}, {"prompts": 0}, {"learning_rate": 0.0}, {"first_stage": 1.5}, {"others": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            ClapSettings(**wrong)
