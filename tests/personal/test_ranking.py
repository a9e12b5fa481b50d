"""Latent DPO's slope by matrix products against autograd on the direct formula, and where numbers are extreme."""

from __future__ import annotations

import pytest
import torch

from penchant.personal.encoder import Gaussian
from penchant.personal.latent_dpo import candidates, latent_dpo_losses
from penchant.personal.ranking import Draws, Natural, Ranking, Table

N, LATENT = 37, 6


def gaussians(log_deviation: float, seed: int, n: int = N) -> Gaussian:
    random = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, n, LATENT, generator=random)
    return Gaussian(0.7 * draw[0], 0.3 * draw[1] + log_deviation)


def noise(m: int = 16) -> torch.Tensor:
    return torch.randn(3, m, 1, LATENT, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("log_deviation", [0.0, -1.0, -3.0])  # from rewards that hardly differ to 0 and 1 alone
@pytest.mark.parametrize("m", [2, 16])
def test_the_slope_is_that_of_the_direct_formula(log_deviation: float, m: int) -> None:
    chosen, rejected = (gaussians(log_deviation, seed) for seed in (0, 1))
    person = gaussians(0.0, 2)
    found, share = candidates(chosen, rejected, noise(m)), torch.rand(N)
    mean, log_deviation_ = (part.requires_grad_() for part in person)
    total = (share * latent_dpo_losses(Gaussian(mean, log_deviation_), found, beta=0.3)).sum()
    direct = torch.autograd.grad(total, (mean, log_deviation_))
    person = Gaussian(mean.detach(), log_deviation_.detach())
    draws = Draws.of(chosen, rejected, noise(m))
    assert torch.allclose(draws.rewards(chosen, rejected), found.reward, atol=1e-4)
    table = Table.of(Ranking.of(found.reward), share)
    fast = draws.sums(table.slope(draws.evidence(Natural.of(person)), 0.3)).by(person)
    for mine, theirs in zip(fast, direct, strict=True):
        assert theirs.abs().max() > 0.01
        assert torch.allclose(mine, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_candidates_of_equal_reward_are_not_ordered() -> None:
    chosen, person = gaussians(-1.0, 0), gaussians(0.0, 2)
    found = candidates(chosen, chosen, noise())
    assert (found.reward == 0.5).all()
    assert not latent_dpo_losses(person, found).any()
    draws = Draws.of(chosen, chosen, noise())
    table = Table.of(Ranking.of(found.reward), torch.ones(N))
    assert not table.slope(draws.evidence(Natural.of(person)), 0.1).any()
    # Narrow posteriors far apart: 0 or 1 to the last bit, and less than a quarter of the ordered pairs differ.
    narrow = torch.full((1, LATENT), -3.0)
    far, other = (Gaussian(torch.full((1, LATENT), mean), narrow) for mean in (9.0, -9.0))
    reward = candidates(far, other, noise()).reward
    assert set(reward.unique().tolist()) == {0.0, 1.0}
    ones = int(reward.sum())
    table = Table.of(Ranking.of(reward), torch.ones(1))
    assert table.weight.shape == (ones, 48 - ones, 1)
    assert torch.allclose(table.weight, torch.tensor(1 / (ones * (48 - ones))))


def test_the_slope_holds_where_exponentials_would_not() -> None:
    reward = torch.linspace(0, 1, 48)[None].expand(4, -1)
    evidence = torch.stack([torch.linspace(-a, a, 48) for a in (590.0, -590.0, 0.0, 1e30)], 1)  # far from any fit
    table = Table.of(Ranking.of(reward), torch.ones(4))
    slope = table.slope(evidence, 0.1)
    gaps = reward[0, :, None] - reward[0]
    ordered = gaps >= gaps.flatten().sort(descending=True).values[48 * 47 // 4 - 1]
    margin = 0.1 * (evidence[:, None] - evidence[None, :]).double()
    each = torch.where(ordered[..., None], -0.1 * torch.sigmoid(-margin), 0.0) / ordered.sum()
    expected = (each.sum(1) - each.sum(0)).float()
    assert torch.allclose(slope[:, :3], expected[:, :3], atol=1e-7)
    assert expected[:, 1].abs().max() > 4e-3
    assert torch.isfinite(slope).all()
