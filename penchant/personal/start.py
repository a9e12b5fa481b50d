"""Where z starts (ours): the LLM's own latents of responses, told apart within a prompt, by their principal directions.

The paper's encoder starts at N(0, I) whatever it reads, and its adapter says nothing, so each waits for the other. Here
both know what z stands for before CLaP trains them. h_l is the mean state of a response behind layer l, less its mean
over the responses to the same prompt. z are the leading principal coordinates, each of variance 1, behind the middle
layer, and what a unit of z is behind any other is found by regression:

    h_l(x, y) = z B_l + rest,    B_l = E[z' h_l],    A_l = B_l / number of layers.

Added to the states of three layers, z A_l moves answers towards responses of that z with no training at all (activation
steering), and the encoder learns to tell z from its text alone, which takes no pass of the LLM.
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

    axes: dict[int, Tensor]
    """A_l [latent, n] by layer, from 1."""
    targets: list[Tensor]
    """z of each group's responses [N, latent]."""


def start_layers(depth: int) -> tuple[int, int, int]:
    """The layers that z is added behind: the middle one, and as far below it as above."""
    middle, away = max(1, round(8 * depth / 15)), depth * 2 // 15
    return max(1, middle - away), middle, min(depth, middle + away)


def principal_start(clap: Clap, groups: Sequence[Group], cache: str | Path | None = None) -> Start:
    """z of the groups' responses; the LLM reads each text once, no further than the last of `start_layers`.

    Latents are cached as everywhere. Raises InputError where the responses span fewer directions than z has.
    """
    backbone, latent = clap.backbone, clap.latent
    layers = sorted(set(start_layers(backbone.depth)))
    recipe = backbone.recipe(tuple(f"{layer}:mean" for layer in layers))
    store = open_store(cache, recipe)
    items: list[Tokens] = [item for group in groups for item in group]
    encode(backbone, recipe, items, store)
    found = torch.from_numpy(store.read(stack_keys(item.key for item in items)))
    sizes = [len(group) for group in groups]
    apart = torch.cat([rows - rows.mean(0) for rows in found.split(sizes)]).double()
    states = dict(zip(layers, apart.chunk(len(layers), 1), strict=True))
    middle = states[start_layers(backbone.depth)[1]]
    _, widths, directions = torch.linalg.svd(middle, full_matrices=False)
    if len(widths) < latent or widths[latent - 1] <= 1e-6 * widths[0]:
        raise InputError(
            f"the responses differ in fewer than {latent} directions, the size of z; give more prompts and "
            "responses, or a smaller latent."
        )
    first = directions[:latent]
    signs = torch.sign(first.gather(1, first.abs().argmax(1, keepdim=True)))  # of the largest entry, so it is never 0
    z = middle @ (first * signs).T / (widths[:latent] / len(middle) ** 0.5)
    axes = {layer: (z.T @ rows / len(z) / len(layers)).float() for layer, rows in states.items()}
    return Start(axes, list(z.float().split(sizes)))
