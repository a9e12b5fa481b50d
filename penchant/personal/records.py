"""One person: what is known of them, checked, as the bytes that a database row keeps and as a line of JSON."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from penchant.errors import InputError

Vectors = Mapping[str, NDArray[Any]]
LONGEST_ID = 512
MOST = 2**53
"""The largest count; every JSON reader keeps it exactly."""
NAMES = "float16", "float32", "float64", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPES = {name: np.dtype(name) for name in NAMES}
"""What safetensors, numpy and JSON all hold."""


class Person(NamedTuple):
    """What is known of one person."""

    user_id: str
    vectors: dict[str, NDArray[Any]]
    pairs: int
    """Judged pairs that the vectors came from, those of earlier updates included."""
    version: int
    """1, 2, ..., higher with every change."""
    updated: float
    """Seconds since 1970."""
    model: str
    """Digest of the population model that the vectors are relative to."""

    @property
    def size(self) -> int:
        """Bytes that the database keeps of this version, beside the id and a few numbers."""
        return len(packed(self.user_id, self.vectors, self.pairs))


def checked_id(user_id: str) -> str:
    """The id as it came; InputError unless it is a text of 1 to LONGEST_ID characters without NUL."""
    with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair
        if isinstance(user_id, str) and 0 < len(user_id) <= LONGEST_ID and b"\0" not in user_id.encode():
            return user_id
    raise InputError(
        f"{user_id!r:.80} cannot be a user id; give a text of 1 to {LONGEST_ID} characters, valid Unicode without NUL"
    )


def packed(user_id: str, vectors: Vectors, pairs: int) -> bytes:
    """Vectors of a person as safetensors bytes, in their shapes and dtypes.

    Raises InputError for an unusable id, no vectors, one that is empty, no array of real numbers or not finite, or for
    pairs that are no count.
    """
    checked_id(user_id)
    if isinstance(pairs, bool) or not isinstance(pairs, int | np.integer) or not 0 <= pairs <= MOST:
        raise InputError(f"pairs of {user_id!r} is {pairs!r}; give a whole number of judged pairs, 0 or more")
    if not isinstance(vectors, Mapping) or not vectors:
        raise InputError(f"{user_id!r} has no vectors; give a dict with at least one array")
    arrays = {}
    for name, vector in vectors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"a vector of {user_id!r} is called {name!r}; give it another name")
        if (
            not isinstance(vector, np.ndarray)
            or not vector.size
            or vector.dtype.newbyteorder("=") not in DTYPES.values()
        ):
            what = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
            raise InputError(f"vector {name!r} of {user_id!r} is {what}; give an array of at least one real number")
        if not np.isfinite(vector).all():
            raise InputError(f"vector {name!r} of {user_id!r} has NaN or inf; give finite numbers")
        # A new array: a view's strides and the other byte order are no part of what is kept.
        arrays[name] = np.array(vector, vector.dtype.newbyteorder("<"), order="C")
    return save(arrays)


def unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays, free to change, sorted by name: safetensors gives them in an order of its own."""
    return dict(sorted(load(data).items()))


def to_line(person: Person) -> bytes:
    """A person as one line of JSON; a float16 or float32 becomes the equal double, so nothing is lost."""
    values = {name: {"dtype": str(v.dtype), "values": v.tolist()} for name, v in person.vectors.items()}
    return json.dumps({**person._asdict(), "vectors": values}).encode() + b"\n"


def from_line(line: bytes) -> Person:
    """The person that `to_line` wrote; InputError says what is wrong with any other line."""
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or row.keys() != set(Person._fields):
            raise ValueError(f"it needs exactly {', '.join(Person._fields)}")
        person = Person(**{**row, "vectors": {name: _array(name, entry) for name, entry in row["vectors"].items()}})
        if type(person.version) is not int or not 0 < person.version <= MOST:
            raise ValueError("version is not 1, 2, ...")
        if type(person.updated) not in (int, float) or not math.isfinite(person.updated):
            raise ValueError("updated is not a number of seconds")
        return person
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f"this is not a person as `export` writes one ({error}); correct or remove the line"
        ) from error


def _array(name: str, entry: dict[str, Any]) -> NDArray[Any]:
    """The array of {"dtype": ..., "values": nested lists}; ValueError if the dtype cannot hold the values."""
    if entry.keys() != {"dtype", "values"} or entry["dtype"] not in DTYPES:
        raise ValueError(f"vector {name!r} needs exactly a dtype and values")
    values = entry["values"]
    if np.array(values).dtype.kind not in "iuf":
        raise ValueError(f"vector {name!r} has values that are no numbers")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        array = np.array(values, entry["dtype"])
    if array.dtype.kind != "f" and array.tolist() != values:
        raise ValueError(f"vector {name!r} has values that are no {entry['dtype']}")
    return array
