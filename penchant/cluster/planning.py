"""Texts to batches that an actor can run: tokenised, packed, and without what the store has already."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from penchant.backbone import Backbone
from penchant.chat import Chat, Tokens
from penchant.cluster.streaming import told, work_in
from penchant.encode import Cost, chat_pairs, plan
from penchant.errors import InputError, PenchantError
from penchant.latents import Recipe
from penchant.packing import Batch, batch_of
from penchant.pair_checks import TEXTS
from penchant.store import Store
from penchant.store_views import ViewStore, open_store

IDS = pa.list_(pa.int32())
PLANNED = pa.schema(
    [
        ("prompts", pa.list_(IDS)),  # of each tree
        ("responses", pa.list_(IDS)),  # of each sequence, in the pack's order
        ("counts", pa.list_(pa.int64())),  # sequences of each tree
        ("tokens", pa.int64()),  # of the batch
        ("pairs", pa.int64()),  # of a chunk, in its first row
        ("planned", pa.int64()),  # tokens of all its batches, in its first row
        ("cost", pa.list_(pa.int64())),  # what the chunk asked for, in its first row
        ("error", pa.string()),
    ]
)
"""A row is a batch; a chunk of which everything is stored is one row without sequences."""
COSTS = ("sequences", "cached_sequences", "encoded_sequences", "tokens", "truncated")


@dataclass(frozen=True)
class Job:
    """What all workers have to know."""

    model: str
    recipe: Recipe
    """Of what is stored."""
    packed: bool
    """Whether the backbone runs packed trees."""
    cache: str
    folder: str
    """The user's working folder."""
    token_budget: int
    chat: Any
    """A reference to the `Chat`."""


def look(
    model: str, views: tuple[str, ...] | None, dtype: str, max_length: int, token_budget: int, folder: str
) -> tuple[Any, ...]:
    """The recipe, whether packing is exact, the token budget and the chat, from a machine like those that will run the
    LLM.

    Only there is it known which number type "auto" is. Raises what `Backbone.load` and `Backbone.recipe` raise.
    """
    work_in(folder)
    backbone = Backbone.load(model, dtype=dtype, max_length=max_length)
    recipe = backbone.recipe(views or backbone.default_views())
    return recipe, backbone.packed, backbone.budget(token_budget), backbone.chat


def plan_chunk(chunk: Any, job: Job) -> Any:
    """The batches (a table, PLANNED) that are not stored yet of a chunk of pairs (a table of `PairSource.blocks`)."""
    try:
        for error in chunk["error"].to_pylist():
            if error:
                return _row(error=error)
        work_in(job.folder)
        prompts, chosen, rejected = (chunk[name].to_pylist() for name in TEXTS)
        tokens = chat_pairs(_chat(job.chat), prompts, chosen, rejected, chunk["row"][0].as_py())
        store = _store(job.cache, job.recipe)
        store.compact()  # looks at what is there, too
        cost = Cost()
        batches = plan(tokens, store, job.token_budget, job.packed, cost)
    except PenchantError as error:
        return _row(error=told(error))
    first = {
        "pairs": len(chunk),
        "planned": sum(batch.tokens for batch in batches),
        "cost": [getattr(cost, name) for name in COSTS],
    }
    rows = [_packed(batch) for batch in batches] or [{}]
    rows[0] |= first
    return pa.Table.from_pylist(rows, PLANNED)


def _row(**values: Any) -> pa.Table:
    return pa.Table.from_pylist([values], PLANNED)


def _packed(batch: Batch) -> dict[str, Any]:
    """A batch as a row."""
    return {
        "prompts": [prompt.numpy().astype(np.int32) for prompt, _ in batch.trees],
        "responses": [item.response for item in batch.items],
        "counts": [len(responses) for _, responses in batch.trees],
        "tokens": batch.tokens,
    }


def unpacked(row: dict[str, Any]) -> Batch:
    """The batch that `_packed` made a row of."""
    responses: Iterator[list[int]] = iter(row["responses"])
    trees = [
        [Tokens(np.array(prompt, np.int32), np.array(next(responses), np.int32), 0) for _ in range(count)]
        for prompt, count in zip(row["prompts"], row["counts"], strict=True)
    ]
    return batch_of(trees, row["tokens"])


def compact(job: Job) -> None:
    """Merge what the run has written."""
    work_in(job.folder)
    Store(job.cache, job.recipe).compact()


@functools.lru_cache(1)
def _chat(reference: Any) -> Chat:
    found: Chat = ray.get(reference)
    return found


@functools.lru_cache(1)
def _store(cache: str, recipe: Recipe) -> Store | ViewStore:
    return open_store(cache, recipe)


def absolute(path: Path) -> str:
    """A path that means the same from any working folder."""
    return str(path.expanduser().absolute())


def check_model(backbone: Backbone, recipe: Recipe) -> None:
    """InputError where a machine has another LLM under the name than the one that was looked at."""
    here = backbone.recipe(recipe.views)
    if here != recipe:
        what = ", ".join(recipe.differences(here)) or "name"
        raise InputError(f"the machines of the cluster have different LLMs at {recipe.model} ({what}); make them one.")
