"""The texts and tokens that an SAE's latents respond to: one pass over the texts, and no more kept than is shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from penchant.backbone import Backbone
from penchant.chat import Text, Tokens
from penchant.explain.tally import Example, Names, Span, TokenTally
from penchant.explain.tokens import ReadText, TokenText
from penchant.packing import Batch, pack, packed_spans, padded_spans
from penchant.sae.autoencoder import SparseAutoencoder
from penchant.workers import run_batches


def token_activations(
    backbone: Backbone,
    sae: SparseAutoencoder,
    layer: int,
    latents: NDArray[np.int64],
    tokens: Sequence[Tokens],
    *,
    token_budget: int,
    progress: Any = None,
) -> Iterator[Span]:
    """What the k `latents` of the SAE do at every token of every distinct prompt and response, each given once."""
    encoder = deepcopy(sae).to(backbone.device)
    columns = torch.as_tensor(latents, device=backbone.device)
    unique = {item.key: item for item in tokens}

    def run(batch: Batch) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
        states, spans = span_states(backbone, batch, layer)
        with torch.inference_mode():
            return encoder.encode(states)[:, columns].float().cpu().numpy(), spans

    seen = set()
    for batch, (found, spans) in run_batches(
        backbone, pack(unique.values(), backbone.budget(token_budget), packed=backbone.packed), run
    ):
        parts = [
            (part, start)
            for prompt, responses in batch.trees
            for part, start in ((prompt, 0), *((response, len(prompt)) for response in responses))
        ]
        for key, (part, start), (first, end) in zip(map(bytes, batch.keys), parts, spans, strict=True):
            if len(part) and key not in seen:  # a prompt whose tree was split stands in several batches
                seen.add(key)
                yield Span(key, part.numpy(), found[first:end], start)
        if progress is not None:
            progress.update(batch.tokens)


def span_states(backbone: Backbone, batch: Batch, layer: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """States [t, width] of a batch at one layer, and where each prompt and each response lies in them."""
    if backbone.packed:
        return backbone.run_trees(batch.trees, (layer,))[0], list(packed_spans(batch.trees))
    rows = [torch.cat((prompt, response)) for prompt, responses in batch.trees for response in responses]
    padded = backbone.run_padded(rows, (layer,))[0]
    return padded.flatten(0, 1), list(padded_spans(batch.trees, padded.shape[1]))


def read_texts(
    backbone: Backbone,
    sae: SparseAutoencoder,
    layer: int,
    latents: NDArray[np.int64],
    pairs: Dataset,
    rows: NDArray[np.int64],
    shown: Collection[int],
    *,
    token_budget: int,
    show_progress: bool,
) -> dict[str, Any]:
    """What `latents` respond to in the pairs `rows`, and all tokens of the pairs `shown` among them, for JSON.

    Returns:
        latents: {latent: {name, tokens, ending, length (see `Names`), share (of tokens at which it is active),
            examples: [{row, side, peak, cut, pieces, content, activations}]}}; the last three have one entry a token.
        texts: {row: {side: {pieces, content, activations: {latent: [[place, activation], ...]}}}}, side being prompt,
            chosen or rejected.
        tokens: how many were looked at; the chat template's and each sequence's first, whose state is unlike any
            other, are not, but the one that ends a response is.
    """
    some = pairs[rows]
    tokens = backbone.chat.encode(some["prompt"] * 2, some["chosen"] + some["rejected"], [*rows, *rows])
    place: dict[bytes, tuple[int, str, Text]] = {}
    wanted: dict[tuple[int, str], bytes] = {}
    for i, sides in enumerate(zip(tokens[: len(rows)], tokens[len(rows) :], strict=True)):
        whole_prompt = min(sides, key=lambda item: item.cut).prompt_key  # truncation may leave less of it on one side
        keys = {"prompt": whole_prompt, "chosen": sides[0].key, "rejected": sides[1].key}
        for side, key in (*keys.items(), *(("prompt", item.prompt_key) for item in sides)):
            place.setdefault(key, (int(rows[i]), side, some[side][i]))
        if int(rows[i]) in shown:
            wanted |= {(int(rows[i]), side): key for side, key in keys.items()}
    texts, tally, kept = TokenText(backbone.chat), TokenTally(len(latents)), dict[bytes, tuple[Span, ReadText]]()
    unique = {item.key: len(item.response) for item in tokens} | {item.prompt_key: len(item.prompt) for item in tokens}
    with tqdm(
        total=sum(unique.values()),
        unit="tok",
        unit_scale=True,
        desc="tokens",
        disable=not show_progress,
        leave=False,
    ) as bar:
        for span in token_activations(backbone, sae, layer, latents, tokens, token_budget=token_budget, progress=bar):
            _, side, messages = place[span.key]
            text = texts.read(span.ids.tolist(), messages)
            tally.add(span, text, side != "prompt")
            if span.key in wanted.values():
                kept[span.key] = span, text
    names = Names(tally)
    whole: dict[str, dict[str, Any]] = {str(row): {} for row in shown}
    for (row, part), key in wanted.items():
        if key in kept:  # a prompt may have been cut away whole
            whole[str(row)][part] = _whole(*kept[key], latents)
    return {
        "latents": {
            str(latent): {
                "name": names.name(j),
                "tokens": names.tokens(j),
                "ending": names.ending(j),
                "length": names.length(j),
                "share": float(tally.active[j] / tally.tokens),
                "examples": [_example(one, *place[one.key][:2]) for one in tally.examples[j]],
            }
            for j, latent in enumerate(latents.tolist())
        },
        "texts": whole,
        "tokens": tally.tokens,
    }


def _example(one: Example, row: int, side: str) -> dict[str, Any]:
    return {
        "row": row,
        "side": side,
        "peak": one.peak,
        "cut": list(one.cut),
        "pieces": one.pieces,
        "content": one.content.astype(int).tolist(),
        "activations": one.activations.astype(float).tolist(),
    }


def _whole(span: Span, text: ReadText, latents: NDArray[np.int64]) -> dict[str, Any]:
    """All tokens of a span; of each latent, the places where it is active."""
    return {
        "pieces": text.pieces,
        "content": text.content.astype(int).tolist(),
        "activations": {
            str(latent): [[int(at), float(column[at])] for at in np.flatnonzero(column)]
            for latent, column in zip(latents.tolist(), span.activations.T, strict=True)
        },
    }
