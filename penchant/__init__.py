"""Preference learning in the latent space of a frozen LLM.

`load_pairs` reads preference pairs, `RewardModel.train` makes a reward model of them, `.score` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AutoHead", "Backbone", "InputError", "LinearHead", "MLPHead", "RewardModel", "load_pairs"]

_HOME = {
    "AutoHead": "penchant.heads",
    "Backbone": "penchant.backbone",
    "InputError": "penchant.errors",
    "LinearHead": "penchant.heads",
    "MLPHead": "penchant.heads",
    "RewardModel": "penchant.reward_model",
    "load_pairs": "penchant.pairs",
}

if TYPE_CHECKING:
    from penchant.backbone import Backbone
    from penchant.errors import InputError
    from penchant.heads import AutoHead, LinearHead, MLPHead
    from penchant.pairs import load_pairs
    from penchant.reward_model import RewardModel


def __getattr__(name: str) -> Any:
    """Load a public name's module when it is first used: importing the package must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'penchant' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
