"""A policy on disk: config.json, codes.safetensors where it has codes, and adapter/ (LoRA) or model/ (all weights)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from penchant.backbone import Backbone, load_whole
from penchant.errors import InputError, RecipeMismatch
from penchant.policy.codes import LatentCodes
from penchant.writing import check_seal, saving

if TYPE_CHECKING:
    from penchant.policy.policy import Policy

CONFIG = "config.json"
CODES = "codes.safetensors"


def save(policy: Policy, folder: Path) -> None:
    """Raises PenchantError where the disk refuses; what the folder held before is whole then."""
    with saving(folder) as new:
        (new / CONFIG).write_text(json.dumps(policy.facts, indent=2) + "\n", encoding="utf-8")
        if isinstance(policy.codes, nn.Module):
            tensors = {name: value.contiguous() for name, value in policy.codes.state_dict().items()}
            save_file(tensors, new / CODES)
        model: Any = policy.model
        if policy.facts["lora"] is not None:
            model.save_pretrained(new / "adapter", save_embedding_layers=False)  # no adapter is on them
        else:
            model.save_pretrained(new / "model")
            policy.backbone.chat.tokenizer.save_pretrained(new / "model")


def load(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Backbone, LatentCodes | None, dict[str, Any]]:
    """What a `Policy` is made of: model, backbone, codes and facts."""
    config = read_config(folder)
    check_seal(folder, "save the policy again, or run penchant align with the same --out")
    model: Any
    if config["lora"] is None:
        asked = (dtype or config["dtype"], config["asked_revision"], config["max_length"])
        model, backbone = load_whole(str(folder / "model"), *asked)
    else:
        from peft import PeftModel

        llm, backbone = load_base(config, dtype)
        model = PeftModel.from_pretrained(llm, folder / "adapter")
    codes = None
    if config["latent"]:
        codes = LatentCodes(backbone.width, **config["latent"], people=len(config.get("people", []))).to(
            backbone.device
        )
        codes.load_state_dict(load_file(folder / CODES))
    return model, backbone, codes, config


def load_base(facts: dict[str, Any], dtype: str | None = None) -> tuple[PreTrainedModel, Backbone]:
    """The LLM that something was trained from; RecipeMismatch where that is not the one of this name here."""
    llm, backbone = load_whole(facts["base"], dtype or facts["dtype"], facts["asked_revision"], facts["max_length"])
    if backbone.revision != facts["revision"]:
        raise RecipeMismatch(
            f"this was trained from {facts['base']!r} {facts['revision'][:12]}, here that is"
            f" {backbone.revision[:12]}; get the same weights."
        )
    return llm, backbone


def load_state(policy: Policy, folder: Path) -> None:
    """Put the weights of a saved policy of the same shape into this one."""
    if policy.codes is not None:
        policy.codes.load_state_dict(load_file(folder / CODES))
    model: Any = policy.model
    if policy.facts["lora"] is not None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter" / "adapter_model.safetensors"))
        return
    files = sorted((folder / "model").glob("*.safetensors"))
    found = {k: v for file in files for k, v in load_file(file).items()}
    left = model.load_state_dict(found, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if left.unexpected_keys or set(left.missing_keys) - tied:
        raise InputError(f"{folder} was saved under other names of weights than this model has; start a new --out.")


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved policy; InputError where there is none."""
    path = Path(folder, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if "loss" not in config or "base" not in config:
        raise InputError(f"{folder} holds no policy; give the folder `policy` that penchant align wrote.")
    return dict(config)
