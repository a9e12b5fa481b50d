"""CLaP's KL divergences and contrastive term, and Latent DPO's rewards and loss, against slower or known ways."""

from __future__ import annotations

import math

import pytest
import torch

from penchant.personal.clap_losses import contrastive, contrastive_accuracy, dg_kld, kld
from penchant.personal.encoder import Gaussian, log_normal
from penchant.personal.latent_dpo import Candidates, candidates, latent_dpo_losses


def gaussians(n: int, d: int = 3, seed: int = 0) -> Gaussian:
    torch.manual_seed(seed)
    return Gaussian(torch.randn(n, d), 0.3 * torch.randn(n, d) - 0.5)


def test_the_usual_kl_is_torchs() -> None:
    q = gaussians(4)
    normal = torch.distributions.Normal(q.mean, q.log_deviation.exp())
    theirs = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    assert torch.allclose(kld(q), theirs, atol=1e-5)


def test_dg_kld_is_its_formula_term_by_term() -> None:
    q = gaussians(3, 2)
    noise = torch.randn(5, 3, 2)
    total = 0.0
    for d in range(2):
        for i in range(3):
            for m in range(5):
                z = float(q.mean[i, d] + q.log_deviation[i, d].exp() * noise[m, i, d])
                density = sum(
                    math.exp(-0.5 * ((z - float(q.mean[j, d])) / math.exp(float(q.log_deviation[j, d]))) ** 2)
                    / (math.exp(float(q.log_deviation[j, d])) * math.sqrt(2 * math.pi))
                    for j in range(3)
                )
                total += (math.log(density / 3) + 0.5 * z * z + 0.5 * math.log(2 * math.pi)) / 15
    assert float(dg_kld(q, noise)) == pytest.approx(total, abs=1e-4)


def test_dg_kld_of_one_gaussian_is_the_usual_kl_and_leaves_many_free_to_be_narrow() -> None:
    one = gaussians(1)
    noise = torch.randn(200_000, 1, 3)
    assert torch.allclose(dg_kld(one, noise), kld(one), atol=0.03)
    torch.manual_seed(0)
    narrow = Gaussian(torch.randn(256, 1), torch.full((256, 1), -1.5))  # together they fill the prior
    assert kld(narrow) > 1
    assert dg_kld(narrow, torch.randn(16, 256, 1)) < 0.05


def test_the_contrastive_term_is_the_log_loss_of_the_own_z() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -5.0], [-4.0, -4.0, -9.0]])
    expected = -sum(math.log(math.exp(row[0]) / sum(map(math.exp, row))) for row in log_probs.tolist()) / 2
    assert float(contrastive(log_probs)) == pytest.approx(expected, abs=1e-6)
    assert float(contrastive_accuracy(log_probs)) == 0.5


def test_a_reward_is_near_one_at_the_chosen_and_turns_around_with_the_pair() -> None:
    chosen, rejected = (Gaussian(torch.full((2, 3), mean), torch.zeros(2, 3)) for mean in (2.0, -2.0))
    noise = torch.randn(3, 50, 2, 3)
    found = candidates(chosen, rejected, noise)
    assert found.z.shape == (2, 150, 3)
    assert found.reward[:, 50:100].mean() > 0.99  # drawn from the chosen one's posterior
    assert found.reward[:, 100:].mean() < 0.01
    assert found.reward[:, :50].std() > 0.3  # the prior's are of both kinds
    again = candidates(rejected, chosen, noise[[0, 2, 1]])
    order = torch.cat([torch.arange(50), torch.arange(100, 150), torch.arange(50, 100)])
    assert torch.allclose(again.reward[:, order], 1 - found.reward, atol=1e-5)
    far = candidates(Gaussian(torch.full((1, 3), 1e4), torch.full((1, 3), -6.0)), gaussians(1), torch.randn(3, 4, 1, 3))
    assert torch.isfinite(far.reward).all()


def test_the_loss_looks_at_the_clearest_quarter_of_the_ordered_pairs() -> None:
    torch.manual_seed(0)
    person, found = gaussians(2), Candidates(torch.randn(2, 6, 3), torch.rand(2, 6))
    terms = []
    for row in range(2):
        pairs = [
            (float(found.reward[row, a] - found.reward[row, b]), a, b) for a in range(6) for b in range(6) if a != b
        ]
        kept = sorted(pairs, reverse=True)[: len(pairs) // 4]
        own = Gaussian(person.mean[row : row + 1], person.log_deviation[row : row + 1])
        evidence = [float(own.log_prob(z[None])[0] - log_normal(z).sum()) for z in found.z[row]]
        terms += [math.log1p(math.exp(-0.1 * (evidence[a] - evidence[b]))) for _, a, b in kept]
    assert len(terms) == 2 * 7
    assert float(latent_dpo_losses(person, found).mean()) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_candidates_of_equal_reward_are_not_ordered() -> None:
    person, chosen = gaussians(4), gaussians(4, seed=1)
    assert not latent_dpo_losses(person, candidates(chosen, chosen, torch.randn(3, 16, 1, 3))).any()
    found = Candidates(torch.randn(1, 12, 3), torch.tensor([[1.0] * 10 + [0.0] * 2]))  # 20 of 132 pairs differ
    own = Gaussian(person.mean[:1], person.log_deviation[:1])
    evidence = (own.log_prob(found.z.transpose(0, 1)) - log_normal(found.z.transpose(0, 1)).sum(-1))[:, 0]
    terms = torch.nn.functional.softplus(-0.1 * (evidence[:10, None] - evidence[10:]))
    assert float(latent_dpo_losses(own, found)) == pytest.approx(float(terms.mean()), abs=1e-6)


def test_at_the_prior_the_loss_is_log_two_and_its_descent_goes_to_the_chosen() -> None:
    chosen, rejected = (Gaussian(torch.full((4, 3), mean), torch.full((4, 3), -1.0)) for mean in (1.0, -1.0))
    found = candidates(chosen, rejected, torch.randn(3, 16, 4, 3))
    mean, log_deviation = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    assert float(latent_dpo_losses(Gaussian(mean, log_deviation), found).mean().detach()) == pytest.approx(
        math.log(2), abs=1e-6
    )
    optimizer = torch.optim.Adam([mean, log_deviation], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        latent_dpo_losses(Gaussian(mean, log_deviation), found).mean().backward()
        optimizer.step()
    assert (mean > 0.3).all()
