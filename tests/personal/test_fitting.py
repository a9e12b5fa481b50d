"""People fitted by Latent DPO: towards what they chose, each alone though side by side, and without the LLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.personal import fitting as module
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian, log_normal
from penchant.personal.fitting import LatentDPOSettings, fit_people, gaussians
from penchant.personal.latent_dpo import CANDIDATES, candidates, latent_dpo_losses
from penchant.personal.reading import Coordinates, Judged, read_pairs
from tests.tiny_llm import save_tiny_llm

LATENT = 6


def made(people: int, each: int, seed: int = 0, within: bool = False) -> tuple[Judged, torch.Tensor]:
    """Person u likes z along axis u; `within`: where the prompt's first coordinate is positive, else the opposite."""
    torch.manual_seed(seed)
    owner = torch.arange(people).repeat_interleave(each)
    coordinates = torch.cat([torch.randn(len(owner), 2), torch.ones(len(owner), 1)], 1)
    z = torch.randn(2, len(owner), LATENT)
    liked = z[:, torch.arange(len(owner)), owner % LATENT]
    sign = torch.where(coordinates[:, 0] > 0, 1.0, -1.0) if within else torch.ones(len(owner))
    better = (liked[0] - liked[1]) * sign > 0
    chosen = torch.where(better[:, None], z[0], z[1])
    rejected = torch.where(better[:, None], z[1], z[0])
    narrow = torch.full_like(chosen, -1.0)
    return Judged(coordinates, Gaussian(chosen, narrow), Gaussian(rejected, narrow)), owner


def blank(people: int) -> torch.Tensor:
    return torch.zeros(people, 3, 2 * LATENT)


def test_a_person_moves_to_what_they_chose() -> None:
    judged, owner = made(LATENT, 30)
    weights = fit_people(judged, owner, blank(LATENT), LatentDPOSettings())
    means = gaussians(torch.tensor([[0.0, 0.0, 1.0]]).expand(LATENT, -1), weights).mean
    own = means.diagonal()
    others = means[~torch.eye(LATENT, dtype=torch.bool)]
    assert (own > 0.3).all()
    assert own.mean() > 3 * others.abs().mean()


def test_a_persons_taste_may_depend_on_the_prompt() -> None:
    judged, owner = made(1, 200, within=True)
    weights = fit_people(judged, owner, blank(1), LatentDPOSettings())
    mean = gaussians(torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]), weights).mean[:, 0]
    assert mean[0] > 0.3
    assert mean[1] < -0.3


def test_people_side_by_side_are_fitted_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, owner = made(5, 7)
    mixed = torch.randperm(len(owner))[:29]
    judged, owner = judged.take(mixed), owner[mixed]
    settings = LatentDPOSettings(steps=40)
    together = fit_people(judged, owner, blank(6), settings)
    assert not together[5].any()  # nobody's pairs, nothing learned
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 10)
    assert torch.allclose(fit_people(judged, owner, blank(6), settings), together, atol=1e-5)
    for person in range(5):
        rows = owner == person
        (weights,) = fit_people(judged.take(rows), torch.zeros(int(rows.sum()), dtype=torch.long), blank(1), settings)
        assert torch.allclose(weights, together[person], atol=1e-4)


def test_a_fit_is_adam_on_the_direct_formula() -> None:
    judged, owner = made(3, 9)
    settings = LatentDPOSettings(steps=30, seed=3)
    start = 0.1 * torch.randn(3, 3, 2 * LATENT)
    seen = torch.tensor([0, 9, 90])
    noise = torch.randn(3, CANDIDATES, 1, LATENT, generator=torch.Generator().manual_seed(3))
    found = candidates(judged.chosen, judged.rejected, noise)
    weights = start.clone().requires_grad_()
    adam = torch.optim.Adam([weights], settings.learning_rate)
    for _ in range(settings.steps):
        losses = latent_dpo_losses(gaussians(judged.coordinates, weights[owner]), found, settings.beta)
        pull = settings.pull * torch.tensor([1.0, 2.0, 11.0])
        adam.zero_grad()
        (losses.sum() / 9 + (pull * (weights - start).square().sum((1, 2))).sum()).backward()
        adam.step()
    assert (weights - start).abs().max() > 0.3
    assert torch.allclose(fit_people(judged, owner, start, settings, seen=seen), weights.detach(), atol=1e-3)


def test_a_person_with_more_pairs_than_are_held_at_once_is_fitted_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, owner = made(2, 50)
    whole = fit_people(judged, owner, blank(2), LatentDPOSettings(steps=20))
    most = []
    original = module.Table.of
    monkeypatch.setattr(module.Table, "of", lambda ranking, share: most.append(len(share)) or original(ranking, share))
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 16)
    parts = fit_people(judged, owner, blank(2), LatentDPOSettings(steps=20))
    assert max(most) <= 16
    assert torch.allclose(parts, whole, atol=1e-3)


def test_feedback_of_others_moves_nobody_by_a_bit() -> None:
    judged, owner = made(6, 12)
    mixed = torch.randperm(len(owner))
    judged, owner = judged.take(mixed), owner[mixed]
    spoilers = owner >= 4
    swapped = Judged(
        judged.coordinates,
        *(
            Gaussian(*(torch.where(spoilers[:, None], 5 * b, a) for a, b in zip(mine, theirs, strict=True)))
            for mine, theirs in ((judged.chosen, judged.rejected), (judged.rejected, judged.chosen))
        ),
    )
    honest, among = (fit_people(each, owner, blank(6), LatentDPOSettings()) for each in (judged, swapped))
    assert torch.equal(honest[:4], among[:4])
    assert not torch.allclose(honest[4:], among[4:], atol=0.1)


def test_pairs_may_count_unequally() -> None:
    judged, _ = made(2, 20)  # two who want different things, pooled
    pooled = torch.zeros(220, dtype=torch.long)
    many = judged.take(torch.cat([torch.arange(20), torch.arange(20, 40).repeat(10)]))  # ten times as often
    weight = torch.cat([torch.ones(20), torch.full((200,), 0.1)])
    (fair,) = fit_people(many, pooled, blank(1), LatentDPOSettings(), weight=weight)
    (once,) = fit_people(judged, pooled[:40], blank(1), LatentDPOSettings())
    (loud,) = fit_people(many, pooled, blank(1), LatentDPOSettings())
    assert torch.allclose(fair, once, atol=1e-3)
    assert not torch.allclose(loud, once, atol=0.1)


def test_a_strong_pull_keeps_a_person_where_they_started() -> None:
    judged, owner = made(1, 20)
    start = 0.1 * torch.randn(1, 3, 2 * LATENT)
    free, held = (
        (fit_people(judged, owner, start, LatentDPOSettings(pull=pull)) - start).norm() for pull in (0.0, 100.0)
    )
    assert held < 0.05 * free


def test_a_few_new_pairs_do_not_undo_many_old_ones() -> None:
    judged, _ = made(1, 105)
    old, new = judged.take(torch.arange(100)), judged.take(torch.arange(100, 105))
    against = Judged(new.coordinates, new.rejected, new.chosen)
    nobody = torch.zeros(105, dtype=torch.long)
    weights = fit_people(old, nobody[:100], blank(1), LatentDPOSettings())

    def right(weights: torch.Tensor, pairs: Judged) -> float:
        """Share of pairs that the person's p(z | x) orders as they did."""
        person = gaussians(pairs.coordinates, weights)
        evidence = [person.log_prob(q.mean) - log_normal(q.mean).sum(-1) for q in pairs[1:]]
        return float((evidence[0] > evidence[1]).float().mean())

    assert right(weights, old) > 0.9
    settings = LatentDPOSettings()
    forgetful = fit_people(against, nobody[:5], weights, settings)
    mindful = fit_people(against, nobody[:5], weights, settings, seen=torch.tensor([100]))
    assert right(mindful, old) > right(forgetful, old) + 0.1
    mindful, forgetful = (
        fit_people(new, nobody[:5], weights, settings, seen=torch.tensor([seen])) for seen in (100, 0)
    )
    assert right(mindful, old) > right(forgetful, old) + 0.1  # the same for pairs that say what the old ones said
    assert right(mindful, old) > right(weights, old) - 0.15
    again = fit_people(against, nobody[:5], weights, settings, seen=torch.tensor([5]))
    assert right(again, against) > right(weights, against)  # where little was known, new pairs are heard


def test_coordinates_are_centered_scaled_and_as_many_as_there_are() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 4, 8) * torch.tensor([5.0, 3.0, 1.0, 1.0])[:, None] + 2
    c = Coordinates.of(features, 3)(features)
    assert c.shape == (40, 4)
    assert torch.allclose(c[:, :3].mean(0), torch.zeros(3), atol=1e-5)
    assert c[:, :3].square().sum(1).mean() == pytest.approx(1, abs=1e-4)
    assert (c[:, 3] == 1).all()
    assert Coordinates.of(features[:2], 3)(features).shape == (40, 2)  # two prompts span one direction
    alone = Coordinates.of(features[:1], 3)(features)
    assert alone.shape == (40, 1)


def test_reading_pairs_runs_no_layer_of_the_llm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llm, backbone = load_whole(str(save_tiny_llm(tmp_path)), dtype="float32")
    clap = Clap(llm, backbone, LATENT - LATENT % 4)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.2)
    runs = [0]
    for layer in backbone.layers:
        layer.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    items = clap.backbone.chat.encode(["One", "One", "Two"], ["yes", "no", "perhaps"])
    pairs = [(items[0], items[1]), (items[1], items[0]), (items[2], items[0])]
    features = clap.posterior.features([torch.from_numpy(item.prompt).long() for item in items]).detach()
    judged = read_pairs(clap, Coordinates.of(features, 2), pairs)
    fit_people(
        judged, torch.tensor([0, 1, 0]), torch.zeros(2, judged.coordinates.shape[1], 8), LatentDPOSettings(steps=3)
    )
    assert runs == [0]
    assert torch.equal(judged.chosen.mean[0], judged.rejected.mean[1])
    assert torch.equal(judged.chosen.mean[1], judged.rejected.mean[0])
    assert torch.allclose(judged.chosen.mean[2], clap.read([items[2]]).mean[0], atol=1e-5)
    assert torch.allclose(judged.coordinates[0], judged.coordinates[1])
    assert not torch.allclose(judged.coordinates[0], judged.coordinates[2])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"beta": float("inf")}, {"pull": -1.0}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        LatentDPOSettings(**wrong)  # type: ignore[arg-type]
