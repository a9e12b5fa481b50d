"""Dynamic batching: sequences of many requests run through the LLM together, each once, and are kept.

Workers, one a core, take what has waited: sequences with equal prompts stand in one tree, so the prompt is run once,
and equal sequences of different requests are one. Nothing waits for a batch to fill: while the workers run, the next
ones gather. A latent does not depend on what it is packed with (`attention.tree_blocks`), so neither does an answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import TOKEN_BUDGET, MemoryStore, batch_latents, check_batch, read_latents
from penchant.latents import Recipe
from penchant.packing import pack, stack_keys
from penchant.serve.refusals import Refused
from penchant.workers import most_workers, shares

Row = NDArray[np.float32]
SMALLEST = 256
"""Tokens below which waiting work is not split among idle workers: smaller products run at half their speed."""
ENTRY_BYTES = 200
"""What a kept latent takes besides its numbers: key, links, array header."""


class LatentCache:
    """The latents asked for last, by key, in at most `max_bytes`. Not locked."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Row | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: Row) -> None:
        """Keep a row, and forget those not asked for longest where it is full."""
        if key in self._rows:
            return
        self._rows[key] = row
        self.bytes += row.nbytes + ENTRY_BYTES
        while self.bytes > self.max_bytes:
            _, gone = self._rows.popitem(last=False)
            self.bytes -= gone.nbytes + ENTRY_BYTES


class Ticket:
    """One request's sequences. `future` gives their latents by key; `cached` of them were there already."""

    def __init__(self, rows: dict[bytes, Row], missing: set[bytes]) -> None:
        self.cached = len(rows)
        self.rows, self.missing = rows, missing
        self.future: Future[dict[bytes, Row]] = Future()

    def give(self, key: bytes, row: Row) -> None:
        self.rows[key] = row
        self.missing.discard(key)
        self.finish()

    def finish(self) -> None:
        if not self.missing:
            with contextlib.suppress(InvalidStateError):  # it was cancelled, or failed for another sequence
                self.future.set_result(self.rows)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass
class Slot:
    """A sequence that is waiting or running, and who wants it."""

    item: Tokens
    tickets: list[Ticket] = field(default_factory=list)


class Watch(Protocol):
    """What is told of each batch that has run."""

    def batch(self, tokens: int, seconds: float) -> None: ...


class Batcher:
    """Runs sequences through one backbone.

    Attributes: `cache`; `waiting_tokens`, those of sequences no worker has taken; `token_budget` of a batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        *,
        cache_bytes: int,
        queue_tokens: int,
        token_budget: int = TOKEN_BUDGET,
        watch: Watch | None = None,
    ) -> None:
        self.backbone, self.recipe = backbone, recipe
        self.cache = LatentCache(cache_bytes)
        self.queue_tokens, self.token_budget, self.watch = queue_tokens, backbone.budget(token_budget), watch
        self.waiting_tokens = 0
        self._slots: dict[bytes, Slot] = {}
        self._waiting: dict[bytes, dict[bytes, Slot]] = {}  # by prompt, in order of arrival
        self._change = threading.Condition()
        self._closed = False
        self._rate = 1000.0  # tokens a second, as seen so far
        workers, self._threads = shares(most_workers(backbone))
        self._idle = 0
        self._workers = [threading.Thread(target=self._work, name=f"batch-{i}", daemon=True) for i in range(workers)]
        for worker in self._workers:
            worker.start()

    def submit(self, items: Sequence[Tokens]) -> Ticket:
        """Ask for the latents of sequences. Raises Refused: 429 where too much is waiting, 503 after `close`."""
        unique = {item.key: item for item in items}
        with self._change:
            if self._closed:
                raise Refused(503, "the server is shutting down; ask again later.", Retry_After="5")
            rows = {key: row for key in unique if (row := self.cache.get(key)) is not None}
            fresh = {key: item for key, item in unique.items() if key not in rows and key not in self._slots}
            size = sum(map(len, fresh.values()))
            if self.waiting_tokens and size and self.waiting_tokens + size > self.queue_tokens:
                wait = max(1, round(self.waiting_tokens / self._rate))
                raise Refused(429, f"{self.waiting_tokens:,} tokens are waiting already.", Retry_After=str(wait))
            ticket = Ticket(rows, unique.keys() - rows.keys())
            for key, item in fresh.items():
                self._slots[key] = self._waiting.setdefault(item.prompt_key, {})[key] = Slot(item)
            for key in ticket.missing:
                self._slots[key].tickets.append(ticket)
            self.waiting_tokens += size
            self._change.notify_all()
        ticket.finish()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; what nobody else waits for is not run, if it is not running already."""
        with self._change:
            for key in ticket.missing:
                slot = self._slots.get(key)
                if slot is None:
                    continue
                slot.tickets = [each for each in slot.tickets if each is not ticket]
                group = self._waiting.get(slot.item.prompt_key, {})
                if not slot.tickets and key in group:
                    self._leave(group, key)
                    del self._slots[key]
        ticket.future.cancel()

    def close(self) -> None:
        """Take no more, and return when everything accepted has run."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while slots := self._take():
            start = time.perf_counter()
            self._run(slots)
            seconds = time.perf_counter() - start
            tokens = sum(len(slot.item) for slot in slots)
            self._rate += 0.1 * (tokens * len(self._workers) / max(seconds, 1e-6) - self._rate)
            if self.watch is not None:
                self.watch.batch(tokens, seconds)

    def _take(self) -> list[Slot]:
        """What runs next: whole prompts in order of arrival, as many tokens as fit; nothing after `close`."""
        with self._change:
            self._idle += 1
            while not self._waiting:
                if self._closed:
                    return []
                self._change.wait()
            budget = min(self.token_budget, max(SMALLEST, self.waiting_tokens // self._idle))
            self._idle -= 1
            taken: list[Slot] = []
            size = 0
            for group in list(self._waiting.values()):
                before = size
                for key, slot in list(group.items()):
                    prompt = len(slot.item.prompt) if size == before else 0
                    cost = prompt + len(slot.item.response)
                    if taken and size + cost > budget:
                        return taken
                    self._leave(group, key)
                    taken.append(slot)
                    size += cost
            return taken

    def _leave(self, group: dict[bytes, Slot], key: bytes) -> None:
        slot = group.pop(key)
        self.waiting_tokens -= len(slot.item)
        if not group:
            del self._waiting[slot.item.prompt_key]

    def _run(self, slots: list[Slot]) -> None:
        try:
            rows = self._latents([slot.item for slot in slots])
        except Exception as error:  # whatever it is, nobody may wait for ever
            if len(slots) > 1:  # and no request fails for what stood beside it
                for slot in slots:
                    self._run([slot])
                return
            self._deliver(slots, None, error)
        else:
            self._deliver(slots, rows, None)

    def _latents(self, items: list[Tokens]) -> NDArray[np.float32]:
        """Latents [n, recipe.dim]."""
        store, stored = MemoryStore(), self.recipe.stored
        for batch in pack(items, self.token_budget, packed=self.backbone.packed):
            latents = batch_latents(self.backbone, stored, batch)
            check_batch(batch, latents, stored)
            store.write(batch.keys, latents)
        keys = (stack_keys(getattr(item, name) for item in items) for name in ("key", "prompt_key"))
        return read_latents(store, self.recipe, *keys)

    def _deliver(self, slots: list[Slot], rows: NDArray[np.float32] | None, error: Exception | None) -> None:
        with self._change:
            for i, slot in enumerate(slots):
                key = slot.item.key
                del self._slots[key]
                if rows is not None:
                    row = rows[i].copy()  # a view would keep the whole batch
                    self.cache.put(key, row)
                for ticket in slot.tickets:
                    if error is not None:
                        ticket.fail(error)
                    elif rows is not None:
                        ticket.give(key, row)
