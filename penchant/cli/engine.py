"""Where the LLM runs: in this process, or by Ray Data in several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any, Literal, TypeVar

from penchant.errors import InputError

Engine = Literal["local", "ray"]
T = TypeVar("T")


def check_engine(engine: Engine, **only_ray: Any) -> None:
    """InputError for an option that the local engine has not."""
    for name, value in only_ray.items():
        if engine != "ray" and value is not None:
            raise InputError(f"--{name} belongs to the ray engine; add --engine ray.")


def beside_stdout(made: Iterator[T]) -> Iterator[T]:
    """What is made, while other prints go to standard error: Ray prints that a worker was lost, amid the results."""
    with redirect_stdout(sys.stderr):
        yield from made
