"""A saved reward model, or the personal rewards of a personal LLM, behind one call: for trainers and best-of-n."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penchant.chat import Text, Tokens
from penchant.encode import TOKEN_BUDGET, Cost, LatentStore, encode_tokens
from penchant.errors import InputError
from penchant.personal.people import People
from penchant.personal.scoring import PersonalRewards
from penchant.personal.system import WEIGHTS
from penchant.reward_model import RewardModel


class Judge:
    """Scores texts in the taste of whoever asks. Several threads may call it; they take turns.

    Attributes: `rewards`, the reward model, that of the population where there are people; `people`, None where the
    reward model is one for all.
    """

    def __init__(self, model: RewardModel | People | PersonalRewards) -> None:
        """InputError for people without rewards."""
        self.people = None if isinstance(model, RewardModel) else model
        self.rewards = model if isinstance(model, RewardModel) else model.rewards_of()
        self._turn = threading.Lock()

    @classmethod
    def load(cls, name: str | Path) -> Judge:
        """From the folder (or hub id) of a reward model, or the folder of a personal LLM; InputError for neither."""
        return cls(rewards_in(name))

    def score(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        user_ids: Sequence[str | None] | None = None,
        *,
        store: LatentStore | None = None,
        token_budget: int = TOKEN_BUDGET,
        cost: Cost | None = None,
    ) -> NDArray[np.float32]:
        """Float32 scores [n] of response i to prompt i, those of `RewardModel.score`, in the taste of user_ids[i].

        Nobody (None) is judged by the population's taste; a reward model that is one for all takes no account of
        `user_ids`. An empty response, which policies do give, is scored as what the LLM reads of it: its end.

        Raises InputError for somebody unknown, or a row that the chat template refuses.
        """
        tokens = self.rewards.backbone.chat.encode(prompts, responses)
        return self.score_tokens(tokens, user_ids, store=store, token_budget=token_budget, cost=cost)

    def score_tokens(
        self,
        tokens: Sequence[Tokens],
        user_ids: Sequence[str | None] | None = None,
        *,
        store: LatentStore | None = None,
        token_budget: int = TOKEN_BUDGET,
        cost: Cost | None = None,
    ) -> NDArray[np.float32]:
        """`score` of texts that the reward model's chat has turned into tokens."""
        rm = self.rewards
        if not tokens:
            return np.zeros(0, np.float32)
        with self._turn:
            latents = encode_tokens(rm.backbone, tokens, rm.recipe.views, store, token_budget=token_budget, cost=cost)
            if self.people is None or user_ids is None:
                return rm.head.score(latents)
            found = np.zeros(len(tokens), np.float32)
            for who, rows in by_person(user_ids).items():
                found[rows] = self.people.rewards_of(who).head.score(latents[rows])
            return found

    def check(self, user_id: str | None) -> None:
        """InputError for somebody who is not known, or whom a reward model that is one for all cannot tell apart."""
        if user_id is None:
            return
        if self.people is None:
            raise InputError(
                f"this reward model is one for all and knows no {user_id!r}; leave user_id out, or give the folder of a"
                " personal LLM"
            )
        self.people.rewards_of(user_id)


def rewards_in(name: str | Path) -> RewardModel | PersonalRewards:
    """What a folder holds: a personal LLM's rewards, or else a reward model (or its hub id); InputError for neither."""
    return PersonalRewards.load(name) if (Path(name) / WEIGHTS).is_file() else RewardModel.from_pretrained(name)


def by_person(user_ids: Sequence[str | None]) -> dict[str | None, list[int]]:
    """Each person with the places where they stand."""
    found: dict[str | None, list[int]] = {}
    for place, who in enumerate(user_ids):
        found.setdefault(who, []).append(place)
    return found
