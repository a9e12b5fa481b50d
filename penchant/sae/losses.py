"""What an SAE's training minimises: TopK and BatchTopK with sparse gradients, JumpReLU with straight-through ones."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from penchant.backbone import choose_dtype
from penchant.sae.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from penchant.sae.training import TrainingConfig


class Loss(NamedTuple):
    """Of one batch of b states."""

    loss: Tensor
    """What is minimised."""
    unexplained: float
    """Share of the batch's variance that the reconstruction leaves."""
    fired: Tensor
    """The latents [f] that were active at least once."""
    threshold: Tensor | None
    """The least activation that was kept, for batchtopk."""


class Kept(NamedTuple):
    """The active latents of a batch, state by state."""

    latents: Tensor
    """[nnz]"""
    offsets: Tensor
    """[b], where each state's begin."""
    rows: Tensor
    """[nnz], states."""


def sparse_loss(sae: SparseAutoencoder, x: Tensor, dead: Tensor, config: TrainingConfig) -> Loss:
    """|x - x^|^2 / |x - mean x|^2 + aux |e - e^|^2 / |e|^2, e = x - x^ and e^ of the dead latents [m] alone.

    Only the search for the largest pre-activations is a product of whole matrices; what is kept of them, k of m, is
    all that the reconstruction and every gradient need.
    """
    bias = sae.b_enc - sae.W_enc @ sae.b_dec
    kept = largest(sae, x, bias.detach(), config)
    values = (Selected.apply(x, sae.W_enc, kept) + bias[kept.latents]).relu()  # type: ignore[no-untyped-call]
    found = F.embedding_bag(kept.latents, sae.W_dec, kept.offsets, mode="sum", per_sample_weights=values) + sae.b_dec
    error, variance = x - found, (x - x.mean(0)).square().sum()
    share = error.square().sum() / variance
    loss = share
    if config.aux_weight and bool(dead.any()):
        loss = loss + config.aux_weight * aux_loss(sae, x, error.detach(), bias, dead)
    active = values.detach() > 0
    threshold = values.detach()[active].min() if config.architecture == "batchtopk" and bool(active.any()) else None
    return Loss(loss, float(share.detach()), kept.latents[active].unique(), threshold)


def aux_loss(sae: SparseAutoencoder, x: Tensor, error: Tensor, bias: Tensor, dead: Tensor) -> Tensor:
    """AuxK: the dead latents' top min(d / 2, dead) reconstruct the error [b, d]; their loss over the error's size."""
    numbers = dead.nonzero()[:, 0]
    pre = F.linear(x, sae.W_enc[numbers], bias[numbers])
    values, index = pre.topk(min(x.shape[1] // 2, len(numbers)), dim=1, sorted=False)
    found = torch.zeros_like(pre).scatter(1, index, values.relu()) @ sae.W_dec[numbers]
    return (error - found).square().sum() / error.square().sum().clamp(min=1e-12)


@torch.no_grad()
def largest(sae: SparseAutoencoder, x: Tensor, bias: Tensor, config: TrainingConfig) -> Kept:
    """Each state's k largest pre-activations (topk), or the k b largest of the batch (batchtopk)."""
    b, k, m = len(x), config.k, sae.config.d_sae
    quick = choose_dtype("auto", x.device)[0]
    pre = F.linear(x.to(quick), sae.W_enc.to(quick), bias.to(quick))
    if config.architecture == "topk":
        index = pre.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        return Kept(index.flatten(), torch.arange(b) * k, torch.arange(b).repeat_interleave(k))
    # No more than all winners exceed the k b-th largest among each state's best, a bound that is quick to find.
    few = pre.topk(min(m, 2 * k), dim=1, sorted=False).values.flatten()
    bound = few.topk(k * b, sorted=False).values.min()
    place = (pre >= bound).flatten().nonzero()[:, 0]
    if len(place) > k * b:
        place = place[pre.flatten()[place].topk(k * b, sorted=False).indices].sort().values
    rows = place // m
    offsets = torch.searchsorted(rows, torch.arange(b))
    return Kept(place % m, offsets, rows)


class Selected(torch.autograd.Function):
    """W[index] . x[rows], for kept places alone: [nnz] of states [b, d] and rows W [m, d]; no gradient for x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kept, ctx.m = kept, len(weight)
        ends = torch.cat([kept.offsets, torch.tensor([len(kept.latents)])])
        size = (len(x), len(weight))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                ends, kept.latents, torch.zeros(len(kept.latents)), size, check_invariants=False
            )
        product: Tensor = torch.sparse.sampled_addmm(pattern, x, weight.t(), beta=0.0)
        return product.values()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (x,), kept, m = ctx.saved_tensors, ctx.kept, ctx.m
        order = kept.latents.argsort(stable=True)
        starts = torch.searchsorted(kept.latents[order], torch.arange(m))
        return None, F.embedding_bag(kept.rows[order], x, starts, mode="sum", per_sample_weights=grad[order]), None


def jump_relu_loss(sae: SparseAutoencoder, x: Tensor, dead: Tensor, config: TrainingConfig) -> Loss:
    """|x - x^|^2 / |x - mean x|^2 + weight (L0 / k - 1)^2, the thresholds' gradients straight through (and AuxK)."""
    bias = sae.b_enc - sae.W_enc @ sae.b_dec
    pre = F.linear(x, sae.W_enc, bias)
    gate = Step.apply(pre, sae.threshold, config.bandwidth)  # type: ignore[no-untyped-call]
    values = pre.relu() * gate
    error = x - sae.decode(values)
    share = error.square().sum() / (x - x.mean(0)).square().sum()
    loss = share + config.l0_weight * (gate.sum() / len(x) / config.k - 1).square()
    if config.aux_weight and bool(dead.any()):
        loss = loss + config.aux_weight * aux_loss(sae, x, error.detach(), bias, dead)
    fired = (values.detach() > 0).any(0).nonzero()[:, 0]
    return Loss(loss, float(share.detach()), fired, None)


class Step(torch.autograd.Function):
    """1 where pre [b, m] > threshold [m], else 0; d/d threshold is -1 / bandwidth within half of it, 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, -(grad * near).sum(0) / ctx.bandwidth, None
