"""`penchant export`: a reward model or an aligned policy for programs that know only transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penchant.errors import InputError
from penchant.pairs import load_pairs
from penchant.policy.merge import merge
from penchant.policy.policy import Policy
from penchant.reward_model import RewardModel
from penchant.saved import read_json


def export(
    model: str,
    folder: str,
    *,
    code: int | Literal["average"] | list[float] | None = None,
    data: str | None = None,
) -> None:
    """Write a linear reward model as an AutoModelForSequenceClassification, or a policy as an AutoModelForCausalLM.

    A policy's adapters are merged and one code is made a constant; the folder's README says how exactly it holds.

    Args:
        model: folder of a reward model (or hub id, org/name@REVISION), trained with --head linear --views [DEPTH:last];
            or what `penchant align` wrote.
        folder: folder to write; it will hold the LLM's weights too.
        code: of a policy with codes: one code's number, a weight for each, or average, over the prompts of --data.
        data: pairs whose prompts the average is over.
    """
    if (policy := _policy_folder(model)) is not None:
        prompts = load_pairs(data)["prompt"][:] if data is not None else None
        done = merge(Policy.from_pretrained(policy), code, folder, prompts)
        print(f"{done.folder}\n{done.says}")
        return
    if code is not None:
        raise InputError(f"{model} is no policy of penchant align, so it has no codes; leave --code out.")
    print(RewardModel.from_pretrained(model).export(folder))


def _policy_folder(name: str) -> Path | None:
    """The policy in a run of `penchant align`, or in its own folder, if `name` is one."""
    for path in (Path(name, "policy"), Path(name)):
        file = path / "config.json"
        if file.is_file() and "loss" in read_json(file, "save the model again."):
            return path
    return None
