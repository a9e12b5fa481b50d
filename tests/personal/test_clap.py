"""CLaP on a tiny LLM: what z does to a response's probability, and which way gradients take to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penchant.personal.clap import DRAWS, ClapTerms
from penchant.personal.groups import groups_of
from tests.personal.tiny import ANSWERS, make_clap, prompts
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def test_the_skip_changes_gradients_and_never_the_output(llm: Path) -> None:
    clap = make_clap(llm)
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
    clap = make_clap(llm)
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
