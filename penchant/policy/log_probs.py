"""Log-probabilities of given tokens, a few rows of the vocabulary at a time.

The logits of a batch would be by far the largest thing in memory: 4,000 tokens of a 128k vocabulary are 2 GB in
float32. Here a chunk of rows lives at a time. Where the head's weights are frozen (LoRA), the derivative of each
token's log-probability by its hidden state is worked out on the spot, and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from penchant.policy.losses import PairLogProbs

CHUNK_NUMBERS = 1 << 24
"""Logits held at once."""


class Vocabulary(NamedTuple):
    """How a model turns a last hidden state h into logits: cap tanh(scale (W h + b) / cap)."""

    head: nn.Linear
    scale: float
    cap: float | None

    @classmethod
    def of(cls, model: Any) -> Vocabulary:
        """The vocabulary's head of a causal transformers model, with what some models do to its logits."""
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(model.get_output_embeddings(), float(scale), getattr(config, "final_logit_softcapping", None))

    def logits(self, states: Tensor) -> Tensor:
        """Float32 [t, v] of states [t, d]."""
        weight, bias = self.head.weight, self.head.bias
        return _logits(nn.functional.linear(states.to(weight.dtype), weight, bias).float(), self.scale, self.cap)[0]

    def log_probs(
        self, states: Tensor, targets: Tensor, z: Tensor | None = None, owner: Tensor | None = None
    ) -> Tensor:
        """Float32 [t]: log softmax(logits of h + z)[target], differentiable by all that is not an index.

        z acts on the float32 logits as W z: added to a bf16 hidden state, most of a small z would be rounded away.

        Args:
            states: [t, d]; targets: int [t].
            z: [b, d], where row i's is z[owner[i]]; owner: int [t].
        """
        kind = states.device.type
        weight: Tensor = self.head.weight
        bias: Tensor | None = self.head.bias
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        bias = bias.to(dtype) if bias is not None else None
        z = z.to(dtype) if z is not None else None
        found: Tensor = _LogProbs.apply(  # type: ignore[no-untyped-call]
            states.to(dtype), z, weight.to(dtype), bias, targets, owner, self.scale, self.cap
        )
        return found

    @torch.no_grad()
    def log_probs_under(
        self, states: Tensor, targets: Tensor, shifts: Sequence[Tensor | None], owner: Tensor
    ) -> list[Tensor]:
        """`log_probs` under several z [b, d], without derivatives: W h is worked out once for all of them."""
        if not shifts:
            return []
        weight, bias = self.head.weight, self.head.bias
        each = [nn.functional.linear(z.to(weight.dtype), weight).float() if z is not None else None for z in shifts]
        found = [torch.empty(len(states), device=states.device) for _ in shifts]
        chunks = _chunks(len(states), len(weight))
        room = _Room.of(weight, chunks)
        for rows in chunks:
            product = room.multiply(states[rows].to(weight.dtype), weight, bias)
            for said, moved in zip(found, each, strict=True):
                logits, _ = _logits(room.copy(product), self.scale, self.cap, _of(moved, owner, rows))
                said[rows] = _softmax(logits, targets[rows])[0]
        return found


@dataclass(frozen=True)
class Responses:
    """The responses of b pairs after a run of the LLM, what is left being the vocabulary's head."""

    vocabulary: Vocabulary
    states: Tensor
    """[r, d], those that predict the responses' tokens."""
    targets: Tensor
    """Int [r], these tokens."""
    owner: Tensor
    """Int [r], as in `Layout`."""
    b: int

    def __call__(self, z: Tensor | None) -> PairLogProbs:
        """Log-probabilities under z [b, d] or [1, d], or under none, with derivatives."""
        return self._sums(self.vocabulary.log_probs(self.states, self.targets, self._whole(z), self.owner % self.b))

    def each(self, shifts: Mapping[str, Tensor | None]) -> dict[str, PairLogProbs]:
        """The same under each z, by its name, without derivatives and at little more than the cost of one."""
        whole = [self._whole(z) for z in shifts.values()]
        found = self.vocabulary.log_probs_under(self.states, self.targets, whole, self.owner % self.b)
        return dict(zip(shifts, map(self._sums, found), strict=True))

    def _whole(self, z: Tensor | None) -> Tensor | None:
        return z.expand(self.b, -1) if z is not None else None

    def _sums(self, each: Tensor) -> PairLogProbs:
        b = self.b
        counts = torch.bincount(self.owner, minlength=2 * b).clamp(min=1)  # none where nothing predicts the only token
        sums = torch.zeros(2 * b, device=each.device).index_add(0, self.owner, each)
        chosen, rejected = sums[:b].clone(), sums[b:].clone()  # FSDP warns of views
        return PairLogProbs(chosen, rejected, counts[:b], counts[b:])


class _Room(NamedTuple):
    """Memory for a chunk's logits, used again for every chunk: fresh pages would cost as much as the softmax."""

    product: Tensor
    logits: Tensor

    @classmethod
    def of(cls, weight: Tensor, chunks: list[slice]) -> _Room:
        shape = (chunks[0].stop if chunks else 0, len(weight))
        return cls(weight.new_empty(shape), weight.new_empty(shape, dtype=torch.float32))

    def multiply(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W h + b, in the model's number type."""
        product: Tensor = torch.mm(h, weight.T, out=self.product[: len(h)])
        return product if bias is None else product.add_(bias)

    def copy(self, product: Tensor) -> Tensor:
        """The same in float32."""
        return self.logits[: len(product)].copy_(product)


def _logits(raw: Tensor, scale: float, cap: float | None, shift: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
    """Logits [t, v] of raw + shift, and their derivative by that: one number, or [t, v] under a soft cap.

    They may stand in the memory of `raw`, float32.
    """
    if shift is not None:
        raw += shift
    if scale != 1:
        raw = scale * raw
    if cap is None:
        return raw, scale
    logits = cap * torch.tanh(raw / cap)
    return logits, scale * (1 - (logits / cap) ** 2)


class _LogProbs(torch.autograd.Function):
    """d log p(y) / d raw = slope (onehot(y) - p), raw = W (h + z) + b."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        owner: Tensor | None,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        frozen = not (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        learning = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        found = states.new_empty(len(states), dtype=torch.float32)
        slopes = torch.empty_like(states) if frozen and learning else None
        shifts = nn.functional.linear(z, weight).float() if z is not None else None
        chunks = _chunks(len(states), len(weight))
        room = _Room.of(weight, chunks)
        for rows in chunks:
            raw = room.copy(room.multiply(states[rows], weight, bias))
            logits, slope = _logits(raw, scale, cap, _of(shifts, owner, rows))
            found[rows], p = _softmax(logits, targets[rows])
            if slopes is not None:
                residual = _residual(p, targets[rows], slope)
                torch.mm(room.product[: len(p)].copy_(residual), weight, out=slopes[rows])
        ctx.save_for_backward(states, z, weight, bias, targets, owner, slopes)
        ctx.scale, ctx.cap = scale, cap
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        states, z, weight, bias, targets, owner, slopes = ctx.saved_tensors
        if slopes is not None:
            by_states = slopes * gradient[:, None]
            return by_states.to(states.dtype), _by_z(z, owner, by_states), None, None, None, None, None, None
        by_states, by_weight = torch.empty_like(states), torch.zeros_like(weight, dtype=torch.float32)
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        shifts = nn.functional.linear(z, weight).float() if z is not None else None
        chunks = _chunks(len(states), len(weight))
        room = _Room.of(weight, chunks)
        for rows in chunks:
            raw = room.copy(room.multiply(states[rows], weight, bias))
            logits, slope = _logits(raw, ctx.scale, ctx.cap, _of(shifts, owner, rows))
            by_raw = _residual(_softmax(logits, targets[rows])[1], targets[rows], slope) * gradient[rows, None]
            by_states[rows] = by_raw.to(weight.dtype) @ weight
            read = states[rows] if z is None else states[rows] + z[owner[rows]]
            by_weight += by_raw.to(weight.dtype).T @ read
            if by_bias is not None:
                by_bias += by_raw.sum(0)
        return by_states, _by_z(z, owner, by_states), by_weight, by_bias, None, None, None, None


def _of(shifts: Tensor | None, owner: Tensor | None, rows: slice) -> Tensor | None:
    return None if shifts is None or owner is None else shifts[owner[rows]]


def _by_z(z: Tensor | None, owner: Tensor | None, by_states: Tensor) -> Tensor | None:
    """z stands beside every state it is added to, so its derivative is the sum of theirs."""
    if z is None or owner is None:
        return None
    return torch.zeros_like(z, dtype=torch.float32).index_add(0, owner, by_states.float()).to(z.dtype)


def _softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p(y) [t] and p [t, v], p in the memory of the logits."""
    logits -= logits.amax(-1, keepdim=True)
    said = logits.gather(1, targets[:, None])[:, 0]
    total = logits.exp_().sum(-1)
    return said - total.log(), logits.div_(total[:, None])


def _residual(p: Tensor, targets: Tensor, slope: Tensor | float) -> Tensor:
    """slope (onehot(y) - p) [t, v], in the memory of p."""
    residual = p.neg_()
    residual[torch.arange(len(targets), device=targets.device), targets] += 1
    return residual if isinstance(slope, float) and slope == 1 else residual.mul_(slope)


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_NUMBERS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
