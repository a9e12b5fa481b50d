"""Work in batches, one a core, in order: through the backbone, and elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from penchant.backbone import Backbone

MOST_WORKERS = 8
B = TypeVar("B")
T = TypeVar("T")


def shares(most: int = MOST_WORKERS, cores: int | None = None) -> tuple[int, int]:
    """How many workers share the cores, by default torch's, and the threads of each.

    They are the same for one batch as for many: sums over other numbers of threads may differ in their last bits.
    """
    cores = cores or torch.get_num_threads()
    workers = min(most, cores)
    return workers, max(1, cores // workers)


def most_workers(backbone: Backbone) -> int:
    """One a core on the CPU; a GPU works on one batch at a time."""
    return MOST_WORKERS if backbone.device.type == "cpu" else 1


def run_batches(backbone: Backbone, batches: Iterable[B], function: Callable[[B], T]) -> Iterator[tuple[B, T]]:
    """Each batch with what `function` gives for it, in order; `batches` is read as the work gets on."""
    return one_a_core(batches, function, most_workers(backbone))


def one_a_core(batches: Iterable[B], function: Callable[[B], T], most: int = MOST_WORKERS) -> Iterator[tuple[B, T]]:
    """`run_batches` for work on the CPU, on at most `most` cores.

    Each core works on a batch of its own: the operations between the matrix products are too small to split, and cores
    that wait for each other after every one of them would idle.
    """
    workers, threads = shares(most)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        ahead: deque[tuple[B, Future[T]]] = deque()
        try:
            for batch in batches:
                ahead.append((batch, pool.submit(function, batch)))
                if len(ahead) > workers:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
