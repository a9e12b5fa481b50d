"""A run on disk, without pickle: weights and the optimizer's state as safetensors, and what the run says as JSON.

Our own training loops keep all of it in one file: `save_run` writes it, `read_run` reads it, `load_run` puts it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penchant.errors import InputError
from penchant.sharding import sharded_like, unsharded
from penchant.writing import read_tensors as read_checked
from penchant.writing import save_tensors

WEIGHTS, STATE, OTHER = "weights", "adam", "other"


def save_run(
    path: Path, module: nn.Module, adam: torch.optim.Optimizer, facts: dict[str, Any], **others: Tensor
) -> None:
    """Everything a run needs to go on, replaced at once: a run that is killed meanwhile keeps the file before.

    Raises PenchantError where the disk refuses.
    """
    tensors = {f"{WEIGHTS}.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"{STATE}.{name}": value for name, value in moments(module, adam).items()}
    tensors |= {f"{OTHER}.{name}": value for name, value in others.items()}
    write_tensors(path, tensors, facts)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Tensors and facts (JSON) in one safetensors file, replaced at once; PenchantError where the disk refuses."""
    save_tensors(path, tensors, {"facts": json.dumps(facts)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote, bit for bit; InputError where it did not, or the file is damaged."""
    try:
        tensors, told = read_checked(path)
        facts: dict[str, Any] = json.loads(told["facts"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged, or of another version; delete it, or give another folder") from error
    return tensors, facts


def moments(module: nn.Module, adam: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as NAME.MOMENT by the names of the module's parameters, whole where they are sharded."""
    return {
        f"{name}.{moment}": unsharded(value)
        for name, parameter in module.named_parameters()
        for moment, value in adam.state.get(parameter, {}).items()
    }


def put_moments(module: nn.Module, adam: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave; `adam` trains parameters of `module` alone."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    each: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        of, _, moment = name.rpartition(".")
        each.setdefault(of, {})[moment] = value
    # By the optimizer's own way in, which knows what belongs on the parameters' device.
    state = adam.state_dict()
    trained = [parameter for group in adam.param_groups for parameter in group["params"]]
    state["state"] = {
        number: {moment: sharded_like(value, parameter) for moment, value in each[names[parameter]].items()}
        for number, parameter in enumerate(trained)
        if names[parameter] in each
    }
    adam.load_state_dict(state)


def read_run(path: Path, made_with: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, for `load_run`, and facts of one and the same file, which another process may replace at any time.

    Raises InputError if `facts["made_with"]` is not this, with the names that differ, or if `save_run` did not write
    the file, or a bit of it is damaged.
    """
    tensors, facts = read_tensors(path)
    before = facts.get("made_with") if isinstance(facts, dict) else None
    if not isinstance(before, dict):
        raise InputError(f"{path} is damaged, or of another version; delete it, or give another folder")
    if other := [name for name in made_with if before.get(name) != made_with[name]]:
        raise InputError(
            f"{path} is of a run with another {', '.join(other)}; give the same settings, or another folder"
        )
    return tensors, facts


def load_run(
    path: Path, tensors: Mapping[str, Tensor], module: nn.Module, adam: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put weights and the optimizer's state back as `read_run` found them, bit for bit; returns the other tensors.

    `adam` trains parameters of `module` alone. Raises InputError, which names `path`, if the weights are not those of
    such a module.
    """
    parts: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, STATE: {}, OTHER: {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    try:
        module.load_state_dict(parts[WEIGHTS])
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of other names or sizes; delete it, or give another folder") from error
    put_moments(module, adam, parts[STATE])
    return parts[OTHER]
