"""What Prometheus reads at /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from penchant.serve.batching import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at: Any = {"registry": self.registry, "namespace": "penchant"}
        self._requests = Counter("requests", "Requests answered.", ["path", "status"], **at)
        self._seconds = Histogram("request_seconds", "Time to answer.", ["path"], buckets=SECONDS, **at)
        self._items = Counter("items", "Responses scored.", **at)
        self._cached = Counter("cached_items", "Sequences whose latent was in the cache.", **at)
        self._tokens = Counter("tokens", "Tokens of the sequences that the LLM ran.", **at)
        self._batch = Histogram("batch_tokens", "Tokens of the sequences in a batch.", buckets=TOKENS, **at)
        self._busy = Counter("llm_seconds", "Time the LLM ran, of all workers.", **at)
        self._waiting = Gauge("waiting_tokens", "Tokens that wait for the LLM.", **at)
        self._kept = Gauge("cache_bytes", "Bytes of the latents that are kept.", **at)
        self.in_flight = Gauge("requests_in_flight", "Requests worked on.", **at)

    def watch(self, batcher: Batcher) -> None:
        """Read the gauges from the batcher whenever they are asked for."""
        self._waiting.set_function(lambda: batcher.waiting_tokens)
        self._kept.set_function(lambda: batcher.cache.bytes)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, items: int, cached: int) -> None:
        self._items.inc(items)
        self._cached.inc(cached)

    def batch(self, tokens: int, seconds: float) -> None:
        self._tokens.inc(tokens)
        self._batch.observe(tokens)
        self._busy.inc(seconds)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
