"""Prompts of pairs, of rows with several responses, and of rows with a prompt alone."""

import json
import re

import pytest

from penchant.errors import InputError
from penchant.prompts import load_prompts

PAIRS = [{"prompt": p, "chosen": "a", "rejected": c} for p, c in (("one", "b"), ("two", "b"), ("one", "c"))]


def test_each_prompt_of_pairs_once_in_order():
    assert load_prompts(PAIRS) == (["one", "two"], None, {})
    assert load_prompts(PAIRS, limit=1).prompts == ["one"]
    assert load_prompts([*PAIRS, {"prompt": "three"}], on_bad="skip").skipped == {'column "chosen" is missing': 1}


def test_responses_of_one_prompt_come_together():
    rows = [{"q": "one", "responses": ["a", "b"]}, {"q": "two", "responses": ["c", "d"]}]
    rows.append({"q": "one", "responses": ["e", "a"]})
    found = load_prompts(rows, columns={"q": "prompt"})
    assert found.prompts == ["one", "two"]
    assert found.responses == [["a", "b", "e", "a"], ["c", "d"]]
    said = [[{"role": "assistant", "content": text}] for text in "ab"]
    assert load_prompts([{"prompt": "one", "responses": said}]).responses == [["a", "b"]]
    said[0].insert(0, {"role": "assistant", "content": "before"})
    with pytest.raises(InputError, match="row 0: a response is a conversation of 2 messages"):
        load_prompts([{"prompt": "one", "responses": said}])


def test_prompts_alone_may_be_texts_or_messages(tmp_path):
    turns = [{"role": "user", "content": "hello", "name": "x"}]
    rows = [{"prompt": "one", "topic": 1}, {"prompt": turns}, {"prompt": "one"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(str(tmp_path / "rows.jsonl"))
    assert found == (["one", [{"role": "user", "content": "hello"}]], None, {})


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "a"}, {"prompt": " \n"}], 'row 1: column "prompt" is empty'),
        ([{"prompt": "a"}, {"text": "a"}], 'row 1: column "prompt" is missing; there are: text'),
        ([{"prompt": "a"}, {"prompt": 3}], 'row 1: column "prompt" is neither text nor a list of messages'),
        ([{"prompt": "a"}, ["a"]], "row 1: the row is not an object"),
        ([{"prompt": "\ud800"}], 'row 0: column "prompt" is not valid UTF-8 text'),
        ([{"prompt": [{"role": "user", "content": ""}]}], 'row 0: column "prompt" is empty'),
        ([{"text": "a"}], 'column "chosen" is missing'),
    ],
)
def test_a_bad_row_is_named(rows, says):
    with pytest.raises(InputError, match=re.escape(says)):
        load_prompts(rows)


def test_bad_rows_are_counted_where_they_may_be_skipped():
    found = load_prompts([{"prompt": "a"}, {"prompt": " "}, {"prompt": None}], on_bad="skip")
    assert found == (["a"], None, {'column "prompt" is empty': 1, 'column "prompt" is null': 1})
    with pytest.raises(InputError, match="no prompt that can be used"):
        load_prompts([{"prompt": " "}], on_bad="skip")
    with pytest.raises(InputError, match="at least 1 row"):
        load_prompts([{"prompt": "a"}], limit=0)
