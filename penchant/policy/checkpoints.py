"""Which checkpoint a run goes on from: the newest whole one, and only one that was made with the very same settings.

A checkpoint is whole when it was sealed (`writing.seal`), which is done last, and no bit of it has changed since.
Beside the policy it holds the optimizer, the schedule and the random numbers, as safetensors with JSON in them.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from penchant.checkpoint import moments, put_moments, read_tensors, write_tensors
from penchant.errors import InputError
from penchant.policy.batches import TokenPair
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from penchant.processes import is_main
from penchant.writing import broken_seal, seal, sealed, write_text, writing

STATE = "trainer_state.json"
"""Of a checkpoint the last file to be written before its seal."""
STEPS, RANDOM = "optimizer.safetensors", "random.safetensors"


class Sealing(transformers.TrainerCallback):
    """Seals each checkpoint when it is all there."""

    def on_save(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,
    ) -> None:
        if is_main():
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def identity(
    policy: Policy, settings: Settings, pairs: list[TokenPair], person: Sequence[int] | None = None
) -> dict[str, Any]:
    """What a checkpoint must have been made with for a run to go on from it."""
    digest = hashlib.blake2b(b"".join(item.key for pair in pairs for item in pair), digest_size=16).hexdigest()
    told = {name: value for name, value in asdict(settings).items() if name not in ("save_steps", "log_steps")}
    judged = {} if person is None else {"people": [policy.facts["people"][i] for i in person]}
    return {"base": policy.facts["revision"], "dtype": policy.facts["dtype"], "pairs": digest, **told, **judged}


def last_checkpoint(folder: Path, made_with: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint, None in a new folder, which is claimed; one that is damaged is warned of.

    Raises InputError if the folder belongs to another run, or it cannot be told to which.
    """
    claim = folder / "made_with.json"
    made = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    if claim.is_file() or made:
        try:
            found = dict(json.loads(claim.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{claim} is missing or damaged, so its run cannot be told; delete {folder} to begin anew, or give"
                " another --out."
            ) from error
        if other := [name for name in made_with if found.get(name) != made_with[name]]:
            raise InputError(
                f"{folder} belongs to a run with other {', '.join(other)}; give another --out, or delete that folder."
            )
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(claim, json.dumps(made_with, indent=1) + "\n")
    for path in made:
        if STATE not in (sealed(path) or {}):
            continue  # who wrote it was killed before the end
        if (broken := broken_seal(path)) is None:
            return path
        warnings.warn(f"{broken} is damaged: the run goes on from an earlier checkpoint, or begins anew", stacklevel=2)
    return None


def save_steps(checkpoint: Path, policy: Policy, optimizer: Any, scheduler: Any) -> None:
    """The optimizer's state, its learning rates, and the schedule's; by all processes at once."""
    state = moments(policy, optimizer)
    if is_main():
        rates = [group["lr"] for group in optimizer.param_groups]
        write_tensors(checkpoint / STEPS, state, {"rates": rates, "schedule": scheduler.state_dict()})


def load_steps(checkpoint: Path, policy: Policy, optimizer: Any, scheduler: Any) -> None:
    """Put back what `save_steps` wrote; InputError for a checkpoint of an older Penchant, which held pickles."""
    if not (checkpoint / STEPS).is_file():
        raise InputError(
            f"{checkpoint} has no {STEPS}, as an older Penchant wrote it; delete {checkpoint.parent}, or give another"
            " --out."
        )
    state, facts = read_tensors(checkpoint / STEPS)
    put_moments(policy, optimizer, state)
    for group, rate in zip(optimizer.param_groups, facts["rates"], strict=True):
        group["lr"] = rate
    scheduler.load_state_dict(facts["schedule"])


def save_random(checkpoint: Path) -> None:
    """Where the generators of Python, numpy and torch stand."""
    name, keys, *others = np.random.get_state()  # noqa: NPY002
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    write_tensors(checkpoint / RANDOM, tensors, {"python": random.getstate(), "numpy": [name, *others]})


def load_random(checkpoint: Path) -> None:
    """Put back what `save_random` wrote."""
    tensors, facts = read_tensors(checkpoint / RANDOM)
    version, state, gauss = facts["python"]
    random.setstate((version, tuple(state), gauss))
    name, *others = facts["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy(), *others))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
