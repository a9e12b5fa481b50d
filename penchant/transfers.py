"""Numbers between host and device without waiting: a GPU that is waited for after every batch stands idle meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor there; the copy to a GPU is queued behind the GPU's work, from pinned memory."""
    if device is not None and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device) if device is not None else tensor


def fetch(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Queue the copy to the host; what is returned waits for this copy alone and gives the array."""
    if tensor.device.type != "cuda":
        array = np.ascontiguousarray(tensor.numpy())
        return lambda: array
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))  # this thread's own device may be another

    def wait() -> NDArray[Any]:
        copied.synchronize()
        found: NDArray[Any] = host.numpy()
        return found

    return wait
