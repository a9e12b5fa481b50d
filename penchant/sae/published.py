"""What every SAE file format comes down to, weights and facts, and the checks they pass before they are an SAE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from penchant import saved
from penchant.errors import InputError
from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder

CURE = "fetch the SAE again"


@dataclass
class Published:
    """An SAE as one of the readers found it. None is what its files do not say."""

    tensors: dict[str, Tensor]
    """W_enc [m, d], W_dec [m, d], b_enc [m], b_dec [d] and, but for topk, threshold [m] or []; of any float type."""
    architecture: str
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    layer: int | None = None
    model: str | None = None
    revision: str | None = None
    subtract_decoder_bias: bool = True
    normalize: str = "none"
    scale: float = 1.0
    by_decoder_norm: bool = False
    """Latents are chosen, and thresholds meant, by activation times length of the decoder row."""
    facts: dict[str, Any] = field(default_factory=dict)

    def build(
        self, source: str, layer: int | None = None, k: int | None = None, model: str | None = None
    ) -> SparseAutoencoder:
        """The SAE, in float32; `layer` and `k` fill in what the files lack, `model` replaces what they say.

        Raises InputError where shapes contradict the config or each other, a weight is not finite, k is missing, or
        `layer` or `k` contradicts the files.
        """
        w_enc = self.tensors["W_enc"]
        if w_enc.ndim != 2:
            raise InputError(f"the encoder in {source} has {w_enc.ndim} axes, not 2; this is no SAE of one layer")
        m, d = self.d_sae or w_enc.shape[0], self.d_in or w_enc.shape[1]
        shapes = {"W_enc": (m, d), "W_dec": (m, d), "b_enc": (m,), "b_dec": (d,)}
        state = {name: _checked(name, self.tensors[name], shape, source) for name, shape in shapes.items()}
        threshold = self.tensors.get("threshold", torch.zeros(()))
        if not threshold.ndim:
            threshold = threshold.expand(m)
        state["threshold"] = _checked("threshold", threshold, (m,), source)
        if self.by_decoder_norm:
            # The same SAE with rows of length 1 and activations as many times larger.
            norms = state["W_dec"].norm(dim=1).clamp_min(1e-8)
            state["W_dec"] = state["W_dec"] / norms[:, None]
            state["W_enc"] = state["W_enc"] * norms[:, None]
            state["b_enc"] = state["b_enc"] * norms

        k = _agreed("k", self.k, k, source)
        if k is None and self.architecture != "jumprelu":
            raise InputError(f"{source} does not say how many latents are active in a state; give k")
        config = SAEConfig(
            d_in=d,
            d_sae=m,
            architecture=self.architecture,
            k=k or 0,
            layer=_agreed("layer", self.layer, layer, source),
            model=model or self.model,
            revision=self.revision,
            subtract_decoder_bias=self.subtract_decoder_bias,
            normalize=self.normalize,
            scale=self.scale,
        )
        with torch.device("meta"):  # the weights are there already, and may fill half of the memory
            sae = SparseAutoencoder(config, source)
        sae.load_state_dict(state, assign=True)
        sae.facts = self.facts
        return sae


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...], source: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        found, wanted = (" x ".join(map(str, s)) for s in (tensor.shape, shape))
        raise InputError(f"{name} in {source} is {found}, where {wanted} belongs; its files are not of one SAE")
    tensor = tensor.detach().to(torch.float32).contiguous()
    # A latent may be switched off by an infinite threshold.
    if bool((tensor.isnan() if name == "threshold" else ~tensor.isfinite()).any()):
        raise InputError(f"{name} in {source} holds numbers that are not finite; fetch or train the SAE again")
    return tensor


def _agreed(name: str, recorded: int | None, given: int | None, source: str) -> int | None:
    if recorded is not None and given is not None and recorded != given:
        raise InputError(f"{source} records {name} {recorded}, not {given}; leave {name} out or give that SAE's own")
    return recorded if given is None else given


def layer_of_hook(hook: str) -> int:
    """Index in `hidden_states` of a residual hook: blocks.L.hook_resid_post, or layers.L in transformers' own names.

    Raises InputError for any other place: attention, MLP, embeddings, a part of a layer.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if found:
        return int(found[1]) + (found[2] == "post")
    found = re.fullmatch(r"(?:[\w.]+\.)?(?:layers|h)[._](\d+)(?:\.output)?", hook)
    if found:
        return int(found[1]) + 1
    raise InputError(
        f"this SAE reads {hook!r}, and only the residual stream between layers can be used; take one trained on"
        " hook_resid_post"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or InputError."""
    return saved.read_json(path, CURE)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or InputError; whether they are finite is for `build` to say, by our names."""
    try:
        return load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); {CURE}") from error


def take(tensors: Mapping[str, Tensor], path: Path, **names: str) -> dict[str, Tensor]:
    """{our name: the tensor under the file's name}, or InputError that says which is missing."""
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}, only {', '.join(tensors) or 'nothing'}; fetch it again")
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def turned(tensor: Tensor) -> Tensor:
    """The transpose of a matrix; anything else as it is, for the check of shapes to name."""
    return tensor.T if tensor.ndim == 2 else tensor


def number(config: Mapping[str, Any], name: str, path: Path) -> float | None:
    """A number from a config, None where there is none, InputError for anything else."""
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} in {path} is {value!r}, not a finite number; fetch the SAE again")
    return value


def integer(config: Mapping[str, Any], name: str, path: Path) -> int | None:
    """A whole number from a config, None where there is none, InputError for anything else."""
    value = number(config, name, path)
    if value is not None and value != int(value):
        raise InputError(f"{name} in {path} is {value}, not a whole number; fetch the SAE again")
    return None if value is None else int(value)


def text(config: Mapping[str, Any], name: str, path: Path) -> str | None:
    """A string from a config, None where there is none, InputError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} in {path} is {value!r}, not a text; fetch the SAE again")
    return value or None


def section(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A part of a config that is an object itself, empty where there is none, InputError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{name} in {path} is {value!r}, not an object; fetch the SAE again")
    return value or {}
