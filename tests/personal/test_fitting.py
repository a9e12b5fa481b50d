"""People fitted by Latent DPO: towards what they chose, each alone though side by side, and without the LLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import logsigmoid

from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.personal import fitting as module
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian, log_normal
from penchant.personal.fitting import LatentDPOSettings, fit_people
from penchant.personal.latent_dpo import Candidates, latent_dpo_losses
from penchant.personal.reading import Judged, read_pairs
from tests.tiny_llm import save_tiny_llm

LATENT = 8
SETTINGS = LatentDPOSettings()


def made(people: int, each: int, seed: int = 0) -> tuple[Judged, torch.Tensor]:
    """Person u likes z along axis u."""
    torch.manual_seed(seed)
    owner = torch.arange(people).repeat_interleave(each)
    z = torch.randn(2, len(owner), LATENT)
    liked = z[:, torch.arange(len(owner)), owner % LATENT]
    better = (liked[0] > liked[1])[:, None]
    chosen, rejected = torch.where(better, z[0], z[1]), torch.where(better, z[1], z[0])
    narrow = torch.full_like(chosen, -1.0)
    return Judged(Gaussian(chosen, narrow), Gaussian(rejected, narrow)), owner


def blank(people: int) -> torch.Tensor:
    return torch.zeros(people, LATENT)


def margins(mean: torch.Tensor, pairs: Judged) -> torch.Tensor:
    """How N(mean, I) orders pairs by what it adds to the prior."""
    person = Gaussian(mean.expand_as(pairs.chosen.mean), torch.zeros_like(pairs.chosen.mean))
    chosen, rejected = (person.log_prob(q.mean) - log_normal(q.mean).sum(-1) for q in pairs)
    return chosen - rejected


def test_a_person_moves_to_what_they_chose() -> None:
    judged, owner = made(LATENT, 30)
    means = fit_people(judged, owner, blank(LATENT), SETTINGS)
    own = means.diagonal()
    others = means[~torch.eye(LATENT, dtype=torch.bool)]
    assert (own > 0.3).all()
    assert own.mean() > 3 * others.abs().mean()


def test_a_fit_ends_where_latent_dpos_loss_is_flat() -> None:
    judged, owner = made(3, 9)
    start, seen, weight = 0.1 * torch.randn(3, LATENT), torch.tensor([0, 9, 90]), 1 + torch.rand(27)
    found = fit_people(judged, owner, start, SETTINGS, seen=seen, weight=weight)
    for person, pull in enumerate((1.0, 2.0, 11.0)):
        rows = owner == person
        mean = found[person].clone().requires_grad_()
        losses = -logsigmoid(SETTINGS.beta * margins(mean, judged.take(rows)))
        total = (losses * weight[rows]).sum() / weight[rows].sum()
        total = total + SETTINGS.pull * pull * (mean - start[person]).square().sum()
        (slope,) = torch.autograd.grad(total, mean)
        assert (found[person] - start[person]).abs().max() > 0.1
        assert slope.abs().max() < 1e-6


@pytest.mark.parametrize(("beta", "pull"), [(0.1, 0.0005), (1.0, 0.02), (0.3, 1e-4)])
def test_a_fit_is_logistic_regression_without_an_intercept(beta: float, pull: float) -> None:
    """Of each pair in both orientations, 2 n rows: ours over 2 pull is |m|^2 / 2 + C times the sum of their losses."""
    judged, owner = made(1, 40)
    sides = beta * (judged.chosen.mean - judged.rejected.mean).double().numpy()
    theirs = LogisticRegression(C=1 / (2 * pull * 2 * len(sides)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    theirs.fit(np.concatenate([sides, -sides]), np.repeat([1, 0], len(sides)))
    (ours,) = fit_people(judged, owner, blank(1), LatentDPOSettings(beta=beta, pull=pull))
    assert ours.norm() > 0.3
    np.testing.assert_allclose(ours.numpy(), theirs.coef_[0], rtol=1e-4, atol=1e-4)


def test_the_loss_is_latent_dpos_of_two_candidates_the_posteriors_means() -> None:
    judged, owner = made(3, 9)
    people = torch.randn(3, LATENT)
    person = Gaussian(people[owner], torch.zeros(27, LATENT))
    both = Candidates(torch.stack([q.mean for q in judged], 1), torch.tensor([[1.0, 0.0]]).expand(27, -1))
    sides = judged.chosen.mean - judged.rejected.mean
    bradley_terry = -logsigmoid(0.7 * (people[owner] * sides).sum(1))
    assert torch.allclose(latent_dpo_losses(person, both, 0.7), bradley_terry, atol=1e-5)


def test_swapping_what_was_chosen_turns_a_person_around() -> None:
    judged, owner = made(4, 10)
    found, other = (fit_people(each, owner, blank(4), SETTINGS) for each in (judged, Judged(*judged[::-1])))
    assert found.abs().max() > 0.3
    assert torch.equal(found, -other)


def test_people_side_by_side_are_fitted_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, owner = made(5, 7)
    mixed = torch.randperm(len(owner))[:29]
    judged, owner = judged.take(mixed), owner[mixed]
    together = fit_people(judged, owner, blank(6), SETTINGS)
    assert not together[5].any()  # nobody's pairs, nothing learned
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 10)
    assert torch.allclose(fit_people(judged, owner, blank(6), SETTINGS), together, atol=1e-6)
    for person in range(5):
        rows = owner == person
        nobody = torch.zeros(int(rows.sum()), dtype=torch.long)
        (alone,) = fit_people(judged.take(rows), nobody, blank(1), SETTINGS)
        assert torch.allclose(alone, together[person], atol=1e-6)


def test_as_many_people_are_fitted_at_once_as_their_padded_pairs_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 16)
    groups = [group.tolist() for group in module.side_by_side(torch.tensor([3, 0, 50, 5, 5, 5, 4]))]
    assert groups == [[0, 6, 3], [4, 5], [2]]  # everybody who has pairs, once; who has more is alone


def test_feedback_of_others_moves_nobody_by_a_bit() -> None:
    judged, owner = made(6, 12)
    mixed = torch.randperm(len(owner))
    judged, owner = judged.take(mixed), owner[mixed]
    spoilers = (owner >= 4)[:, None]
    sides = judged, Judged(*judged[::-1])
    spoiled = Judged(
        *(
            Gaussian(*(torch.where(spoilers, 50 * theirs, mine) for mine, theirs in zip(*both, strict=True)))
            for both in zip(*sides, strict=True)
        )
    )
    honest, among = (fit_people(each, owner, blank(6), SETTINGS) for each in (judged, spoiled))
    assert torch.equal(honest[:4], among[:4])
    assert not torch.allclose(honest[4:], among[4:], atol=0.1)


def test_pairs_may_count_unequally() -> None:
    judged, _ = made(2, 20)  # two who want different things, pooled
    pooled = torch.zeros(220, dtype=torch.long)
    many = judged.take(torch.cat([torch.arange(20), torch.arange(20, 40).repeat(10)]))  # ten times as often
    weight = torch.cat([torch.ones(20), torch.full((200,), 0.1)])
    (fair,) = fit_people(many, pooled, blank(1), SETTINGS, weight=weight)
    (once,) = fit_people(judged, pooled[:40], blank(1), SETTINGS)
    (loud,) = fit_people(many, pooled, blank(1), SETTINGS)
    (weighed,) = fit_people(judged, pooled[:40], blank(1), SETTINGS, weight=torch.tensor([3.0] * 20 + [30.0] * 20))
    assert torch.allclose(fair, once, atol=1e-4)
    assert torch.allclose(weighed, loud, atol=1e-4)
    assert not torch.allclose(loud, once, atol=0.1)


def test_a_strong_pull_keeps_a_person_where_they_started() -> None:
    judged, owner = made(1, 20)
    start = 0.1 * torch.randn(1, LATENT)
    free, held = (
        (fit_people(judged, owner, start, LatentDPOSettings(pull=pull)) - start).norm() for pull in (1e-3, 100.0)
    )
    assert held < 0.05 * free


def test_a_few_new_pairs_do_not_undo_many_old_ones() -> None:
    judged, _ = made(1, 105)
    old, new = judged.take(torch.arange(100)), judged.take(torch.arange(100, 105))
    against = Judged(*new[::-1])
    nobody = torch.zeros(105, dtype=torch.long)
    known = fit_people(old, nobody[:100], blank(1), SETTINGS)

    def right(mean: torch.Tensor, pairs: Judged) -> float:
        """Share of pairs that the person's p(z | x) orders as they did."""
        return float((margins(mean, pairs) > 0).float().mean())

    def updated(pairs: Judged, seen: int) -> torch.Tensor:
        return fit_people(pairs, nobody[:5], known, SETTINGS, seen=torch.tensor([seen]))

    assert right(known, old) > 0.9
    for pairs in (new, against):
        assert right(updated(pairs, 100), old) > right(known, old) - 0.15
    assert right(updated(against, 100), old) > right(updated(against, 0), old) + 0.2
    assert right(updated(against, 5), against) > right(known, against)  # where little was known, new pairs are heard


def test_reading_pairs_runs_no_layer_of_the_llm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llm, backbone = load_whole(str(save_tiny_llm(tmp_path)), dtype="float32")
    clap = Clap(llm, backbone, LATENT)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.2)
    runs = [0]
    for layer in backbone.layers:
        layer.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    items = clap.backbone.chat.encode(["One", "One", "Two"], ["yes", "no", "perhaps"])
    judged = read_pairs(clap, [(items[0], items[1]), (items[1], items[0]), (items[2], items[0])])
    fit_people(judged, torch.tensor([0, 1, 0]), blank(2), SETTINGS)
    assert runs == [0]
    assert torch.equal(judged.chosen.mean[0], judged.rejected.mean[1])
    assert torch.equal(judged.chosen.mean[1], judged.rejected.mean[0])
    assert torch.allclose(judged.chosen.mean[2], clap.read([items[2]]).mean[0], atol=1e-5)
    assert not torch.allclose(judged.chosen.mean[0], judged.chosen.mean[2], atol=1e-3)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": float("inf")}, {"pull": -1.0}, {"pull": 0.0}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        LatentDPOSettings(**wrong)
