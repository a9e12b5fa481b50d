"""What an SAE's latents respond to, gathered text by text: a few examples, words, and what ends with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from penchant.explain.tokens import END, PARTIAL, VISIBLE, ReadText

EXAMPLES = 6
"""Texts kept a latent."""
BEFORE, AFTER = 28, 12
"""Tokens kept around the one that activates most."""
SMOOTHING = 10.0
"""Occurrences without activation that a word is credited with, so that one seen once or twice names no latent."""
NAMED = 3
LEAST = 0.25
"""Words whose score is below this share of the first one's do not belong to the name."""
LEAST_TEXTS = 5
"""Responses in which a word must stand to be compared with those in which it does not."""
LEAST_Z = 4.0
"""Standard errors by which the mean of the responses with the word must lie above the mean of all."""

CUT_OFF = "… cut off"
"""What a response that ends in a letter or digit is said to be."""


class Span(NamedTuple):
    """One prompt, or one response behind its prompt, with what k latents do at each of its t tokens."""

    key: bytes
    """Its content key; see `Tokens.key` and `Tokens.prompt_key`."""
    ids: NDArray[np.int64]
    """[t]"""
    activations: NDArray[np.float32]
    """[t, k]"""
    start: int
    """Tokens before it in its sequence: 0 for a prompt."""


@dataclass(frozen=True)
class Example:
    """The token at which a latent is most active in one text, and the tokens around it."""

    key: bytes
    peak: int
    """Its place among `pieces`."""
    ids: NDArray[np.int64]
    pieces: list[str]
    content: NDArray[np.bool_]
    activations: NDArray[np.float32]
    cut: tuple[bool, bool]
    """Whether the text goes on before and behind them."""

    @property
    def strength(self) -> float:
        return float(self.activations[self.peak])

    @property
    def left(self) -> bytes:
        """What leads up to the peak, as far as it is kept: of equal ones the strongest is shown."""
        return self.ids[: self.peak + 1].tobytes()


class TokenTally:
    """What k latents respond to, gathered span by span.

    A token counts where it is part of a message, and where it is the one that ends a response; not where it is the
    first of its sequence, whose state is unlike any other.

    Attributes:
        examples: for each latent up to EXAMPLES texts, strongest first.
        tokens: how many tokens have counted.
        active: int [k], tokens at which each latent is active.
        words: {word: number}; sums: float32 [k, at least w], counts: int [at least w]: a word's occurrences, and the
            activations at them, the highest of each occurrence's tokens, added up.
        ends: for each response the activations float32 [k] at its last token, its tokens, and the numbers of its words,
            among them one such as "…?" for the sign it ends with, or CUT_OFF for none.
    """

    def __init__(self, latents: int) -> None:
        self.examples: list[list[Example]] = [[] for _ in range(latents)]
        self.tokens, self.active = 0, np.zeros(latents, np.int64)
        self.words: dict[str, int] = {}
        self.sums, self.counts = np.zeros((latents, 1024), np.float32), np.zeros(1024, np.int64)
        self.ends: list[tuple[NDArray[np.float32], int, NDArray[np.int64]]] = []

    def add(self, span: Span, text: ReadText, is_response: bool) -> None:
        """Take in a span and its text."""
        counted = text.content.copy()
        counted[-1] |= is_response
        counted[0] &= span.start > 0
        found = np.where(counted[:, None], span.activations, 0.0)
        self.tokens += int(counted.sum())
        self.active += np.count_nonzero(found, axis=0)
        numbers = self._numbers(text.words)
        of_words = np.maximum.reduceat(found, text.starts)
        at, latent = np.nonzero(of_words)
        np.add.at(self.sums, (latent, numbers[at]), of_words[at, latent])
        said = np.logical_or.reduceat(counted, text.starts)
        np.add.at(self.counts, numbers[said], 1)
        if is_response:
            self._end(span, [word for word, counts in zip(text.words, said, strict=True) if counts and word != END])
        peaks = found.argmax(axis=0)
        for j in np.flatnonzero(found.max(axis=0)).tolist():
            self._offer(j, span, text, int(peaks[j]))

    def _numbers(self, words: Sequence[str]) -> NDArray[np.int64]:
        """The words' numbers, with room for them all in `sums` and `counts`."""
        numbers = np.array([self.words.setdefault(word, len(self.words)) for word in words], np.int64)
        while len(self.words) > len(self.counts):
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)], axis=1)
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        return numbers

    def _end(self, span: Span, words: list[str]) -> None:
        """Keep what a response's end does beside its words, its length, and the sign it ends with."""
        last = next((word[-1] for word in reversed(words) if not set(word) <= set(VISIBLE.values())), "")
        sign = CUT_OFF if last.isalnum() else f"…{last}"
        self.ends.append((span.activations[-1].copy(), len(span.ids), np.unique(self._numbers([*words, sign]))))

    def _offer(self, latent: int, span: Span, text: ReadText, peak: int) -> None:
        best = self.examples[latent]
        if len(best) == EXAMPLES and span.activations[peak, latent] <= best[-1].strength:
            return
        first, end = max(0, peak - BEFORE), min(len(span.ids), peak + AFTER + 1)
        new = Example(
            span.key,
            peak - first,
            span.ids[first:end].copy(),
            text.pieces[first:end],
            text.content[first:end].copy(),
            span.activations[first:end, latent].copy(),
            (first > 0, end < len(span.ids)),
        )
        best[:] = [one for one in best if one.left != new.left or one.strength >= new.strength]
        if all(new.left != one.left for one in best):
            best.append(new)
            best.sort(key=lambda one: -one.strength)
            del best[EXAMPLES:]


class Names:
    """What the latents of a finished tally are called.

    A latent's words are ranked by its activation summed over a word's occurrences, divided by those occurrences and
    SMOOTHING more: words that are common and rarely active come late, and so do words seen once. A latent that is most
    active where responses end says little by that word; there the words of the responses that it marks tell more:
    those with the largest z of their mean activation at the end against that of all responses.
    """

    def __init__(self, tally: TokenTally) -> None:
        self.words = np.array(list(tally.words), object)
        order = np.argsort(self.words, kind="stable")  # not in the order of the texts, which ties would show
        self.words = self.words[order]
        self.counts, self.sums = tally.counts[order], tally.sums[:, order]
        self.whole = np.array([PARTIAL not in word for word in self.words], bool)
        self.spelled = np.array([any(c.isalnum() or c in "?!…" for c in word) for word in self.words], bool)
        self.ends = np.array([found for found, _, _ in tally.ends], np.float64)
        self.lengths = np.log([length for _, length, _ in tally.ends])
        columns = np.argsort(order)[np.concatenate([numbers for _, _, numbers in tally.ends])]
        rows = np.repeat(np.arange(len(self.ends)), [len(numbers) for _, _, numbers in tally.ends])
        said = np.ones(len(rows), np.float32)
        self.said = csr_array((said, (rows, columns)), (len(self.ends), len(self.words)))

    def tokens(self, latent: int, most: int = 8) -> list[dict[str, Any]]:
        """Up to `most` words, {"text", "mean" activation, "count" of occurrences}, the most telling first."""
        score = self.sums[latent] * self.whole / (self.counts + SMOOTHING)
        best = np.argsort(-score, kind="stable")[:most]
        return [
            {
                "text": str(self.words[i]),
                "mean": float(self.sums[latent, i] / self.counts[i]),
                "count": int(self.counts[i]),
            }
            for i in best.tolist()
            if score[i] > LEAST * score[best[0]]
        ]

    def ending(self, latent: int, most: int = 8) -> list[dict[str, Any]]:
        """Up to `most` words of the responses at whose end a latent is most active, as `tokens` gives them.

        "mean" is that of the activations at the ends of the responses with the word, "count" their number.
        """
        z, mean, texts = self._contrast(latent)
        best = np.argsort(-z, kind="stable")[:most]
        return [
            {"text": str(self.words[i]), "mean": float(mean[i]), "count": int(texts[i])}
            for i in best.tolist()
            if z[i] > LEAST_Z
        ]

    def _contrast(self, latent: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """For each word z (or 0), the mean activation at the ends of the responses with it, and their number."""
        ends, texts = self.ends[:, latent], self.said.sum(axis=0)
        usable = (texts >= LEAST_TEXTS) & (texts < len(ends)) & self.spelled
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (ends @ self.said) / texts
            z = (mean - ends.mean()) / (ends.std() * np.sqrt(1 / texts - 1 / len(ends)))
        return np.where(usable & np.isfinite(z), z, 0.0), mean, texts

    def length(self, latent: int) -> float:
        """Correlation of a latent's activation at the end of responses with the logarithm of their tokens, or 0."""
        if np.ptp(self.ends[:, latent]) == 0 or np.ptp(self.lengths) == 0:
            return 0.0
        return float(np.corrcoef(self.ends[:, latent], self.lengths)[0, 1])

    def name(self, latent: int) -> str:
        """Its first words, or "" for a latent that no counted token activates."""
        own = [token["text"] for token in self.tokens(latent, NAMED)]
        if own[:1] != [END]:
            return " · ".join(own)
        length = self.length(latent) * len(self.lengths) ** 0.5
        if abs(length) > max(LEAST_Z, self._contrast(latent)[0].max(initial=0.0)):
            return END.replace("of", "of a long" if length > 0 else "of a short")
        of_ends = [token["text"] for token in self.ending(latent, NAMED)]
        return f"{END}: {' · '.join(of_ends)}" if of_ends else END
