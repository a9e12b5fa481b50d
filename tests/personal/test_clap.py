"""CLaP on a tiny LLM: what z does to a response's probability, and which way gradients take to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.errors import InputError
from penchant.personal.clap import DRAWS, AdapterKind, Clap, ClapTerms
from penchant.personal.groups import groups_of
from tests.personal.tiny import ADAPTERS, ANSWERS, make_clap, opened, prompts, sequence
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def gradients(clap: Clap, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    clap.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in clap.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_skip_changes_gradients_and_never_the_output(llm: Path, adapter: AdapterKind) -> None:
    clap = make_clap(llm, adapter=adapter)
    groups = groups_of(clap, prompts(1), [ANSWERS])
    noise = torch.randn(DRAWS, 4, 8)
    plain, skipped = clap(groups, noise), clap(groups, noise, skip=True)
    assert torch.equal(plain.loss, skipped.loss)

    def reaching(terms: ClapTerms) -> float:
        found = gradients(clap, terms.reconstruction).get("posterior.head.weight")
        return 0.0 if found is None else float(found.abs().max())

    # At the start no gradient comes back through an adapter at zero; around the LLM it does.
    assert reaching(plain) == 0
    assert reaching(skipped) > 1e-3
    assert all(p.grad is None for p in clap._llm[0].parameters())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_response_of_one_token_behind_nothing_is_read_and_has_nothing_to_predict(
    llm: Path, adapter: AdapterKind
) -> None:
    clap = make_clap(llm, adapter=adapter)
    opened(clap.adapter)
    item, z = sequence(0, 1), torch.randn(1, 8, requires_grad=True)
    assert torch.isfinite(clap.read([item]).mean).all()
    for given in (None, z):
        assert clap.log_probs([item], given, skip=given is not None).tolist() == [0.0]
    beside = clap.log_probs([item, sequence(3, 4)], z.expand(2, -1))
    assert beside[0] == 0
    assert beside[1] < 0


@pytest.mark.parametrize("adapter", ADAPTERS)
@torch.no_grad()
def test_log_probabilities_without_z_are_the_llms_and_do_not_depend_on_the_batch(
    llm: Path, adapter: AdapterKind
) -> None:
    clap = make_clap(llm, adapter=adapter)
    opened(clap.adapter)
    items = [item for group in groups_of(clap, [*prompts(1), "A longer one"], [ANSWERS] * 2) for item in group]
    z = torch.randn(8, 8)
    together = clap.log_probs(items, z)
    for row, item in enumerate(items):
        assert torch.allclose(clap.log_probs([item], z[row : row + 1]), together[row : row + 1], atol=1e-4)
    ids = torch.tensor([[*items[0].prompt, *items[0].response]]).long()
    logits = clap._llm[0](input_ids=ids).logits[0].log_softmax(-1)
    start = len(items[0].prompt)
    expected = logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum()
    assert torch.allclose(clap.log_probs(items[:1], None)[0], expected, atol=1e-3)
    assert (together - clap.log_probs(items, None)).abs().min() > 1e-3


@torch.no_grad()
def test_before_it_begins_a_shifted_llm_is_the_llm(llm: Path) -> None:
    clap: Any = make_clap(llm)
    (items,) = groups_of(clap, prompts(1), [ANSWERS])
    z = torch.randn(4, 8)
    assert torch.equal(clap.log_probs(items, z), clap.log_probs(items, None))
    clap.adapter.begin({2: torch.randn(8, 32)})
    assert (clap.log_probs(items, z) - clap.log_probs(items, None)).abs().min() > 1e-3


@pytest.mark.parametrize("others", [None, torch.tensor([[1], [2], [0], [4], [3], [8], [5], [6], [7]])])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_several_prompts_together_are_the_mean_of_each_alone(
    llm: Path, adapter: AdapterKind, others: torch.Tensor | None
) -> None:
    clap = make_clap(llm, adapter=adapter)
    opened(clap.adapter)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.3)
    groups = groups_of(clap, [*prompts(2), "A longer one"], [ANSWERS[:3], ANSWERS[1:3], ANSWERS])
    noise = torch.randn(DRAWS, 9, 8)
    alone, start = [], 0
    for group in groups:
        part = slice(start, start := start + len(group))
        own = others[part] - part.start if others is not None else None
        alone.append(clap([group], noise[:, part], own, skip=True))
    together = clap(groups, noise, others, skip=True)
    for name in ("loss", "reconstruction", "kl", "contrastive", "accuracy", "tokens"):
        mean = sum(torch.as_tensor(getattr(terms, name)) for terms in alone) / 3
        assert torch.allclose(torch.as_tensor(getattr(together, name)), mean, rtol=1e-4, equal_nan=True), name  # type: ignore[arg-type]
    expected = gradients(clap, torch.stack([terms.loss for terms in alone]).mean())
    found = gradients(clap, together.loss)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-5, name


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_bf16_llm_is_that_of_the_same_weights_in_float32_but_for_rounding(llm: Path, adapter: AdapterKind) -> None:
    z, noise = torch.randn(4, 8), torch.randn(DRAWS, 4, 8)
    found = {}
    for dtype in ("bfloat16", "float32"):
        clap = make_clap(llm, dtype=dtype, adapter=adapter)
        assert clap.backbone.dtype == getattr(torch, dtype)
        opened(clap.adapter)
        groups = groups_of(clap, prompts(1), [ANSWERS])
        assert all(p.dtype == torch.float32 for p in clap.parameters())
        terms = clap(groups, noise, torch.tensor([[1], [2], [3], [0]]), skip=True)
        assert all(gradient.isfinite().all() for gradient in gradients(clap, terms.loss).values())
        found[dtype] = clap.log_probs(groups[0], z).detach()
    assert found["bfloat16"].dtype == torch.float32
    assert 0 < (found["bfloat16"] - found["float32"]).norm() < 0.1 * found["float32"].norm()


def test_an_adapter_that_is_not_there_is_named(llm: Path) -> None:
    with pytest.raises(InputError, match="adapter is 'prefix'; give one of positions, shift"):
        make_clap(llm, adapter="prefix")  # type: ignore[arg-type]
