"""One preference pair: what may stand in a row, and the one form that every accepted row is turned into."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Messages: TypeAlias = list[dict[str, str]]
Text: TypeAlias = str | Messages

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXTS = ("prompt", "chosen", "rejected")
OPTIONAL = ("margin", "user_id", "source")
PLAIN = (str, int, float, bool, list, dict, type(None))
HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class BadRow(Exception):
    """A row that is no preference pair: which column, why, and what its owner can do about it."""

    def __init__(self, column: str | None, reason: str, cure: str) -> None:
        self.column, self.reason, self.cure = column, reason, cure

    @property
    def what(self) -> str:
        """Column and reason, worded alike for every row with the same fault so that rows can be counted by it."""
        return f"{'the row' if self.column is None else f'column {quoted(self.column)}'} {self.reason}"


def normal_row(row: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row in normal form: names mapped by `columns`, texts checked, prompt explicit, optional columns typed.

    Raises `BadRow`. All three texts come back as strings, or all three as message lists.
    """
    if not isinstance(row, dict):
        raise BadRow(None, "is not an object", f'it is {kind(row)} and must be {{"prompt": ..., "chosen": ..., ...}}')
    given = {columns.get(str(name), str(name)): plain(value) for name, value in row.items()}
    for name in ("chosen", "rejected"):
        if name not in given:
            there = ", ".join(quoted(str(have)) for have in list(row)[:20]) or "none"
            raise BadRow(name, "is missing", f'name yours with columns={{"yours": "{name}"}}, there are: {there}')
    for name, value in given.items():
        if not (encodable(name) and (not isinstance(value, str) or encodable(value))):
            raise BadRow(name, "is not valid UTF-8 text", "save the data as UTF-8")
    prompt, chosen, rejected = texts(given)
    out: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for name, value in given.items():
        if name not in TEXTS:
            out[name] = number(value, name) if name == "margin" else label(value, name) if name in OPTIONAL else value
    return out


def texts(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected in one form, the prompt in neither completion."""
    prompt: Text
    chosen, rejected = (text_or_messages(row[name], name) for name in ("chosen", "rejected"))
    if "prompt" in row:
        prompt = text_or_messages(row["prompt"], "prompt")
        if not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
            prompt, chosen, rejected = as_messages(prompt), as_answer(chosen), as_answer(rejected)
            # Many published sets give the prompt and repeat it at the start of both conversations.
            if all(len(done) > len(prompt) and done[: len(prompt)] == prompt for done in (chosen, rejected)):
                chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        whole, other = as_conversation(chosen, "chosen"), as_conversation(rejected, "rejected")
        shared = shared_turns(whole, other)
        if shared == 0:
            raise BadRow(
                "rejected",
                "shares no beginning with chosen",
                'give a "prompt" column, or whole conversations that begin alike',
            )
        prompt, chosen, rejected = whole[:shared], whole[shared:], other[shared:]
    for name, done in (("chosen", chosen), ("rejected", rejected)):
        check_completion(done, name)
    if chosen == rejected:
        raise BadRow("rejected", "equals chosen", "a pair needs two different completions")
    return prompt, chosen, rejected


def shared_turns(chosen: Messages, rejected: Messages) -> int:
    """How many messages both conversations begin with, leaving each at least one to be its completion."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def check_completion(completion: Text, column: str) -> None:
    if not isinstance(completion, str):
        if completion[-1]["role"] != "assistant":
            raise BadRow(column, "does not end with an assistant turn", "add the turn")
        completion = completion[-1]["content"]
    if not completion.strip():
        raise BadRow(column, "is empty", "write a completion")


def text_or_messages(value: Any, column: str) -> Text:
    """The value if it is text, the message list reduced to role and content if it is one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadRow(column, "is null", "fill it in")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow(column, "is neither text nor a list of messages", f"it is {kind(value)}")
    if not value:
        raise BadRow(column, "is an empty message list", "give at least one message")
    for i, message in enumerate(value):
        if not (isinstance(message, dict) and "role" in message and "content" in message):
            cure = f'message {i} must be {{"role": ..., "content": ...}}'
            raise BadRow(column, "has a message without role or content", cure)
        if message["role"] not in ROLES:
            cure = f"message {i} has {quoted(message['role'])}, the roles are {', '.join(ROLES)}"
            raise BadRow(column, "has a message with an unknown role", cure)
        if not isinstance(message["content"], str):
            cure = f"the content of message {i} is {kind(message['content'])}"
            raise BadRow(column, "has a message whose content is not text", cure)
        if not encodable(message["content"]):
            raise BadRow(column, "is not valid UTF-8 text", "save the data as UTF-8")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def as_messages(prompt: Text) -> Messages:
    """A plain string prompt is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def as_answer(completion: Text) -> Messages:
    """A plain string completion is one assistant message."""
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion


def as_conversation(text: Text, column: str) -> Messages:
    """Messages of a whole conversation; a string must be in HH-RLHF's form "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    if not isinstance(text, str):
        return text
    before, *turns = HH_TURN.split(text.lstrip())
    if before or not turns:
        cure = 'add one, or make chosen and rejected whole conversations (messages, or "Human: ... Assistant: ...")'
        raise BadRow("prompt", "is missing", cure)
    if "Assistant" not in turns[::2]:
        raise BadRow(column, "has no Assistant turn", 'end it with "Assistant: ..."')
    role = {"Human": "user", "Assistant": "assistant"}
    return [{"role": role[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)]


def number(value: Any, column: str) -> float | None:
    """A finite float; text is read as a number because CSV has no other kind, and nothing at all is None."""
    if value is None or value == "":
        return None
    try:
        out = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        out = math.nan
    if not math.isfinite(out):
        raise BadRow(column, "is not a finite number", f"it is {quoted(value)}; leave it null where it is not known")
    return out


def label(value: Any, column: str) -> str | None:
    """A name as text; whole numbers count as names, also the floats that a null makes of them in pandas."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(column, "is not a name", f"it is {kind(value)} and must be text or a whole number")
    return str(value)


def plain(value: Any) -> Any:
    """The cell as JSON would hold it: numpy and pandas values, and tuples, become Python's own."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    return None if value is pd.NA or value is pd.NaT else value


def encodable(text: str) -> bool:
    """False for text with half a surrogate pair: that is how undecodable bytes and broken escapes arrive here."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind(value: Any) -> str:
    names = {"NoneType": "null", "str": "text", "dict": "an object", "bool": "true or false"}
    name = type(value).__name__
    return names.get(name, f"of type {name}")


def quoted(value: Any) -> str:
    """The value on one short line."""
    text = repr(value)
    text = f'"{text[1:-1]}"' if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."
