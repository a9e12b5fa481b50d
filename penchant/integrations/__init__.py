"""Reward functions for RL trainers: TRL, OpenRLHF and verl. They score in the trainer's own process.

OpenRLHF and verl load a file and call a function in it, so these take the model from the environment: the folder or hub
id of a reward model, or the folder of a personal LLM. A trainer that starts several workers loads it once in each.
"""

from __future__ import annotations

import functools
import os
import threading

from penchant.errors import InputError
from penchant.judge import Judge

VARIABLE = "PENCHANT_REWARD_MODEL"
_loading = threading.Lock()


def judge_of_environment() -> Judge:
    """What PENCHANT_REWARD_MODEL names, loaded once; InputError where it names nothing that can be loaded."""
    name = os.environ.get(VARIABLE)
    if not name:
        raise InputError(
            f"{VARIABLE} is not set; set it to the folder of a reward model or of a personal LLM where the"
            " trainer's workers run"
        )
    with _loading:
        return _load(name)


@functools.lru_cache(maxsize=1)
def _load(name: str) -> Judge:
    return Judge.load(name)
