"""Batching: what runs together, what runs once, what is kept, and what happens when something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from penchant.chat import Tokens
from penchant.encode import MemoryStore, encode_texts
from penchant.latents import Recipe
from penchant.serve import batching
from penchant.serve.batching import ENTRY_BYTES, Batcher, LatentCache
from penchant.serve.refusals import Refused
from tests import tiny

VIEWS = ("3:last", "4:mean", "4:prompt")
SECONDS = 30


class Gated:
    """`batch_latents` that waits until it may run, and remembers the batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_run, self.began = threading.Event(), threading.Semaphore(0)
        self.batches: list[list[bytes]] = []
        self.poison: bytes | None = None
        self._real = batching.batch_latents
        monkeypatch.setattr(batching, "batch_latents", self)

    def __call__(self, backbone: Any, recipe: Recipe, batch: Any) -> Any:
        self.batches.append([item.key for item in batch.items])
        self.began.release()
        assert self.may_run.wait(SECONDS)
        if self.poison in self.batches[-1]:
            raise RuntimeError("poisoned")
        return self._real(backbone, recipe, batch)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    made = Gated(monkeypatch)
    yield made
    made.may_run.set()


@pytest.fixture
def batcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batcher]:
    """One worker, so that what waits is known."""
    monkeypatch.setattr(batching, "shares", lambda most: (1, 1))
    backbone = tiny.backbone()
    made = Batcher(backbone, backbone.recipe(VIEWS), cache_bytes=1 << 20, queue_tokens=2000)
    yield made
    made.close()


def tokens(batcher: Batcher, *pairs: tuple[str, str]) -> list[Tokens]:
    return batcher.backbone.chat.encode([p for p, _ in pairs], [r for _, r in pairs])


def test_latents_are_those_of_encode(batcher: Batcher) -> None:
    pairs = [("hello", "you"), ("hello", "no"), ("how are you", "42"), ("hello", "you")]
    items = tokens(batcher, *pairs)
    rows = batcher.submit(items).future.result(SECONDS)
    wanted = encode_texts(batcher.backbone, [p for p, _ in pairs], [r for _, r in pairs], VIEWS, MemoryStore())
    assert np.array_equal(np.stack([rows[item.key] for item in items]), wanted)
    again = batcher.submit(items)
    assert again.future.done()
    assert again.cached == 3


def test_equal_prompts_run_together_and_equal_texts_once(batcher: Batcher, gate: Gated) -> None:
    first = batcher.submit(tokens(batcher, ("first", "one")))
    assert gate.began.acquire(timeout=SECONDS)  # it runs; whatever comes now waits
    a, b, c, d = tokens(batcher, ("p", "a"), ("q", "b"), ("p", "c"), ("q", "d"))
    tickets = [batcher.submit(some) for some in ([a, b], [c], [b, d], [a])]
    assert batcher.waiting_tokens == sum(map(len, (a, b, c, d)))
    gate.may_run.set()
    for ticket in (first, *tickets):
        ticket.future.result(SECONDS)
    assert gate.batches[1:] == [[a.key, c.key, b.key, d.key]]
    assert batcher.waiting_tokens == 0


def test_a_text_that_is_running_is_not_run_again(batcher: Batcher, gate: Gated) -> None:
    items = tokens(batcher, ("p", "a"))
    tickets = [batcher.submit(items)]
    assert gate.began.acquire(timeout=SECONDS)
    tickets.append(batcher.submit(items))
    gate.may_run.set()
    rows = [ticket.future.result(SECONDS)[items[0].key] for ticket in tickets]
    assert rows[0] is rows[1]
    assert len(gate.batches) == 1


def test_a_batch_holds_no_more_than_the_budget(batcher: Batcher, gate: Gated) -> None:
    batcher.token_budget = 120
    batcher.submit(tokens(batcher, ("first", "one")))
    assert gate.began.acquire(timeout=SECONDS)
    items = tokens(batcher, *((f"prompt {i // 3}", f"answer number {i}") for i in range(12)))
    ticket = batcher.submit(items)
    gate.may_run.set()
    ticket.future.result(SECONDS)
    by_key = {item.key: item for item in items}
    for keys in gate.batches[1:]:
        batch = [by_key[key] for key in keys]
        prompts = {item.prompt_key: len(item.prompt) for item in batch}
        assert sum(prompts.values()) + sum(len(item.response) for item in batch) <= 120
    assert sorted(key for keys in gate.batches[1:] for key in keys) == sorted(by_key)


def test_a_full_queue_says_when_to_come_back(batcher: Batcher, gate: Gated) -> None:
    batcher.submit(tokens(batcher, ("first", "one")))
    assert gate.began.acquire(timeout=SECONDS)
    long = tokens(batcher, *((f"prompt {i}", "hello there " * 40) for i in range(40)))
    accepted = batcher.submit(long)  # however long, where nothing waits
    with pytest.raises(Refused) as busy:
        batcher.submit(tokens(batcher, ("another", "one")))
    assert busy.value.status == 429
    assert int(busy.value.headers["Retry-After"]) >= 1
    assert batcher.submit(long[:3])  # which waits already
    gate.may_run.set()
    assert len(accepted.future.result(SECONDS)) == 40
    assert batcher.submit(tokens(batcher, ("another", "one"))).future.result(SECONDS)


def test_nobody_fails_for_a_neighbour(batcher: Batcher, gate: Gated) -> None:
    batcher.submit(tokens(batcher, ("first", "one")))
    assert gate.began.acquire(timeout=SECONDS)
    good, bad = tokens(batcher, ("p", "a"), ("p", "b"))
    gate.poison = bad.key
    tickets = batcher.submit([good]), batcher.submit([bad])
    gate.may_run.set()
    assert good.key in tickets[0].future.result(SECONDS)
    with pytest.raises(RuntimeError, match="poisoned"):
        tickets[1].future.result(SECONDS)
    gate.poison = None
    assert batcher.submit([bad]).future.result(SECONDS)  # and it may be asked again


def test_what_nobody_waits_for_is_not_run(batcher: Batcher, gate: Gated) -> None:
    batcher.submit(tokens(batcher, ("first", "one")))
    assert gate.began.acquire(timeout=SECONDS)
    a, b = tokens(batcher, ("p", "a"), ("q", "b"))
    gone, stays = batcher.submit([a, b]), batcher.submit([b])
    batcher.cancel(gone)
    gate.may_run.set()
    assert b.key in stays.future.result(SECONDS)
    assert gone.future.cancelled()
    assert gate.batches[1:] == [[b.key]]


def test_closing_finishes_what_was_accepted_and_takes_no_more(batcher: Batcher, gate: Gated) -> None:
    items = tokens(batcher, *((f"p{i}", "a") for i in range(30)))
    tickets = [batcher.submit([item]) for item in items]
    assert gate.began.acquire(timeout=SECONDS)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.may_run.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert all(ticket.future.done() for ticket in tickets)
    with pytest.raises(Refused) as refused:
        batcher.submit(items)
    assert refused.value.status == 503


def test_the_cache_forgets_what_was_not_asked_for_longest() -> None:
    row = np.zeros(25, np.float32)
    cache = LatentCache(3 * (row.nbytes + ENTRY_BYTES))
    for key in (b"a", b"b", b"c"):
        cache.put(key, row)
    assert cache.get(b"a") is row
    cache.put(b"d", row)
    assert cache.get(b"b") is None
    assert all(cache.get(key) is row for key in (b"a", b"c", b"d"))
    for number in range(1000):
        cache.put(str(number).encode(), row)
        assert cache.bytes <= cache.max_bytes
    assert len(cache) == 3
    nothing = LatentCache(0)
    nothing.put(b"a", row)
    assert len(nothing) == nothing.bytes == 0
