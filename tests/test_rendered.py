"""A conversation rendered by any client becomes the very tokens that prompt and response give apart."""

from __future__ import annotations

import time

import numpy as np
import pytest

from penchant.chat import Chat, Text
from penchant.errors import InputError
from penchant.rendered import Rendered
from tests import tiny

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": tiny.CHATML, "llama3": LLAMA3, "inst": INST}
PROMPTS: list[Text] = [
    "how are you",
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "you there"},
        {"role": "user", "content": "how are you today\n"},
    ],
]
ANSWERS = ["hello there", "the user said: no\n\n  and\tmore", "naïve 42"]


def chat_of(template: str | None, bos: bool = False) -> Chat:
    return Chat(tiny.tokenizer(template, bos=bos))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "messages"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_every_client_s_string_gives_the_same_tokens(name: str, prompt: Text, answer: str) -> None:
    chat = chat_of(TEMPLATES[name])
    rendered = Rendered(chat)
    before, after = chat.render(prompt, answer)
    tok = chat.tokenizer
    stop = rendered.closing.strip()
    lead = after[: after.index(answer[:4])]  # what the template puts before any answer
    sent = {
        "verl": ((before + after).removeprefix(tok.bos_token), None),
        "no end of turn": (before + lead + answer, None),
        "openrlhf": (before + lead + answer + stop, before),
        "padded": (tok.pad_token * 3 + before + after + tok.pad_token * 2, None),
        "padded prompt": (tok.pad_token * 3 + before + after, tok.pad_token * 3 + before),
        "doubled bos": (tok.bos_token + before + after, None)
        if before.startswith(tok.bos_token)
        else (before + after, None),
        "stopped by eos": (before + lead + answer + tok.eos_token, None),
    }
    (wanted,) = chat.encode([prompt], [answer])
    for client, (text, known) in sent.items():
        (item,) = chat.encode_rendered([rendered.cut(text, known, "text 0")])
        assert np.array_equal(item.prompt, wanted.prompt), client
        assert np.array_equal(item.response, wanted.response), client


def test_many_pads_and_ends_take_no_longer_than_their_length() -> None:
    rendered = Rendered(chat_of(LLAMA3, bos=True))
    tok = rendered.chat.tokenizer
    before, after = rendered.chat.render("hello", "you")
    many = tok.pad_token * 40_000 + tok.bos_token * 40_000 + before + after + (tok.eos_token + " \n") * 40_000
    start = time.monotonic()
    assert rendered.cut(many, None, "text 0") == rendered.cut(before + after, None, "text 0")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("bos", [False, True])
def test_a_base_models_text_is_cut_by_its_prompt(bos: bool) -> None:
    chat = chat_of(None, bos)
    rendered = Rendered(chat)
    (wanted,) = chat.encode(["how are"], [" you there"])
    for text in ("how are you there", "<s>how are you there", "<pad><pad>how are you there</s>"):
        (item,) = chat.encode_rendered([rendered.cut(text, "how are", "text 0")])
        assert item.key == wanted.key, text


def test_a_plain_prompt_goes_through_the_template() -> None:
    chat = chat_of(tiny.CHATML)
    (wanted,) = chat.encode(["how are you?"], [" hello"])
    (item,) = chat.encode_rendered([Rendered(chat).cut("how are you? hello</s>", "how are you?", "query 0")])
    assert item.key == wanted.key


def test_the_prompt_says_where_the_response_begins_even_if_the_response_opens_turns_of_its_own() -> None:
    chat = chat_of(tiny.CHATML)
    before, after = chat.render("hello", "a<|im_end|>\n<|im_start|>assistant\nb")
    (wanted,) = chat.encode(["hello"], ["a<|im_end|>\n<|im_start|>assistant\nb"])
    (item,) = chat.encode_rendered([Rendered(chat).cut(before + after, before, "query 0")])
    assert item.key == wanted.key


@pytest.mark.parametrize(
    ("template", "text", "prompt", "says"),
    [
        (tiny.CHATML, "how are you", None, "not in this model's chat format"),
        (tiny.CHATML, "", None, "not in this model's chat format"),
        (None, "how are you", None, "no chat template"),
        (None, "how are you", "who", "no chat template"),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(template: str | None, text: str, prompt: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Rendered(chat_of(template)).cut(text, prompt, "query 7")
    assert "query 7" in str(error.value)
