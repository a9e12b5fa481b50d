"""Where z starts (ours): the LLM's own latents of responses, told apart within a prompt, by their principal directions.

The paper's encoder starts at N(0, I) whatever it reads, and its adapter says nothing, so each waits for the other. Here
both know what z stands for before CLaP trains them. h is the mean state of a response behind the LLM's middle layer:

    h(x, y) - mean_y' h(x, y') = sum_k z_k A_k + rest,    z_k of variance 1,  A_k orthogonal, the widest first.

Added to the LLM's states, z A moves answers towards responses of that z with no training at all (activation steering),
and the encoder learns to tell z from its text alone, which takes no pass of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from penchant.chat import Tokens
from penchant.encode import encode
from penchant.errors import InputError
from penchant.packing import stack_keys
from penchant.personal.clap import Clap
from penchant.personal.groups import Group
from penchant.store_views import open_store


class Start(NamedTuple):
    """What z stands for."""

    axes: Tensor
    """A [latent, n]: what a unit of z is among the states of the middle layer."""
    targets: list[Tensor]
    """z of each group's responses [N, latent]."""


def principal_start(clap: Clap, groups: Sequence[Group], layer: int, cache: str | Path | None = None) -> Start:
    """Principal directions of groups' responses behind `layer`; the LLM reads each text once, no further than that.

    Latents are cached as everywhere. Raises InputError where the responses span fewer directions than z has.
    """
    recipe = clap.backbone.recipe((f"{layer}:mean",))
    store = open_store(cache, recipe)
    items: list[Tokens] = [item for group in groups for item in group]
    encode(clap.backbone, recipe, items, store)
    found = torch.from_numpy(store.read(stack_keys(item.key for item in items)))
    apart = [rows - rows.mean(0) for rows in found.split([len(group) for group in groups])]
    whole = torch.cat(apart).double()
    _, sizes, axes = torch.linalg.svd(whole, full_matrices=False)
    if len(sizes) < clap.latent or sizes[clap.latent - 1] <= 1e-6 * sizes[0]:
        raise InputError(
            f"the responses differ in fewer than {clap.latent} directions, the size of z; give more prompts and "
            "responses, or a smaller latent."
        )
    axes = axes[: clap.latent] * torch.sign(axes[: clap.latent].sum(1, keepdim=True))
    deviations = sizes[: clap.latent] / len(whole) ** 0.5
    targets = [(rows.double() @ axes.T / deviations).float() for rows in apart]
    return Start((axes * deviations[:, None]).float(), targets)
