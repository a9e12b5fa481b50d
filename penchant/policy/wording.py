"""Words for latent codes: the tokens that a code makes likelier, and the words of the prompts that call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from penchant.chat import Chat, Text
from penchant.explain.tally import LEAST_TEXTS, LEAST_Z
from penchant.explain.tokens import END, PARTIAL, WORD, TokenText, visible

Array = NDArray[np.float64]

COUNTED = 2000
"""Pairs, spread over the data, whose responses' tokens are counted."""
LEAST_SEEN = 3
"""Occurrences that a token needs in the responses. The vocabulary is full of tokens that hardly occur, whose vectors
are long and mean little: they would head every list."""
LEAST_LIFT = 1.25
"""Mean weight of a code in the prompts with a word, over its mean weight in all, from which the word says something."""


def response_tokens(chat: Chat, pairs: Dataset, vocabulary: int) -> NDArray[np.int64]:
    """How often each token id occurs in the pairs' responses, [vocabulary]."""
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(COUNTED, len(pairs))).round().astype(int))
    some, counts = pairs[rows], np.zeros(vocabulary, np.int64)
    for tokens in chat.encode(some["prompt"] * 2, some["chosen"] + some["rejected"], [*rows, *rows]):
        np.add.at(counts, tokens.response, 1)
    return counts


def effects(codebook: Tensor, weights: Array, head: Tensor, counts: NDArray[np.int64]) -> Array:
    """What each code does to the log-probabilities of s tokens, in nats, [K, s].

    e_k is taken less the mean z: what all codes share moves every answer alike, is a constant of the policy, and would
    give all codes the same words. With d = W (e_k - mean z), a token of probability f becomes f exp(d) / sum f exp(d);
    f are the tokens' shares of the data's responses, so that a shift of all logits counts for nothing.

    Args:
        codebook: [K, d].
        weights: the prior's, [n, K], whose mean gives the mean z.
        head: W, the tokens' rows [s, d] of the vocabulary's head, times the LLM's logit scale.
        counts: int [s], the tokens' occurrences in the responses, each at least 1.
    """
    codes = codebook.detach().double().cpu()
    centred = codes - torch.from_numpy(weights.mean(0)) @ codes
    moved = (head.detach().double().cpu() @ centred.T).numpy().T
    share = np.log(counts / counts.sum())
    found: Array = moved - np.logaddexp.reduce(share + moved, axis=1, keepdims=True)
    return found


def seen_tokens(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of the tokens that occur LEAST_SEEN times; where none does, of those that occur at all."""
    often = np.flatnonzero(counts >= LEAST_SEEN)
    return often if len(often) else np.flatnonzero(counts)


class Decoded:
    """Token ids as a reader wants them: no space around them, one spelling of a word, special tokens by name."""

    def __init__(self, chat: Chat) -> None:
        self.text = TokenText(chat)

    def strongest(self, effect: Array, seen: NDArray[np.int64], most: int) -> list[dict[str, Any]]:
        """Up to `most` [{text, effect}] by falling effect, positive alone; what spells no character is left out."""
        found: dict[str, dict[str, Any]] = {}
        for i in np.argsort(-effect, kind="stable"):
            if effect[i] <= 0 or len(found) == most:
                break
            word = self.word(int(seen[i]))
            if word and PARTIAL not in word:
                found.setdefault(word.casefold(), {"text": word, "effect": float(effect[i])})
        return list(found.values())

    def word(self, token: int) -> str:
        return END if token in self.text.special else visible(self.text.pieces([token])[0])


def prompt_words(prompts: Sequence[Text], weights: Array, most: int = 8) -> list[list[dict[str, Any]]]:
    """For each code up to `most` words of the prompts that call it: [{text, lift, count of prompts}], best first.

    z is the code's mean weight in the prompts with a word against its mean weight in all, in standard errors of such a
    mean when the prompts with the word are drawn at random; words need z > LEAST_Z, LEAST_TEXTS prompts and LEAST_LIFT.

    Args:
        prompts: n different ones.
        weights: the prior's, [n, K].
    """
    said = [set(words_of(prompt)) for prompt in prompts]
    names = np.array(sorted(set().union(*said)), object)
    place = {word: i for i, word in enumerate(names)}
    columns = [place[word] for words in said for word in sorted(words)]
    rows = np.repeat(np.arange(len(said)), [len(words) for words in said])
    present = csr_array((np.ones(len(rows)), (rows, columns)), (len(said), len(names)))
    texts, n = present.sum(axis=0), len(prompts)
    mean, spread = weights.mean(0)[:, None], weights.std(0, ddof=1 if n > 1 else 0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        with_word = (weights.T @ present) / texts
        z = (with_word - mean) / (spread * np.sqrt(1 / texts - 1 / n))
        lift = with_word / mean
    usable = (texts >= LEAST_TEXTS) & (texts < n) & np.isfinite(z) & (z > LEAST_Z) & (lift > LEAST_LIFT)
    best = np.argsort(-np.where(usable, z, 0.0), axis=1, kind="stable")[:, :most]
    return [
        [
            {"text": str(names[i]), "lift": float(lift[k, i]), "count": int(texts[i])}
            for i in best[k].tolist()
            if usable[k, i]
        ]
        for k in range(weights.shape[1])
    ]


def words_of(prompt: Text) -> Iterator[str]:
    """The prompt's words in lower case, without punctuation."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    for text in texts:
        yield from (word for word in WORD.findall(text.casefold().replace("’", "'")) if word[0].isalnum())


def phrase(raised: Sequence[dict[str, Any]], words: Sequence[dict[str, Any]], has_effect: bool, most: int = 3) -> str:
    """A code in a few words: what the prompts that call it are about, and what it makes an answer say sooner.

    Signs stand in only where no word is raised.
    """

    def listed(some: Sequence[dict[str, Any]]) -> str:
        return " · ".join(one["text"] for one in some[:most])

    spelled = [one for one in raised if any(c.isalpha() for c in one["text"])] or raised
    about = f"asked “{listed(words)}”, " if words else ""
    return about + (f"says “{listed(spelled)}” sooner" if has_effect and raised else "hardly changes answers")
