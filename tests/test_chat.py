"""From text to ids: one BOS at most, one end, a boundary no response moves, truncation that spares the response."""

from __future__ import annotations

import datetime
import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers.utils.chat_template_utils as template_utils

from penchant.chat import Chat, Text, Tokens
from penchant.errors import InputError
from tests import tiny

HEAD = "{% for m in messages %}"
SAY = "<|im_start|>' + m['role'] + '\n' + m['content'] + '"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES: dict[str, str | None] = {
    "base": None,
    "chatml": tiny.CHATML,
    "bos": "{{ bos_token }}" + HEAD + "{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else"
    " ' ' + m['content'] + eos_token }}{% endfor %}",
    "no end": HEAD + "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "no generation prompt": HEAD + "{{ '" + SAY + "<|im_end|>\n' }}{% endfor %}",
    "strips": HEAD
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n\n' }}{% endfor %}"
    + ASK,
    "thinks": HEAD + "{{ '" + SAY + "<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "empty thought": HEAD + "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + ASK,
    "dated": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today is ' + date_string + ', ' + strftime_now('%Y-%m-%d') + '\n' }}" + tiny.CHATML,
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + tiny.CHATML,
}
RESPONSES = [
    "hello",
    "",
    "<b>bold</b>",
    "<think>\nwell\n</think>\n\nyes",
    "<",
    "<t",
    "  two\n\nlines \n",
    "naïve 你好 🙂",
    "\n\n",
]
PROMPT = [
    {"role": "user", "content": "hello, how are you"},
    {"role": "assistant", "content": "there"},
    {"role": "user", "content": "say how"},
]


def chat(name: str = "chatml", max_length: int = 4096, **options: Any) -> Chat:
    return Chat(tiny.tokenizer(TEMPLATES[name], bos=name == "base", **options), max_length)


def ids(tokens: Tokens) -> list[int]:
    return [*tokens.prompt.tolist(), *tokens.response.tolist()]


def special(maker: Chat, *names: str) -> list[int]:
    return list(maker.tokenizer.convert_tokens_to_ids(list(names)))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytes", "spaced"])
def test_one_bos_at_most_and_one_end_and_one_prompt(name: str, kind: str) -> None:
    maker = chat(name, kind=kind)
    bos, eos, turn = special(maker, "<s>", "</s>", "<|im_end|>")
    made = maker.encode([PROMPT] * len(RESPONSES), RESPONSES)
    end = turn if "<|im_end|>" in (TEMPLATES[name] or "") else eos
    for tokens in made:
        assert ids(tokens).count(bos) == (name in ("base", "bos"))
        assert (ids(tokens)[0] == bos) == (name in ("base", "bos"))
        assert tokens.response[-1] == end
        assert sum(np.isin(tokens.response, [eos, turn])) == 1
        assert tokens.prompt.tolist() == made[0].prompt.tolist()
        assert tokens.cut == 0


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_end_that_the_text_brings_along_is_not_doubled(name: str) -> None:
    maker = chat(name)
    if name == "no end":
        pytest.skip("this template puts a line's end behind what the text brings along, and none behind it otherwise")
    end = "<|im_end|>" if "<|im_end|>" in (TEMPLATES[name] or "") else "</s>"
    plain, with_end, with_two = maker.encode(["say"] * 3, ["hello", f"hello{end}", f"hello{end}{end}"])
    assert ids(plain) == ids(with_end) == ids(with_two)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "no end"])
@pytest.mark.parametrize("kind", ["bytes", "spaced"])
def test_ids_are_those_of_the_whole_text(name: str, kind: str) -> None:
    """Tokenising in two parts changes nothing, save where a token would reach over the boundary ("no end")."""
    maker = chat(name, kind=kind)
    for response in ("hello", " hello", "There", "[x]", "<b>", ""):
        (tokens,) = maker.encode([PROMPT], [response])
        before, after = maker.render(PROMPT, response)
        whole = maker.tokenizer(before + after, add_special_tokens=name == "base").input_ids
        shared = min(len(whole), len(tokens))
        assert shared >= len(tokens) - 1  # EOS may be added
        assert ids(tokens)[:shared] == whole[:shared]
        assert maker.tokenizer.decode(whole[len(tokens) :]).strip() == ""


@pytest.mark.parametrize("response", ["<b>hi", "<think>\nhm</think>hi", "<", "hi"])
def test_a_thought_opened_for_the_policy_is_on_neither_side(response: str) -> None:
    start, end = chat("thinks").render("say", response)
    assert start == "<|im_start|>user\nsay<|im_end|>\n<|im_start|>assistant\n"
    assert end == f"{response}<|im_end|>\n"


def test_the_prompt_is_what_the_policy_reads() -> None:
    for name in TEMPLATES.keys() - {"base", "thinks", "dated"}:
        maker = chat(name)
        asked = maker.tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
        assert maker.render(PROMPT, "hello")[0] == asked


def test_ids_do_not_change_overnight(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(year: int) -> tuple[list[int], str]:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(year, 3, 4)

        monkeypatch.setattr(template_utils, "datetime", Clock)
        maker = chat("dated")
        free = maker.tokenizer.apply_chat_template(PROMPT, tokenize=False)
        return ids(maker.encode([PROMPT], ["hello"])[0]), str(free)

    (first, free_first), (second, free_second) = on(2024), on(2031)
    assert free_first != free_second, "the clock was not moved"
    assert first == second


def test_a_refused_role_names_the_row() -> None:
    system = [{"role": "system", "content": "be kind"}, *PROMPT]
    with pytest.raises(InputError, match=r"row 1: .*no system role"):
        chat("no system").encode(["a", system], ["b", "c"])
    with pytest.raises(InputError, match=r"row 70: .*no system role"):
        chat("no system").encode(["a", system], ["b", "c"], rows=[69, 70])


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    maker = Chat(tiny.tokenizer("{{ messages | length }}" + tiny.CHATML))
    with pytest.raises(InputError, match="row 0: the chat template rewrites earlier turns"):
        maker.encode(["a"], ["b"])


def test_no_tokens_at_all_is_refused() -> None:
    maker = Chat(tiny.tokenizer(None, eos_token=""))
    assert ids(maker.encode(["say"], ["hello"])[0]) == maker.tokenizer("sayhello").input_ids
    with pytest.raises(InputError, match="row 3: the response is empty"):
        maker.encode(["say", "say"], ["hello", ""], rows=[2, 3])


@pytest.mark.parametrize("name", ["base", "chatml", "bos"])
def test_truncation_cuts_the_start_and_counts(name: str) -> None:
    long = chat(name).encode([PROMPT] * 2, ["hello there", "no " * 30])
    for limit, whole in itertools.product(range(2, len(long[1]) + 2), long):
        (tokens,) = chat(name, limit).encode([PROMPT], ["hello there" if whole is long[0] else "no " * 30])
        assert ids(tokens) == ids(whole)[-limit:]
        assert tokens.cut == max(0, len(whole) - limit)
        kept = min(limit, len(whole.response))
        assert tokens.response.tolist() == whole.response[-kept:].tolist()
    with pytest.raises(InputError, match="max_length"):
        chat(max_length=1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_padding_that_is_eos_changes_nothing(name: str) -> None:
    texts: list[Text] = ["a", PROMPT, "how are you"]
    own, shared = (chat(name, pad_token=pad).encode(texts, ["", "hello", "there "]) for pad in ("<pad>", "</s>"))
    assert list(map(ids, own)) == list(map(ids, shared))


@pytest.mark.parametrize("name", TEMPLATES)
def test_strings_are_one_message(name: str) -> None:
    maker = chat(name)
    strings = maker.encode(["say hello"], ["there"])[0]
    for prompt, response in itertools.product(
        ("say hello", [{"role": "user", "content": "say hello"}]),
        ("there", [{"role": "assistant", "content": "there"}]),
    ):
        tokens = maker.encode([prompt], [response])[0]
        assert (tokens.key, tokens.prompt_key) == (strings.key, strings.prompt_key)


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_content_gives_a_sequence(name: str) -> None:
    rng = random.Random(0)
    parts = [
        *tiny.SPECIAL,
        "<think>",
        "</think>",
        "a",
        " ",
        "\n",
        "{{",
        "{% endif %}",
        "\0",
        "é",
        "🙂",
        "\ud7ff",
        "[/INST]",
    ]
    maker = chat(name, max_length=24)
    prompts = ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(200)]
    responses = ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(200)]
    for tokens in maker.encode(prompts, responses):
        assert 0 < len(tokens.response) <= len(tokens) <= 24
        assert tokens.response[-1] in maker._ends


def test_the_batch_does_not_matter() -> None:
    rng = random.Random(1)
    for name in ("base", "chatml", "bos"):
        maker = chat(name)
        rows = [(rng.choice(["a", "b c", PROMPT]), rng.choice(RESPONSES)) for _ in range(30)]
        together = maker.encode([prompt for prompt, _ in rows], [response for _, response in rows])
        assert [t.key for t in together] == [maker.encode([prompt], [response])[0].key for prompt, response in rows]
    assert chat().encode([], []) == []


def test_keys_see_the_boundary() -> None:
    def tokens(prompt: list[int], response: list[int]) -> Tokens:
        return Tokens(np.array(prompt, np.int32), np.array(response, np.int32), 0)

    made = [
        tokens([1, 2], [3]),
        tokens([1], [2, 3]),
        tokens([1, 2, 3], []),
        tokens([1, 2], [4]),
        tokens([1], [0, 2, 3]),
    ]
    assert len({each.key for each in made}) == len(made)
    assert made[0].key == tokens([1, 2], [3]).key
    assert made[0].prompt_key == made[3].prompt_key == tokens([1, 2], []).key


def test_digest_tells_tokenizers_and_templates_apart() -> None:
    digests = [chat(name).digest for name in TEMPLATES]
    digests += [chat(kind="spaced").digest, chat(eos_token="<|im_end|>").digest, Chat(tiny.tokenizer(None)).digest]
    assert len(set(digests)) == len(digests)
    assert chat().digest == chat().digest == chat(max_length=7).digest


def real_pairs(folder: Path, n: int) -> list[dict[str, Any]]:
    with gzip.open(folder / "hh" / "train.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in itertools.islice(lines, n)]


@pytest.mark.slow
def test_real_pairs_give_the_ids_of_the_whole_template(smol: Any, shared_data: Path) -> None:
    rows = real_pairs(shared_data, 300)
    maker = Chat(smol.chat.tokenizer, 100_000)
    tok = maker.tokenizer
    for side in ("chosen", "rejected"):
        made = maker.encode([row["prompt"] for row in rows], [row[side] for row in rows])
        for row, tokens in zip(rows, made, strict=True):
            text = tok.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            whole = tok(text, add_special_tokens=False).input_ids
            assert ids(tokens) == whole[: len(tokens)]
            assert tok.decode(whole[len(tokens) :]).strip() == ""
            assert tokens.response[-1] == tok.convert_tokens_to_ids("<|im_end|>")
            assert tok.decode(tokens.prompt).endswith("<|im_start|>assistant\n")
            assert tok.decode(tokens.response[:-1]) == row[side][0]["content"]
