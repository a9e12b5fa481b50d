"""What one request may ask for, and the check of its bytes before anything is made of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from penchant.serve.refusals import Refused

STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""Strings, also one without its end: where a match can fail, each quote in it would be tried anew."""
HALF_PAIR = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """Limits of the server; a request beyond one is refused with a sentence that names it."""

    body_bytes: int = 8 << 20
    """Bytes of a request's body."""
    items: int = 1024
    """Responses in one request."""
    characters: int = 200_000
    """Characters of one prompt and response together."""
    tokens: int = 16_384
    """Tokens of one prompt and response together; of those beyond the model's own max_length the last are read."""
    depth: int = 32
    """Levels of nesting in the JSON."""
    requests: int = 512
    """Requests worked on at once."""
    queue_tokens: int = 262_144
    """Tokens that wait for the LLM, each prompt counted with each of its responses."""
    seconds: float = 120.0
    """Time from a request's last byte to its answer, whatever is done for it; and for its bytes to arrive."""


def check_json(body: bytes, limits: Limits) -> None:
    """Raise Refused unless `body` is JSON of legal depth in UTF-8, with finite numbers and whole characters."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start}); encode it as UTF-8.") from error
    if depth(body) > limits.depth:
        raise Refused(400, f"the JSON is nested deeper than {limits.depth} levels; flatten it.")
    try:
        value = json.loads(body, parse_float=_finite, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({error}); send one JSON object.") from error
    if b"\\ud" in body.lower() and _half_pair(value):
        raise Refused(400, "a text holds half of a surrogate pair, which is no character; send valid Unicode.")


def depth(body: bytes) -> int:
    """How deep arrays and objects are nested."""
    deepest = level = 0
    for bracket in re.findall(rb"[\[\]{}]", STRINGS.sub(b"", body)):
        level += 1 if bracket in b"[{" else -1
        deepest = max(deepest, level)
    return deepest


def _half_pair(value: Any) -> bool:
    if isinstance(value, str):
        return HALF_PAIR.search(value) is not None
    if isinstance(value, dict):
        return any(_half_pair(key) or _half_pair(each) for key, each in value.items())
    return isinstance(value, list) and any(map(_half_pair, value))


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits)


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is no finite number")
