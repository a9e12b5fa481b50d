"""The latent encoder: where it starts, what it copies, and that a text's z depends on that text alone."""

from __future__ import annotations

import pytest
import torch
import transformers

from penchant.errors import InputError
from penchant.personal.encoder import Gaussian, LatentEncoder, log_normal
from tests.personal.tiny import KINDS, ids, tiny_llm


def moved(encoder: LatentEncoder) -> LatentEncoder:
    """With a head that says something."""
    torch.manual_seed(1)
    torch.nn.init.normal_(encoder.head.weight, std=0.3)
    return encoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_starts_at_the_standard_normal(kind: str) -> None:
    found = LatentEncoder(tiny_llm(kind), latent=8)([ids(5), ids(9, 1)])
    assert found.mean.shape == (2, 8)
    assert not found.mean.any()
    assert not found.log_deviation.any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_text_alone_says_what_it_says_in_a_batch(kind: str) -> None:
    encoder = moved(LatentEncoder(tiny_llm(kind), latent=8))
    texts = [ids(12), ids(3, 1), ids(7, 2), ids(0)]
    together = encoder(texts)
    for row, text in enumerate(texts):
        for one, all_ in zip(encoder([text]), together, strict=True):
            assert torch.allclose(one[0], all_[row], atol=1e-5)
    assert (together.mean[0] - together.mean[1]).abs().max() > 0.01
    changed = texts[0].clone()
    changed[0] = (changed[0] + 1) % 60
    assert (encoder([changed]).mean[0] - together.mean[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_its_layers_are_the_first_of_the_llm(kind: str) -> None:
    llm = tiny_llm(kind)
    encoder = LatentEncoder(llm, latent=8, layers=2).eval()
    text = ids(6)
    theirs = llm(input_ids=text[None], output_hidden_states=True).hidden_states[2]
    base = llm.base_model
    norm = base.norm if kind == "llama" else base.ln_f
    ours = encoder.layers(inputs_embeds=llm.get_input_embeddings()(text[None]), use_cache=False)[0]
    assert torch.allclose(norm(theirs), ours, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_layers_run_in_the_llms_number_type_and_its_weights_are_float32(kind: str) -> None:
    llm = tiny_llm(kind).bfloat16()
    types: dict[torch.dtype, set[torch.dtype]] = {}

    def features(dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(0)
        encoder = LatentEncoder(llm.to(dtype), latent=8)
        seen = types.setdefault(dtype, set())
        for module in encoder.layers.modules():
            if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D):
                module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        found = encoder.features([ids(4, 1), ids(7, 2)], [ids(9), ids(3, 3)])
        found.square().sum().backward()
        trained = [p for name, p in encoder.named_parameters() if p.requires_grad and not name.startswith("head.")]
        assert all(p.dtype == torch.float32 for p in encoder.parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trained)
        return found.detach()

    coarse, fine = features(torch.bfloat16), features(torch.float32)  # of the very same weights
    assert coarse.dtype == fine.dtype == torch.float32
    assert types == {torch.bfloat16: {torch.bfloat16}, torch.float32: {torch.float32}}
    assert 0 < (coarse - fine).norm() < 0.05 * fine.norm()


def test_training_it_leaves_the_llm_alone_and_teaches_all_of_it() -> None:
    llm = tiny_llm("llama")
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    encoder = moved(LatentEncoder(llm, latent=8))
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder([ids(5)]).mean.square().sum().backward()
    still = [name for name, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in llm.state_dict().items())
    assert not any("embed" in name for name, p in encoder.named_parameters() if p.requires_grad)


def test_a_gaussian_is_torchs_own() -> None:
    torch.manual_seed(0)
    found = Gaussian(torch.randn(3, 5), torch.randn(3, 5) / 2)
    normal = torch.distributions.Normal(found.mean, found.log_deviation.exp())
    z = torch.randn(4, 3, 5)
    assert torch.allclose(found.log_prob(z), normal.log_prob(z).sum(-1), atol=1e-5)
    assert torch.allclose(log_normal(z), torch.distributions.Normal(0.0, 1.0).log_prob(z), atol=1e-6)
    drawn = found.draw(torch.randn(20000, 1, 5))
    assert torch.allclose(drawn.mean(0), found.mean, atol=0.06)
    assert torch.allclose(drawn.std(0), found.log_deviation.exp(), rtol=0.05)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"latent": 10}, "multiple"),
        ({"latent": 0}, "latent is 0"),
        ({"layers": 4}, "1 to 3"),
        ({"layers": 0}, "1 to 3"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LatentEncoder(tiny_llm("llama"), **sizes)
