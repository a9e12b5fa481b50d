"""Tokens as a reader sees them: the text behind each id, the words they make up, and what the chat template wrote."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penchant.chat import Chat, Text

PARTIAL = "\ufffd"
"""What decoding gives for bytes that are no whole character."""
VISIBLE = {"\n": "⏎", "\t": "⇥", " ": "␣"}
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]+|\s+")
END = "end of answer"
"""What the token that ends a response is called."""


class ReadText(NamedTuple):
    """The t tokens of a prompt or a response as text."""

    pieces: list[str]
    """[t], spaces included; joined, the whole text. Where several tokens make up one character, it stands at the first
    of them and the others have ""."""
    content: NDArray[np.bool_]
    """[t], which tokens are not the chat template's."""
    words: list[str]
    """[w], in lower case; those of white space and special tokens too."""
    starts: NDArray[np.int64]
    """[w], the token with which each word begins; every token belongs to one word."""


class TokenText:
    """The text behind token ids, for any tokenizer; what an id stands for is looked up once."""

    def __init__(self, chat: Chat) -> None:
        self.tokenizer = chat.tokenizer
        self.special = chat.ends | {id_ for id_ in (chat.tokenizer.bos_token_id,) if id_ is not None}
        # Some tokenizers drop the space with which a text begins; behind a letter it is kept.
        self._anchor: list[int] = self.tokenizer("a", add_special_tokens=False).input_ids
        self._known: dict[int, str] = {}

    def read(self, ids: Sequence[int], messages: Text) -> ReadText:
        """The text of `ids`, in which `messages` stand within what the chat template wrote."""
        pieces = self.pieces(ids)
        special = np.isin(ids, list(self.special))
        content = _content(pieces, messages) & ~special
        return ReadText(pieces, content, *_words(pieces, special))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id, see `ReadText`."""
        found = [self._piece(one) for one in ids]
        start = 0
        while start < len(found):
            end = start + 1
            if PARTIAL in found[start]:
                whole = found[start]
                while PARTIAL in whole and end < len(ids) and PARTIAL in found[end]:
                    end += 1
                    whole = self._decode(ids[start:end])
                found[start:end] = [whole] + [""] * (end - start - 1)
            start = end
        return found

    def _piece(self, one: int) -> str:
        if one not in self._known:
            self._known[one] = self._decode([one])
        return self._known[one]

    def _decode(self, ids: Sequence[int]) -> str:
        def text(some: Sequence[int]) -> str:
            return str(self.tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        return text([*self._anchor, *ids])[len(text(self._anchor)) :]


def _content(pieces: Sequence[str], messages: Text) -> NDArray[np.bool_]:
    """Which tokens hold part of a message.

    The last message is looked for first, as truncation takes the start; where one is not found as it stands, all that
    is before it counts.
    """
    whole = "".join(pieces)
    inside, end = np.zeros(len(whole), bool), len(whole)
    for message in reversed([messages] if isinstance(messages, str) else [one["content"] for one in messages]):
        text = message.strip()
        at = whole.rfind(text, 0, end)
        inside[max(at, 0) : at + len(text) if at >= 0 else end] = True
        if at < 0:
            break
        end = at
    marks, at = np.zeros(len(pieces), bool), 0
    for i, piece in enumerate(pieces):
        marks[i] = inside[at : at + len(piece)].any() if piece else i > 0 and marks[i - 1]
        at += len(piece)
    return marks


def _words(pieces: Sequence[str], special: NDArray[np.bool_]) -> tuple[list[str], NDArray[np.int64]]:
    """The words, and the token with which each begins: where its first letter stands."""
    texts = [" " * len(piece) if mark else piece for piece, mark in zip(pieces, special, strict=True)]
    matches = list(WORD.finditer("".join(texts).replace("’", "'")))
    begins = [match.start() for match in matches]
    words: list[str] = []
    starts: list[int] = []
    at, last = 0, -1
    for i, piece in enumerate(pieces):
        letter = at + len(piece) - len(piece.lstrip()) if piece.strip() else at
        number = bisect_right(begins, letter) - 1
        number = -1 if special[i] else number
        if not words or special[i] or (piece and number != last):
            words.append(END if special[i] else visible(matches[number].group().casefold()))
            starts.append(i)
            last = number
        at += len(piece)
    return words, np.array(starts, np.int64)


def visible(piece: str) -> str:
    """A word without the spaces around it; white space shown as signs."""
    return piece.strip() or "".join(VISIBLE.get(c, c) for c in piece)
