"""The contract of a head: `fit` on latent pairs, `score` latents, save and load without pickle."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typing_extensions import Self

from penchant.errors import InputError, RecipeMismatch
from penchant.latents import LatentPairs, Recipe
from penchant.mapped import Mapped, read_blocks, row_blocks, too_large
from penchant.saved import read_arrays, read_json

if TYPE_CHECKING:
    from penchant.backbone import Backbone

Array = NDArray[Any]

HEADS: dict[str, type[Head]] = {}
"""Every head by the name that its config.json carries."""


class Scores(Protocol):
    def score(self, latents: Array) -> Array: ...


class Head(ABC):
    """Scores latents; higher is better, and only differences within one prompt mean anything.

    A subclass names itself (`class LinearHead(Head, kind="linear")`), keeps its constructor's arguments under their
    own names, and lists what `fit` learns: `tensors` (saved in model.safetensors) and `facts` (saved in config.json).
    """

    name: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]]
    facts: ClassVar[tuple[str, ...]]
    streams: bool = False
    """Whether `fit` reads pairs in files block by block; otherwise they must fit into memory."""
    takes_unlabelled: bool = False
    """Whether `fit` has a second argument, latents [m, d] of responses that nobody judged."""

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:  # a class without a kind is what several heads share
            cls.name = kind
            HEADS[kind] = cls

    def check_arguments(self) -> None:
        """Raise InputError for arguments out of range; `fit` does, and whoever has long work to do before it."""
        return

    def default_views(self, backbone: Backbone) -> tuple[str, ...]:
        """What to encode where no views are named: the backbone's, without the prompt's if it has no use for them."""
        views = backbone.default_views()
        return views if self.takes_unlabelled else backbone.recipe(views).response_views

    def check_encoding(self, backbone: Backbone, recipe: Recipe, pairs: int) -> None:
        """Raise InputError, before the LLM runs, for latents or a number of pairs that `fit` would refuse."""
        return

    @abstractmethod
    def fit(self, pairs: LatentPairs) -> Self:
        """Learn from n pairs of latents [n, d]."""

    @abstractmethod
    def score(self, latents: Array) -> Array:
        """Float32 scores [n] of latents [n, d]. Raises RecipeMismatch for another width, InputError for NaN or inf."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many learned numbers a score depends on."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's `clone` wants them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """What config.json and model.safetensors hold. Raises InputError before `fit`."""
        self._check_fitted()
        learned = {name: getattr(self, name) for name in self.facts}
        config = {"head": self.name, **self.get_params(), "learned": learned}
        return config, {name: np.ascontiguousarray(getattr(self, name)) for name in self.tensors}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        """The head that `state` described."""
        # JSON knows no tuples, and no head takes or learns a list.
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        head = cls(**{k: v for k, v in config.items() if k not in ("head", "learned")})
        learned = {**config["learned"], **tensors}
        if unknown := learned.keys() - {*cls.facts, *cls.tensors}:  # else a file could put its own in a method's place
            raise ValueError(f"a {cls.name} head has no {', '.join(sorted(unknown)[:3])}")
        for name, value in learned.items():
            setattr(head, name, value)
        return head

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`, made if missing."""
        config, tensors = self.state()
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_file(tensors, Path(folder, "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The head that `save_pretrained` wrote; its scores are equal bit for bit."""
        head = load_head(folder)
        if not isinstance(head, cls):
            raise InputError(f"{folder} holds a {head.name} head, not {cls.__name__}; use load_head to read any head")
        return head

    def _check_fitted(self) -> None:
        if not hasattr(self, self.tensors[0]):
            raise InputError(f"this {type(self).__name__} has not been fitted; call fit(pairs) first")


def load_head(folder: str | Path) -> Head:
    """Read any saved head. Raises InputError if the folder has none or names a kind that is not known here."""
    path, cure = Path(folder, "config.json"), "save the model again."
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    config = read_json(path, cure)
    tensors = read_arrays(Path(folder, "model.safetensors"), cure)
    try:
        return head_of(config, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"the head in {folder} is damaged ({error}); {cure}") from error


def head_of(config: dict[str, Any], tensors: dict[str, Array]) -> Head:
    """The head that `state` described, of any kind; InputError for a kind that is not known here."""
    kind = config.get("head")
    if not isinstance(kind, str) or kind not in HEADS:
        raise InputError(f"it names the head {kind!r:.80}, known are {', '.join(sorted(HEADS))}")
    return HEADS[kind].from_state(config, tensors)


def check_pairs(pairs: LatentPairs) -> None:
    """Refuse what no head can learn from: fewer than two pairs, NaN or inf, or no pair whose two latents differ."""
    if len(pairs) < 2:
        raise InputError(f"a head needs at least 2 pairs, got {len(pairs)}; give more pairs")
    check_differ([check_block(*block) for block in read_blocks(pairs.chosen, pairs.rejected)], len(pairs))


def check_block(rows: slice, chosen: Array, rejected: Array) -> bool:
    """Refuse NaN and inf in these rows' latents [b, d]; whether the sides differ."""
    check_finite(chosen, "chosen latent of pair", rows.start)
    check_finite(rejected, "rejected latent of pair", rows.start)
    return not np.array_equal(chosen, rejected)


def check_differ(found: Sequence[bool], pairs: int) -> None:
    if not any(found):
        raise InputError(f"chosen and rejected have equal latents in all {pairs} pairs; check the two columns")


def check_memory(head: Head, recipe: Recipe, pairs: int, limit: int) -> None:
    """Raise InputError, before the LLM runs, for pairs that do not fit into memory and a head that needs them there."""
    size = 8 * pairs * recipe.dim
    if size > limit and not head.streams:
        raise InputError(too_large(pairs, size, limit))


def score_rows(head: Scores, latents: Array) -> Array:
    """Float32 scores [n] of latents [n, d], block by block where they lie in a file."""
    whole: Any = latents
    if not isinstance(whole, Mapped):
        return head.score(latents)
    return np.concatenate([head.score(whole[block].read()) for block in row_blocks(*whole.shape)])


def check_latents(latents: Array, width: int) -> Array:
    """`latents` as an array [n, width] of finite numbers, or RecipeMismatch / InputError."""
    latents = np.asarray(latents)
    if latents.ndim != 2:
        raise InputError(f"latents must have shape [n, {width}], got {list(latents.shape)}; give one row a response")
    if latents.shape[1] != width:
        raise RecipeMismatch(f"the head was fitted on latents of width {width}, got {latents.shape[1]}; use its recipe")
    check_finite(latents, "latent in row")
    return latents


def check_finite(latents: Array, what: str, first_row: int = 0) -> None:
    bad = ~np.isfinite(latents).all(axis=1)
    if bad.any():
        raise InputError(f"the {what} {first_row + int(bad.argmax())} holds NaN or inf; encode it again or drop it")


def prompt_folds(group: Array, folds: int, random_state: int) -> Array:
    """Fold number [n] of each pair: about `folds` even parts, every prompt whole inside one of them.

    Prompts stand in random order and the line of pairs is cut into `folds` equal lengths; a prompt goes where its
    middle falls. Two prompts or more always give at least two folds; one prompt gives one.
    """
    prompts, member, size = np.unique(group, return_inverse=True, return_counts=True)
    order = np.random.default_rng(random_state).permutation(len(prompts))
    middle = np.empty(len(prompts))
    middle[order] = np.cumsum(size[order]) - size[order] / 2
    part = np.floor(middle / len(group) * folds).astype(int)[member]
    return np.unique(part, return_inverse=True)[1]


def pair_accuracy(margins: Array) -> float:
    """Share of score differences [n] above zero, a tie counting one half."""
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))
