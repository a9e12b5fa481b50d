"""What the server knows: a reward model, for one taste or for many people's, and how texts become its tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from penchant.chat import Text, Tokens
from penchant.errors import InputError
from penchant.judge import by_person, rewards_in
from penchant.personal.scoring import PersonalRewards
from penchant.rendered import Rendered
from penchant.reward_model import RewardModel, check_texts
from penchant.serve.batching import Batcher, Row
from penchant.serve.limits import Limits
from penchant.serve.metrics import Metrics
from penchant.serve.refusals import Refused

T = TypeVar("T")
CACHE_BYTES = 256 << 20
"""Latents kept by default: 256 MB."""


class Scored(NamedTuple):
    """The scores of one request's responses, float32 [n], and what they cost."""

    scores: NDArray[np.float32]
    tokens: int
    """Of all sequences, each prompt counted with each response."""
    cached: int
    """Different sequences whose latent was there already."""
    truncated: int
    """Sequences that lost tokens at the start."""


class Service:
    """Scores texts for many requests at once. Its coroutines may run in any event loop.

    Attributes: `limits`; `name` of the model, in answers; `rendered`, which cuts rendered conversations; `metrics`;
    `batcher`; `draining`, set when no new work is taken.
    """

    def __init__(
        self,
        model: RewardModel | PersonalRewards,
        *,
        name: str = "reward-model",
        limits: Limits | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._people = model if isinstance(model, PersonalRewards) else None
        self._model = model.rewards if isinstance(model, PersonalRewards) else model
        self.name, self.limits = name, limits or Limits()
        self.draining = False
        self.metrics = Metrics()
        self.backbone = self._model.backbone
        self.rendered = Rendered(self.backbone.chat)
        self.batcher = Batcher(
            self.backbone,
            self._model.recipe,
            cache_bytes=cache_bytes,
            queue_tokens=self.limits.queue_tokens,
            watch=self.metrics,
        )
        self.metrics.watch(self.batcher)
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._side = ThreadPoolExecutor(1, thread_name_prefix="side")

    @classmethod
    def load(cls, folder: str | Path, *, limits: Limits | None = None, cache_bytes: int = CACHE_BYTES) -> Self:
        """From the folder (or hub id) of a reward model, or of a personal LLM with rewards.

        Raises InputError where there is neither.
        """
        name = Path(folder).resolve().name if Path(folder).exists() else str(folder)
        return cls(rewards_in(folder), name=name, limits=limits, cache_bytes=cache_bytes)

    @property
    def personal(self) -> bool:
        """Whether there are people."""
        return self._people is not None

    @property
    def description(self) -> dict[str, Any]:
        """What is served, for people and for pages."""
        recipe = self._model.recipe
        return {
            "name": self.name,
            "head": self._model.head.name,
            "backbone": recipe.model,
            "views": list(recipe.views),
            "dtype": recipe.dtype,
            "max_length": recipe.max_length,
            "temperature": self._model.temperature,
            "personal": self.personal,
            "people": len(self._people.users) if self._people else 0,
        }

    def people(self, prefix: str = "", limit: int = 50, after: str | None = None) -> list[str]:
        """Ids of people in order; none where the model has no people."""
        return self._people.users.ids(prefix, limit, after) if self._people else []

    def reward_model(self, user_id: str | None = None) -> RewardModel:
        """The reward model of a person, or of nobody in particular; InputError for somebody unknown."""
        if user_id is None:
            return self._model
        if self._people is None:
            raise InputError("this model has one taste for all; leave user_id out, or serve a personal LLM's folder.")
        return self._people.rewards_of(user_id)

    def _models(self, people: Sequence[str | None]) -> dict[str | None, RewardModel]:
        return {user_id: self.reward_model(user_id) for user_id in dict.fromkeys(people)}

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Blocking work in a thread of its own, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._side, function, *args)

    async def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], user_id: str | None = None
    ) -> list[float]:
        """As `RewardModel.score`, to the last bit: the scores of response i to prompt i.

        Raises InputError, and Refused where a limit is reached.
        """
        items = await self.tokens(prompts, responses)
        return [float(score) for score in (await self.score_tokens(items, [user_id] * len(items))).scores]

    def probability(self, scores: Sequence[float] | NDArray[np.float32]) -> list[float]:
        """As `RewardModel.probability`, in anybody's taste: people share the temperature."""
        return [float(p) for p in self._model.probability(np.asarray(scores, np.float32))]

    async def tokens(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Tokens]:
        """Response i to prompt i as the model reads it; InputError for one that is empty, Refused for one too long."""
        if len(prompts) != len(responses):
            raise InputError(f"{len(prompts)} prompts for {len(responses)} responses; give one prompt for each.")
        self._check_count(len(responses))
        self._check_sizes([_characters(p) + _characters(r) for p, r in zip(prompts, responses, strict=True)])
        check_texts(responses)
        return await self._tokenise(lambda: self.backbone.chat.encode(prompts, responses))

    async def rendered_tokens(
        self, texts: Sequence[str], prompts: Sequence[str | None] | None = None, what: str = "text"
    ) -> list[Tokens]:
        """Rendered conversations, cut by `Rendered`, with the prompts they begin with where those are known."""
        asked = prompts if prompts is not None else [None] * len(texts)
        if len(asked) != len(texts):
            raise InputError(f"{len(asked)} prompts for {len(texts)} texts; give one prompt for each, or none.")
        self._check_count(len(texts))
        self._check_sizes([max(len(text), len(p or "")) for text, p in zip(texts, asked, strict=True)])

        def encoded() -> list[Tokens]:
            cut = [
                self.rendered.cut(text, p, f"{what} {i}") for i, (text, p) in enumerate(zip(texts, asked, strict=True))
            ]
            return self.backbone.chat.encode_rendered(cut)

        return await self._tokenise(encoded)

    async def score_tokens(self, items: Sequence[Tokens], people: Sequence[str | None]) -> Scored:
        """Scores of sequences, the i-th in the taste of people[i]."""
        models = await self.run(self._models, people)
        ticket = self.batcher.submit(items)
        try:
            rows = await asyncio.wrap_future(ticket.future)
        finally:
            if not ticket.future.done() or ticket.future.cancelled():  # whoever asked went away, or the time is up
                self.batcher.cancel(ticket)
        latents = [rows[item.key] for item in items]
        scores = await self.run(_scores, latents, models, list(people))
        truncated = sum(item.cut > 0 for item in items)
        self.metrics.scored(len(items), ticket.cached)
        return Scored(scores, sum(map(len, items)), ticket.cached, truncated)

    def close(self) -> None:
        """Finish what was accepted and stop."""
        self.draining = True
        self.batcher.close()
        for pool in (self._texts, self._side):
            pool.shutdown()

    async def _tokenise(self, encode: Callable[[], list[Tokens]]) -> list[Tokens]:
        items = await asyncio.get_running_loop().run_in_executor(self._texts, encode)
        for i, item in enumerate(items):
            if len(item) + item.cut > self.limits.tokens:
                found = f"item {i} is {len(item) + item.cut:,} tokens long"
                raise Refused(413, f"{found}, and {self.limits.tokens:,} are allowed; shorten it.")
        return items

    def _check_count(self, count: int) -> None:
        if count > self.limits.items:
            raise Refused(413, f"{count:,} responses in one request, and {self.limits.items:,} are allowed.")

    def _check_sizes(self, sizes: Sequence[int]) -> None:
        for i, size in enumerate(sizes):
            if size > self.limits.characters:
                allowed = f"{self.limits.characters:,} are allowed; shorten it."
                raise Refused(413, f"item {i} is {size:,} characters long, and {allowed}")


def _scores(latents: list[Row], models: dict[str | None, RewardModel], people: list[str | None]) -> Any:
    """Each person's rows in one call of their head, as `RewardModel.score` does it for the same texts."""
    scores = np.zeros(len(latents), np.float32)
    for user_id, rows in by_person(people).items():
        scores[rows] = models[user_id].head.score(np.stack([latents[i] for i in rows]))
    return scores


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(str(message.get("content"))) for message in text)
