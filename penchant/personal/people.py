"""The people of one frozen LLM: fitted from their pairs, kept in the system's folder, asked for z and for scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from penchant.chat import Text, Tokens
from penchant.errors import InputError
from penchant.heads import TasteHead
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian, log_normal
from penchant.personal.fitting import LatentDPOSettings, fit_people
from penchant.personal.full_encoder import FullEncoderSettings, encoder_of, fit_encoder, read_prompts
from penchant.personal.known import LATENT, Known
from penchant.personal.reading import Judged, load_z, read_by_llm, read_pairs
from penchant.personal.records import Person
from penchant.personal.rewards import fit_tastes, load_rewards, name_of, rewards_of, save_rewards
from penchant.personal.users import Users
from penchant.policy.batches import token_pairs
from penchant.policy.people import people_of
from penchant.reward_model import RewardModel
from penchant.saved import read_tensors
from penchant.writing import save_tensors

PEOPLE, POPULATION, REWARDS, KEPT = "users.db", "population.safetensors", "rewards", "z.safetensors"
Settings = LatentDPOSettings | FullEncoderSettings
Read = Literal["auto", "llm", "encoder"]
"""How z of texts is read: see `People.fit_users`."""


class People:
    """What is known of them takes about 2.2 KB a person and version in the compact form, 28 MB in the full form of
    SmolLM2-135M; `users.known(user_id).size` says how much it is.

    Attributes: `clap`; `folder`; `population` [latent], what people start from; `kept`, z of the texts that CLaP was
    pretrained on, by key, and `projection`, what makes it of latents, where z is the start's; `rewards`, the
    population's reward model, None where it was never fitted; `users`, the database in the folder.
    """

    def __init__(self, clap: Clap, folder: Path, digest: str) -> None:
        self.clap, self.folder = clap.eval(), folder
        self.population = torch.zeros(clap.latent)
        if (folder / POPULATION).is_file():
            found = read_tensors(folder / POPULATION, "delete it, and fit the population again.").get(LATENT)
            if found is None or found.shape != self.population.shape:
                raise InputError(
                    f"{folder / POPULATION} holds no vector of {clap.latent} numbers; fit the population again."
                )
            self.population = found
        self.kept, self.projection = load_z(folder / KEPT)
        self.rewards = load_rewards(folder / REWARDS, clap.backbone)
        self.users = Users(folder / PEOPLE, digest)

    def fit_population(
        self,
        pairs: Dataset,
        settings: LatentDPOSettings | None = None,
        *,
        rewards: bool = True,
        read: Read = "auto",
        cache: str | Path | None = None,
        show_progress: bool = False,
    ) -> None:
        """Fit one taste for all: what the unknown get, and the new start from. People stay as they are.

        Every person (user_id) counts alike, however many pairs are theirs; without that column every pair does.

        Args:
            rewards: fit the rewards as well, which takes the pairs of two people or more and runs the LLM on texts that
                are not in `cache`, the latents' cache. Their directions change with the pairs, and what people's tastes
                were in the old ones ends with those: fit them anew.

        Raises InputError for rewards from fewer than two people, or a pair that does not say who judged it.
        """
        _check_some(pairs)
        weight = None
        if "user_id" in pairs.column_names:
            names, owner = people_of(pairs)
            weight = 1 / torch.bincount(torch.tensor(owner))[owner]
        if rewards and (weight is None or len(names) < 2):
            raise InputError("rewards take the pairs of two people or more, by user_id; give them, or rewards=False.")
        everybody = torch.zeros(len(pairs), dtype=torch.long)
        (population,) = fit_people(
            self._read(token_pairs(self.clap.backbone, pairs), read, cache, show_progress),
            everybody,
            torch.zeros_like(self.population)[None],
            settings or LatentDPOSettings(),
            weight=weight,
        )
        if rewards:
            head, backbone = TasteHead(), self.clap.backbone
            self.rewards = RewardModel.train(pairs, model=backbone, head=head, cache=cache, show_progress=show_progress)
            save_rewards(self.rewards, self.folder / REWARDS)
        self.population = population
        save_tensors(self.folder / POPULATION, {LATENT: population})

    def fit_users(
        self,
        pairs: Dataset,
        settings: Settings | None = None,
        *,
        full: bool = False,
        read: Read = "auto",
        cache: str | Path | None = None,
        show_progress: bool = False,
        before_keeping: Callable[[list[Person]], None] | None = None,
    ) -> dict[str, int]:
        """Fit everybody who judged some of the pairs (user_id), side by side, and keep them, all or none; their
        versions by person.

        Who is known goes on from what is known of them, in the form they have; who is new starts from the population.
        z of pairs is read as `read` says. Tastes, fitted where there are rewards, need latents of their own.

        Args:
            settings: of the form that `full` asks for; who has the other form is fitted by its defaults.
            full: give who is new a whole encoder, the paper's form, which starts from N(0, I); trained one person after
                the other.
            read: "llm" takes z of texts from the LLM's latents up to its middle layer; "encoder" runs no layer of the
                LLM; "auto" is the first where it can be. Texts that CLaP was pretrained on are not read, and who has an
                encoder of their own learns from the encoder's z. InputError for "llm" where z is not the start's.
            cache: folder of the latents' cache.
            before_keeping: is told who everybody will be, right before they are kept.

        Raises InputError for pairs of which it is not said who judged them, for a person in the compact form where
        `full` asks for the other, and where somebody else wrote one of the people meanwhile; nothing is kept then.
        """
        if settings is not None and isinstance(settings, FullEncoderSettings) != full:
            raise InputError(
                f"settings are {type(settings).__name__}; give FullEncoderSettings with full, else LatentDPOSettings."
            )
        _check_some(pairs)
        names, owner = people_of(pairs)
        rows, named = self.users.get_many(names), name_of(self.rewards)
        known = [Known.of(rows[name], named) if name in rows else Known() for name in names]
        seen = [rows[name].pairs if name in rows else 0 for name in names]
        reading = (read, cache, show_progress)
        found = self._fit_z(pairs, names, torch.tensor(owner), known, torch.tensor(seen), settings, full, reading)
        if self.rewards is not None:
            before = {name: person.taste for name, person in zip(names, known, strict=True) if person.taste}
            tastes = fit_tastes(self.rewards, pairs, before, cache, show_progress)
            found = [person._replace(taste=tastes[name]) for name, person in zip(names, found, strict=True)]
        counts = np.bincount(owner)
        versions = [rows[name].version if name in rows else 0 for name in names]
        people = [
            Person(
                name, dict(found[i].vectors(named)), int(counts[i]) + seen[i], versions[i] + 1, 0.0, self.users.model
            )
            for i, name in enumerate(names)
        ]
        if before_keeping is not None:
            before_keeping(people)
        self.users.put_many((person.user_id, person.vectors, person.pairs, person.version - 1) for person in people)
        return {person.user_id: person.version for person in people}

    def _fit_z(
        self,
        pairs: Dataset,
        names: list[str],
        owner: Tensor,
        known: list[Known],
        seen: Tensor,
        settings: Settings | None,
        full: bool,
        reading: tuple[Read, str | Path | None, bool],
    ) -> list[Known]:
        """Everybody's p(z | x) after the pairs, pair i judged by person owner[i]; `seen` pairs went into `known`."""
        for name, person in zip(names, known, strict=True):
            if full and person.weights is not None:
                raise InputError(
                    f"{name!r} is known in the compact form, of which no encoder can be made; leave full out, or forget"
                    " this person first."
                )
        whole = [person.encoder is not None or (full and person.weights is None) for person in known]
        items = token_pairs(self.clap.backbone, pairs)
        read, cache, show_progress = reading
        judged = self._read(items, read, cache, show_progress, any(whole))
        start = torch.stack([self.population if person.weights is None else person.weights for person in known])
        compact = (~torch.tensor(whole)[owner]).nonzero()[:, 0]
        small = settings if isinstance(settings, LatentDPOSettings) else LatentDPOSettings()
        weights = fit_people(judged.take(compact), owner[compact], start, small, seen=seen, show_progress=show_progress)
        found = [Known(own) for own in weights]
        large = settings if isinstance(settings, FullEncoderSettings) else FullEncoderSettings()
        for number in (i for i, has_encoder in enumerate(whole) if has_encoder):
            own = (owner == number).nonzero()[:, 0]
            prompts = [items[row][0] for row in own.tolist()]
            label = f"encoder of {names[number]}" if show_progress else None
            encoder = fit_encoder(self.clap, judged.take(own), prompts, large, known[number].encoder, label)
            found[number] = Known(encoder=encoder)
        return found

    def fit_user(
        self,
        user_id: str,
        pairs: Dataset,
        settings: Settings | None = None,
        *,
        full: bool = False,
        read: Read = "auto",
        cache: str | Path | None = None,
        show_progress: bool = False,
    ) -> int:
        """`fit_users` for one person, whose name the pairs need not carry; their version. InputError if they carry
        another's."""
        if "user_id" in pairs.column_names:
            given = pairs["user_id"]
            if other := [row for row, who in enumerate(given) if who != user_id]:
                raise InputError(
                    f"row {other[0]} was judged by {given[other[0]]!r}, not {user_id!r}; drop it, or use fit_users."
                )
            pairs = pairs.remove_columns("user_id")
        pairs = pairs.add_column("user_id", [user_id] * len(pairs))
        fitted = self.fit_users(pairs, settings, full=full, read=read, cache=cache, show_progress=show_progress)
        return fitted[user_id]

    def forget(self, *user_ids: str) -> int:
        """Remove people for good, z, tastes and older versions alike; how many were known. See `Users.forget`."""
        return self.users.forget(*user_ids)

    def z(self, prompts: Sequence[Text], user_id: str | None = None) -> Tensor:
        """The mean of p(z | x) [n, latent] of a person, or of the population; InputError for somebody unknown."""
        return self.person(prompts, user_id).mean

    def person(self, prompts: Sequence[Text], user_id: str | None = None) -> Gaussian:
        """p(z | x) [n, latent] of a person, or of the population; InputError for somebody unknown."""
        return self._p_z(self.clap.backbone.chat.encode(prompts, ["a"] * len(prompts)), user_id)

    def mean_z(self, prompts: Sequence[Text], user_ids: Sequence[str | None]) -> Tensor:
        """`z` of many people, averaged over the prompts: [people, latent]."""
        items = self.clap.backbone.chat.encode(prompts, ["a"] * len(prompts))
        return torch.stack([self._p_z(items, user_id).mean.mean(0) for user_id in user_ids])

    def latent_margins(
        self,
        pairs: Dataset,
        user_id: str | Sequence[str | None] | None = None,
        *,
        read: Read = "auto",
        cache: str | Path | None = None,
    ) -> NDArray[np.float32]:
        """How a person's p(z | x) orders n pairs, or the population's: float32 [n],

            [log p(z | x) - log N(z)] at the mean z of q(z | x, chosen), less the same at that of q(z | x, rejected).

        `user_id` is one for all pairs, or one for each; `read` and `cache` as in `fit_users`. Swapping chosen and
        rejected flips the sign. InputError for somebody unknown.
        """
        items = token_pairs(self.clap.backbone, pairs)
        asked = [user_id] if user_id is None or isinstance(user_id, str) else user_id
        people = self.users.get_many([name for name in dict.fromkeys(asked) if name is not None])
        wide = any(Known.of(person, None).encoder is not None for person in people.values())
        judged = self._read(items, read, cache, wide=wide)
        whose = [user_id] * len(items) if user_id is None or isinstance(user_id, str) else user_id
        rows_of: dict[str | None, list[int]] = {}
        for row, name in enumerate(whose):
            rows_of.setdefault(name, []).append(row)
        margins = np.zeros(len(items), np.float32)
        for name, rows in rows_of.items():
            person = self._p_z([items[row][0] for row in rows], name)
            chosen, rejected = (person.log_prob(q.mean[rows]) - log_normal(q.mean[rows]).sum(-1) for q in judged)
            margins[rows] = (chosen - rejected).numpy()
        return margins

    def score(
        self, prompts: Text | Sequence[Text], responses: Text | Sequence[Text], user_id: str | None = None
    ) -> NDArray[np.float32]:
        """Float32 rewards [n] of response i to prompt i in a person's taste, or in the population's.

        InputError where no rewards were fitted, for somebody unknown or without a taste, and as `RewardModel.score`.
        """
        return self.rewards_of(user_id).score(prompts, responses)

    def rewards_of(self, user_id: str | None = None) -> RewardModel:
        """The reward model of a person, or the population's; InputError as `score` says."""
        return rewards_of(self.rewards, self.users, user_id)

    def _p_z(self, prompts: Sequence[Tokens], user_id: str | None) -> Gaussian:
        """p(z | x) at n prompts."""
        known = Known(self.population) if user_id is None else Known.of(self.users.known(user_id), None)
        if known.encoder is not None:
            return read_prompts(encoder_of(self.clap, known.encoder), prompts)
        assert known.weights is not None
        mean = known.weights.expand(len(prompts), -1)
        return Gaussian(mean, torch.zeros_like(mean))

    def _read(
        self,
        items: Sequence[tuple[Tokens, Tokens]],
        read: Read,
        cache: str | Path | None,
        show_progress: bool = False,
        wide: bool = False,
    ) -> Judged:
        """z of pairs, by the encoder alone where it matters how wide posteriors are."""
        if read == "llm" and self.projection is None:
            raise InputError(
                "read is 'llm', but CLaP's own epochs moved z away from the LLM's latents; give 'encoder', or 'auto'."
            )
        if wide:
            return read_pairs(self.clap, items, show_progress)
        if (
            read == "encoder"
            or self.projection is None
            or all(item.key in self.kept for both in items for item in both)
        ):
            return read_pairs(self.clap, items, show_progress, self.kept)
        return read_by_llm(self.clap, items, self.projection, cache, show_progress)


def _check_some(pairs: Dataset) -> None:
    if not len(pairs):
        raise InputError("there are no pairs to fit anybody from; give at least one.")
