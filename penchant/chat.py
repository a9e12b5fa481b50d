"""The only place where text becomes token ids: chat template, BOS and EOS, the prompt/response boundary, truncation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.errors import InputError

Ids = NDArray[np.int32]
Text = str | list[dict[str, str]]
"""A prompt or a completion: plain text, or messages with `role` and `content`."""

FIXED_DATE = "01 Jan 2025"
VERSION = 1
"""Of the way text becomes ids here; raised when it changes, so that no latent made the old way meets a new one."""
FIXED_CLOCK = "{% macro strftime_now(format) %}" + FIXED_DATE + "{% endmacro %}\n"
"""Put before a template, it stands in for the function of that name; transformers lets no function be passed."""


@dataclass(frozen=True)
class Tokens:
    """One prompt and one response as ids; the model reads `prompt` then `response`."""

    prompt: Ids
    response: Ids
    cut: int
    """How many tokens truncation took from the start."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def key(self) -> bytes:
        """16 bytes that name this content: equal ids on both sides of the boundary, equal key."""
        return content_key(self.prompt, self.response)

    @property
    def prompt_key(self) -> bytes:
        """The key of the prompt alone."""
        return content_key(self.prompt, self.response[:0])


def content_key(prompt: Ids, response: Ids) -> bytes:
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=16)
    digest.update(prompt.tobytes())
    digest.update(response.tobytes())
    return digest.digest()


class Chat:
    """Turns prompts and completions into `Tokens`, the same way in training, scoring, evaluation and serving.

    - With a chat template the text is exactly what the template renders, and no BOS is added to it; a base model's
      text is prompt + completion after the BOS its tokenizer puts there itself.
    - The response starts where the template's generation prompt ends. Prompt and response are tokenised apart, as they
      are when a policy answers, so every answer to one prompt shares the prompt's ids.
    - The response ends with the end-of-turn token, and nothing after it: white space behind it is dropped, and EOS is
      added where the template (or a base model's text) has none; an end that the text brings along is not doubled.
    - Of a sequence longer than `max_length` the last `max_length` tokens are kept.
    - A template that asks for today's date gets a fixed one, so that a reward does not change overnight.
    """

    def __init__(self, tokenizer: Any, max_length: int = 2048) -> None:
        if max_length < 2:
            raise InputError(f"max_length is {max_length}; use at least 2.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.has_template = bool(tokenizer.chat_template)
        self._template = FIXED_CLOCK + tokenizer.get_chat_template() if self.has_template else ""
        plain = tokenizer("a").input_ids
        bos = tokenizer.bos_token_id
        added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | set(tokenizer.all_special_ids)
        self._ends = self._special - ({tokenizer.unk_token_id, bos} - {tokenizer.eos_token_id})
        self._bos = [bos] if not self.has_template and bos is not None and plain and plain[0] == bos else []
        # SentencePiece tokenizers put a space before any text; before a response it would be one the model never sees.
        line, a, both = self._ids(["\n", "a", "\na"])
        self._anchor, self._anchor_ids = ("\n", line) if both != line + a else ("", [])
        self._thought = self._thought_opened() if self.has_template else ""

    @property
    def digest(self) -> str:
        """Changes with the template, with the special tokens and with the vocabulary."""
        tok = self.tokenizer
        probe = tok("Penchant: naïve 100% 你好\n\tend", add_special_tokens=False).input_ids
        parts = [
            VERSION,
            tok.chat_template or "none",
            len(tok),
            self._bos,
            tok.eos_token_id,
            sorted(self._special),
            probe,
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: EOS, end of turn and the other special tokens."""
        return frozenset(self._ends)

    def encode(
        self, prompts: Sequence[Text], responses: Sequence[Text], rows: Sequence[int] | None = None
    ) -> list[Tokens]:
        """Prompt i with response i, for all i.

        Raises InputError for a row that the template refuses or whose response has no tokens, named rows[i] (or i).
        """
        rows = rows if rows is not None else range(len(prompts))
        cut = [self._split(row, p, r) for row, p, r in zip(rows, prompts, responses, strict=True)]
        return self.encode_rendered(cut, rows)

    def encode_rendered(self, texts: Sequence[tuple[str, str]], rows: Sequence[int] | None = None) -> list[Tokens]:
        """As `encode`, for what `render` gives: texts that are rendered and cut at the boundary already."""
        rows = rows if rows is not None else range(len(texts))
        unique = list(dict.fromkeys(prompt for prompt, _ in texts))
        prompt_ids = {text: self._bos + ids for text, ids in zip(unique, self._ids(unique), strict=True)}
        response_ids = self._ids([response for _, response in texts], self._anchor)
        return [
            self._tokens(row, prompt_ids[p], ids) for row, (p, _), ids in zip(rows, texts, response_ids, strict=True)
        ]

    def render(self, prompt: Text, response: Text) -> tuple[str, str]:
        """The text the model reads, cut at the prompt/response boundary."""
        return self._split(0, prompt, response)

    def _split(self, row: int, prompt: Text, response: Text) -> tuple[str, str]:
        if not self.has_template:
            return _flat(prompt), _flat(response)
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turn = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
        start = self._apply(row, before, generation=True)
        full = self._apply(row, before + turn, generation=False)
        start = start.removesuffix(self._thought)
        if not full.startswith(start):
            raise InputError(
                f"row {row}: the chat template rewrites earlier turns once an answer follows, so prompt and"
                " response cannot be told apart; use another template or a base model."
            )
        return start, full[len(start) :]

    def _thought_opened(self) -> str:
        """What the generation prompt ends with and a finished turn lacks: the "<think>" of reasoning models.

        It belongs to neither side. It is found once, on a text of its own, for a boundary that depended on how a
        response begins would give two responses different prompts.
        """
        question = [{"role": "user", "content": "a"}]
        try:
            start = self._apply(0, question, generation=True)
            history = self._apply(0, question, generation=False)
            full = self._apply(0, [*question, {"role": "assistant", "content": "a"}], generation=False)
        except InputError:  # a template that wants more than one question; each row says so itself
            return ""
        shared = os.path.commonprefix([start, full])  # noqa: RUF071 (characters are meant)
        return start[len(shared) :] if shared.startswith(history.rstrip()) else ""

    def _apply(self, row: int, messages: list[dict[str, str]], generation: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation,
                date_string=FIXED_DATE,
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            raise InputError(f"row {row}: the chat template refuses these messages: {error}") from error
        return str(text)

    def _ids(self, texts: list[str], anchor: str = "") -> list[list[int]]:
        """Ids of each text as they stand behind `anchor`, whose own ids are left out."""
        if not texts:
            return []
        ids = self.tokenizer([anchor + text for text in texts], add_special_tokens=False, verbose=False).input_ids
        if not anchor:
            return list(ids)
        skip = len(self._anchor_ids)
        joined = [i for i, each in enumerate(ids) if each[:skip] != self._anchor_ids]  # a token reached over the anchor
        alone = dict(zip(joined, self._ids([texts[i] for i in joined]), strict=True))
        return [alone[i] if i in alone else each[skip:] for i, each in enumerate(ids)]

    def _tokens(self, row: int, prompt: list[int], response: list[int]) -> Tokens:
        end = next((i for i in range(len(response) - 1, -1, -1) if response[i] in self._ends), None)
        if end is not None and not self.tokenizer.decode(response[end + 1 :]).strip():
            while end and response[end - 1] == response[end]:
                end -= 1
            response = response[: end + 1]
        elif self.tokenizer.eos_token_id is not None:
            response = [*response, self.tokenizer.eos_token_id]
        if not response:
            raise InputError(f"row {row}: the response is empty and this tokenizer has no EOS; drop the row.")
        cut = max(0, len(prompt) + len(response) - self.max_length)
        kept_prompt, kept_response = prompt[cut:], response[max(0, cut - len(prompt)) :]
        return Tokens(np.array(kept_prompt, np.int32), np.array(kept_response, np.int32), cut)


def _flat(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)
