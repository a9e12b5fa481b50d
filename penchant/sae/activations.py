"""Hidden states of every token of a data set, in shuffled blocks that fit memory: what an SAE is trained on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.packing import Batch, pack, packed_spans, padded_spans
from penchant.pair_files import open_source
from penchant.pairs import prompt_groups
from penchant.workers import run_batches
from penchant.writing import read_tensors, save_tensors

BLOCK_TOKENS = 1 << 17
"""Tokens in a block, about: 150 MB of bf16 states at width 576."""
SAMPLE = 256
"""Units whose tokens are counted to learn how many make a block."""


class Blocks(Protocol):
    """What `train_sae` needs of its data; block i is the same whenever it is asked for."""

    digest: str
    """Differs where any block does."""

    def __len__(self) -> int: ...
    def block(self, number: int) -> Tensor:
        """States [t, d] in any order."""
        ...


class TokenBlocks:
    """Blocks of states at one layer; every text runs once a pass, prompts that answers share included.

    A unit is a prompt with all of its responses, or one plain text. (A prompt that is too long to share a batch with
    all of its responses is run, and counts, once for each part of them.) Units are shuffled and cut into blocks of
    about `block_tokens` tokens. Left out are BOS and the first position of every sequence, attention sinks many times
    longer than any other state, and the words with which a chat template opens every prompt, whose states are always
    the same.

    Args:
        backbone: the LLM; layers above `layer` are not run.
        data: pairs from `load_pairs`, or plain texts, which are cut into pieces of the backbone's `max_length`.
        layer: index into transformers' `hidden_states`, as in a recipe's views.
        block_tokens: tokens a block, which bounds memory.
        seed: of the shuffle.
        keep: folder for the blocks' states (2 bytes a number in bf16), so that a second pass needs no LLM.

    Raises:
        InputError: no data, or a layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: Dataset | Sequence[str],
        layer: int,
        *,
        block_tokens: int = BLOCK_TOKENS,
        token_budget: int = TOKEN_BUDGET,
        seed: int = 0,
        keep: str | Path | None = None,
    ) -> None:
        backbone.recipe((f"{layer}:last",))  # refuses a layer that is not there
        if not len(data):
            raise InputError("there are no texts to train an SAE on; give at least one")
        self.backbone, self.data, self.layer = backbone, data, layer
        self.token_budget = backbone.budget(token_budget)
        if isinstance(data, Dataset):
            groups = np.unique(prompt_groups(data), return_inverse=True)[1]
            units = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
        else:
            units = [np.array([row]) for row in range(len(data))]
        order = np.random.default_rng(seed).permutation(len(units))
        sample = [units[i] for i in order[:SAMPLE]]
        tokens = self._tokens(np.concatenate(sample))
        a_unit = sum(batch.tokens for batch in pack(tokens, self.token_budget, packed=backbone.packed)) / len(sample)
        parts = max(1, round(len(units) * a_unit / block_tokens))
        self.rows: list[NDArray[Any]] = [
            np.concatenate([units[i] for i in part]) for part in np.array_split(order, parts) if len(part)
        ]
        made_of = f"{backbone.recipe((f'{layer}:last',)).fingerprint} {block_tokens} {seed} {len(data)}"
        folder = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        self.keep = Path(keep) / folder if keep is not None else None
        texts = b"".join(item.key for item in tokens)
        self.digest = hashlib.sha256(f"{folder} {len(self.rows)}".encode() + texts).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, number: int) -> Tensor:
        """States [t, width] of block `number`, in the backbone's number type, on the CPU."""
        tokens = self.tokens(number)
        if self.keep is None:
            return self._run(tokens)
        digest = hashlib.sha256(b"".join(sorted(item.key for item in tokens))).hexdigest()[:16]
        path = self.keep / f"block-{number:05d}-{digest}.safetensors"
        if path.is_file():
            try:
                return read_tensors(path)[0]["states"]
            except (OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}): its states are made again", stacklevel=2)
        states = self._run(tokens)
        save_tensors(path, {"states": states})
        return states

    def tokens(self, number: int) -> list[Tokens]:
        """The distinct sequences of block `number`."""
        return self._tokens(self.rows[number])

    def _run(self, tokens: list[Tokens]) -> Tensor:
        opening = template_opening(self.backbone)
        batches = pack(tokens, self.token_budget, packed=self.backbone.packed)

        def states_of(batch: Batch) -> Tensor:
            return batch_states(self.backbone, batch, self.layer, opening)

        return torch.cat([states for _, states in run_batches(self.backbone, batches, states_of)])

    def _tokens(self, rows: NDArray[Any]) -> list[Tokens]:
        """The distinct sequences of these rows."""
        if isinstance(self.data, Dataset):
            pairs = self.data[rows]
            found = self.backbone.chat.encode(pairs["prompt"] * 2, pairs["chosen"] + pairs["rejected"], [*rows, *rows])
        else:
            found = [piece for row in rows for piece in text_pieces(self.backbone, self.data[row])]
        return list({item.key: item for item in found}.values())


def batch_states(backbone: Backbone, batch: Batch, layer: int, opening: Tensor) -> Tensor:
    """States [t, width] of a batch's tokens, on the CPU: no padding, no first position, no BOS, and not the ids
    `opening` [o] that a sequence begins with."""
    if backbone.packed:
        states = backbone.run_trees(batch.trees, (layer,))[0]
        spans = list(packed_spans(batch.trees))
    else:
        rows = [torch.cat((prompt, response)) for prompt, responses in batch.trees for response in responses]
        padded = backbone.run_padded(rows, (layer,))[0]
        states = padded.flatten(0, 1)
        spans = list(padded_spans(batch.trees, padded.shape[1]))
    keep = torch.zeros(len(states), dtype=torch.bool)
    bos, at = backbone.chat.tokenizer.bos_token_id, iter(spans)
    for prompt, responses in batch.trees:
        for number, part in enumerate((prompt, *responses)):
            start, end = next(at)
            keep[start:end] = part != bos if bos is not None else True
            if number == 0 or len(prompt) == 0:
                keep[start : start + min(len(part), shared_start(part, opening))] = False
    return states.cpu()[keep]


def template_opening(backbone: Backbone) -> Tensor:
    """The ids [o] that every prompt begins with, whatever it says: the template's own words."""
    one, other = backbone.chat.encode(["a", "1"], ["a", "a"])
    length = next((i for i, (a, b) in enumerate(zip(one.prompt, other.prompt, strict=False)) if a != b), 0)
    return torch.from_numpy(one.prompt[:length]).long()


def shared_start(part: Tensor, opening: Tensor) -> int:
    """How many positions to leave out at the start of a sequence: the opening where it has it, else the first."""
    return max(1, len(opening)) if torch.equal(part[: len(opening)], opening) else 1


def text_pieces(backbone: Backbone, text: str) -> list[Tokens]:
    """A plain text as sequences of at most `max_length` ids, with the BOS that the tokenizer puts before a text."""
    ids = np.array(backbone.chat.tokenizer(text, verbose=False).input_ids, np.int32)
    size = backbone.chat.max_length
    return [Tokens(ids[:0], ids[at : at + size], 0) for at in range(0, len(ids), size)]


def load_texts(source: Any, column: str = "text", split: str = "train", limit: int | None = None) -> list[str]:
    """The texts in one column of a hub data set, file or folder. Raises InputError for a row without one."""
    texts: list[str] = []
    for row in open_source(source, split).rows():
        if limit is not None and len(texts) >= limit:
            break
        text = row.value.get(column) if isinstance(row.value, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.place} has no text in column {column!r}; name the column or drop the row")
        texts.append(text)
    return texts
