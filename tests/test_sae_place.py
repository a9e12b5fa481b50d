"""An SAE of another width, layer or LLM is refused, by what it records or by what it explains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from penchant.backbone import Backbone
from penchant.errors import InputError
from penchant.latents import Recipe
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.place import check_place, check_reconstruction, variance_explained
from tests.tiny_llm import LAYERS, save_tiny_llm

D = 8


def made(**facts: Any) -> SparseAutoencoder:
    return SparseAutoencoder(SAEConfig(**{"d_in": D, "d_sae": 16, "architecture": "jumprelu", "layer": 3, **facts}))


def llm(name: str = "google/gemma-2-2b") -> Any:
    return SimpleNamespace(name=name, width=D, depth=4)


RECIPE = Recipe("google/gemma-2-2b", "r", ("3:last", "3:mean", "4:last"), D, "none", 64, "float32")


def test_the_right_place_passes_and_is_named() -> None:
    assert check_place(made(), llm()) == check_place(made(), RECIPE) == 3
    assert check_place(made(), llm(), 3) == check_place(made(layer=None), RECIPE, 3) == 3


@pytest.mark.parametrize(
    ("facts", "layer", "words"),
    [
        ({"d_in": 9}, None, "width 9, google/gemma-2-2b has 8"),
        ({"layer": 5}, None, "reads layer 5"),
        ({"layer": 0}, None, "reads layer 0"),
        ({}, 4, "was trained at layer 3 of hidden_states .SAELens' block 2., not at layer 4"),
        ({"layer": None}, None, "does not record its layer"),
        ({"layer": None}, 5, "reads layer 5"),
        ({"model": "google/gemma-2-9b"}, None, "trained on google/gemma-2-9b, not on google/gemma-2-2b"),
    ],
)
@pytest.mark.parametrize("where", [llm(), RECIPE], ids=["backbone", "recipe"])
def test_the_wrong_place_is_one_sentence(facts: dict[str, Any], layer: int | None, words: str, where: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_place(made(**facts), where, layer)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_the_layer_says_which_it_has() -> None:
    with pytest.raises(InputError, match="reads layer 2, these latents hold layers 3, 4; encode a view 2:last"):
        check_place(made(layer=2), RECIPE)


@pytest.mark.parametrize(
    ("recorded", "name", "passes"),
    [
        ("google/gemma-2-2b", "google/gemma-2-2b", True),
        ("gemma-2-2b", "google/gemma-2-2b", True),
        ("google/gemma-2-2b", "/models/gemma-2-2b", True),
        ("google/gemma-2-2b", "google/gemma-2-2b-it", True),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", True),
        ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-Instruct", True),
        ("gpt2-small", "openai-community/gpt2", True),  # cannot be compared
        ("a/b", "smollm2-135m-instruct", True),
        (None, "google/gemma-2-2b", True),
        ("google/gemma-2-2b", "google/gemma-3-2b", False),
        ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m-deduped", False),
        ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", False),
    ],
)
def test_names_are_compared_where_they_can_be(recorded: str | None, name: str, passes: bool) -> None:
    sae = made(model=recorded)
    if passes:
        check_place(sae, llm(name))
        return
    with pytest.raises(InputError, match="load the SAE with model="):
        check_place(sae, llm(name))
    sae.config = replace(sae.config, model=name)
    check_place(sae, llm(name))


def test_a_hub_id_that_is_a_folder_here_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(InputError):
        check_place(made(model="google/gemma-2-2b"), llm("models/mine"))
    monkeypatch.chdir(tmp_path)
    check_place(made(model="google/gemma-2-2b"), llm("models/mine"))


def test_a_real_backbone_and_its_recipe(tmp_path: Path) -> None:
    backbone = Backbone.load(str(save_tiny_llm(tmp_path / "llm")), dtype="float32")
    for layer in range(1, LAYERS + 1):
        assert check_place(made(d_in=32, layer=layer), backbone) == layer
    with pytest.raises(InputError, match=f"has layers 1 to {LAYERS}"):
        check_place(made(d_in=32, layer=LAYERS + 1), backbone)
    with pytest.raises(InputError, match="these latents hold layer 2;"):
        check_place(made(d_in=32, layer=1), backbone.recipe(("2:last", "2:mean")))


def states(n: int = 2500) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0)) + 3


def faithful() -> SparseAutoencoder:
    """Returns every state as it came: two latents an axis."""
    sae = made()
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        sae.W_dec.copy_(sae.W_enc)
    return sae


def test_variance_explained_is_its_formula() -> None:
    x = states()
    assert variance_explained(x, x) == 1
    assert variance_explained(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-6)
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert variance_explained(x, x + noise) == pytest.approx(1 - 0.25, abs=0.02)
    assert variance_explained(x + 100, x + noise + 100) == pytest.approx(variance_explained(x, x + noise), abs=1e-5)
    with pytest.raises(InputError, match="all alike"):
        variance_explained(x[:1], x[:1])


def test_an_sae_that_explains_its_states_passes_and_one_that_does_not_is_refused() -> None:
    x, sae = states(), faithful()
    assert check_reconstruction(sae, x) == pytest.approx(1)
    assert check_reconstruction(sae, x.bfloat16()) == pytest.approx(1)
    with torch.no_grad():
        sae.W_dec.mul_(0.9)  # of states with mean 3 a tenth is lost: 1 - .01 (1 + 9) / 1
    assert check_reconstruction(sae, x) == pytest.approx(0.9, abs=0.02)
    with pytest.raises(InputError, match=r"explains 0\.\d+ of the variance of 2,500 states, less than 0.95"):
        check_reconstruction(sae, x, bound=0.95)
    with pytest.raises(InputError, match="another layer or LLM"):
        check_reconstruction(SparseAutoencoder.random(SAEConfig(D, 16, "jumprelu")), x)


def test_states_that_cannot_be_judged_are_one_sentence() -> None:
    x = states(4)
    with pytest.raises(InputError, match="width"):
        check_reconstruction(faithful(), x[:, 1:])
    x[1, 2] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        check_reconstruction(faithful(), x)
