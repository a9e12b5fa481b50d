"""Explorers over tiny models of each kind: plain, with features, with codes, with people."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from fastapi import FastAPI

from penchant import RewardModel
from penchant.heads import CodedHead, TasteHead
from penchant.personal.known import Known
from penchant.personal.rewards import fit_tastes, name_of
from penchant.personal.scoring import PersonalRewards
from penchant.personal.users import Users
from penchant.serve.app import create_app
from penchant.serve.explorer import router
from penchant.serve.service import Service
from tests.tiny_explain import backbone, folder, pairs, reward_model

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202eabc\x07"
"""What a text or a name may hold."""
PEOPLE = (HOSTILE, "ann", *(f"bob {i:02}" for i in range(25)))


@functools.cache
def coded() -> RewardModel:
    return RewardModel.train(pairs(), model=backbone(), head=CodedHead(), cache=folder() / "cache", show_progress=False)


@functools.cache
def personal() -> PersonalRewards:
    """Some like warm answers, as the pairs do, and ann does not."""
    warm = pairs()
    cold = warm.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    both = [
        {**row, "user_id": name}
        for name, data in (("warm", warm), ("w2", warm), ("w3", warm), ("ann", cold), ("cold", cold))
        for row in data  # type: ignore[attr-defined]
    ]
    views = ("2:last", "2:mean")
    rewards = RewardModel.train(
        both, model=backbone(), head=TasteHead(), views=views, cache=folder() / "cache", show_progress=False
    )
    tastes = fit_tastes(rewards, datasets.Dataset.from_list(both), {}, folder() / "cache")
    users, named = Users(folder() / "users.db", "tiny"), name_of(rewards)
    for name in PEOPLE:
        taste = tastes["ann" if name == "ann" else "warm"]
        users.put(name, {"latent": np.zeros(8, np.float16), **Known(taste=taste).vectors(named)}, 40)
    return PersonalRewards(rewards, users)


MODELS: dict[str, Callable[[], Any]] = {
    "linear": lambda: reward_model("linear"),
    "sae": lambda: reward_model("sae"),
    "projection": lambda: reward_model("projection"),
    "sparse mlp": lambda: reward_model("mlp"),
    "random": lambda: reward_model("random"),
    "dense mlp": lambda: reward_model("dense mlp"),
    "coded": coded,
    "personal": personal,
}


def explorer(kind: str, **more: Any) -> FastAPI:
    """The server with the explorer over one of MODELS."""
    return create_app(Service(MODELS[kind](), name=f"tiny {kind}"), routers=[router], **more)


__all__ = ["HOSTILE", "MODELS", "PEOPLE", "explorer"]
