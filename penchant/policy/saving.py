"""A policy on disk: config.json, codes.safetensors where it has codes, and adapter/ (LoRA) or model/ (all weights)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from penchant.backbone import Backbone, load_whole
from penchant.errors import InputError, RecipeMismatch
from penchant.hub import pinned
from penchant.policy.codes import LatentCodes
from penchant.saved import read_json, read_tensors
from penchant.writing import check_seal, saving

if TYPE_CHECKING:
    from penchant.policy.policy import Policy

CONFIG = "config.json"
CODES = "codes.safetensors"
ADAPTER = "adapter_model.safetensors"
NEEDED = "loss", "base", "asked_revision", "dtype", "max_length", "lora", "latent"
CURE = "save the policy again."


def save(policy: Policy, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a policy; `state` are its weights by name where it is sharded and has only parts of them itself.

    Raises PenchantError where the disk refuses; what the folder held before is whole then, or refused.
    """
    with saving(folder) as new:
        (new / CONFIG).write_text(json.dumps(policy.facts, indent=2) + "\n", encoding="utf-8")
        if isinstance(policy.codes, nn.Module):
            tensors = policy.codes.state_dict() if state is None else _below("codes", state)
            save_file({name: value.contiguous() for name, value in tensors.items()}, new / CODES)
        model: Any = policy.model
        of_model = {} if state is None else {"state_dict": _below("model", state)}
        if policy.facts["lora"] is not None:
            model.save_pretrained(new / "adapter", save_embedding_layers=False, **of_model)  # no adapter is on them
        else:
            model.save_pretrained(new / "model", **of_model)
            policy.backbone.chat.tokenizer.save_pretrained(new / "model")


def _below(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def load(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Backbone, LatentCodes | None, dict[str, Any]]:
    """What a `Policy` is made of: model, backbone, codes and facts.

    Raises InputError for files that are damaged, or no safetensors.
    """
    config = read_config(folder)
    check_seal(folder, "save the policy again, or run penchant align with the same --out")
    model: Any
    if config["lora"] is None:
        model, backbone = load_whole(str(folder / "model"), dtype or config["dtype"], None, config["max_length"])
    else:
        from peft import PeftModel

        if not (folder / "adapter" / ADAPTER).is_file():  # else peft takes a pickled .bin, or asks the hub
            raise InputError(f"{folder / 'adapter'} has no {ADAPTER}; {CURE}")
        read_json(folder / "adapter" / "adapter_config.json", CURE)
        read_tensors(folder / "adapter" / ADAPTER, CURE)
        llm, backbone = load_base(config, dtype)
        try:
            model = PeftModel.from_pretrained(llm, folder / "adapter")
        except Exception as error:  # whatever an adapter_config.json may ask for
            raise InputError(f"the adapters in {folder} do not fit {config['base']!r} ({error}); {CURE}") from error
    codes = None
    if config["latent"]:
        try:
            people = len(config.get("people", []))
            codes = LatentCodes(backbone.width, **config["latent"], people=people).to(backbone.device)
            codes.load_state_dict(read_tensors(folder / CODES, CURE))
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"the codes in {folder} are damaged ({error}); {CURE}") from error
    return model, backbone, codes, config


def load_base(facts: dict[str, Any], dtype: str | None = None) -> tuple[PreTrainedModel, Backbone]:
    """The LLM that something was trained from, one of the hub at its commit; RecipeMismatch where that is not the one
    of this name here."""
    revision = pinned(facts["revision"]) or facts["asked_revision"]
    llm, backbone = load_whole(facts["base"], dtype or facts["dtype"], revision, facts["max_length"])
    if backbone.revision != facts["revision"]:
        raise RecipeMismatch(
            f"this was trained from {facts['base']!r} {facts['revision'][:12]}, here that is"
            f" {backbone.revision[:12]}; get the same weights."
        )
    return llm, backbone


def load_state(policy: Policy, folder: Path) -> None:
    """Put the weights of a saved policy of the same shape into this one."""
    if policy.codes is not None:
        policy.codes.load_state_dict(read_tensors(folder / CODES, CURE))
    model: Any = policy.model
    if policy.facts["lora"] is not None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, read_tensors(folder / "adapter" / ADAPTER, CURE))
        return
    files = sorted((folder / "model").glob("*.safetensors"))
    found = {k: v for file in files for k, v in read_tensors(file, CURE).items()}
    left = model.load_state_dict(found, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if left.unexpected_keys or set(left.missing_keys) - tied:
        raise InputError(f"{folder} was saved under other names of weights than this model has; start a new --out.")


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved policy; InputError where there is none, or one that lacks something."""
    path, cure = Path(folder, CONFIG), "give the folder `policy` that penchant align wrote."
    config = read_json(path, cure) if path.is_file() else {}
    needed = (*NEEDED, "revision") if config.get("lora") else NEEDED
    if lacking := [name for name in needed if name not in config]:
        raise InputError(f"{folder} holds no policy (its {CONFIG} lacks {', '.join(lacking[:3])}); {cure}")
    return config
