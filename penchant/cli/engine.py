"""Where the LLM runs: in this process, or by Ray Data in several."""

from __future__ import annotations

from typing import Any, Literal

from penchant.errors import InputError

Engine = Literal["local", "ray"]


def check_engine(engine: Engine, **only_ray: Any) -> None:
    """InputError for an option that the local engine has not."""
    for name, value in only_ray.items():
        if engine != "ray" and value is not None:
            raise InputError(f"--{name} belongs to the ray engine; add --engine ray.")
