"""A policy ready to be trained: LoRA or all weights, fresh codes, and the states of the layers that stay frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from penchant.backbone import DEFAULT, Backbone
from penchant.errors import InputError
from penchant.policy.batches import TokenPair
from penchant.policy.codes import LatentCodes
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from penchant.policy.trainer import checkpointing
from penchant.policy.trunk import Trunk
from penchant.store import default_root
from penchant.store_admin import TRUNKS


def make_trunk(
    backbone: Backbone, settings: Settings, pairs: list[TokenPair], cache: str | Path | None
) -> Trunk | None:
    """Where only the top layers are trained: the states of those below, for all `pairs` that will ever be read."""
    if settings.top_layers is None:
        return None
    if not 0 < settings.top_layers < backbone.depth:
        most = backbone.depth - 1
        raise InputError(f"top_layers is {settings.top_layers}; give 1 to {most}, as this LLM has {most + 1} layers.")
    return Trunk(backbone, backbone.depth - settings.top_layers, pairs, Path(cache or default_root()) / TRUNKS)


def make_policy(
    llm: transformers.PreTrainedModel,
    backbone: Backbone,
    settings: Settings,
    trunk: Trunk | None = None,
    *,
    asked: tuple[str, str | None] = (DEFAULT, None),
    latent: Any = None,
    people: Sequence[str] = (),
) -> Policy:
    """A policy ready to be trained: LoRA or all weights, and fresh codes, or `latent` in their place.

    `asked` are the LLM's name and revision as they were asked for; they are saved with the policy. So are the names of
    the `people` who judged the pairs, whom the posterior "people" tells apart.
    """
    transformers.set_seed(settings.seed)
    model: Any = llm
    model.requires_grad_(False)
    first = trunk.first if trunk is not None else 0
    lora = None
    if not settings.lora and backbone.dtype != torch.float32:
        raise InputError(f"all weights are trained in float32, this LLM was loaded in {backbone.dtype}; load it so.")
    for module in model.modules():  # noise that the reference has not; TRL leaves it out as well
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if settings.lora:
        lora = {"rank": settings.lora, "alpha": 2 * settings.lora, "layers": list(range(first, backbone.depth))}
        model = add_lora(model, backbone, lora)
    elif first:
        backbone.layers[first:].requires_grad_(True)
    else:
        model.requires_grad_(True)
    codes = latent if latent is not None else settings.make_codes(backbone.width, len(people))
    config = {
        "penchant": _version(),
        "base": str(Path(asked[0]).resolve()) if Path(asked[0]).exists() else asked[0],
        "asked_revision": asked[1],
        "revision": backbone.revision,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max_length": backbone.chat.max_length,
        "lora": lora,
        "top_layers": settings.top_layers,
        "loss": settings.loss,
        **asdict(settings.make_loss()),  # type: ignore[call-overload]
        "codes": settings.codes,
        "kl_weight": settings.kl_weight,
        "latent": {name: getattr(codes, name) for name in ("codes", "posterior", "temperature")}
        if isinstance(codes, LatentCodes)
        else None,
        "people": list(people),
    }
    device = backbone.device
    policy = Policy(model, backbone, codes.to(device) if isinstance(codes, nn.Module) else codes, config, trunk)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing())
        model.enable_input_require_grads()
    return policy


def add_lora(model: nn.Module, backbone: Backbone, lora: dict[str, Any]) -> nn.Module:
    """LoRA of all linear layers in some decoder layers; it starts as the model itself."""
    from peft import LoraConfig, get_peft_model

    chosen = {id(module) for layer in lora["layers"] for module in backbone.layers[layer].modules()}
    names = [name for name, m in model.named_modules() if id(m) in chosen and isinstance(m, (nn.Linear, Conv1D))]
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=names, task_type="CAUSAL_LM")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def _version() -> str:
    try:
        return version("penchant")
    except PackageNotFoundError:
        return "unknown"
