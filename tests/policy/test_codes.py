"""The codebook with its prior and posterior."""

from __future__ import annotations

import pytest
import torch

from penchant.errors import InputError
from penchant.policy.codes import LatentCodes, PairStates, kl_divergence

WIDTH = 8


def states(b: int = 5, seed: int = 0) -> PairStates:
    generator = torch.Generator().manual_seed(seed)
    return PairStates(*(torch.randn(b, WIDTH, generator=generator) for _ in range(3)))


def alive(codes: int = 4, **kwargs: object) -> LatentCodes:
    """Codes whose prior and posterior depend on what they see, as after some training."""
    torch.manual_seed(1)
    made = LatentCodes(WIDTH, codes, **kwargs)  # type: ignore[arg-type]
    for net in made.children():
        torch.nn.init.normal_(net[-1].weight)
    return made


def test_fresh_codes_are_equally_likely_and_cost_no_kl() -> None:
    codes = LatentCodes(WIDTH, 4)
    s = states()
    assert torch.allclose(codes.prior_logits(s.prompt).softmax(-1), torch.full((5, 4), 0.25))
    assert torch.equal(codes.draw(s, 0.5).kl, torch.zeros(5))


def test_z_is_a_convex_mixture_of_the_codes() -> None:
    codes = alive()
    one_hot = torch.eye(4)
    assert torch.equal(codes.z(one_hot), codes.codebook)
    z = codes.draw(states(50), 0.3).z
    corners = codes.codebook.detach().numpy()
    low, high = corners.min(0), corners.max(0)
    assert ((z.detach().numpy() >= low - 1e-6) & (z.detach().numpy() <= high + 1e-6)).all()


def test_g_moves_from_the_posterior_to_the_prior() -> None:
    codes, s = alive(), states()
    other = s._replace(chosen=-s.chosen, rejected=s.rejected + 1)

    def draw(seen: PairStates, g: float) -> torch.Tensor:
        torch.manual_seed(3)
        return codes.draw(seen, g).z

    assert torch.equal(draw(s, 1.0), draw(other, 1.0))  # the prior does not see the pair
    assert not torch.allclose(draw(s, 0.0), draw(other, 0.0))
    elsewhere = s._replace(prompt=-s.prompt)
    assert torch.equal(draw(s, 0.0), draw(elsewhere, 0.0))
    assert not torch.allclose(draw(s, 1.0), draw(elsewhere, 1.0))
    middle = 0.5 * draw(s, 0.0) + 0.5 * draw(s, 1.0)
    assert torch.allclose(draw(s, 0.5), middle, atol=1e-6)


def test_kl_is_that_of_torch_and_zero_only_for_equals() -> None:
    p, q = torch.randn(6, 4), torch.randn(6, 4)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert torch.allclose(kl_divergence(p, q), expected, atol=1e-6)
    assert (kl_divergence(p, q) > 0).all()
    assert torch.allclose(kl_divergence(p, p + 3), torch.zeros(6), atol=1e-6)


def test_a_draw_at_low_temperature_is_one_code() -> None:
    codes = alive(temperature=0.01)
    z = codes.draw(states(20), 1.0).z
    nearest = (z[:, None] - codes.codebook).norm(dim=-1).min(1).values
    assert (nearest < 0.05 * codes.codebook.norm(dim=-1).mean()).float().mean() > 0.8
    soft = alive(temperature=5.0).draw(states(20), 1.0).z
    assert (soft[:, None] - codes.codebook).norm(dim=-1).min(1).values.mean() > nearest.mean()


def test_draws_follow_the_random_state_and_their_mean_the_weights() -> None:
    codes, s = alive(temperature=0.05), states(1)
    torch.manual_seed(0)
    first = codes.draw(s, 1.0).z
    torch.manual_seed(0)
    assert torch.equal(first, codes.draw(s, 1.0).z)
    many = PairStates(*(part.expand(4000, -1) for part in s[:3]))
    assert torch.allclose(codes.draw(many, 1.0).z.mean(0), codes.expected(s.prompt)[0], atol=0.015)


@pytest.mark.parametrize(("posterior", "wide"), [("concat", 2), ("difference", 1), ("both", 3)])
def test_posteriors_see_both_responses(posterior: str, wide: int) -> None:
    codes, s = alive(posterior=posterior), states()
    assert codes.posterior_net[0].in_features == wide * WIDTH
    whole = codes.posterior_logits(s)
    assert not torch.allclose(whole, codes.posterior_logits(PairStates(s.prompt, s.rejected, s.chosen)))
    assert not torch.allclose(whole, codes.posterior_logits(s._replace(rejected=s.rejected + torch.randn(WIDTH))))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"codes": 0}, "at least 1"), ({"posterior": "sum"}, "not one of"), ({"temperature": 0.0}, "above 0")],
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LatentCodes(WIDTH, **arguments)  # type: ignore[arg-type]


def test_the_posterior_people_is_the_prior_times_what_else_a_person_judged() -> None:
    codes = alive(posterior="people", people=2)
    codes.evidence += torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]])[:, : codes.codes]
    s = states(3)._replace(evidence=codes.evidence[torch.tensor([0, 1, 0])])
    draw = codes.draw(s, 1.0)
    expected = codes.prior_logits(s.prompt).softmax(-1) * s.evidence.exp()
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(draw.posterior, expected, atol=1e-6)
    assert torch.allclose(draw.z, expected @ codes.codebook, atol=1e-6)
    assert (draw.kl > 0).all()
    nothing_known = codes.posterior_logits(s._replace(evidence=None)).softmax(-1)
    assert torch.allclose(nothing_known, codes.prior_logits(s.prompt).softmax(-1))


def test_the_posterior_people_teaches_the_prior_by_the_kl_alone() -> None:
    codes = alive(posterior="people", people=1)
    draw = codes.draw(states(3)._replace(evidence=torch.randn(3, codes.codes)), 0.5)
    draw.z.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in codes.prior_net.parameters())
    assert codes.codebook.grad is not None
    draw.kl.sum().backward()
    assert all(p.grad is not None for p in codes.prior_net.parameters())
