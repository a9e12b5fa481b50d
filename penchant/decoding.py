"""Decoding several answers to each prompt side by side, the prompt's keys and values held once for all of them.

The rows of a step are prompts, its columns answers: every answer's newest token is a query that sees its prompt and the
earlier tokens of its own answer. Holding one cache a prompt instead of one an answer saves most of the memory traffic
that a decoding step is made of, and the prompts' part is never copied when the answers grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penchant.backbone import Backbone
from penchant.errors import InputError

ANSWER_ATTENTION = "penchant_answers"
TOP = 200
"""Most tokens that the nucleus may hold: sorting a whole vocabulary would cost more than the LLM itself."""


@dataclass
class Step:
    """What one forward pass of answers sees besides its own keys."""

    prompts: list[tuple[Tensor, Tensor]]
    """Each layer's keys and values [p, g, longest, d] of the prompts, right-padded."""
    distance: Tensor
    """Int [p, k, longest + k * step]: how many tokens back each key lies, -1 where the query must not see it."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive [p, 1, k, keys]; `window` limits how far back a query sees."""
        if window not in self.masks:
            hidden = (self.distance < 0) | (self.distance >= window if window is not None else False)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.masks[window] = zeros.masked_fill_(hidden, float("-inf"))[:, None]
        return self.masks[window]


_step: ContextVar[Step] = ContextVar("step")


def answer_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling + mask) v: query [p, h, k, d], key and value [p, g, k * step, d] -> [p, k, h, d].

    As in `tree_attention`, the h / g query heads that share a key head are rows of one matrix product.
    """
    step = _step.get()
    layer: Any = module.layer_idx
    before, before_value = step.prompts[layer]
    p, heads, answers, width = query.shape
    rows = (query * (scaling if scaling is not None else width**-0.5)).reshape(p * key.shape[1], -1, width)
    parts = [torch.bmm(rows, each.flatten(0, 1).transpose(1, 2)) for each in (before, key)]
    scores = torch.cat(parts, -1).view(p, heads, answers, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores.add_(step.mask(sliding_window, scores.dtype)), -1).view(*rows.shape[:2], -1)
    on_prompt, on_answers = weights.split([before.shape[2], key.shape[2]], -1)
    mixed = torch.bmm(on_prompt, before_value.flatten(0, 1)) + torch.bmm(on_answers, value.flatten(0, 1))
    return mixed.view(p, heads, answers, -1).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ANSWER_ATTENTION, answer_attention)


class Steering(NamedTuple):
    """What is done to the LLM for b rows, from each prompt's last token on; what stands before never notices."""

    front: transformers.DynamicCache | None = None
    """Keys and values of positions in front of the prompt."""
    layers: Sequence[nn.Module] = ()
    shifts: Tensor | None = None
    """[l, b, n], added to what each of the l layers gives."""

    @property
    def positions(self) -> int:
        return self.front.get_seq_length() if self.front is not None else 0


@contextmanager
def shifted_layers(steering: Steering) -> Iterator[None]:
    """Within it each of the layers gives h + shift for its states h [b, t, n]."""
    handles = []
    for layer, shift in zip(steering.layers, steering.shifts if steering.shifts is not None else (), strict=True):

        def add(_module: nn.Module, _inputs: Any, output: Any, moved: Tensor = shift[:, None]) -> Any:
            if isinstance(output, tuple):
                return (output[0] + moved.to(output[0].dtype), *output[1:])
            return output + moved.to(output.dtype)

        handles.append(layer.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shifted_head(head: nn.Module, shift: Tensor | None) -> Iterator[None]:
    """Within it `head`, a vocabulary's head, acts as on h + z: its logits [b, t, v] get W z, z from `shift` [r, d].

    They become float32: in bf16 most of a small z would be rounded away. Each row of `shift` serves b / r rows that
    follow each other; InputError where r does not divide b. None changes nothing.
    """
    if shift is None:
        yield
        return

    weight: Any = head.weight
    moved = nn.functional.linear(shift.to(weight), weight).float()

    def add(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        if len(logits) % len(moved):
            raise InputError(f"{len(moved)} shifts cannot be shared by {len(logits)} rows; give one a prompt, or one.")
        return logits.float() + moved.repeat_interleave(len(logits) // len(moved), 0)[:, None]

    handle = head.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


class Decoder:
    """The state of `answers` unfinished answers to each of some prompts.

    The first call of `step` takes the prompts' own last tokens, so only what stands before them is run in advance.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        backbone: Backbone,
        prompts: list[Tensor],
        answers: int,
        budget: int,
        shift: Tensor | None = None,
        steering: Steering | None = None,
    ) -> None:
        """`prompts` are ids [t_i], t_i >= 1, run at most `budget` tokens at once; sort them by length.

        `shift` [p, d] is added to the last hidden states of each prompt's answers, right before the vocabulary's head.
        `steering` is of the p prompts.
        """
        self.model, self.backbone, self.answers, self.shift = model, backbone, answers, shift
        lengths = torch.tensor([len(prompt) - 1 for prompt in prompts])
        longest = int(lengths.max())
        self.steering = steering or Steering()
        lengths, longest = lengths + self.steering.positions, longest + self.steering.positions
        self.prompts = self._prefill(prompts, longest, budget)
        self.cache = transformers.DynamicCache()
        self.first = torch.stack([prompt[-1] for prompt in prompts])[:, None].expand(-1, answers)
        self.positions = lengths
        self.back = torch.where(torch.arange(longest) < lengths[:, None], lengths[:, None] - torch.arange(longest), -1)
        self.steps = 0

    def _prefill(self, prompts: list[Tensor], longest: int, budget: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of all tokens but the last. Padding stands behind, where causal attention never looks."""
        backbone, parts = self.backbone, []
        backbone.config._attn_implementation = backbone.plain_attention
        start = 0
        while start < len(prompts):
            rows = max(1, sum(len(prompt) * (n + 1) <= budget for n, prompt in enumerate(prompts[start:])))
            ids = nn.utils.rnn.pad_sequence([prompt[:-1] for prompt in prompts[start : start + rows]], batch_first=True)
            if not ids.shape[1]:  # prompts of one token; no model runs none
                ids = nn.functional.pad(ids, (0, 1))
            cache, front = transformers.DynamicCache(), self.steering.front
            places = self.steering.positions + torch.arange(ids.shape[1]).expand(len(ids), -1)
            backbone.model(
                input_ids=ids.to(backbone.device),
                position_ids=places.to(backbone.device),
                past_key_values=cache,
                use_cache=True,
            )
            layers: Any = cache.layers
            ahead: Any = front.layers if front is not None else []
            for layer, own in zip(layers, ahead, strict=False):
                part = slice(start, start + rows)
                layer.keys = torch.cat([own.keys[part], layer.keys], 2)
                layer.values = torch.cat([own.values[part], layer.values], 2)
            start += rows
            pad = (0, 0, 0, longest - cache.get_seq_length())
            parts.append([[nn.functional.pad(x, pad) for x in (layer.keys, layer.values)] for layer in layers])
        return [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
            for layer in zip(*parts, strict=True)
        ]

    def step(self, tokens: Tensor) -> Tensor:
        """Float32 logits [p, answers, vocabulary] behind the newest tokens [p, answers]."""
        self.steps += 1
        own = torch.eye(self.answers, dtype=torch.long)
        ages = torch.arange(self.steps - 1, -1, -1).repeat_interleave(self.answers)
        ours = own.repeat(1, self.steps) * (ages + 1) - 1  # -1 for the tokens of other answers
        back = torch.where(self.back < 0, -1, self.back + self.steps - 1)[:, None]
        distance = torch.cat((back.expand(-1, self.answers, -1), ours.expand(len(back), -1, -1)), -1)
        positions = (self.positions + self.steps - 1)[:, None].expand(-1, self.answers)
        device = self.backbone.device
        self.backbone.config._attn_implementation = ANSWER_ATTENTION
        token = _step.set(Step(self.prompts, distance.to(device)))
        try:
            model: Any = self.model
            with shifted_layers(self.steering), shifted_head(model.get_output_embeddings(), self.shift):
                out = model(
                    input_ids=tokens.to(device),
                    position_ids=positions.to(device),
                    past_key_values=self.cache,
                    use_cache=True,
                )
        finally:
            _step.reset(token)
            self.backbone.config._attn_implementation = self.backbone.plain_attention
        logits: Tensor = out.logits.float()
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these prompts alone."""
        on_device = rows.to(self.backbone.device)
        self.cache.batch_select_indices(on_device)
        self.prompts = [(keys[on_device], values[on_device]) for keys, values in self.prompts]
        self.positions, self.back = self.positions[rows], self.back[rows]
        self.shift = self.shift[rows] if self.shift is not None else None
        if self.steering.shifts is not None:
            self.steering = self.steering._replace(shifts=self.steering.shifts[:, on_device])


def draw(logits: Tensor, random: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens [...] where the nucleus' distribution function passes `random` [...]; logits are [..., vocabulary]."""
    scaled = logits / max(temperature, 1e-6)
    top = torch.topk(scaled, min(TOP, logits.shape[-1]))
    probability = (top.values - scaled.logsumexp(-1, keepdim=True)).exp()
    before = probability.cumsum(-1) - probability
    nucleus = torch.where(before < top_p, probability, 0.0).cumsum(-1)
    point = random.to(logits.device)[..., None] * nucleus[..., -1:]
    choice = torch.searchsorted(nucleus, point, right=True).clamp(max=nucleus.shape[-1] - 1)
    return top.indices.gather(-1, choice)[..., 0].cpu()
