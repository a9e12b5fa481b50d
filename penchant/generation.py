"""Sampling answers from the very LLM whose latents are used: the text route to more preference pairs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from penchant.answer_file import append_batch, read_batches
from penchant.backbone import DEFAULT, PROBE_TOLERANCE, Backbone, load_whole
from penchant.chat import Chat, Ids, Text
from penchant.decoding import TOP, Decoder, Steering, draw
from penchant.errors import InputError
from penchant.processes import gathered, is_main, rank, told, world

TOKEN_BUDGET = 1024
"""Prompt tokens run at once."""
ROWS = 256
"""Answers that grow side by side: enough for matrix products near full speed."""
CACHED_TOKENS = 65_536
"""Prompt tokens whose keys and values are held at once, padding included."""


@dataclass
class GenerationCost:
    """What sampling took, the batches that an earlier run had written included."""

    prompts: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    """Tokens of the answers, each one's end included."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Adapter = Callable[[Tensor], Steering]


class Generator:
    """A causal LLM that answers prompts. `backbone` is the same model, for latents and scores, on the same weights.

    It must not be cut, and must not run while answers are sampled.
    """

    def __init__(self, model: transformers.PreTrainedModel, backbone: Backbone, adapter: Adapter | None = None) -> None:
        """`model` with its vocabulary's head, a backbone made from it; InputError if answers cannot share a prompt.

        `adapter` says what z [p, latent] does to the LLM for p prompts.
        """
        self.model, self.backbone, self.adapter = model.eval().requires_grad_(False), backbone, adapter
        self.cost = GenerationCost()
        if not backbone.packed or not self._sharing_is_exact():
            raise InputError(
                f"{backbone.name!r} cannot be sampled from here, as its attention is not a plain one; use another LLM."
            )

    @classmethod
    def load(
        cls,
        name: str = DEFAULT,
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int = 2048,
        trust_remote_code: bool = False,
    ) -> Generator:
        """Load an LLM as `Backbone.load` does; the arguments and the errors are the same."""
        return cls(*load_whole(name, dtype, revision, max_length, trust_remote_code))

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        answers: int = 4,
        max_new_tokens: int = 48,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        rows: int = ROWS,
        token_budget: int = TOKEN_BUDGET,
        file: str | Path | None = None,
        show_progress: bool = True,
        shift: Tensor | None = None,
        z: Tensor | None = None,
        shared: bool = False,
    ) -> list[list[str]]:
        """`answers` texts for each prompt, in the prompts' order; `self.cost` tells what they took.

        An answer ends with a special token or after `max_new_tokens`. It may be empty. Equal prompts get equal
        answers. All answers to a prompt are queries over the keys of all of them, so with very many or very long
        ones the attention's arithmetic, not its memory traffic, grows with their number.

        Args:
            prompts: strings or messages; those longer than the room that `max_length` leaves lose their start.
            temperature: 0 takes the likeliest token.
            top_p: tokens are drawn from the fewest likeliest that reach this probability, at most 200.
            seed: each (seed, prompt) has its own random numbers.
            rows: answers that grow side by side.
            token_budget: prompt tokens run at once.
            file: .jsonl file that each batch is appended to when done. A run that was killed goes on from there and
                gives the very answers of a run that was not; batches of other settings in it are left alone.
            shift: [n, d], a vector for each prompt that is added to the last hidden state of every token of its answers
                and of its own last token, right before the vocabulary's head.
            z: [n, latent], for each prompt what the adapter steers it by. Batches in `file` are known by z
                alone, so give another adapter another file.
            shared: the processes of a launch, all of which must ask for the same, share the batches out, and the main
                one keeps `file`.

        Raises:
            InputError: a setting out of range, or a prompt that the chat template refuses.
        """
        check_settings(answers, max_new_tokens, temperature, top_p, rows, self.backbone.chat.max_length)
        asked = prompt_ids(self.backbone.chat, prompts, max_new_tokens)
        llm = self.backbone.recipe((f"{self.backbone.depth}:last",)).fingerprint
        settings = (llm, TOP, CACHED_TOKENS, answers, max_new_tokens, temperature, top_p, seed, rows, token_budget)
        kept = Path(file) if file is not None and (is_main() or not shared) else None
        found = read_batches(kept) if kept is not None else {}
        found = told(found) if shared else found
        self.cost = GenerationCost()
        texts: dict[bytes, list[str]] = {}
        shift, z = (part.float().cpu() if part is not None else None for part in (shift, z))
        # Equal prompts share their answers, unless they are shifted differently, or have another z.
        keys = [
            b"".join([ids.tobytes(), *(part[row].numpy().tobytes() for part in (shift, z) if part is not None)])
            for row, ids in enumerate(asked)
        ]
        unique = dict(zip(keys, asked, strict=True))
        rows_of = {key: row for row, key in enumerate(keys)}
        total = sum(map(len, unique.values())) + len(unique) * answers * max_new_tokens
        with tqdm(
            total=total, unit="tok", unit_scale=True, desc="sample", disable=not show_progress, leave=False
        ) as bar:
            planned = {
                hashlib.blake2b(repr((settings, batch)).encode(), digest_size=16).hexdigest(): batch
                for batch in batches(unique, rows // answers)
            }

            def answered(key: str) -> dict[str, Any]:
                batch = planned[key]
                ids = [torch.from_numpy(unique[each]).long() for each in batch]
                start = time.perf_counter()
                random = uniforms(seed, [unique[each].tobytes() for each in batch], answers, max_new_tokens)
                numbers = [rows_of[each] for each in batch]
                own = [part[numbers] if part is not None else None for part in (shift, z)]
                lists = self._answer(ids, random, temperature, top_p, token_budget, *own)
                return {
                    "batch": key,
                    "prompts": len(batch),
                    "answers": len(batch) * answers,
                    "prompt_tokens": sum(map(len, ids)),
                    "new_tokens": sum(len(each) for row in lists for each in row),
                    "seconds": round(time.perf_counter() - start, 3),
                    "texts": [[self._text(each) for each in row] for row in lists],
                }

            lacking = [key for key in planned if key not in found]
            at_once, place = (world(), rank()) if shared else (1, 0)
            for first in range(0, len(lacking), at_once):
                made = [answered(key) for key in lacking[first : first + at_once][place : place + 1]]
                for record in chain(*gathered(made)) if shared else made:
                    found[record["batch"]] = record
                    if kept is not None:
                        append_batch(kept, record)
                    bar.update(record["prompt_tokens"] + record["answers"] * max_new_tokens)
            for key, batch in planned.items():
                texts.update(zip(batch, found[key]["texts"], strict=True))
                for name in self.cost.to_dict():
                    setattr(self.cost, name, getattr(self.cost, name) + found[key][name])
        return [texts[key] for key in keys]

    @torch.inference_mode()
    def _answer(
        self,
        prompts: list[Tensor],
        random: Tensor,
        temperature: float,
        top_p: float,
        budget: int,
        shift: Tensor | None,
        z: Tensor | None,
    ) -> list[list[list[int]]]:
        """Ids of the answers to each prompt; `random` are numbers in [0, 1) [p, answers, max_new_tokens]."""
        ends = torch.tensor(sorted(self.backbone.chat.ends))
        steering = None
        if z is not None and self.adapter is not None:
            self.backbone.config._attn_implementation = self.backbone.plain_attention
            steering = self.adapter(z.to(self.backbone.device))
        decoder = Decoder(self.model, self.backbone, prompts, random.shape[1], budget, shift, steering)
        new = torch.zeros(random.shape, dtype=torch.long)
        length = torch.full(random.shape[:2], random.shape[2])
        rows = torch.arange(len(prompts))  # those still decoded
        tokens = decoder.first
        for at in range(random.shape[2]):
            tokens = draw(decoder.step(tokens), random[rows, :, at], temperature, top_p)
            new[rows, :, at] = tokens
            ended = torch.isin(tokens, ends) & (length[rows] == random.shape[2])
            length[rows] = torch.where(ended, at + 1, length[rows])
            running = (length[rows] == random.shape[2]).any(1)
            if not running.any():
                break
            if running.sum() <= len(rows) // 2:  # copying the caches for less than a half would not pay
                decoder.keep(kept := running.nonzero()[:, 0])
                rows, tokens = rows[kept], tokens[kept]
        return [
            [ids[:n].tolist() for ids, n in zip(each, sizes, strict=True)]
            for each, sizes in zip(new, length.tolist(), strict=True)
        ]

    def _text(self, ids: list[int]) -> str:
        end = ids[-1:] if ids and ids[-1] in self.backbone.chat.ends else []
        return str(self.backbone.chat.tokenizer.decode(ids[: len(ids) - len(end)], skip_special_tokens=True))

    @torch.inference_mode()
    def _sharing_is_exact(self) -> bool:
        """Whether two steps of two answers to two prompts give the logits of the sequences run one by one."""
        backbone, model = self.backbone, self.model
        generator = torch.Generator().manual_seed(0)
        first, second, tokens = (torch.randint(backbone.vocabulary, (n,), generator=generator) for n in (4, 7, 4))
        decoder = Decoder(model, backbone, [first, second], 2, TOKEN_BUDGET)
        decoder.step(decoder.first)
        found = decoder.step(tokens.view(2, 2))
        run: Any = model
        for row, prompt in enumerate((first, second)):
            for column in range(2):
                ids = torch.cat((prompt, tokens.view(2, 2)[row, column, None])).to(backbone.device)
                alone = run(input_ids=ids[None], use_cache=False).logits[0, -1].float()
                if (found[row, column] - alone).norm() > PROBE_TOLERANCE.get(backbone.dtype, 0.1) * alone.norm():
                    return False
        return True


def prompt_ids(chat: Chat, prompts: Sequence[Text], max_new_tokens: int) -> list[Ids]:
    """Each prompt's ids, without the start that would leave no room for an answer; InputError where none are left."""
    room = chat.max_length - max_new_tokens
    asked = [item.prompt[-room:] for item in chat.encode(prompts, ["a"] * len(prompts))]
    if empty := [row for row, ids in enumerate(asked) if not len(ids)]:
        raise InputError(f"prompt {empty[0]} has no tokens; leave it out.")
    return asked


def batches(unique: dict[bytes, NDArray[np.int32]], most: int) -> Iterator[list[bytes]]:
    """Prompts, named by their ids' bytes, from the shortest to the longest, at most `most` in a batch (at least 1)."""
    batch: list[bytes] = []
    for key in sorted(unique, key=lambda key: (len(unique[key]), key)):
        if batch and (len(batch) >= most or (len(batch) + 1) * len(unique[key]) > CACHED_TOKENS):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def uniforms(seed: int, prompts: list[bytes], answers: int, steps: int) -> Tensor:
    """Numbers in [0, 1) [p, answers, steps] that depend on the seed and on each prompt alone."""
    drawn = [np.random.default_rng(prompt_seed(seed, key)).random((answers, steps)) for key in prompts]
    return torch.from_numpy(np.stack(drawn)).float()


def prompt_seed(seed: int, prompt: bytes) -> int:
    """A seed of 128 bits for one prompt's own random numbers."""
    digest = hashlib.blake2b(prompt, key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def check_settings(
    answers: int, max_new_tokens: int, temperature: float, top_p: float, rows: int, max_length: int
) -> None:
    for name, value in (("answers", answers), ("max_new_tokens", max_new_tokens), ("rows", rows)):
        if value < 1:
            raise InputError(f"{name} is {value}; use at least 1.")
    if max_new_tokens >= max_length:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}, which leaves no room for a prompt in {max_length} tokens."
        )
    if not temperature >= 0:
        raise InputError(f"temperature is {temperature}; use 0 or more.")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; use a share above 0 and up to 1.")
