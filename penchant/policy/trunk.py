"""The layers that stay frozen run once: their states of every token are kept, and training starts above them.

Several processes share the batches out and write into one file, so the cache must lie on a disk that all of them see.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.backbone import Backbone
from penchant.chat import Tokens, content_key
from penchant.errors import InputError
from penchant.packing import Batch, Tree, pack, packed_spans
from penchant.policy.batches import TokenPair
from penchant.processes import is_main, rank, told, wait, world
from penchant.store_admin import STATES
from penchant.store_shard import remove_dead_temps, temp_in
from penchant.workers import run_batches
from penchant.writing import writing

BUDGET = 1024
"""Tokens run at once."""
SUM_BYTES = 16
TOLERANCE = 1e-3
"""In every number type: the very same operations are run. Some models choose rotations by a layer's place in the list,
and would be off by a hundredth."""


class Trunk:
    """States of layer `first` for all tokens of some pairs, in one file; each prompt and each response once."""

    def __init__(self, backbone: Backbone, first: int, pairs: Sequence[TokenPair], folder: str | Path) -> None:
        """Runs the layers up to `first` over `pairs`, unless `folder` has their states already.

        Raises InputError for a model that cannot run packed, or whose upper layers cannot start from given states.
        """
        if not 0 < first < backbone.depth:
            raise InputError(f"the frozen layers end at {first}; give a layer from 1 to {backbone.depth - 1}.")
        self.backbone, self.first = backbone, first
        self.upper = upper_part(backbone, first)
        if not backbone.packed or not self._is_exact():
            raise InputError(
                f"{backbone.name!r} cannot start from the states of a layer; leave out --top_layers to train all."
            )
        items = {item.key: item for item in sorted((i for p in pairs for i in p), key=lambda i: (i.prompt_key, i.key))}
        lengths: dict[bytes, int] = {}
        for item in items.values():
            lengths.setdefault(item.prompt_key, len(item.prompt))
            lengths[item.key] = len(item.response)
        ends = np.cumsum(list(lengths.values()))
        self._span = {key: (int(end) - n, int(end)) for (key, n), end in zip(lengths.items(), ends, strict=True)}
        self.tokens = int(ends[-1])
        self.states = self._read_or_run(list(items.values()), Path(folder))

    def final_states(self, trees: list[Tree]) -> Tensor:
        """What `Backbone.final_states` gives for these trees; only the upper layers are run where the rest is known."""
        parts = []
        for prompt, responses in trees:
            ids = prompt.numpy().astype(np.int32)
            keys = [
                content_key(ids, ids[:0]),
                *(content_key(ids, r.numpy().astype(np.int32)) for r in responses),
            ]
            if not all(key in self._span for key in keys):
                return self.backbone.final_states(trees)
            parts += [self.states[slice(*self._span[key])] for key in keys]
        embeds = torch.cat(parts).to(self.backbone.device)
        return self.upper.final_states(trees, embeds)

    def _read_or_run(self, items: list[Tokens], folder: Path) -> Tensor:
        backbone = self.backbone
        recipe = backbone.recipe((f"{self.first}:last",)).fingerprint
        digest = hashlib.blake2b("".join([recipe, *(key.hex() for key in self._span)]).encode(), digest_size=16)
        path = folder / f"{digest.hexdigest()}{STATES}"
        needed = self.tokens * backbone.width * backbone.dtype.itemsize
        if not told(is_main() and _is_whole(path, needed)):
            with writing(path):
                self._run(items, path, needed)
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(path)  # `penchant cache prune --older_than_days` goes by when it was last used
        return self._mapped(path, writable=False)

    def _run(self, items: list[Tokens], path: Path, needed: int) -> None:
        """Write the states, each process its share of the batches, and the checksum of them behind them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise InputError(
                f"the states of {self.tokens:,} tokens take {needed / 2**30:.1f} GiB, {path.parent} has"
                f" {free / 2**30:.1f} free; choose another --cache, fewer pairs, or leave out --top_layers."
            )
        unfinished = Path(told(str(temp_in(path.parent))))
        try:
            if is_main():  # else one process could cut off what another has written
                remove_dead_temps(path.parent)
                with unfinished.open("xb") as file:
                    if hasattr(os, "posix_fallocate"):  # a disk that gets full under a memory map kills the process
                        os.posix_fallocate(file.fileno(), 0, needed + SUM_BYTES)
            wait()
            states = self._mapped(unfinished, writable=True)
            with tqdm(
                total=self.tokens // world(),
                unit="tok",
                unit_scale=True,
                desc="frozen layers",
                leave=False,
                disable=not is_main(),
            ) as bar:
                batches = list(pack(items, BUDGET, packed=True))
                for batch, found in run_batches(self.backbone, batches[rank() :: world()], self._lower):
                    for key, (start, end) in zip(map(bytes, batch.keys), packed_spans(batch.trees), strict=True):
                        states[slice(*self._span[key])] = found[start:end]
                    bar.update(batch.tokens)
            del states
            wait()
            if is_main():
                with unfinished.open("r+b") as file:
                    checksum = _checksum(file, needed)
                    file.seek(needed)
                    file.write(checksum)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, path)
            wait()
        finally:
            if is_main():
                unfinished.unlink(missing_ok=True)

    def _mapped(self, path: Path, writable: bool) -> Tensor:
        size = (self.tokens, self.backbone.width)
        return torch.from_file(str(path), writable, size[0] * size[1], dtype=self.backbone.dtype).view(size)

    def _lower(self, batch: Batch) -> Tensor:
        return self.backbone.run_trees(batch.trees, (self.first,))[0].cpu()

    @torch.no_grad()
    def _is_exact(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        prompt, *responses = (torch.randint(self.backbone.vocabulary, (n,), generator=generator) for n in (5, 3, 4))
        trees = [(prompt, responses)]
        whole = self.backbone.final_states(trees)
        parts = self.upper.final_states(trees, self.backbone.run_trees(trees, (self.first,))[0])
        return bool((whole - parts).norm() <= TOLERANCE * whole.norm())


def _is_whole(path: Path, size: int) -> bool:
    """Whether a file holds so many bytes of states and their checksum; one that is damaged is warned of."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if path.stat().st_size == size + SUM_BYTES and _checksum(file, size) == file.read(SUM_BYTES):
            return True
    warnings.warn(f"{path} is damaged, or of another version: its states are made again", stacklevel=2)
    return False


def _checksum(file: IO[bytes], size: int) -> bytes:
    """Of the first bytes of a file, which is read up to there."""
    found = hashlib.blake2b(digest_size=SUM_BYTES)
    while size and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    return found.digest()


def upper_part(backbone: Backbone, first: int) -> Backbone:
    """The layers above `first`, on the same weights and with their numbers, as a backbone that starts from states."""
    part = copy.copy(backbone)
    part.model = copy.copy(backbone.model)
    part.model._modules = dict(backbone.model._modules)
    names = [name for name, module in backbone.model._modules.items() if module is backbone.layers]
    part.layers = nn.ModuleList(list(backbone.layers)[first:])
    setattr(part.model, names[0], part.layers)
    return part
