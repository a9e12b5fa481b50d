"""Tokens as text: nothing is lost, words are whole, the template is told from the messages, and names are telling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.chat import Chat
from penchant.explain.tally import CUT_OFF, EXAMPLES, LEAST_TEXTS, Names, Span, TokenTally
from penchant.explain.tokens import END, ReadText, TokenText, visible
from tests import tiny
from tests.tiny_llm import tiny_tokenizer

TEXTS = ["hello", "don’t say how", "naïve 你好 🙂👨‍👩‍👧!", "  two\n\nlines\t", "\ufffd?", "مرحبا שלום", "a<b>&amp;"]
CHATS = {
    "bytes": lambda: Chat(tiny_tokenizer()),
    "bpe": lambda: Chat(tiny.tokenizer()),
    "spaced": lambda: Chat(tiny.tokenizer(kind="spaced")),
    "base": lambda: Chat(tiny.tokenizer(None, bos=True, kind="spaced")),
}


@pytest.fixture(scope="module", params=CHATS)
def chat(request: pytest.FixtureRequest) -> Chat:
    return CHATS[request.param]()


# Text


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_whole_text(chat: Chat, text: str) -> None:
    item = chat.encode([text], [text])[0]
    for ids in (item.prompt.tolist(), item.response.tolist()):
        pieces = TokenText(chat).pieces(ids)
        decoded = chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert len(pieces) == len(ids)
        assert "".join(pieces).strip() == decoded.strip()
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in decoded


BYTES = Chat(tiny_tokenizer())


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_pieces_of_single_bytes_are_the_whole_text(text: str) -> None:
    ids = BYTES.tokenizer(text, add_special_tokens=False).input_ids
    pieces = TokenText(BYTES).pieces(ids)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text), "each character at its first byte"


@pytest.mark.parametrize("text", TEXTS)
def test_content_is_what_the_messages_say(chat: Chat, text: str) -> None:
    messages = [
        {"role": "user", "content": "say hello"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": "say how"},
    ]
    item = chat.encode([messages], [text])[0]
    prompt = TokenText(chat).read(item.prompt.tolist(), messages)
    said = "".join(piece for piece, mark in zip(prompt.pieces, prompt.content, strict=True) if mark)
    if "<unk>" not in "".join(prompt.pieces):  # such a text is not found as it stands
        assert "".join(said.split()) == "".join(f"say hello{text}say how".split())
    response = TokenText(chat).read(item.response.tolist(), text)
    assert not response.content[-1], "the end is none of the messages'"
    assert not np.isin(item.prompt, list(chat.ends))[prompt.content].any()


def test_of_a_truncated_prompt_what_is_left_counts() -> None:
    chat = Chat(tiny_tokenizer(), max_length=60)
    item = chat.encode(["Why is the sky blue? " * 9], ["No."])[0]
    assert item.cut
    read = TokenText(chat).read(item.prompt.tolist(), "Why is the sky blue? " * 9)
    said = "".join(piece for piece, mark in zip(read.pieces, read.content, strict=True) if mark)
    assert said.startswith("sky blue? Why is") or "Why is the sky blue?" in said


def test_words_are_whole_and_hold_every_token(chat: Chat) -> None:
    item = chat.encode(["hello"], ["You don't say, hello42... HELLO there\n\nyou"])[0]
    read = TokenText(chat).read(item.response.tolist(), "")
    said = [word for word in read.words if word.strip() and not set(word) <= set("⏎␣⇥")]
    assert said == ["you", "don't", "say", ",", "hello42", "...", "hello", "there", "you", END]
    assert read.starts[0] == 0
    assert (np.diff(read.starts) > 0).all()
    for word, first, end in zip(read.words, read.starts, [*read.starts[1:], len(read.pieces)], strict=True):
        whole = "".join(read.pieces[first:end]).casefold()
        assert word == END or visible(whole) == word


def test_both_apostrophes_make_one_word() -> None:
    ids = BYTES.encode(["hello"], ["Don’t don't, 🙂don’t"])[0].response.tolist()
    read = TokenText(BYTES).read(ids, "")
    assert [word for word in read.words if word != "␣"] == ["don't", "don't", ",", "🙂", "don't", END]


# What is gathered


def text_of(words: list[str]) -> ReadText:
    """A text of one token a word, the last of which ends a response."""
    content = np.array([word != END for word in words])
    return ReadText([f" {word}" for word in words], content, words, np.arange(len(words)))


def tally_of(texts: list[tuple[list[str], list[float]]], is_response: bool = True) -> TokenTally:
    """A tally of one latent with these activations."""
    tally = TokenTally(1)
    for number, (words, values) in enumerate(texts):
        ids = np.array([sum(map(ord, word)) % 999 for word in words])
        span = Span(bytes([number]), ids, np.array(values, np.float32)[:, None], 5 if is_response else 0)
        tally.add(span, text_of(words), is_response)
    return tally


def name(texts: list[tuple[list[str], list[float]]]) -> str:
    return Names(tally_of(texts)).name(0)


def test_a_latent_is_named_after_the_words_that_activate_it_whenever_they_occur() -> None:
    rare = [(["zebra", END], [9.0, 0.0])]
    some = [(["kill", "the", "light", END], [5.0, 0.0, 0.0, 0.0]), (["harm", "the", "cat", END], [3.0, 0.0, 0.1, 0.0])]
    often = [(["the", "end", END], [0.3, 0.0, 0.0])] * 40
    assert name(rare + some * 20 + often) == "kill · harm"
    assert name(often) == "the"
    assert name([(["the", END], [0.0, 0.0])]) == ""


def test_names_do_not_depend_on_the_order_of_the_texts() -> None:
    rng = np.random.default_rng(0)
    words = ["b", "a", "d", "c"]
    texts = [(list(rng.permutation(words)), rng.integers(0, 3, 4).tolist()) for _ in range(50)]
    texts = [([*said, END], [*map(float, values), 1.0]) for said, values in texts]
    first = Names(tally_of(texts))
    second = Names(tally_of(texts[::-1]))
    assert first.tokens(0) == second.tokens(0)
    assert first.ending(0) == second.ending(0)
    tied = [(["x", "y", "z", END], [1.0, 1.0, 1.0, 0.0])]
    assert name(tied) == "x · y · z"
    assert name([(["z", "y", "x", END], [1.0, 1.0, 1.0, 0.0])]) == "x · y · z"


def test_a_latent_of_endings_is_named_after_the_answers_that_end() -> None:
    rng = np.random.default_rng(0)

    def answer(sorry: bool, length: int, value: float) -> tuple[list[str], list[float]]:
        said = [*(["sorry"] if sorry else ["fine"]), *rng.choice(["so", "it", "is"], length)]
        return [*said, ".", END], [0.0] * len(said) + [0.0, value]

    noise = rng.normal(size=200) * 0.3
    sorry = [answer(i % 2 == 0, int(rng.integers(1, 9)), 5 + 2 * (i % 2 == 0) + noise[i]) for i in range(200)]
    assert name(sorry) == f"{END}: sorry"
    (found,) = Names(tally_of(sorry)).ending(0)
    assert (found["text"], found["count"]) == ("sorry", 100)
    assert found["mean"] == pytest.approx(7, abs=0.1)
    long = [answer(bool(rng.integers(2)), n := int(rng.integers(1, 30)), 5 + np.log(n) + noise[i]) for i in range(200)]
    assert name(long) == "end of a long answer"
    assert Names(tally_of(long)).length(0) > 0.8
    assert name([answer(bool(rng.integers(2)), 3, 5 + noise[i]) for i in range(200)]) == END
    cut: list[Any] = [(["a", *(["."] if i % 2 else []), END], [0.0] * (1 + i % 2) + [6.0 - i % 2]) for i in range(80)]
    assert name(cut) == f"{END}: {CUT_OFF}"
    few = sorry[: 2 * (LEAST_TEXTS - 1)]
    assert Names(tally_of(few)).ending(0) == []


def test_only_tokens_of_the_messages_and_a_responses_end_count() -> None:
    words = ["first", "said", "<role>", END]
    span = Span(b"1", np.arange(4), np.array([[9.0], [1.0], [8.0], [2.0]], np.float32), 0)
    text = text_of(words)._replace(content=np.array([True, True, False, False]))
    for is_response, counted in ((False, ["said"]), (True, ["said", END])):
        tally = TokenTally(1)
        tally.add(span, text, is_response)
        assert {words[i] for i in range(4) if tally.counts[tally.words[words[i]]]} == set(counted)
        assert tally.tokens == len(counted)
        assert [example.peak for example in tally.examples[0]] == [1 + 2 * is_response]


def test_a_word_is_as_active_as_the_most_active_of_its_tokens() -> None:
    text = ReadText([" va", "cc", "ine", "<end>"], np.arange(4) < 3, ["vaccine", END], np.array([0, 3]))
    tally = TokenTally(1)
    tally.add(Span(b"1", np.arange(4), np.array([[1.0], [3.0], [2.0], [0.0]], np.float32), 5), text, True)
    assert Names(tally).tokens(0) == [{"text": "vaccine", "mean": 3.0, "count": 1}]


def test_examples_are_the_strongest_of_different_texts() -> None:
    rng = np.random.default_rng(0)
    texts: list[Any] = []
    for number in range(30):
        values = rng.random(20).round(3).tolist()
        texts.append(([f"w{number}-{i}" for i in range(19)] + [END], values))
    tally = tally_of([*texts, *texts[:3]])
    peaks = sorted((max(values) for _, values in texts), reverse=True)[:EXAMPLES]
    assert [example.strength for example in tally.examples[0]] == pytest.approx(peaks)


def test_of_equal_beginnings_the_strongest_is_kept() -> None:
    """What stands further before them than is kept may differ, and with it the state."""
    tally = tally_of([(["same", END], [value, 0.0]) for value in (1.0, 3.0, 2.0)])
    assert [example.strength for example in tally.examples[0]] == [3.0]
