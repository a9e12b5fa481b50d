"""Several processes that train together, as `accelerate launch` and `torchrun` start them: one a device.

The main process alone writes files and prints. Work on n things is shared out in contiguous parts (`share`), and what
the processes make of theirs is put together again (`whole`, `all_sum`, `gathered`). With one process all of it does
nothing. What the processes tell each other is tensors, and JSON.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penchant.errors import InputError

PATIENCE = timedelta(hours=6)
"""A process that waits longer for another gives up; the main one may have to judge and to save a large LLM meanwhile.
The launcher ends the others at once where one fails."""


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def start() -> None:
    """Join the others, each on a device of its own. Whatever needs them does so by itself; call this before an LLM is
    loaded."""
    if world() == 1 or torch.distributed.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def asked_to_shard() -> bool:
    """Whether the launch asks for FSDP. InputError for its first version, which hides weights from what reads them."""
    version = _fsdp_version()
    if version == "1" and world() > 1:
        raise InputError("FSDP's first version is not supported; set fsdp_version: 2 in accelerate's configuration.")
    return version is not None and world() > 1


@functools.cache
def _fsdp_version() -> str | None:
    """Takes the launch's wish for itself: transformers would give the weights of an LLM to one process alone, and
    accelerate knows no FSDP on CPUs; see sharding.py."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return os.environ.get("FSDP_VERSION", "1") if asked else None


def share(n: int) -> slice:
    """The part of n things that is this process's; empty for some where there are fewer things than processes."""
    first, last = (-(-n * place // world()) for place in (rank(), rank() + 1))
    return slice(first, last)


def all_sum(part: Tensor) -> Tensor:
    """The sum of all processes' tensors of this shape, in place."""
    if world() > 1:
        start()
        torch.distributed.all_reduce(part)
    return part


def sums(parts: Iterable[float]) -> list[float]:
    """Of each number the sum over all processes."""
    own = list(parts)
    return all_sum(torch.tensor(own, dtype=torch.float64)).tolist() if world() > 1 else own


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Give each parameter the sum of its gradients in all processes, if it has one in any."""
    if world() == 1:
        return
    used = all_sum(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
    trained = [p for p, times in zip(parameters, used, strict=True) if times]
    if not trained:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
    for p, part in zip(trained, all_sum(flat).split([p.numel() for p in trained]), strict=True):
        p.grad = part.view_as(p)


def whole(part: Tensor, n: int) -> Tensor:
    """All n rows of which this process has its share, without a derivative."""
    if world() == 1:
        return part
    rows = part.new_zeros(n, *part.shape[1:])
    rows[share(n)] = part.detach()
    return all_sum(rows)


def from_main(value: Tensor) -> Tensor:
    """The main process's tensor of this shape, in place, in all of them."""
    return all_sum(value if is_main() else value.zero_())


def told(value: Any) -> Any:
    """What the main process says, in all of them; the others' own value counts for nothing. JSON."""
    return gathered(value)[0] if world() > 1 else value


def gathered(value: Any) -> list[Any]:
    """What each process says, in their order. JSON."""
    if world() == 1:
        return [value]
    start()
    said = torch.from_numpy(np.frombuffer(bytearray(json.dumps(value).encode()), np.uint8))
    lengths = torch.zeros(world(), dtype=torch.long)
    lengths[rank()] = len(said)
    all_sum(lengths)
    texts = [torch.zeros(int(lengths.max()), dtype=torch.uint8) for _ in lengths]
    torch.distributed.all_gather(texts, torch.nn.functional.pad(said, (0, len(texts[0]) - len(said))))
    return [json.loads(text[:n].numpy().tobytes()) for text, n in zip(texts, lengths.tolist(), strict=True)]


def wait() -> None:
    """Until all processes are here."""
    all_sum(torch.zeros(1))
