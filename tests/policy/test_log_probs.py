"""Log-probabilities in chunks equal those of whole logits, with their derivatives, for every form of head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penchant.policy import log_probs
from penchant.policy.log_probs import Vocabulary

ROWS, WIDTH, TOKENS = 13, 6, 11


def whole(vocabulary: Vocabulary, states: Tensor, targets: Tensor) -> Tensor:
    logits = vocabulary.scale * vocabulary.head(states)
    if vocabulary.cap is not None:
        logits = vocabulary.cap * torch.tanh(logits / vocabulary.cap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_whole_logits_with_all_derivatives(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, cap: float | None, bias: bool
) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_NUMBERS", 4 * TOKENS)  # chunks of 4 rows, the last of 1
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, TOKENS, bias=bias).requires_grad_(not frozen)
    vocabulary = Vocabulary(head, 1.7, cap)
    targets, upstream = torch.randint(TOKENS, (ROWS,)), torch.randn(ROWS)
    found = []
    for function in (vocabulary.log_probs, lambda s, t: whole(vocabulary, s, t)):
        states = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        values = function(states, targets)
        (values * upstream).sum().backward()
        found.append([values.detach(), states.grad, *(p.grad.clone() for p in head.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == (2 if frozen else 3 + bias)
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


def test_chunks_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(nn.Linear(WIDTH, TOKENS, bias=False), 1.0, None)
    states, targets = torch.randn(ROWS, WIDTH), torch.randint(TOKENS, (ROWS,))
    rows = torch.cat([vocabulary.log_probs(states[i : i + 1], targets[i : i + 1]) for i in range(ROWS)])
    assert torch.allclose(vocabulary.log_probs(states, targets), rows, atol=1e-6)


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    whole_logits = log_probs._logits

    def noted(h: Tensor, *rest: object) -> object:
        rows.append(len(h))
        return whole_logits(h, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(log_probs, "_logits", noted)
    monkeypatch.setattr(log_probs, "CHUNK_NUMBERS", 5 * TOKENS)
    head = nn.Linear(WIDTH, TOKENS, bias=False)
    states = torch.randn(ROWS, WIDTH, requires_grad=True)
    Vocabulary(head, 1.0, None).log_probs(states, torch.randint(TOKENS, (ROWS,))).sum().backward()
    assert max(rows) == 5
    assert sum(rows) == 2 * ROWS  # forward, and again backward as the head itself is trained


@pytest.mark.parametrize("frozen", [True, False])
def test_z_acts_as_if_added_to_the_states(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_NUMBERS", 4 * TOKENS)
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, TOKENS).requires_grad_(not frozen)
    vocabulary = Vocabulary(head, 1.3, None)
    targets, upstream, owner = torch.randint(TOKENS, (ROWS,)), torch.randn(ROWS), torch.randint(3, (ROWS,))
    found = []
    for ours in (True, False):
        states = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        z = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
        head.zero_grad()
        values = (
            vocabulary.log_probs(states, targets, z, owner) if ours else whole(vocabulary, states + z[owner], targets)
        )
        (values * upstream).sum().backward()
        known = [p.grad.clone() for p in head.parameters() if p.grad is not None]
        found.append([values.detach(), states.grad, z.grad, *known])
    assert len(found[0]) == (3 if frozen else 5)
    for mine, expected in zip(*found, strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_a_small_z_is_not_rounded_away_in_bf16() -> None:
    torch.manual_seed(0)
    head = nn.Linear(64, 50, bias=False).to(torch.bfloat16)
    vocabulary = Vocabulary(head, 1.0, None)
    states, targets = 30 * torch.randn(200, 64).to(torch.bfloat16), torch.randint(50, (200,))
    z = 0.02 * torch.randn(1, 64)
    owner = torch.zeros(200, dtype=torch.long)
    moved = vocabulary.log_probs(states, targets, z, owner) - vocabulary.log_probs(states, targets)
    exact = [
        (head(states).float() + shift).log_softmax(-1) for shift in (nn.functional.linear(z, head.weight.float()), 0)
    ]
    expected = (exact[0] - exact[1]).gather(1, targets[:, None])[:, 0]
    assert (moved - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_several_z_at_once_are_each_alone_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, cap: float | None
) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_NUMBERS", 4 * TOKENS)
    torch.manual_seed(0)
    vocabulary = Vocabulary(nn.Linear(WIDTH, TOKENS).to(dtype).requires_grad_(False), 1.3, cap)
    states, targets = torch.randn(ROWS, WIDTH).to(dtype), torch.randint(TOKENS, (ROWS,))
    owner, shifts = torch.randint(3, (ROWS,)), [torch.randn(3, WIDTH), None, torch.randn(3, WIDTH)]
    found = vocabulary.log_probs_under(states, targets, shifts, owner)
    for said, z in zip(found, shifts, strict=True):
        assert torch.equal(said, vocabulary.log_probs(states, targets, z, owner))


def test_several_z_share_one_product_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    multiply = log_probs._Room.multiply
    monkeypatch.setattr(log_probs._Room, "multiply", lambda self, *args: products.append(1) or multiply(self, *args))
    vocabulary = Vocabulary(nn.Linear(WIDTH, TOKENS), 1.0, None)
    shifts = [torch.randn(3, WIDTH) for _ in range(5)]
    owner = torch.randint(3, (ROWS,))
    vocabulary.log_probs_under(torch.randn(ROWS, WIDTH), torch.randint(TOKENS, (ROWS,)), shifts, owner)
    assert len(products) == 1
