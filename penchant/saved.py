"""Reading what was saved, perhaps by somebody else: JSON, tensors and the names of other files are not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from torch import Tensor

from penchant.errors import InputError
from penchant.writing import read_tensors as read_checked

MOST_JSON = 256 << 20
"""Bytes of the largest JSON file that is read; configs are a thousand times smaller."""
LOOSE = "threshold", "frequencies_"
"""Of heads: an SAE's threshold is infinite where a latent is off, and random directions have no frequencies."""


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """A JSON object from a file; InputError, with the cure, for anything else."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON >> 20} MB")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); {cure}") from error
    return found


def read_tensors(path: Path, cure: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, finite, with the checksum they had if it was written down.

    Raises InputError, with the cure, for anything else.
    """

    def load(file: Path) -> dict[str, Tensor]:
        return read_checked(file, checked=False)[0]

    found: dict[str, Tensor] = _read(load, path, cure, lambda _, tensor: bool(tensor.isfinite().all()))
    return found


def read_arrays(path: Path, cure: str) -> dict[str, NDArray[Any]]:
    """As `read_tensors`, as numpy arrays; those of `LOOSE` names may hold anything."""
    found: dict[str, NDArray[Any]] = _read(
        load_arrays, path, cure, lambda name, array: name.endswith(LOOSE) or bool(np.isfinite(array).all())
    )
    return found


def _read(load: Callable[[Path], Any], path: Path, cure: str, fine: Callable[[str, Any], bool]) -> Any:
    try:
        found = load(path)
        bad = [name for name, values in found.items() if not fine(name, values)]
    # KeyError and RuntimeError: a number type that this safetensors, numpy or torch does not know.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); {cure}") from error
    if bad:
        raise InputError(f"{path} holds NaN or inf in {', '.join(bad[:3])}; {cure}")
    return found


def within(folder: Path, name: Any, source: Path) -> Path:
    """The file `name` in a folder, which another file, `source`, names.

    Raises InputError where it lies elsewhere: an absolute name, one with "..", or a link out of the folder. In the
    hub's cache, whose files are links into the repository's own blobs/, it may lie there.
    """
    if isinstance(name, str) and name and "\0" not in name and ".." not in Path(name).parts:
        path, home = (folder / name).resolve(), folder.resolve()  # an absolute name is one of its own
        homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
        if any(path.is_relative_to(each) for each in homes):
            return folder / name
    raise InputError(
        f"{source} names {name!r:.200}, which is not a file in its own folder; do not use what came with it"
    )
