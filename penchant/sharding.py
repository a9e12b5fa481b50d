"""FSDP (torch's fully_shard): each process keeps a part of every weight, of its gradient and of the optimizer's state.

A decoder layer's weights are put together for its own pass alone, the rest (embeddings, head, codes) for the whole pass
of the module, within which everything reads whole weights: hooks on layers, and whoever takes the head's.
accelerate's configuration says that it is wanted and whether layers are put together anew in the backward pass; the
sharding is done here, the same way on GPUs and on CPUs, as accelerate 1.15 has none for CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from penchant.processes import start, world


def shard(module: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Shard a module in place: each of its layers by itself, then what is left. All processes hold the same weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    start()
    mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=again)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


def is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def unsharded(value: Tensor) -> Tensor:
    """The whole tensor of one that may be sharded; by all processes at once."""
    each: Any = value
    found: Tensor = each.detach().full_tensor() if hasattr(value, "full_tensor") else value.detach()
    return found


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which all processes have, as `parameter` of the same shape is sharded, if it is."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    of: Any = parameter
    found: Tensor = distribute_tensor(value.to(of.device), of.device_mesh, of.placements, src_data_rank=None)
    return found


def whole_state(module: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    """Weights by name, each once, on the CPU: all or only the `trained`, and the buffers; by all processes at once."""
    kept = module.state_dict().keys()  # without buffers that are not saved
    own: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad or not trained}
    own |= {name: buffer for name, buffer in module.named_buffers() if name in kept}
    return {name: unsharded(value).cpu() for name, value in own.items()}
