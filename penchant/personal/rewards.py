"""Personal rewards: a `TasteHead` on the latents of the very LLM that speaks, and a taste a person."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from datasets import Dataset

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.errors import InputError
from penchant.heads import TasteHead
from penchant.heads.tastes import Taste
from penchant.personal.known import Known
from penchant.personal.users import Users
from penchant.reward_model import RewardModel
from penchant.store_shard import remove_dead_temps, temp_in
from penchant.store_views import open_store
from penchant.writing import alone, writing

SAVING_SECONDS = 60
"""How long to wait for another process that saves: what was fitted should not be lost to a moment."""


def load_rewards(folder: Path, backbone: Backbone) -> RewardModel | None:
    """What `save_rewards` wrote last and whole, None where nothing is there; InputError where that is damaged."""
    there = next((path for path in (folder, _old(folder)) if path.is_dir()), None)
    if there is None:
        return None
    try:
        return RewardModel.from_pretrained(there, backbone=backbone)
    except InputError as error:
        raise InputError(
            f"the rewards in {there} are damaged: delete that folder, and fit the population again ({error})"
        ) from error


def save_rewards(rewards: RewardModel, folder: Path) -> None:
    """Write a whole folder, then let it take the place of what is there.

    Raises PenchantError where the disk refuses, or another process does not come to an end of the same.
    """
    old = _old(folder)
    with alone(folder.parent, SAVING_SECONDS), writing(folder):
        remove_dead_temps(folder.parent)
        new = temp_in(folder.parent)
        try:
            rewards.save_pretrained(new)
            if folder.exists():  # else who was killed between these lines left the whole one as `old`
                shutil.rmtree(old, ignore_errors=True)
                os.replace(folder, old)
            os.replace(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def name_of(rewards: RewardModel | None) -> str | None:
    """8 hex digits that differ wherever the directions do, in which tastes are written."""
    if rewards is None:
        return None
    components = cast(TasteHead, rewards.head).components_
    return hashlib.blake2b(np.ascontiguousarray(components).tobytes(), digest_size=4).hexdigest()


def fit_tastes(
    rewards: RewardModel,
    pairs: Dataset,
    known: Mapping[str, Taste],
    cache: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Taste]:
    """The tastes of all who judged some of the pairs; those in `known` go on from there. Runs the LLM on new texts."""
    backbone, recipe = rewards.backbone, rewards.recipe
    store = open_store(cache, recipe)
    latents = encode_pairs(
        backbone, pairs, recipe.views, store, show_progress=show_progress, label="encode for rewards"
    )
    return cast(TasteHead, rewards.head).fit_people(latents, known)


def rewards_of(rewards: RewardModel | None, users: Users, user_id: str | None) -> RewardModel:
    """The reward model of a person, or the population's `rewards`.

    InputError where there are none, for somebody unknown, and for who was fitted before these rewards were.
    """
    if rewards is None:
        raise InputError("there are no rewards yet; fit the population on the pairs of two people or more.")
    if user_id is None:
        return rewards
    taste = Known.of(users.known(user_id), name_of(rewards)).taste
    if taste is None:
        raise InputError(f"{user_id!r} was fitted before these rewards were; fit this person again on some pairs.")
    return in_taste(rewards, taste)


def in_taste(rewards: RewardModel, taste: Taste) -> RewardModel:
    """The reward model of one person."""
    head = copy.copy(cast(TasteHead, rewards.head))
    head.mean_ = taste.mean.astype(np.float64)
    return RewardModel(rewards.recipe, head, rewards.temperature, rewards.facts, rewards.backbone)
