"""A run of our own training loops in one safetensors file: weights, the optimizer's state, and what the run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from penchant.errors import InputError
from penchant.writing import read_tensors, save_tensors

WEIGHTS, STATE, OTHER = "weights", "adam", "other"


def save_run(
    path: Path, module: nn.Module, adam: torch.optim.Optimizer, facts: dict[str, Any], **others: Tensor
) -> None:
    """Everything a run needs to go on, replaced at once: a run that is killed meanwhile keeps the file before.

    Raises PenchantError where the disk refuses.
    """
    tensors = {f"{WEIGHTS}.{name}": value for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for moment, value in adam.state.get(parameter, {}).items():
            tensors[f"{STATE}.{name}.{moment}"] = value
    tensors |= {f"{OTHER}.{name}": value for name, value in others.items()}
    save_tensors(path, tensors, {"facts": json.dumps(facts)})


def read_facts(path: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    """What `save_run` was told.

    Raises InputError if `facts["made_with"]` is not this, with the names that differ, or if `save_run` did not write
    the file, or a bit of it is damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(read_tensors(path)[1]["facts"])
        before = facts["made_with"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged, or of another version; delete it, or give another folder") from error
    if other := [name for name in made_with if before.get(name) != made_with[name]]:
        raise InputError(
            f"{path} is of a run with another {', '.join(other)}; give the same settings, or another folder"
        )
    return facts


def load_run(path: Path, module: nn.Module, adam: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put weights and the optimizer's state back, bit for bit; returns the other tensors.

    `adam` trains parameters of `module` alone. Raises InputError if the weights are not those of such a module.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, STATE: {}, OTHER: {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    try:
        module.load_state_dict(parts[WEIGHTS])
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of other names or sizes; delete it, or give another folder") from error
    names = {parameter: name for name, parameter in module.named_parameters()}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in parts[STATE].items():
        of, _, moment = name.rpartition(".")
        moments.setdefault(of, {})[moment] = value
    # By the optimizer's own way in, which knows what belongs on the parameters' device.
    whole = adam.state_dict()
    trained = [names[parameter] for group in adam.param_groups for parameter in group["params"]]
    whole["state"] = {number: moments[name] for number, name in enumerate(trained) if name in moments}
    adam.load_state_dict(whole)
    return parts[OTHER]
