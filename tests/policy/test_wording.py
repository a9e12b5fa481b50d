"""Words for codes: effects on tokens as the softmax has them, and words of prompts that chance does not explain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penchant.chat import Chat
from penchant.explain.tokens import END
from penchant.policy.wording import (
    Decoded,
    effects,
    phrase,
    prompt_words,
    response_tokens,
    seen_tokens,
    words_of,
)
from tests.tiny_llm import tiny_tokenizer

RNG = np.random.default_rng(0)
TORCH = torch.Generator().manual_seed(0)
K, WIDTH, TOKENS = 4, 6, 30


@pytest.fixture
def parts():
    weights = RNG.dirichlet(np.ones(K), size=50)
    codebook, head = torch.randn(K, WIDTH, generator=TORCH), torch.randn(TOKENS, WIDTH, generator=TORCH)
    return codebook, weights, head, RNG.integers(1, 9, size=TOKENS)


def test_effects_are_what_a_softmax_does_with_the_code(parts):
    codebook, weights, head, counts = parts
    mean = torch.tensor(weights.mean(0)).float() @ codebook
    base = torch.tensor(np.log(counts / counts.sum())).float()  # a model that says what the data say
    for k, row in enumerate(effects(*parts)):
        moved = (base + head @ (codebook[k] - mean)).log_softmax(0) - base
        assert row == pytest.approx(moved.numpy(), abs=1e-4)


def test_what_all_codes_share_and_what_moves_all_logits_count_for_nothing(parts):
    codebook, weights, head, counts = parts
    found = effects(*parts)
    shared = torch.randn(WIDTH, generator=TORCH)
    assert effects(codebook + shared, weights, head, counts) == pytest.approx(found, abs=1e-5)
    level = head + 3 * torch.linalg.pinv(codebook - codebook.mean(0))[:, 0]
    assert effects(codebook, weights, level, counts) == pytest.approx(found, abs=1e-4)
    assert effects(codebook * 0, weights, head, counts) == pytest.approx(np.zeros((K, TOKENS)))
    assert effects(codebook[:1], np.ones((5, 1)), head, counts) == pytest.approx(np.zeros((1, TOKENS)))


def test_rare_tokens_wait_until_nothing_else_is_left():
    assert seen_tokens(np.array([0, 5, 2, 3])).tolist() == [1, 3]
    assert seen_tokens(np.array([0, 2, 0, 1])).tolist() == [1, 3]


def test_counts_are_those_of_the_responses_alone():
    import datasets

    chat = Chat(tiny_tokenizer())
    pairs = datasets.Dataset.from_list([{"prompt": "zz", "chosen": "ab", "rejected": "a"}] * 3)
    counts = response_tokens(chat, pairs, len(chat.tokenizer))
    of = {letter: counts[chat.tokenizer(letter).input_ids[0]] for letter in "abz"}
    assert of == {"a": 6, "b": 3, "z": 0}
    assert counts[chat.tokenizer.eos_token_id] == 6


def test_tokens_are_spelled_for_a_reader():
    chat = Chat(tiny_tokenizer())
    ids = np.array([chat.tokenizer(letter).input_ids[0] for letter in "aAb\n "] + [chat.tokenizer.eos_token_id])
    ids = np.append(ids, chat.tokenizer("é").input_ids[0])
    found = Decoded(chat).strongest(np.array([0.5, 0.6, -1.0, 0.2, 0.1, 0.4, 0.9]), ids, 10)
    assert [one["text"] for one in found] == ["A", END, "⏎", "␣"], "one spelling, no broken character, none lowered"
    assert [one["effect"] for one in found] == [0.6, 0.4, 0.2, 0.1]
    assert len(Decoded(chat).strongest(np.ones(7), ids, 2)) == 2


def topics(n=200):
    """Half of the prompts ask for an email; the code's weight follows that, noisily."""
    asks = RNG.random(n) < 0.5
    filler = ["the", "a", "of", "my", "please", "today"]
    prompts = [
        f"{'Write an email' if ask else 'Tell a story'} {' '.join(RNG.choice(filler, 4))} {i}."
        for i, ask in enumerate(asks)
    ]
    first = np.clip(np.where(asks, 0.7, 0.2) + 0.1 * RNG.normal(size=n), 0.01, 0.99)
    return prompts, np.stack([first, 1 - first], 1)


def test_words_of_the_prompts_that_call_a_code():
    prompts, weights = topics()
    email, story = prompt_words(prompts, weights)
    assert {one["text"] for one in email} == {"write", "an", "email"}
    assert {"tell", "story"} <= {one["text"] for one in story}
    assert email[0]["lift"] == pytest.approx(0.7 / 0.45, rel=0.1)
    assert email[0]["count"] == sum("email" in prompt for prompt in prompts)
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert prompt_words(messages, weights) == [email, story], "and roles are no words"


def test_weights_without_meaning_find_no_words():
    """Words in a few prompts each are weighed differently by chance alone, many by far more than LEAST_LIFT."""
    prompts = [f"{' '.join(RNG.choice([f'word{i}' for i in range(60)], 4))} {i}" for i in range(200)]
    weights = RNG.dirichlet(np.full(8, 0.3), size=200)
    assert prompt_words(prompts, weights) == [[]] * 8
    assert prompt_words(prompts, np.full((200, 8), 1 / 8)) == [[]] * 8
    assert prompt_words(prompts[:1], weights[:1]) == [[]] * 8


def test_a_preference_too_small_to_matter_finds_no_words():
    prompts, weights = topics()
    faint = 0.5 + 0.02 * (weights - 0.5)
    assert prompt_words(prompts, faint) == [[], []]


def test_words_are_whole_and_plain():
    assert list(words_of("Don’t stop -- “Me” now, 3x!")) == ["don't", "stop", "me", "now", "3x"]


def test_phrases():
    raised, words = [{"text": t} for t in "abcd"], [{"text": "email"}]
    assert phrase(raised, words, True) == "asked “email”, says “a · b · c” sooner"
    assert phrase(raised, [], True) == "says “a · b · c” sooner"
    assert phrase(raised, words, False) == "asked “email”, hardly changes answers"
    signs = [{"text": t} for t in (",", "⏎", "and")]
    assert phrase(signs, [], True) == "says “and” sooner"
    assert phrase(signs[:2], [], True) == "says “, · ⏎” sooner"
    assert phrase([], [], True) == "hardly changes answers"
