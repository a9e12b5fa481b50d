"""The posterior "people": margins under each code to first order, evidence of who judged what, and its use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from penchant import load_pairs
from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.policy.align import align_run, make_trainer
from penchant.policy.batches import TokenPair, token_pairs
from penchant.policy.build import make_policy
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import choose_z
from penchant.policy.losses import DPO, IPO, Loss, PairLogProbs, SimPO
from penchant.policy.people import code_likelihood, evidence_from, evidence_of, people_of, reference_again
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings
from penchant.policy.trainer import AlignTrainer
from penchant.policy.watch import code_figures, warnings
from tests.tiny_llm import tiny_pairs

SETTINGS = Settings(posterior="people", codes=4, lora=4, epochs=6, batch_size=4, learning_rate=3e-3, log_steps=1)


@pytest.fixture
def judged() -> Dataset:
    """Two people who judge the same pairs oppositely."""
    rows = tiny_pairs(24)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return load_pairs([{**row, "user_id": "ann"} for row in rows] + [{**row, "user_id": "bob"} for row in turned])


def started(tiny_llm: Path, judged: Dataset, tmp_path: Path) -> tuple[Policy, list[TokenPair], PairLogProbs, Any]:
    llm, backbone = load_whole(str(tiny_llm), "float32")
    tokens = token_pairs(backbone, judged)
    reference, _ = reference_log_probs(Policy(llm, backbone), tokens, tmp_path / "cache")
    names, person = people_of(judged)
    policy = make_policy(llm, backbone, SETTINGS, people=names)
    loss = SETTINGS.make_loss()
    trainer = make_trainer(
        policy, loss, tokens, reference, SETTINGS, tmp_path / "run", person=person, show_progress=False
    )
    return policy, tokens, reference, trainer


@pytest.mark.parametrize("loss", [DPO(), IPO(), SimPO()])
def test_margins_under_each_code_are_right_to_first_order(
    tiny_llm: Path, judged: Dataset, tmp_path: Path, loss: Loss
) -> None:
    policy, tokens, reference, _ = started(tiny_llm, judged, tmp_path)
    codes = policy.codes
    for scale, tolerance in ((1e-2, 1e-2), (1e-3, 1e-3)):  # the error falls with the square of the codes
        with torch.no_grad():
            codes.codebook.copy_(scale * torch.randn(4, policy.backbone.width))
        found = evidence_of(policy, loss, tokens, reference)
        exact = []
        for k in range(4):
            probs = policy.score(tokens, {"": lambda _, k=k: codes.codebook[k : k + 1]})[1][""]
            exact.append(-loss(loss.margins(probs, reference)))
        expected = torch.stack(exact, 1)
        moved = (expected - expected.mean(1, keepdim=True)).norm()
        assert (found - expected).norm() < tolerance * 10 * moved


def test_each_pair_counts_once_however_many_epochs_and_never_for_itself(
    tiny_llm: Path, judged: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _, _, trainer = started(tiny_llm, judged, tmp_path)
    last: dict[int, torch.Tensor] = {}
    used: list[tuple[list[int], torch.Tensor]] = []
    compute, draw = AlignTrainer.compute_loss, policy.codes.draw

    def noted(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        rows = inputs["rows"].tolist()
        sums = torch.zeros(2, 4)
        for row, said in last.items():
            sums[row // 24] += said
        used.append((rows, torch.stack([sums[row // 24] - last.get(row, torch.zeros(4)) for row in rows])))
        found = compute(self, model, inputs, *rest, **more)
        last.update((row, self.said[row].clone()) for row in rows)
        return found

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(AlignTrainer, "compute_loss", noted)
    monkeypatch.setattr(policy.codes, "draw", lambda states, g: seen.append(states.evidence) or draw(states, g))
    trainer.train()
    assert len(used) == 6 * 12  # six epochs of twelve steps
    for (_, expected), given in zip(used, seen, strict=True):
        assert torch.allclose(given, expected, atol=1e-4)
    assert len(last) == 48
    for person in (0, 1):
        theirs = torch.stack([said for row, said in last.items() if row // 24 == person]).sum(0)
        assert torch.allclose(policy.codes.evidence[person], theirs, atol=1e-3)
        assert (theirs < 0).all()


def test_two_people_who_disagree_get_codes_of_their_own(tiny_llm: Path, judged: Dataset, tmp_path: Path) -> None:
    policy, tokens, reference, trainer = started(tiny_llm, judged, tmp_path)
    trainer.train()
    policy.eval()
    loss = SETTINGS.make_loss()
    _, found = policy.score(
        tokens, {"prior": policy.expected, "known": policy.by_posterior}, evidence=policy.known_people(judged)
    )
    right = {name: (loss.margins(probs, reference) > 0).float().mean().item() for name, probs in found.items()}
    assert right["known"] > 0.8
    ann = [i for i, name in enumerate(judged["user_id"]) if name == "ann"]
    few, rest = ann[:8], ann[8:]
    said = evidence_of(policy, loss, [tokens[i] for i in few], PairLogProbs(*(p[few] for p in reference))).sum(0)
    _, new = policy.score([tokens[i] for i in rest], {"": policy.by_posterior}, evidence=said.expand(len(rest), -1))
    assert (loss.margins(new[""], PairLogProbs(*(p[rest] for p in reference))) > 0).float().mean() > 0.8


def test_a_run_ends_with_people_in_the_policy_and_a_new_one_is_the_prior(
    tiny_llm: Path, judged: Dataset, tmp_path: Path
) -> None:
    policy, metrics = align_run(
        judged, judged, ("a", "b"), SETTINGS, tmp_path / "run", model=str(tiny_llm), cache=tmp_path, show_progress=False
    )
    assert metrics["codes"]["accuracy_posterior"]["value"] > metrics["codes"]["accuracy_prior"]["value"] + 0.2
    again = Policy.from_pretrained(tmp_path / "run" / "policy")
    assert again.facts["people"] == ["ann", "bob"]
    assert torch.equal(again.codes.evidence, policy.codes.evidence)
    assert torch.equal(again.posterior(judged), policy.posterior(judged))
    z = choose_z(again, judged["prompt"][:2], evidence=again.evidence_on("bob"))
    weights = (again.prior(judged["prompt"][:2]).log() + again.codes.evidence[1]).softmax(-1)
    assert torch.allclose(z, weights @ again.codes.codebook, atol=1e-5)
    best = choose_z(again, judged["prompt"][:2], "best", evidence=again.evidence_on("bob"))
    assert torch.equal(best, again.codes.codebook[weights.argmax(-1)])
    with pytest.raises(InputError, match="knows nobody called 'cleo'; it knows ann, bob"):
        again.evidence_on("cleo")
    few = judged.select([i for i, name in enumerate(judged["user_id"]) if name == "bob"][:8])
    again_bob, first_bob = (evidence_from(p, few) for p in (again, policy))
    assert torch.allclose(again_bob, first_bob, atol=1e-4)
    likeliest = (again.prior(few["prompt"]).mean(0).log() + again_bob).argmax()
    assert likeliest == weights.mean(0).argmax()  # eight pairs tell what all of bob's did
    with pytest.raises(InputError, match=r"shape \[8, 4\]; give one number"):
        choose_z(again, judged["prompt"][:8], evidence=torch.zeros(8, 4))
    stranger = load_pairs([{**row, "user_id": "cleo"} for row in tiny_pairs(4)])
    assert torch.allclose(again.posterior(stranger), again.prior(stranger["prompt"]), atol=1e-6)


def test_checkpoints_of_other_people_are_refused(tiny_llm: Path, judged: Dataset, tmp_path: Path) -> None:
    saving = Settings(posterior="people", codes=4, lora=4, steps=2, save_steps=1, batch_size=4)
    given = {"model": str(tiny_llm), "cache": tmp_path, "show_progress": False}
    align_run(judged, judged, ("a", "b"), saving, tmp_path / "run", **given)  # type: ignore[arg-type]
    others = load_pairs([{**row, "user_id": "ann"} for row in judged])
    with pytest.raises(InputError, match="other people"):
        align_run(others, judged, ("a", "b"), saving, tmp_path / "run", **given)  # type: ignore[arg-type]


def test_pairs_that_do_not_say_who_judged_are_refused(judged: Dataset) -> None:
    with pytest.raises(InputError, match="column user_id"):
        people_of(judged.remove_columns("user_id"))
    rows = [dict(row) for row in judged]
    rows[5]["user_id"] = None
    with pytest.raises(InputError, match="row 5 has no user_id"):
        people_of(load_pairs(rows))


def test_the_likelihood_has_no_gradient_and_leaves_the_loss_its_own() -> None:
    codes = LatentCodes(8, 3, posterior="people", people=1)
    z = (torch.full((2, 3), 1 / 3) @ codes.codebook).requires_grad_()
    margins = (z * torch.randn(2, 8)).sum(-1)
    said = code_likelihood(DPO(), margins, z, codes.codebook)
    assert said.shape == (2, 3)
    assert not said.requires_grad
    margins.sum().backward()  # the graph is still there
    assert codes.codebook.grad is not None


def test_what_a_person_adds_calls_for_no_warning_and_nothing_added_does() -> None:
    prior = np.full((40, 4), 0.25)
    sure = np.eye(4)[np.arange(40) % 4] * 0.9 + 0.025
    assert warnings(code_figures(prior, sure), 0.5, 0.8, known=1.0) == []
    assert "does not help" in warnings(code_figures(prior, sure), 0.6, 0.55, known=1.0)[0]
    assert "no person's taste was told" in warnings(code_figures(prior, prior), 0.6, 0.6, known=1.0)[0]
    assert "known from training for 10%" in warnings(code_figures(prior, prior), 0.6, 0.6, known=0.1)[0]
    assert len(warnings(code_figures(prior, sure), 0.5, 0.8)) == 2  # the prior is constant, the posterior far ahead


def test_a_trainer_that_is_not_told_who_judged_refuses(tiny_llm: Path, judged: Dataset, tmp_path: Path) -> None:
    policy, tokens, reference, _ = started(tiny_llm, judged, tmp_path)
    with pytest.raises(InputError, match="who judged each pair"):
        make_trainer(policy, SETTINGS.make_loss(), tokens, reference, SETTINGS, tmp_path / "other")


def test_the_reference_is_had_again_with_all_weights_trained(tiny_llm: Path, judged: Dataset, tmp_path: Path) -> None:
    given = {"model": str(tiny_llm), "cache": tmp_path / "cache", "show_progress": False}
    settings = Settings(posterior="people", codes=4, lora=0, steps=3, batch_size=4, learning_rate=1e-2)
    policy, _ = align_run(judged, judged, ("a", "b"), settings, tmp_path / "all", **given)  # type: ignore[arg-type]
    llm, backbone = load_whole(str(tiny_llm), "float32")
    tokens = token_pairs(backbone, judged)
    expected, _ = reference_log_probs(Policy(llm, backbone), tokens, tmp_path / "fresh")
    assert torch.allclose(reference_again(policy, tokens).chosen, expected.chosen, atol=1e-4)
    assert not torch.allclose(policy.score(tokens, {"": lambda _: None})[1][""].chosen, expected.chosen, atol=1e-2)
