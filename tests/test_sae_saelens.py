"""SAELens' files against SAELens itself: what it saves is read, what is saved it reads, with equal outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penchant.errors import InputError
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.formats import load_sae, save_sae

lens = pytest.importorskip("sae_lens")

D, M, K = 12, 40, 6
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PLACE = {"hook_name": "blocks.7.hook_resid_post", "model_name": "gemma-2-2b"}


def states(n: int = 64) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(1)) + 1


def filled(sae: Any) -> Any:
    """Random weights everywhere, decoder rows of many lengths, thresholds within reach."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 2 else 1))
            if name == "threshold":
                parameter.abs_()
    return sae.eval()


def theirs(kind: str, **facts: Any) -> Any:
    config = {"standard": "StandardSAE", "topk": "TopKSAE", "jumprelu": "JumpReLUSAE"}[kind]
    metadata = lens.saes.sae.SAEMetadata(**PLACE)
    made = getattr(lens, f"{config}Config")(d_in=D, d_sae=M, metadata=metadata, **facts)
    return filled(getattr(lens, config)(made))


def same_outputs(sae: Any, other: Any) -> None:
    x = states()
    with torch.no_grad():
        activations = sae.encode(x)
        assert 0.05 < (activations > 0).float().mean() < 0.95, "something must be active, and something not"
        torch.testing.assert_close(activations, other.encode(x), **CLOSE)
        torch.testing.assert_close(sae(x), other(x), **CLOSE)


FACTS = [
    ("standard", {}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
]


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(("kind", "facts"), FACTS)
def test_what_saelens_saves_is_read(
    kind: str, facts: dict[str, Any], subtract: bool, normalize: str, tmp_path: Path
) -> None:
    made = theirs(kind, apply_b_dec_to_input=subtract, normalize_activations=normalize, **facts)
    made.save_model(tmp_path)
    sae = load_sae(tmp_path)
    same_outputs(made, sae)
    assert (sae.config.layer, sae.config.model, sae.source) == (8, "gemma-2-2b", str(tmp_path))
    if facts.get("rescale_acts_by_decoder_norm"):
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))


@pytest.mark.parametrize("rescale", [True, False])
def test_a_batchtopk_that_saelens_trained_is_read_both_ways_it_saves_it(rescale: bool, tmp_path: Path) -> None:
    config = lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale)
    training = filled(lens.BatchTopKTrainingSAE(config))
    training.topk_threshold = torch.tensor(2.5, dtype=torch.double)
    training.save_inference_model(tmp_path / "final")
    training.save_model(tmp_path / "checkpoint")
    final = lens.SAE.load_from_disk(tmp_path / "final")
    same_outputs(final, load_sae(tmp_path / "final"))
    same_outputs(final, load_sae(tmp_path / "checkpoint"))
    assert load_sae(tmp_path / "checkpoint").config.architecture == "batchtopk"


OLD = {
    "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small",
    "hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3, "prepend_bos": True, "context_size": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("standard", {}),
        ("standard", {"activation_fn_str": "relu", "apply_b_dec_to_input": False, "normalize_activations": False}),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
        ("topk", {"activation_fn": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"}),
        ("jumprelu", {"architecture": "jumprelu", "activation_fn_str": "relu", "sae_lens_training_version": "4.1.0"}),
    ],
)
def test_configs_from_before_6_mean_what_saelens_takes_them_to_mean(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs(kind, **({"k": K} if kind == "topk" else {})).save_model(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(OLD | changes))
    sae = load_sae(tmp_path)
    same_outputs(lens.SAE.load_from_disk(tmp_path), sae)
    assert (sae.config.layer, sae.config.model) == (3, "gpt2-small")


def ours(**facts: Any) -> SparseAutoencoder:
    return filled(SparseAutoencoder(SAEConfig(**{"d_in": D, "d_sae": M, "k": K, "layer": 8, **facts})))


OURS = [
    {},
    {"subtract_decoder_bias": False},
    {"architecture": "jumprelu"},
    {"architecture": "batchtopk", "model": "a/b", "revision": "c0ffee"},
    {"architecture": "jumprelu", "normalize": "layer_norm"},
    {"normalize": "constant_norm"},
    {"architecture": "batchtopk", "scale": 0.25},
    {"architecture": "jumprelu", "scale": 0.3, "subtract_decoder_bias": False},
    {"layer": None},
]


@pytest.mark.parametrize("facts", OURS, ids=str)
def test_what_is_saved_saelens_reads_and_we_read_back_bit_for_bit(facts: dict[str, Any], tmp_path: Path) -> None:
    made = ours(**facts)
    made.threshold.copy_(torch.linspace(0, 3, M))
    made.facts = {"variance_explained": 0.7, "texts": ["a", "b"]}
    assert save_sae(made, tmp_path / "new" / "sae") == tmp_path / "new" / "sae"
    again = load_sae(tmp_path / "new" / "sae")
    same_outputs(lens.SAE.load_from_disk(tmp_path / "new" / "sae"), made)
    assert again.facts == made.facts
    assert again.config == SAEConfig(**{**made.config.to_dict(), "scale": 1.0})
    x = states()
    if facts.get("scale") == 0.3:  # no power of two: folding rounds
        torch.testing.assert_close(again(x), made(x), **CLOSE)
    else:
        assert torch.equal(again.encode(x), made.encode(x))
        assert torch.equal(again(x), made(x))
    metadata = lens.SAE.load_from_disk(tmp_path / "new" / "sae").cfg.metadata
    assert metadata.hook_name == ("blocks.7.hook_resid_post" if made.config.layer else None)
    assert metadata.model_name == made.config.model


def test_the_layer_before_the_first_block_has_a_hook_too(tmp_path: Path) -> None:
    save_sae(ours(layer=0), tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.0.hook_resid_pre"
    assert load_sae(tmp_path).config.layer == 0


def test_facts_that_json_cannot_hold_leave_nothing_behind(tmp_path: Path) -> None:
    made = ours()
    made.facts = {"sae": made}
    with pytest.raises(TypeError):
        save_sae(made, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gated"}, "a 'gated' SAE; what can be read are standard, topk"),
        ({"architecture": "skip_transcoder"}, "'skip_transcoder'"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu'"),
        ({"normalize_activations": "expected_average_only_in"}, "fold them into the weights"),
        ({"normalize_activations": True}, "expected_average_only_in"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"metadata": {"hook_name": "blocks.3.attn.hook_z"}}, "'blocks.3.attn.hook_z', and only the residual"),
        ({"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}, "residual stream"),
        ({"metadata": {"hook_head_index": 2}}, "attention heads"),
        ({"metadata": {}, "reshape_activations": "hook_z"}, "attention heads"),
        ({"metadata": []}, "not an object"),
        ({"d_in": D + 1}, "W_enc in .* is 40 x 12, where 40 x 13 belongs"),
        ({"d_sae": "many"}, "d_sae in .* is 'many', not a finite number"),
        ({"d_sae": M + 0.5}, "not a whole number"),
        ({"hook_name": 3, "metadata": {}}, "not a text"),
        ({"k": M + 1}, "at most the number of latents"),
        ({"k": None}, "give k"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    theirs("topk", k=K).save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_scales_finetuned_after_training_are_refused_unless_they_are_ones(tmp_path: Path) -> None:
    theirs("standard").save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"scaling_factor": torch.ones(M)}, path)
    load_sae(tmp_path)
    save_file(weights | {"scaling_factor": torch.full((M,), 1.1)}, path)
    with pytest.raises(InputError, match="finetuned"):
        load_sae(tmp_path)
