"""Readers of SAEs that others published in layouts of their own: Gemma Scope, Llama Scope, sparsify and others."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penchant.errors import InputError
from penchant.sae.published import (
    Published,
    integer,
    layer_of_hook,
    number,
    read_json,
    read_safetensors,
    section,
    take,
    text,
    turned,
)

DICTIONARIES = {
    "AutoEncoder": ("jumprelu", "bias"),
    "AutoEncoderNew": ("jumprelu", "decoder.bias"),
    "AutoEncoderTopK": ("topk", "b_dec"),
    "BatchTopKSAE": ("batchtopk", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("batchtopk", "b_dec"),
    "JumpReluAutoEncoder": ("jumprelu", "b_dec"),
}
"""dictionary_learning's classes: our architecture, and their name of b_dec."""
NOT_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def read_gemma_scope(folder: Path, place: str) -> Published:
    """Gemma Scope: params.npz in .../layer_L/width_W/average_l0_N, JumpReLU, b_dec not subtracted."""
    if re.search(r"gemma-scope-\w+-(pt|it)-(att|mlp|transcoders)\b|/embedding/", place):
        raise InputError(f"{place} is not of the residual stream; take one of a gemma-scope-...-res repository")
    path = folder / "params.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    # MemoryError: a header may claim a size that no memory has.
    except (OSError, ValueError, TypeError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); fetch the SAE again") from error
    found = take(tensors, path, W_enc="W_enc", W_dec="W_dec", b_enc="b_enc", b_dec="b_dec", threshold="threshold")
    model = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)", place)
    return Published(
        {**found, "W_enc": turned(found["W_enc"])},
        "jumprelu",
        layer=_layer_in(place),
        model=f"google/gemma-2-{model[1]}{'-it' if model[2] == 'it' else ''}" if model else None,
        subtract_decoder_bias=False,
    )


def read_gemma_scope_2(folder: Path, place: str) -> Published:
    """Gemma Scope 2, of Gemma 3: params.safetensors with small letters, the hook in config.json or the folder."""
    path, file = folder / "config.json", folder / "params.safetensors"
    tensors = read_safetensors(file)
    config = read_json(path) if path.is_file() else {}
    hook, target = (text(config, f"hf_hook_point_{side}", path) for side in ("in", "out"))
    transcoder = target not in (None, hook) or "affine_skip_connection" in tensors
    if transcoder or (not hook and re.search(r"attn_out|mlp_out|transcoder|/clt", place)):
        raise InputError(f"{place} is not of the residual stream; take one of a resid_post folder")
    kind = text(config, "architecture", path) or "jump_relu"
    if kind != "jump_relu":
        raise InputError(f"{path} describes a {kind!r} SAE; what can be read is jump_relu")
    found = take(tensors, file, W_enc="w_enc", W_dec="w_dec", b_enc="b_enc", b_dec="b_dec", threshold="threshold")
    model = text(config, "model_name", path)
    return Published(
        {**found, "W_enc": turned(found["W_enc"])},
        "jumprelu",
        layer=layer_of_hook(hook) if hook else _layer_in(place),
        model=model.replace("gemma-v3", "gemma-3") if model else None,
        subtract_decoder_bias=False,
    )


def read_llama_scope(folder: Path, place: str) -> Published:
    """Llama Scope: hyperparams.json, checkpoints/final.safetensors; states are scaled to a mean length of sqrt(d).

    As in the authors' own loader, a latent is chosen by activation times the length of its decoder row where
    `sparsity_include_decoder_norm` says so, and the threshold is of states that were not scaled. SAELens 6.54 leaves
    the length out.
    """
    path = folder / "hyperparams.json"
    config = read_json(path)
    hook, target = (text(config, f"hook_point_{side}", path) for side in ("in", "out"))
    if not hook:
        raise InputError(f"{path} has no hook_point_in; fetch the SAE again")
    if target not in (None, hook):
        raise InputError(f"{place} is a transcoder from {hook} to {target}; take one of the residual stream")
    if config.get("use_glu_encoder"):
        raise InputError(f"{path} asks for use_glu_encoder; only plain encoders can be read")
    d = integer(config, "d_model", path)
    scale, threshold = _llama_scale(config, d, path), number(config, "jump_relu_threshold", path) or 0.0
    activation, k = str(config.get("act_fn")).lower(), None
    architecture = "jumprelu"
    if activation == "relu":
        threshold = 0.0
    elif activation == "topk" and not threshold:
        architecture, k = "topk", integer(config, "top_k", path)
    elif activation not in ("jumprelu", "topk"):
        raise InputError(f"{path} has the activation function {activation!r}; what can be read are jumprelu and topk")

    file = folder / "checkpoints" / "final.safetensors"
    tensors = read_safetensors(file)
    names = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias"}
    if config.get("use_decoder_bias") is False and d:
        tensors.setdefault("decoder.bias", torch.zeros(d))
    found = take(tensors, file, **names)
    found["W_dec"] = turned(found["W_dec"])
    return Published(
        {**found, "threshold": torch.tensor(threshold * scale)},
        architecture,
        d_in=d,
        d_sae=integer(config, "d_sae", path),
        k=k,
        layer=layer_of_hook(hook),
        model="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in place else None,
        subtract_decoder_bias=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        scale=scale,
        by_decoder_norm=bool(config.get("sparsity_include_decoder_norm", True)),
    )


def _llama_scale(config: dict[str, Any], d: int | None, path: Path) -> float:
    """sqrt(d) / mean length of the data set's states, or 1 where that is in the weights."""
    kind = config.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return 1.0
    norms = section(config, "dataset_average_activation_norm", path)
    norm = number(norms, "in", path)
    if kind != "dataset-wise" or not d or not norm or norm < 0 or norms.get("out", norm) != norm:
        raise InputError(f"{path} does not give one mean length of its states, but {kind} and {norms}; fetch it again")
    return math.sqrt(d) / norm


def read_sparsify(folder: Path, place: str) -> Published:
    """sparsify: sae.safetensors, cfg.json, in a folder named for the hook: layers.L. TopK, b_dec subtracted."""
    path, file = folder / "cfg.json", folder / "sae.safetensors"
    config, tensors = read_json(path), read_safetensors(file)
    options = ("signed", "transcode", "skip_connection", "embed_skip", "gram_lookup")
    refused = [name for name in options if config.get(name)] + ["W_skip"] * ("W_skip" in tensors)
    if refused or config.get("activation", "topk") != "topk":
        raise InputError(f"{path} asks for {', '.join(refused) or config['activation']}; only plain TopK can be read")
    found = take(tensors, file, W_enc="encoder.weight", W_dec="W_dec", b_enc="encoder.bias", b_dec="b_dec")
    hook = place.rstrip("/").rpartition("/")[2]
    named = re.match(r"(\w+\.)*(layers|h)[._]\d|embed_tokens$", hook)
    run = folder.parent / "config.json"
    d, factor = integer(config, "d_in", path), integer(config, "expansion_factor", path)
    return Published(
        found,
        "topk",
        d_in=d,
        d_sae=integer(config, "num_latents", path) or (d * factor if d and factor else None),
        k=integer(config, "k", path),
        layer=layer_of_hook(hook) if named else None,
        model=text(read_json(run), "model", run) if run.is_file() else None,
    )


def read_dictionary_learning(folder: Path, place: str) -> Published:
    """dictionary_learning: ae.pt, a dict of tensors that is read without running pickled code, and config.json."""
    path, file = folder / "config.json", folder / "ae.pt"
    config = read_json(path)
    trainer, buffer = section(config, "trainer", path), section(config, "buffer", path)
    kind = str(trainer.get("dict_class"))
    if kind not in DICTIONARIES:
        raise InputError(f"{path} describes a {kind!r}; what can be read are {', '.join(DICTIONARIES)}")
    if re.search("mlp|attn|att_", str(trainer.get("submodule_name") or "")):
        raise InputError(f"{place} reads {trainer['submodule_name']!r}; take one of the residual stream")
    weights = _read_pt(file)
    architecture, b_dec = DICTIONARIES[kind]
    if "W_enc" in weights:
        found = take(weights, file, W_enc="W_enc", W_dec="W_dec", b_enc="b_enc", b_dec=b_dec)
        found["W_enc"] = turned(found["W_enc"])
    else:
        found = take(weights, file, W_enc="encoder.weight", W_dec="decoder.weight", b_enc="encoder.bias", b_dec=b_dec)
        found["W_dec"] = turned(found["W_dec"])
    if architecture == "batchtopk" or kind == "JumpReluAutoEncoder":
        found |= take(weights, file, threshold="threshold")
    layer = integer(trainer, "layer", path)
    return Published(
        found,
        architecture,
        d_in=integer(trainer, "activation_dim", path),
        d_sae=integer(trainer, "dict_size", path),
        k=integer(trainer, "k", path),
        layer=None if layer is None else layer + (buffer.get("io", "out") != "in"),
        model=text(trainer, "lm_name", path),
        subtract_decoder_bias=kind not in NOT_SUBTRACTED,
    )


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} holds more than tensors, or is damaged ({reason}); fetch the SAE again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} holds more than tensors by name; fetch the SAE again")
    return found


def _layer_in(place: str) -> int | None:
    """Gemma Scope's layer_L is the output of layer L, counted from 0."""
    found = re.findall(r"layer_(\d+)", place)
    return int(found[-1]) + 1 if found else None
