"""Pairs -> latents: each shared prompt run once, rows packed, no layer above the one asked for, all of it cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from penchant.backbone import Backbone
from penchant.chat import Chat, Text, Tokens
from penchant.errors import InputError
from penchant.latents import LatentPairs, Recipe, own_view
from penchant.mapped import row_blocks
from penchant.packing import Batch, Keys, Span, pack, packed_spans, padded_spans, stack_keys
from penchant.pairs import prompt_groups
from penchant.spooled import Spool, no_prompts
from penchant.store_shard import KEY_BYTES
from penchant.transfers import fetch, to_device
from penchant.workers import run_batches

TOKEN_BUDGET = 0
"""Tokens run at once by default: what suits the device, see `Backbone.budget`."""
CHUNK = 4096
"""Pairs whose texts are held in memory at once."""
REFRESH_SECONDS = 1.0
"""How often to look for what other processes have stored: each look lists the whole folder."""


class LatentStore(Protocol):
    """What encoding needs of a store; `store.Store` keeps it on disk, `MemoryStore` in memory."""

    def has(self, keys: Keys) -> NDArray[np.bool_]: ...
    def write(self, keys: Keys, latents: NDArray[np.float32]) -> None: ...
    def read(self, keys: Keys) -> NDArray[np.float32]: ...
    def refresh(self) -> None: ...
    def compact(self) -> None: ...


class MemoryStore:
    """Latents kept for one call, for scoring without a cache."""

    def __init__(self) -> None:
        self.rows: dict[bytes, NDArray[np.float32]] = {}

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        return np.array([bytes(key) in self.rows for key in keys], bool)

    def write(self, keys: Keys, latents: NDArray[np.float32]) -> None:
        self.rows.update({bytes(key): row for key, row in zip(keys, latents, strict=True)})

    def read(self, keys: Keys) -> NDArray[np.float32]:
        return np.stack([self.rows[bytes(key)] for key in keys])

    def refresh(self) -> None:
        pass

    def compact(self) -> None:
        pass


@dataclass
class Cost:
    """What encoding took."""

    sequences: int = 0
    """Prompt + response sequences asked for."""
    cached_sequences: int = 0
    encoded_sequences: int = 0
    tokens: int = 0
    """Tokens of all sequences asked for, each prompt counted with each of its responses."""
    unique_tokens: int = 0
    """Tokens that went through the model, padding included."""
    truncated: int = 0
    """Sequences that lost tokens at the start."""
    encode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.unique_tokens / self.encode_seconds if self.encode_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def encode(
    backbone: Backbone,
    recipe: Recipe,
    tokens: Sequence[Tokens],
    store: LatentStore,
    *,
    token_budget: int = TOKEN_BUDGET,
    cost: Cost | None = None,
    progress: Any = None,
) -> None:
    """Make sure the store has the latent of every sequence and of every prompt in `tokens`.

    Sequences with equal prompts form a tree, and equal sequences are run once. The batches are fixed by `tokens`
    alone; each is written whole. So a run that was killed goes on with the batches that are not there yet and ends
    with the very bits of a run that was not. Only rows that stand in a half-known batch (the data grew, or another
    data set shares texts with this one) are packed anew.

    Raises InputError for latents that are not finite; they are not stored.
    """
    cost = cost if cost is not None else Cost()
    batches = plan(tokens, store, backbone.budget(token_budget), backbone.packed, cost)
    start = time.perf_counter()
    missing_now = _still_missing(batches, store)
    for batch, found in run_batches(backbone, missing_now, lambda batch: start_batch(backbone, recipe, batch)):
        latents = found()
        check_batch(batch, latents, recipe)
        store.write(batch.keys, latents)
        cost.unique_tokens += batch.tokens
        if progress is not None:
            progress.update(batch.tokens)
    cost.encode_seconds += time.perf_counter() - start
    store.refresh()


def plan(tokens: Sequence[Tokens], store: LatentStore, token_budget: int, packed: bool, cost: Cost) -> list[Batch]:
    """The batches that `encode` has to run; what was asked for is added to `cost`."""
    cost.sequences += len(tokens)
    cost.tokens += sum(map(len, tokens))
    cost.truncated += sum(item.cut > 0 for item in tokens)
    unique = {item.key: item for item in tokens}
    missing = int((~store.has(stack_keys(unique))).sum())
    cost.encoded_sequences += missing
    cost.cached_sequences += len(tokens) - missing
    return _unfinished(list(pack(unique.values(), token_budget, packed=packed)), store, token_budget, packed)


def encode_pairs(
    backbone: Backbone,
    pairs: Dataset,
    views: tuple[str, ...],
    store: LatentStore | None = None,
    *,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool = True,
    label: str = "encode",
    spool: Spool | None = None,
) -> LatentPairs:
    """Latents of all pairs, float32 [n, width * len(views)] for chosen, rejected and prompt.

    Beyond the limit of `spool` they are gathered block by block into its files, prompts left out; without a spool all
    are in memory. `meta` of the result holds the `Cost`. Raises InputError for a view the backbone has not, and for a
    row the chat template refuses; PenchantError, before the first forward pass, if the disk has no room for the files.
    """
    recipe = backbone.recipe(views)
    store = store if store is not None else MemoryStore()
    spool = spool if spool is not None and spool.wanted(len(pairs), recipe) else None
    if spool is not None:
        spool.check_room(len(pairs), recipe)
    keys, cost = fill(
        backbone, recipe, pairs, store, token_budget=token_budget, show_progress=show_progress, label=label
    )
    optional = {name: _column(pairs, name) for name in ("margin", "user_id", "source") if name in pairs.column_names}
    columns: dict[str, Any] = {"group": prompt_groups(pairs), **optional}
    if spool is not None:
        return replace(gather(store, recipe, keys, spool), meta=cost.to_dict(), **columns)
    sides = {name: read_latents(store, recipe, own, keys["prompt"]) for name, own in keys.items()}
    return LatentPairs(**sides, recipe=recipe, meta=cost.to_dict(), **columns)


def gather(store: LatentStore, recipe: Recipe, keys: dict[str, Keys], spool: Spool) -> LatentPairs:
    """The pairs of these keys [n, 16] of each side in the spool's files, read from the store block by block."""
    n = len(keys["prompt"])

    def block(rows: slice) -> LatentPairs:
        asked, size = keys["prompt"][rows], rows.stop - rows.start
        chosen, rejected = (read_latents(store, recipe, keys[side][rows], asked) for side in ("chosen", "rejected"))
        return LatentPairs(chosen, rejected, no_prompts(size, recipe, spool), recipe, np.zeros(size, np.int64))

    return spool.write(map(block, row_blocks(n, recipe.dim)), n, recipe)


def fill(
    backbone: Backbone,
    recipe: Recipe,
    pairs: Dataset,
    store: LatentStore,
    *,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool = True,
    label: str = "encode",
) -> tuple[dict[str, Keys], Cost]:
    """Put the latents of all pairs into the store, chunk by chunk; the keys [n, 16] of each side, and the cost.

    A pair's prompt is that of the side of which truncation left more of it.
    """
    recipe, cost = recipe.stored, Cost()
    found = {name: np.empty((len(pairs), KEY_BYTES), np.uint8) for name in ("chosen", "rejected", "prompt")}
    with tqdm(total=0, unit="tok", unit_scale=True, desc=label, disable=not show_progress, leave=False) as bar:
        for first in range(0, len(pairs), CHUNK):
            chunk = pairs[first : first + CHUNK]
            tokens = chat_pairs(backbone.chat, chunk["prompt"], chunk["chosen"], chunk["rejected"], first)
            bar.total = _expected_tokens(tokens, store, bar.n, len(pairs) / min(first + CHUNK, len(pairs)))
            bar.refresh()
            encode(backbone, recipe, tokens, store, token_budget=token_budget, cost=cost, progress=bar)
            half = len(tokens) // 2
            rows = slice(first, first + half)
            found["chosen"][rows] = stack_keys(item.key for item in tokens[:half])
            found["rejected"][rows] = stack_keys(item.key for item in tokens[half:])
            sides = zip(tokens[:half], tokens[half:], strict=True)
            found["prompt"][rows] = stack_keys(min(pair, key=lambda item: item.cut).prompt_key for pair in sides)
            store.compact()
    return found, cost


def tokenize_pairs(
    backbone: Backbone, prompts: list[Text], chosen: list[Text], rejected: list[Text], first_row: int = 0
) -> list[Tokens]:
    """`chat_pairs` with the backbone's chat."""
    return chat_pairs(backbone.chat, prompts, chosen, rejected, first_row)


def chat_pairs(
    chat: Chat, prompts: list[Text], chosen: list[Text], rejected: list[Text], first_row: int = 0
) -> list[Tokens]:
    """All chosen sequences, then all rejected ones. Raises InputError where truncation left a pair's sides equal."""
    half = len(prompts)
    rows = range(first_row, first_row + half)
    tokens = chat.encode(prompts + prompts, chosen + rejected, [*rows, *rows])
    for row in range(half):
        if tokens[row].key == tokens[half + row].key:
            raise InputError(
                f"row {first_row + row}: chosen and rejected become the same {len(tokens[row])} tokens"
                f" (max_length {chat.max_length}); raise max_length or drop the row."
            )
    return tokens


def encode_texts(
    backbone: Backbone,
    prompts: Sequence[Text],
    responses: Sequence[Text],
    views: tuple[str, ...],
    store: LatentStore | None = None,
    *,
    token_budget: int = TOKEN_BUDGET,
    label: str | None = None,
    cost: Cost | None = None,
    rows: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Latents [n, width * len(views)] of response i to prompt i; a `label` shows progress, `cost` is added to.

    Raises InputError for a response the chat template refuses, named rows[i] (or i).
    """
    tokens = backbone.chat.encode(prompts, responses, rows)
    return encode_tokens(backbone, tokens, views, store, token_budget=token_budget, label=label, cost=cost)


def encode_tokens(
    backbone: Backbone,
    tokens: Sequence[Tokens],
    views: tuple[str, ...],
    store: LatentStore | None = None,
    *,
    token_budget: int = TOKEN_BUDGET,
    label: str | None = None,
    cost: Cost | None = None,
) -> NDArray[np.float32]:
    """`encode_texts` of what the backbone's chat made of the texts."""
    store = store if store is not None else MemoryStore()
    recipe = backbone.recipe(views)
    if not tokens:
        return np.zeros((0, recipe.dim), np.float32)
    with tqdm(unit="tok", unit_scale=True, desc=label, disable=label is None, leave=False) as bar:
        if label is not None:
            bar.total = _expected_tokens(tokens, store, 0, 1.0)
        encode(backbone, recipe.stored, tokens, store, token_budget=token_budget, cost=cost, progress=bar)
    keys = (stack_keys(getattr(item, name) for item in tokens) for name in ("key", "prompt_key"))
    return read_latents(store, recipe, *keys)


def read_latents(store: LatentStore, recipe: Recipe, keys: Keys, prompt_keys: Keys) -> NDArray[np.float32]:
    """Latents [n, recipe.dim]: each row's own views, and its prompt's own where a view is of the prompt."""
    latents = store.read(keys)
    if recipe == recipe.stored:
        return latents
    prompts, kept = store.read(prompt_keys), recipe.stored
    parts = [
        (prompts if view in recipe.prompt_views else latents)[:, kept.columns((own_view(view),))]
        for view in recipe.views
    ]
    return np.concatenate(parts, axis=1)


def _known(batch: Batch, store: LatentStore) -> NDArray[np.bool_]:
    """Which sequences of the batch are stored; a prompt is, wherever one of its responses is."""
    return store.has(stack_keys(item.key for item in batch.items))


def _unfinished(batches: list[Batch], store: LatentStore, budget: int, packed: bool) -> list[Batch]:
    """The batches of which nothing is stored, then the missing sequences of the others in batches of their own."""
    known = [_known(batch, store) for batch in batches]
    whole = [batch for batch, have in zip(batches, known, strict=True) if not have.any()]
    rest = [
        item
        for batch, have in zip(batches, known, strict=True)
        if have.any()
        for item, stored in zip(batch.items, have, strict=True)
        if not stored
    ]
    return whole + list(pack(rest, budget, packed=packed))


def _still_missing(batches: list[Batch], store: LatentStore) -> Iterator[Batch]:
    """The batches in order, but for those that another process has stored by the time they are asked for."""
    looked = time.monotonic()
    for batch in batches:
        if time.monotonic() - looked > REFRESH_SECONDS:
            store.refresh()
            looked = time.monotonic()
        if not _known(batch, store).all():
            yield batch


def batch_latents(backbone: Backbone, recipe: Recipe, batch: Batch) -> NDArray[np.float32]:
    """Latents [len(batch.keys), recipe.dim] of one batch, pooled in fp32.

    A prompt of no tokens (empty, or cut away whole by truncation) has the latent 0.
    """
    return start_batch(backbone, recipe, batch)()


def start_batch(backbone: Backbone, recipe: Recipe, batch: Batch) -> Callable[[], NDArray[np.float32]]:
    """Queue `batch_latents` on the device; what is returned waits for it, so that a GPU has the next batch by then."""
    layers = recipe.layers
    if backbone.packed:
        states = [state.float() for state in backbone.run_trees(batch.trees, layers)]
        spans = list(packed_spans(batch.trees))
    else:
        rows = [torch.cat((prompt, response)) for prompt, responses in batch.trees for response in responses]
        padded = backbone.run_padded(rows, layers)
        states = [state.flatten(0, 1).float() for state in padded]
        spans = list(padded_spans(batch.trees, padded[0].shape[1]))
    parts = []
    for view in recipe.views:
        layer, pooling = view.split(":")
        state = states[layers.index(int(layer))]
        parts.append((_span_ends if pooling == "last" else _span_means)(state, spans))
    return fetch(torch.cat(parts, 1))


def check_batch(batch: Batch, latents: NDArray[np.float32], recipe: Recipe) -> None:
    """InputError for latents of a batch that are not finite."""
    bad = int((~np.isfinite(latents)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"the backbone gives numbers that are not finite for {bad} of {len(latents)} texts of a batch"
            f" (views {', '.join(recipe.views)}, {recipe.dtype}); use dtype float32 or lower layers."
        )


def _span_ends(states: Tensor, spans: list[Span]) -> Tensor:
    starts, ends = to_device(torch.tensor(spans), states.device).T
    return torch.where((ends > starts)[:, None], states[ends - 1], 0.0)


def _span_means(states: Tensor, spans: list[Span]) -> Tensor:
    if states.device.type != "cpu":
        return _segment_means(states, spans)
    return torch.stack([states[a:b].sum(0) / max(1, b - a) for a, b in spans])


def _segment_means(states: Tensor, spans: list[Span]) -> Tensor:
    """`_span_means` by one kernel for all spans: one for each would keep a GPU waiting for the host."""
    places = to_device(torch.cat([torch.arange(a, b) for a, b in spans]), states.device)
    sizes = to_device(torch.tensor([b - a for a, b in spans]), states.device)
    sums = torch.segment_reduce(states[places], "sum", lengths=sizes, unsafe=True, initial=0.0)
    return sums / sizes.clamp(min=1)[:, None]


def _expected_tokens(tokens: Sequence[Tokens], store: LatentStore, done: int, scale: float) -> int:
    """Tokens the whole run will put through the model, guessed from those seen so far."""
    unique = {item.key: item for item in tokens}
    missing = [item for item, have in zip(unique.values(), store.has(stack_keys(unique)), strict=True) if not have]
    prompts = {item.prompt_key: len(item.prompt) for item in missing}
    return int((done + sum(len(item.response) for item in missing) + sum(prompts.values())) * scale)


def _column(pairs: Dataset, name: str) -> NDArray[Any]:
    values = pairs[name]
    return np.array(list(values), dtype=np.float64 if name == "margin" else object)
