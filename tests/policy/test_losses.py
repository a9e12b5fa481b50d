"""DPO, IPO and SimPO on given log-probabilities, against TRL's own formulas and what must hold for any of them."""

from __future__ import annotations

import pytest
import torch
from trl.experimental.cpo import CPOTrainer

from penchant.errors import InputError
from penchant.policy.losses import DPO, IPO, PairLogProbs, SimPO, make_loss

N = 16


def log_probs(seed: int) -> PairLogProbs:
    generator = torch.Generator().manual_seed(seed)
    sums = [-50 * torch.rand(N, generator=generator) for _ in range(2)]
    lengths = torch.Generator().manual_seed(7)
    return PairLogProbs(*sums, *(torch.randint(1, 40, (N,), generator=lengths) for _ in range(2)))


def swapped(p: PairLogProbs) -> PairLogProbs:
    return PairLogProbs(p.rejected, p.chosen, p.rejected_tokens, p.chosen_tokens)


@pytest.mark.parametrize("loss", [DPO(), IPO(), SimPO()])
def test_swapping_chosen_and_rejected_flips_the_margin(loss: DPO | IPO | SimPO) -> None:
    policy, reference = log_probs(0), log_probs(1)
    assert torch.equal(loss.margins(swapped(policy), swapped(reference)), -loss.margins(policy, reference))


def test_dpo_of_an_untrained_policy_is_log_two() -> None:
    loss = DPO()
    margins = loss.margins(log_probs(0), log_probs(0))
    assert torch.equal(margins, torch.zeros(N))
    assert torch.allclose(loss(margins), torch.full((N,), 2.0).log())


def test_dpo_with_label_smoothing_is_the_mean_over_both_labels() -> None:
    margins = torch.linspace(-3, 3, 7)
    smoothed = DPO(label_smoothing=0.2)(margins)
    assert torch.allclose(smoothed, 0.8 * DPO()(margins) + 0.2 * DPO()(-margins))
    assert not torch.allclose(smoothed, DPO()(margins))


def test_ipo_is_smallest_at_its_target_and_counts_tokens() -> None:
    loss = IPO(beta=0.25)
    assert loss(torch.tensor([2.0])) == 0
    assert loss(torch.tensor([1.0, 3.0])).tolist() == [1.0, 1.0]
    policy = PairLogProbs(*(torch.tensor([x]) for x in (-10.0, -30.0, 5, 10)))
    reference = PairLogProbs(*(torch.tensor([x]) for x in (-15.0, -20.0, 5, 10)))
    assert loss.margins(policy, reference).item() == pytest.approx(5 / 5 + 10 / 10)


def test_simpo_has_no_reference_and_equals_trls_cpo_trainer() -> None:
    policy, beta, gamma = log_probs(0), 2.0, 0.7
    trainer = CPOTrainer.__new__(CPOTrainer)
    trainer.beta, trainer.simpo_gamma, trainer.loss_type, trainer.label_smoothing, trainer.alpha = (
        beta,
        gamma,
        "simpo",
        0,
        0,
    )
    trainer.accelerator = type("A", (), {"device": torch.device("cpu")})()
    means = (policy.chosen / policy.chosen_tokens, policy.rejected / policy.rejected_tokens)
    theirs, chosen, rejected = trainer.cpo_loss(*means)
    loss = SimPO(beta, gamma)
    ours = loss.margins(policy, None)
    assert torch.allclose(loss(ours), theirs, atol=1e-6)
    assert torch.allclose(ours, chosen - rejected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("hinge",), "not one of dpo, ipo, simpo"),
        (("dpo", 0.0), "beta is 0.0"),
        (("dpo", float("nan")), "beta is nan"),
        (("dpo", 0.1, 0.5), "label_smoothing is 0.5"),
        (("ipo", 0.1, 0.1), "belongs to the dpo loss"),
        (("dpo", 0.1, 0.0, 1.0), "belongs to the simpo loss"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_loss(*arguments)  # type: ignore[arg-type]
