"""The contract of a synthesizer: `fit` on latent pairs, then `sample` or `batches` of them at 1x, 2x, 4x, 8x, 16x."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from penchant.errors import InputError, RecipeMismatch
from penchant.heads.base import check_latents, check_pairs
from penchant.latents import LatentPairs
from penchant.mapped import read
from penchant.spooled import Spool

Array = NDArray[Any]

CHUNK = 4096
"""Most pairs that `batches` holds at a time."""

SYNTHESIZERS: dict[str, type[Synthesizer]] = {}
"""Every synthesizer by its kind."""


class Synthesizer(ABC):
    """Makes one synthetic pair out of each seed pair, as often as asked.

    A subclass names itself (`class Lens(Synthesizer, kind="lens")`), keeps its constructor's arguments under their own
    names, learns in `learn` and makes pairs in `draw`. Both see the views of the responses alone: a view of the prompt
    is the same on both sides, and a synthetic pair has its seed's.

    Attributes:
        recipe_: the recipe of the pairs it was fitted on; it takes no others.
    """

    name: ClassVar[str]
    takes_unlabelled: ClassVar[bool] = True
    """Whether unlabelled latents change what it makes."""
    recipe_: Any

    def __init_subclass__(cls, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = kind
        SYNTHESIZERS[kind] = cls

    def check_arguments(self) -> None:
        """Raise InputError for arguments out of range; `fit` does, and whoever has long work to do before it."""
        return

    def fit(self, pairs: LatentPairs, unlabelled: Array | None = None) -> Self:
        """Learn from n pairs and, where it helps, from latents [m, d] of any responses without labels.

        Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, or arguments out of range, and
        RecipeMismatch for unlabelled latents of another width.
        """
        self.check_arguments()
        check_pairs(pairs)
        recipe = pairs.recipe
        if unlabelled is None:
            unlabelled = np.empty((0, recipe.dim), np.float32)
        unlabelled = check_latents(unlabelled, recipe.dim)
        if recipe.prompt_views:
            unlabelled = unlabelled[:, recipe.columns(recipe.response_views)]
        self.learn(_responses(pairs), unlabelled)
        self.recipe_ = recipe
        return self

    @abstractmethod
    def learn(self, pairs: LatentPairs, unlabelled: Array) -> None:
        """What `fit` does once its input is checked; unlabelled is [m, d] with m >= 0."""

    @abstractmethod
    def draw(self, pairs: LatentPairs, rng: np.random.Generator) -> LatentPairs:
        """One synthetic pair for each pair of the block, in its order, all but chosen and rejected as in the seed."""

    def batches(
        self, pairs: LatentPairs, factor: int, random_state: int = 0, rows: int = CHUNK
    ) -> Iterator[LatentPairs]:
        """The real pairs, then factor - 1 rounds of synthetic ones, in even blocks of at most `rows` pairs.

        Every block of every round has its own random numbers, so a block depends on its seeds, `random_state` and its
        place alone. Raises InputError before `fit`, for no pairs and for a factor that is not a whole number of at
        least 1, RecipeMismatch for pairs of another recipe.
        """
        self._check_seeds(pairs, factor)
        return self._blocks(pairs, int(factor), random_state, rows)

    def _blocks(self, pairs: LatentPairs, factor: int, random_state: int, rows: int) -> Iterator[LatentPairs]:
        edges = np.linspace(0, len(pairs), -(-len(pairs) // rows) + 1).astype(int)
        blocks = [slice(start, stop) for start, stop in pairwise(edges)]
        note = {"synthesis": repr(self), "factor": factor}
        for round_ in range(factor):
            for number, block in enumerate(blocks):
                part = pairs.take(block).loaded()
                if round_ > 0:
                    rng = np.random.default_rng([random_state, round_, number])
                    part = _with_prompts(self.draw(_responses(part), rng), part)
                yield replace(part, meta={**pairs.meta, **note})

    def sample(self, pairs: LatentPairs, factor: int, random_state: int = 0) -> LatentPairs:
        """All of `batches` in one: at factor x the n seed pairs themselves, then (factor - 1) n synthetic ones.

        So 1x is the seed pairs alone, 2x adds one synthetic pair to each, 4x three, 8x seven and 16x fifteen. Row i of
        round k (row k n + i) is made from seed i and keeps its group, so that folds by prompt keep both on one side.
        From pairs in files come pairs in files, in the same folder.
        """
        batches = self.batches(pairs, factor, random_state)
        if not pairs.mapped:
            return LatentPairs.concatenate(list(batches))
        source: Any = pairs.chosen
        return Spool(source.folder, source.limit).write(batches, int(factor) * len(pairs), pairs.recipe)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's `clone` wants them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def _check_seeds(self, pairs: LatentPairs, factor: int) -> None:
        if not hasattr(self, "recipe_"):
            raise InputError(f"this {type(self).__name__} has not been fitted; call fit(pairs) first")
        check_factor(factor)
        if len(pairs) == 0:
            raise InputError("there are no pairs to start from; give at least 1")
        differ = self.recipe_.differences(pairs.recipe) + ["views"] * (self.recipe_.views != pairs.recipe.views)
        if differ:
            raise RecipeMismatch(f"the pairs' recipe differs from the fitted one's in {', '.join(differ)}; use one")


def check_factor(factor: int) -> None:
    """Raise InputError unless it is a whole number of at least 1."""
    if factor < 1 or factor != int(factor):
        raise InputError(f"factor is {factor}; give a whole number of at least 1, where 1 means the real pairs alone")


def _responses(pairs: LatentPairs) -> LatentPairs:
    """The pairs without the views of the prompt, which are the same on both sides and must stay so."""
    return pairs.select(pairs.recipe.response_views) if pairs.recipe.prompt_views else pairs


def _with_prompts(made: LatentPairs, seeds: LatentPairs) -> LatentPairs:
    """The synthetic pairs with their seeds' views of the prompt."""
    if not seeds.recipe.prompt_views:
        return made
    columns = seeds.recipe.columns(seeds.recipe.response_views)
    chosen, rejected = seeds.chosen.copy(), seeds.rejected.copy()
    chosen[:, columns], rejected[:, columns] = made.chosen, made.rejected
    return replace(seeds, chosen=chosen, rejected=rejected)


@dataclass(frozen=True)
class Standardiser:
    """Mean 0 and variance 1 in every dimension: a backbone's few huge ones count no more than the others."""

    center: Array
    """float32 [d]"""
    scale: Array
    """float32 [d], 0 where a dimension never varies."""

    @classmethod
    def of(cls, *blocks: Array) -> Standardiser:
        """From all the rows of blocks [*, d], summed in float64 a chunk at a time; two passes over files."""
        parts = [block[i : i + CHUNK] for block in blocks for i in range(0, len(block), CHUNK)]
        rows, first = sum(map(len, parts)), read(parts[0][:1])
        center = sum(read(part).sum(axis=0, dtype=np.float64) for part in parts) / rows
        square, constant = np.zeros(len(center)), np.ones(len(center), bool)
        for chunk in map(read, parts):
            square += np.square(chunk - center).sum(axis=0)
            constant &= (chunk == first).all(axis=0)  # rounding gives a constant dimension a tiny deviation
        scale = np.sqrt(square / rows)
        return cls(center.astype(np.float32), np.where(constant, 0, scale).astype(np.float32))

    def apply(self, latents: Array) -> Array:
        return ((latents - self.center) / np.where(self.scale > 0, self.scale, 1)).astype(np.float32)

    def undo(self, standardised: Array) -> Array:
        return (standardised * self.scale + self.center).astype(np.float32)


def mixture(rng: np.random.Generator, n: int, mix_real: bool) -> Array:
    """Which sides of n pairs become synthetic, bool [2, n]: both, rejected or chosen with equal chances; or all."""
    kind = rng.integers(3, size=n) if mix_real else np.zeros(n, int)
    return np.stack([kind != 1, kind != 2])
