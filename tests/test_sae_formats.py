"""SAEs in the layouts of others, each written by hand here and checked against the formula of its authors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from penchant.errors import InputError
from penchant.sae.formats import LAYOUTS, load_sae

D, M, K = 6, 18, 4
Formula = Callable[[Tensor], tuple[Tensor, Tensor]]
"""States to activations and reconstructions."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def states() -> Tensor:
    return 2 * random(50, D, seed=9) + 0.5


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def gemma_scope(root: Path) -> tuple[Path, Formula]:
    folder = root / "google" / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    e, d, be, bd, t = random(D, M), random(M, D, seed=1), random(M), random(D), random(M, seed=2).abs()
    arrays = {"W_enc": e, "W_dec": d, "b_enc": be, "b_dec": bd, "threshold": t}
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in arrays.items()})

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ e + be
        return (a := (pre > t) * pre.relu()), a @ d + bd

    return folder, formula


def gemma_scope_2(root: Path) -> tuple[Path, Formula]:
    folder = root / "google" / "gemma-scope-2-1b-it" / "resid_post" / "layer_13_width_16k_l0_small"
    e, d, be, bd, t = random(D, M), random(M, D, seed=1), random(M), random(D), random(M, seed=2).abs()
    facts = {"architecture": "jump_relu", "model_name": "google/gemma-v3-1b-it", "width": M}
    write_json(folder / "config.json", facts | {"hf_hook_point_in": "model.layers.13.output"})
    tensors = {"w_enc": e, "w_dec": d, "b_enc": be, "b_dec": bd, "threshold": t}
    save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / "params.safetensors")
    e, d, be, bd, t = (value.bfloat16().float() for value in tensors.values())

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ e + be
        return (a := (pre > t) * pre.relu()), a @ d + bd

    return folder, formula


LLAMA = {
    "d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise",
    "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "top_k": 50,
    "dataset_average_activation_norm": {"in": 10.8125, "out": 10.8125}, "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False, "use_decoder_bias": True, "use_glu_encoder": False,
}  # fmt: skip


def llama_scope(root: Path, **changes: Any) -> tuple[Path, Formula]:
    folder = root / "fnlp" / "Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L15R-8x"
    write_json(folder / "hyperparams.json", LLAMA | changes)
    (folder / "checkpoints").mkdir()
    e, d, be, bd = random(M, D), random(D, M, seed=1), random(M), random(D)
    tensors = {"encoder.weight": e, "decoder.weight": d, "encoder.bias": be, "decoder.bias": bd}
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    scale, lengths = math.sqrt(D) / 10.8125, d.norm(dim=0)

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        """The authors': biases for states that are not scaled, decoder rows of length 1, then the threshold."""
        pre = (x @ e.T + be / scale) * lengths
        a = torch.where(pre > 0.3, pre, 0)
        return a * scale, a @ (d / lengths).T + bd / scale

    return folder, formula


SPARSIFY = {"activation": "topk", "expansion_factor": 3, "num_latents": 0, "k": K, "d_in": D, "normalize_decoder": True}


def sparsify(root: Path, hook: str = "layers.3") -> tuple[Path, Formula]:
    folder = root / "EleutherAI" / "sae-llama-3-8b-32x" / hook
    write_json(folder / "cfg.json", SPARSIFY)
    write_json(folder.parent / "config.json", {"model": "meta-llama/Meta-Llama-3-8B"})
    e, d, be, bd = random(M, D), random(M, D, seed=1), random(M), random(D)
    tensors = {"encoder.weight": e, "W_dec": d, "encoder.bias": be, "b_dec": bd}
    save_file(tensors, folder / "sae.safetensors")

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = ((x - bd) @ e.T + be).relu()
        a = pre * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
        return a, a @ d + bd

    return folder, formula


def dictionary_learning(root: Path, kind: str = "AutoEncoderTopK") -> tuple[Path, Formula]:
    folder = root / "canrager" / "lm_sae" / "resid_post_layer_8" / "trainer_0"
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": M, "k": K, "layer": 8}
    trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_8"}
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}})
    e, d, be, bd = random(M, D), random(D, M, seed=1), random(M), random(D)
    t = random(M, seed=2).abs() if kind == "JumpReluAutoEncoder" else torch.tensor(0.8)
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        tensors = {"W_enc": e.T.contiguous(), "W_dec": d.T.contiguous(), "b_enc": be, "b_dec": bd, "threshold": t}
    else:
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
        tensors = {"encoder.weight": e, "decoder.weight": d, "encoder.bias": be, bias: bd, "threshold": t}
    torch.save(tensors | {"k": torch.tensor(K, dtype=torch.int)}, folder / "ae.pt")

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = ((x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - bd) @ e.T + be).relu()
        if kind == "AutoEncoderTopK":
            pre = pre * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
        elif not kind.startswith("AutoEncoder"):
            pre = pre * (pre > t)
        return pre, pre @ d.T + bd

    return folder, formula


WRITERS = [gemma_scope, gemma_scope_2, llama_scope, sparsify, dictionary_learning]
KINDS = ["AutoEncoder", "AutoEncoderNew", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"]
FACTS = {
    gemma_scope: (21, "google/gemma-2-2b"),
    gemma_scope_2: (14, "google/gemma-3-1b-it"),
    llama_scope: (16, "meta-llama/Llama-3.1-8B"),
    sparsify: (4, "meta-llama/Meta-Llama-3-8B"),
    dictionary_learning: (9, "EleutherAI/pythia-70m-deduped"),
}


def check(folder: Path, formula: Formula) -> None:
    sae, x = load_sae(folder), states()
    activations, reconstruction = formula(x)
    assert 0.05 < (activations > 0).float().mean() < 0.95
    torch.testing.assert_close(sae.encode(x), activations, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), reconstruction, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("write", WRITERS)
def test_each_layout_gives_its_authors_numbers_and_its_place(write: Any, tmp_path: Path) -> None:
    folder, formula = write(tmp_path)
    check(folder, formula)
    config = load_sae(folder).config
    assert (config.layer, config.model, config.d_in, config.d_sae) == (*FACTS[write], D, M)


@pytest.mark.parametrize("kind", KINDS)
def test_each_class_of_dictionary_learning(kind: str, tmp_path: Path) -> None:
    check(*dictionary_learning(tmp_path, kind))


def test_llama_scope_that_chooses_by_the_activation_alone(tmp_path: Path) -> None:
    folder, _ = llama_scope(tmp_path, sparsity_include_decoder_norm=False)
    sae, x = load_sae(folder), states()
    scale = math.sqrt(D) / 10.8125
    pre = (scale * x) @ random(M, D).T + random(M)
    torch.testing.assert_close(sae.encode(x), torch.where(pre > 0.3 * scale, pre, 0), atol=1e-5, rtol=1e-5)


def test_the_file_of_weights_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write, marker in zip(WRITERS, list(LAYOUTS)[1:], strict=True):
        folder, _ = write(tmp_path)
        monkeypatch.chdir(folder)
        for name in (folder / marker, marker, f"{folder}/"):
            assert torch.equal(load_sae(name)(states()), load_sae(str(folder))(states()))
            assert load_sae(name).config == load_sae(folder).config


@pytest.mark.parametrize("name", ["io", "submodule"])
def test_dictionary_learning_of_another_place(name: str, tmp_path: Path) -> None:
    folder, _ = dictionary_learning(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    if name == "io":  # what goes into layer 8 came out of layer 7
        write_json(folder / "config.json", config | {"buffer": {"io": "in"}})
        assert load_sae(folder).config.layer == 8
    else:
        config["trainer"]["submodule_name"] = "mlp_out_layer_8"
        write_json(folder / "config.json", config)
        with pytest.raises(InputError, match="'mlp_out_layer_8'; take one of the residual stream"):
            load_sae(folder)


def test_what_the_files_lack_is_asked_for_and_what_they_have_is_not_overruled(tmp_path: Path) -> None:
    folder, _ = sparsify(tmp_path, "my-sae")
    assert load_sae(folder).config.layer is None
    assert load_sae(folder, layer=5).config.layer == 5
    assert load_sae(folder, model="a/b").config.model == "a/b"
    write_json(folder / "cfg.json", {name: value for name, value in SPARSIFY.items() if name != "k"})
    with pytest.raises(InputError, match="does not say how many latents are active in a state; give k"):
        load_sae(folder)
    assert load_sae(folder, k=3).config.k == 3
    named, _ = sparsify(tmp_path)
    with pytest.raises(InputError, match="records layer 4, not 3"):
        load_sae(named, layer=3)
    with pytest.raises(InputError, match="records k 4, not 5"):
        load_sae(named, k=5)
