"""SAELens' files, cfg.json + sae_weights.safetensors: read as of any version, written as of 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from penchant.errors import InputError
from penchant.sae.autoencoder import SparseAutoencoder
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
from penchant.writing import check_seal, saving

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
OURS = "penchant"
"""The part of the metadata that SAELens has no words for."""
FORMAT_VERSION = "6.0.0"
ARCHITECTURES = {"standard": "jumprelu", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu"}
"""SAELens' standard is a plain ReLU: thresholds 0."""
THRESHOLDS = {"jumprelu": "threshold", "batchtopk": "topk_threshold"}
"""batchtopk is a checkpoint of training; what was trained is saved as jumprelu."""
NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}


def read_saelens(folder: Path, _place: str) -> Published:
    """An SAE that SAELens saved.

    Raises InputError for architectures other than standard, topk, batchtopk and jumprelu, for hooks other than the
    residual stream, and for what the files leave to the caller: an average norm, a whitening, finetuned scales.
    """
    check_seal(folder, "fetch the SAE again, or save it again")
    path, weights = folder / CONFIG, read_safetensors(folder / WEIGHTS)
    config = read_json(path)
    metadata = section(config, "metadata", path)
    where = {**config, **metadata}
    ours = section(metadata, OURS, path)

    name, k = _architecture(config, path)
    d_in, d_sae = integer(config, "d_in", path), integer(config, "d_sae", path)
    if not d_in or not d_sae:
        raise InputError(f"{path} does not give d_in and d_sae; fetch the SAE again")
    names = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    if name in THRESHOLDS:
        names["threshold"] = THRESHOLDS[name]
    tensors = take(weights, folder / WEIGHTS, **names)
    tensors["W_enc"] = turned(tensors["W_enc"])
    factors = weights.get("scaling_factor")
    if factors is not None and not bool((factors == 1).all()):
        raise InputError(
            f"{folder / WEIGHTS} has scales finetuned after training, which SAELens 6 does not read either"
        )

    folded = name == "jumprelu" and ours.get("architecture") == "batchtopk"
    hook = next((found for key in ("hook_name", "hook_point", "hf_hook_name") if (found := text(where, key, path))), "")
    if where.get("hook_head_index") is not None or config.get("reshape_activations") == "hook_z":
        raise InputError(f"the SAE in {folder} reads attention heads; take one of the residual stream")
    return Published(
        tensors,
        "batchtopk" if folded else ARCHITECTURES[name],
        d_in=d_in,
        d_sae=d_sae,
        k=integer(ours, "k", path) if name == "jumprelu" else k,
        layer=layer_of_hook(hook) if hook else None,
        model=text(where, "model_name", path),
        revision=text(ours, "revision", path),
        subtract_decoder_bias=bool(config.get("apply_b_dec_to_input", True)),
        normalize=_normalization(config, path),
        by_decoder_norm=name in ("topk", "batchtopk") and bool(config.get("rescale_acts_by_decoder_norm")),
        facts=section(ours, "facts", path),
    )


def _architecture(config: dict[str, Any], path: Path) -> tuple[str, int | None]:
    """SAELens' name of the architecture, and k; before 6.0 TopK was an activation function of the standard one."""
    name = text(config, "architecture", path) or "standard"
    if name not in ARCHITECTURES:
        raise InputError(f"{path} describes a {name!r} SAE; what can be read are {', '.join(ARCHITECTURES)}")
    k = number(config, "k", path)
    function = text(config, "activation_fn", path) or text(config, "activation_fn_str", path) or "relu"
    if function.startswith("topk"):
        name, k = "topk", number(section(config, "activation_fn_kwargs", path), "k", path) or k
    elif function != "relu":
        raise InputError(f"{path} has the activation function {function!r}; what can be read are relu and topk")
    return name, None if k is None else max(1, round(k))  # batchtopk's may be a fraction


def _normalization(config: dict[str, Any], path: Path) -> str:
    name = config.get("normalize_activations")
    if isinstance(name, bool):  # long before 6.0
        name = "expected_average_only_in" if name else "none"
    found = NORMALIZATIONS.get(str(name or "none"))
    if found is None:
        raise InputError(
            f"{path} normalises states by {name!r}, whose numbers SAELens does not save; fold them into the weights"
            " with SAELens, and save the SAE again"
        )
    return found


@torch.no_grad()
def save_sae(sae: SparseAutoencoder, folder: str | Path) -> Path:
    """Write an SAE as SAELens 6 does, for `load_sae` and for `sae_lens.SAE.load_from_disk`; returns the folder.

    batchtopk becomes SAELens' jumprelu, as when SAELens saves one. `scale` is folded into the weights, and read back as
    1. What SAELens has no words for stands in cfg.json under metadata.penchant: architecture, k, revision and
    `sae.facts`, which must be fit for JSON. Read back, activations and reconstructions are equal bit for bit, and in
    SAELens to rounding; with a scale that is no power of two, to rounding in both.
    """
    config, out = sae.config, Path(folder)
    tensors = {
        "W_enc": (sae.W_enc * config.scale).T,
        "W_dec": sae.W_dec / config.scale,
        "b_enc": sae.b_enc,
        "b_dec": sae.b_dec / config.scale,
    }
    saved: dict[str, Any] = {
        "architecture": "topk" if config.architecture == "topk" else "jumprelu",
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_decoder_bias,
        "normalize_activations": next(k for k, v in NORMALIZATIONS.items() if v == config.normalize),
        "reshape_activations": "none",
    }
    if config.architecture == "topk":
        saved |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    else:
        tensors["threshold"] = sae.threshold
    ours = {"architecture": config.architecture, "k": config.k, "revision": config.revision, "facts": sae.facts}
    metadata: dict[str, Any] = {"sae_lens_version": FORMAT_VERSION, "sae_lens_training_version": None, OURS: ours}
    if config.layer is not None:
        metadata["hook_name"] = (
            f"blocks.{config.layer - 1}.hook_resid_post" if config.layer else "blocks.0.hook_resid_pre"
        )
    if config.model is not None:
        metadata["model_name"] = config.model
    written = json.dumps({**saved, "metadata": metadata}, indent=2)  # before anything is on disk
    with saving(out) as new:
        save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, new / WEIGHTS)
        (new / CONFIG).write_text(written + "\n", encoding="utf-8")
    return out
