"""Latents and where they came from: `Recipe` says how a text becomes a vector, `LatentPairs` holds the vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from penchant.errors import InputError, RecipeMismatch
from penchant.mapped import Mapped, read, too_large

Array = NDArray[Any]
POOLINGS = ("last", "mean")
PROMPT, PROMPT_LAST = "prompt", "prompt_last"
SAMPLE_PAIRS = 5000
"""Of pairs in files, how many are read where not all can be: for choices and learning curves."""
OF_PROMPT = {PROMPT: "mean", PROMPT_LAST: "last"}
"""Poolings of views that are the same for every response to a prompt, and which of its own poolings each is."""


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a latent; two latents may be compared only if their recipes are equal.

    A view is "LAYER:POOLING", for example "20:mean". Layer L is the output of the L-th decoder layer
    (transformers' `hidden_states[L]`); the last layer is taken after the final norm. Pooling "last" is the last
    token, "mean" the mean over the response's tokens (over the prompt's tokens for a prompt's own latent). "prompt"
    is the mean over the prompt's tokens and "prompt_last" its last token, for heads whose taste may depend on what was
    asked.
    """

    model: str
    """Hub id, folder or file the backbone was loaded from."""
    revision: str
    """Hash of the weights' source: a hub commit, at which it is loaded again, or a digest of the local files."""
    views: tuple[str, ...]
    """Which layers and poolings, in the order in which they stand in the latent."""
    width: int
    """Size of one view; a latent has `width * len(views)` numbers."""
    template: str
    """Digest of the chat template and of how text becomes ids, or "none" for a base model."""
    max_length: int
    """Most tokens a sequence keeps; the prompt's start is cut first."""
    dtype: str
    """Number type the backbone ran in, "float32" or "bfloat16"."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that differ whenever any field differs."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def dim(self) -> int:
        """Length of a whole latent: all views side by side."""
        return self.width * len(self.views)

    @property
    def layers(self) -> tuple[int, ...]:
        """The distinct layers that the views need, ascending."""
        return tuple(sorted({int(view.split(":")[0]) for view in self.views}))

    @property
    def stored(self) -> Recipe:
        """The recipe of what lies in a store: a view "L:prompt" is the prompt's own "L:mean", kept once a prompt."""
        return replace(self, views=tuple(dict.fromkeys(map(own_view, self.views))))

    @property
    def response_views(self) -> tuple[str, ...]:
        """The views that differ between two responses to one prompt."""
        return tuple(view for view in self.views if own_view(view) == view)

    @property
    def prompt_views(self) -> tuple[str, ...]:
        """The views that do not."""
        return tuple(view for view in self.views if own_view(view) != view)

    def columns(self, views: tuple[str, ...]) -> Array:
        """Column indices [width * len(views)] of `views` inside a latent of this recipe."""
        missing = [view for view in views if view not in self.views]
        if missing:
            raise RecipeMismatch(f"the latents have views {', '.join(self.views)}, not {', '.join(missing)}")
        starts = [self.views.index(view) * self.width for view in views]
        return np.concatenate([np.arange(s, s + self.width) for s in starts])

    def differences(self, other: Recipe) -> list[str]:
        """Names of the fields that keep two recipes' latents apart, whichever views they have.

        `model` is not one: the same weights may lie in another folder, and their digest is what counts.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if name not in ("model", "views") and mine[name] != theirs[name]]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "views": list(self.views)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        return cls(**{**data, "views": tuple(data["views"])})


def own_view(view: str) -> str:
    """The view of the prompt's own latent that a view of the prompt is, "L:mean" for "L:prompt"; others as they are."""
    layer, _, pooling = view.partition(":")
    return f"{layer}:{OF_PROMPT.get(pooling, pooling)}"


@dataclass(frozen=True)
class LatentPairs:
    """n preference pairs as vectors, all float32 [n, d] with d = recipe.dim.

    Memory-mapped arrays (`np.memmap`) become `Mapped`: `take` and `select` read nothing of them, and what learns from
    the pairs reads them block by block or, where it cannot, refuses what does not fit into memory. The prompts' own
    latents, which no head reads, are kept beside them only if they are memory-mapped too.
    """

    chosen: Array
    rejected: Array
    prompt: Array
    recipe: Recipe
    group: Array
    """Int [n]: pairs with the same number share their prompt; folds and bootstraps split by it."""
    margin: Array | None = None
    """Float [n], how much better chosen is, where known (not NaN)."""
    user_id: Array | None = None
    source: Array | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """What encoding cost: tokens, seconds, cached, truncated."""

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected", "prompt"):
            mapped = Mapped.of(getattr(self, name), self.recipe.width)
            if mapped is not None:
                object.__setattr__(self, name, mapped)  # frozen for everybody else
            shape = getattr(self, name).shape
            if shape != (len(self.group), self.recipe.dim):
                raise RecipeMismatch(f"{name} is {shape}, the recipe wants ({len(self.group)}, {self.recipe.dim})")
        chosen, prompt = cast(Any, self.chosen), cast(Any, self.prompt)
        if isinstance(chosen, Mapped) and not isinstance(prompt, Mapped):
            object.__setattr__(self, "prompt", replace(chosen, file=None))

    def __len__(self) -> int:
        return len(self.group)

    @property
    def mapped(self) -> bool:
        """Whether the latents lie in files."""
        return isinstance(self.chosen, Mapped)

    @property
    def nbytes(self) -> int:
        """Bytes of the chosen and the rejected latents."""
        return 8 * len(self) * self.recipe.dim

    def loaded(self) -> LatentPairs:
        """The same pairs in memory, whatever they take; prompts that were not kept are NaN."""
        if not self.mapped:
            return self
        prompt: Array | Mapped = self.prompt
        if isinstance(prompt, Mapped):
            gone = np.broadcast_to(np.float32(np.nan), prompt.shape)
            prompt = gone if prompt.file is None else prompt.read()
        return replace(self, chosen=read(self.chosen), rejected=read(self.rejected), prompt=prompt)

    def in_memory(self) -> LatentPairs:
        """`loaded`, for what reads all latents at once; InputError where they take more than may be in memory."""
        chosen = cast(Any, self.chosen)
        if isinstance(chosen, Mapped) and self.nbytes > chosen.limit:
            raise InputError(too_large(len(self), self.nbytes, chosen.limit))
        return self.loaded()

    def sample(self, most: int, random_state: int = 0) -> LatentPairs:
        """At most so many of the pairs, of whole prompts (but the last) picked at random, in their order; loaded."""
        if len(self) <= most:
            return self.loaded()
        prompts, member = np.unique(self.group, return_inverse=True)
        place = np.random.default_rng(random_state).permutation(len(prompts))[member]
        return self.take(np.sort(np.argsort(place, kind="stable")[:most])).loaded()

    @staticmethod
    def concatenate(parts: Sequence[LatentPairs]) -> LatentPairs:
        """All pairs of the parts in order, with the first part's meta.

        Raises RecipeMismatch if their recipes differ, InputError if there is no part or only some know a column.
        """
        if not parts:
            raise InputError("there are no pairs to concatenate; give at least one part")
        first = parts[0]
        if any(part.recipe != first.recipe for part in parts):
            raise RecipeMismatch("pairs of different recipes cannot be concatenated; encode them with one recipe")
        columns: dict[str, Any] = {}
        for name in (f.name for f in fields(first) if f.name not in ("recipe", "meta")):
            values = [getattr(part, name) for part in parts]
            known = [value for value in values if value is not None]
            if known and len(known) < len(values):
                raise InputError(f"only some of the parts have {name}; give it to all of them or to none")
            columns[name] = np.concatenate(known) if known else None
        return replace(first, **columns)

    def take(self, index: Array | slice) -> LatentPairs:
        """The pairs at `index` (ints, a mask, or a slice, which copies nothing), in that order."""
        per_pair = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("recipe", "meta")}
        return replace(self, **{name: value[index] for name, value in per_pair.items() if value is not None})

    def select(self, views: tuple[str, ...]) -> LatentPairs:
        """The same pairs with only these views, and the recipe narrowed to them."""
        columns = self.recipe.columns(views)
        return replace(
            self,
            chosen=self.chosen[:, columns],
            rejected=self.rejected[:, columns],
            prompt=self.prompt[:, columns],
            recipe=replace(self.recipe, views=views),
        )
