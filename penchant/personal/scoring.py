"""What scoring for people takes of a personal LLM's folder: the rewards and the people, nothing that writes."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Self

from penchant.errors import InputError
from penchant.personal.people import PEOPLE, REWARDS
from penchant.personal.rewards import load_rewards, rewards_of
from penchant.personal.saving import load_llm
from penchant.personal.system import checked_facts
from penchant.personal.users import Users
from penchant.reward_model import RewardModel


class PersonalRewards:
    """A reward model a person. Attributes: `rewards`, the population's; `users`, the people, as they are just now."""

    def __init__(self, rewards: RewardModel, users: Users) -> None:
        self.rewards, self.users = rewards, users

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """From the folder that `penchant personal pretrain` wrote and `fit` filled, without CLaP and its adapter.

        Raises InputError where there is no personal LLM, or one without rewards.
        """
        path = Path(folder)
        facts = checked_facts(path)
        rewards = load_rewards(path / REWARDS, load_llm(facts, path)[1])
        if rewards is None:
            raise InputError(f"{folder} has no personal rewards yet; fit people first, with --rewards true.")
        rewards.backbone.cut(max(rewards.recipe.layers))
        return cls(rewards, Users(path / PEOPLE, facts["digest"]))

    def rewards_of(self, user_id: str | None = None) -> RewardModel:
        """The reward model of a person, or the population's; InputError for somebody unknown or without a taste."""
        return rewards_of(self.rewards, self.users, user_id)
