"""Where z starts (ours): what it stands for, and what it does, both from the LLM as it is.

The paper's encoder starts at N(0, I) whatever it reads, and its adapter says nothing, so each waits for the other. Here
both know z before CLaP trains them. h is the mean state of a response behind the middle layer, less its mean over the
responses to the same prompt; z are its leading principal coordinates, each of variance 1. The encoder learns to tell
them from the text alone, which takes no pass of the LLM.

What z does is a shift s of the states behind two later layers, and for a small one

    log p_s(y | x) = log p(y | x) + s . g(x, y) + ...,    g = d log p_s(y | x) / ds at s = 0,

so that it moves the answers' mean z by s C and costs s F s' / 2 nats an answer, with C = E[g' z] and F = E[g' g]. The
shift that brings most of z's j-th coordinate for its nats is the natural gradient:

    A = C' (F + RIDGE mean(diag F) I)^-1  [latent, n of the layers],

scaled so that a unit of a coordinate costs half a nat an answer in the mean. (Adding what a response of that z differs
by itself, the usual steering, wastes most of its nats on what has nothing to do with z: docs/LOG.md.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.backbone import decoder_layers
from penchant.chat import Tokens
from penchant.decoding import Steering
from penchant.encode import encode
from penchant.errors import InputError
from penchant.packing import stack_keys
from penchant.personal.clap import Clap
from penchant.personal.groups import Group
from penchant.processes import all_sum, from_main, share, wait
from penchant.store_views import open_store

RIDGE = 3.0
"""Of F, in its mean diagonal entries: F is known from some thousand responses at most."""


class Start(NamedTuple):
    """What z stands for, and does."""

    axes: dict[int, Tensor]
    """A [latent, n] by layer, from 1."""
    targets: list[Tensor]
    """z of each group's responses [N, latent]."""
    projection: Tensor
    """[n, latent]: z is a response's h times it."""


def read_layer(depth: int) -> int:
    """The layer behind which z is read: the middle one."""
    return max(1, round(8 * depth / 15))


def moved_layers(depth: int) -> tuple[int, ...]:
    """The layers behind which z moves states: late enough that little stands between them and the vocabulary."""
    return tuple(sorted({max(1, round(2 * depth / 3)), max(1, round(4 * depth / 5))}))


def principal_start(
    clap: Clap, groups: Sequence[Group], cache: str | Path | None = None, show_progress: bool = False
) -> Start:
    """z of the groups' responses, and its axes. The LLM reads each text up to `read_layer`, cached as everywhere, and
    once more for g. The processes of a launch share both out, and need a cache on a disk that all of them see.

    Raises InputError where the responses span fewer directions than z has.
    """
    targets, projection = principal_z(clap, groups, cache)
    return Start(natural_axes(clap, groups, targets, show_progress), targets, projection)


def principal_z(clap: Clap, groups: Sequence[Group], cache: str | Path | None) -> tuple[list[Tensor], Tensor]:
    """z [N, latent] of each group's responses, and the projection [n, latent] that makes it of h."""
    latent, sizes = clap.latent, [len(group) for group in groups]
    found = middle_states(clap, [item for group in groups for item in group], cache, shared=True)
    apart = torch.cat([rows - rows.mean(0) for rows in found.split(sizes)])
    _, widths, directions = torch.linalg.svd(apart, full_matrices=False)
    if len(widths) < latent or widths[latent - 1] <= 1e-6 * widths[0]:
        raise InputError(
            f"the responses differ in fewer than {latent} directions, the size of z; give more prompts and "
            "responses, or a smaller latent."
        )
    first = directions[:latent]
    signs = torch.sign(first.gather(1, first.abs().argmax(1, keepdim=True)))  # of the largest entry, so it is never 0
    projection = (first * signs).T / (widths[:latent] / len(apart) ** 0.5)
    projection = from_main(projection)
    return list((apart @ projection).float().split(sizes)), projection.float()


def middle_states(
    clap: Clap, items: Sequence[Tokens], cache: str | Path | None, progress: Any = None, *, shared: bool = False
) -> Tensor:
    """Mean states [r, n] of r responses behind `read_layer`, float64; texts whose latents are cached are not run.

    `shared`: all processes of a launch ask for the same, and run a share each.
    """
    backbone = clap.backbone
    recipe = backbone.recipe((f"{read_layer(backbone.depth)}:mean",))
    store = open_store(cache, recipe)
    encode(backbone, recipe, items[share(len(items))] if shared else items, store, progress=progress)
    if shared:
        wait()
        store.refresh()
    return torch.from_numpy(store.read(stack_keys(item.key for item in items))).double()


def natural_axes(
    clap: Clap, groups: Sequence[Group], targets: Sequence[Tensor], show_progress: bool = False
) -> dict[int, Tensor]:
    """A [latent, n] by layer."""
    layers = moved_layers(clap.backbone.depth)
    width = len(layers) * clap.backbone.width
    cross = torch.zeros(clap.latent, width, dtype=torch.float64)
    fisher = torch.zeros(width, width, dtype=torch.float64)
    own = share(len(groups))
    shown = tqdm(groups[own], unit="prompt", desc="what z does", disable=not show_progress, leave=False)
    for group, z in zip(shown, targets[own], strict=True):
        g = shift_scores(clap, group, layers).double().cpu()
        cross += z.double().T @ g
        fisher += g.T @ g
    count = sum(map(len, groups))
    cross, fisher = all_sum(cross) / count, all_sum(fisher) / count
    ridge = RIDGE * fisher.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    axes = torch.linalg.solve(fisher + ridge, cross.T).T
    cost = ((axes @ fisher) * axes).sum(1)  # twice the nats of each coordinate's unit
    axes = from_main((axes / cost.mean().sqrt()).float())
    return dict(zip(layers, axes.chunk(len(layers), 1), strict=True))


def shift_scores(clap: Clap, group: Group, layers: Sequence[int]) -> Tensor:
    """g [N, n of the layers] of a group's responses, less its mean over them."""
    modules = decoder_layers(clap.llm)
    shifts = torch.zeros(len(layers), len(group), clap.backbone.width, device=clap.backbone.device, requires_grad=True)
    steering = Steering(layers=[modules[layer - 1] for layer in layers], shifts=shifts)
    (found,) = torch.autograd.grad(clap.steered(group, steering).sum(), shifts)
    g = found.transpose(0, 1).flatten(1)
    return g - g.mean(0)
