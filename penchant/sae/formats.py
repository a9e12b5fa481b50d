"""Sparse autoencoders from the hub or a folder, in whichever layout they were published; saved as SAELens' own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from penchant.errors import InputError
from penchant.hub import named, snapshot
from penchant.sae.autoencoder import SparseAutoencoder
from penchant.sae.layouts import (
    read_dictionary_learning,
    read_gemma_scope,
    read_gemma_scope_2,
    read_llama_scope,
    read_sparsify,
)
from penchant.sae.published import Published
from penchant.sae.saelens import read_saelens, save_sae

__all__ = ["load_sae", "save_sae"]

LAYOUTS: dict[str, Callable[[Path, str], Published]] = {
    "sae_weights.safetensors": read_saelens,
    "params.npz": read_gemma_scope,
    "params.safetensors": read_gemma_scope_2,
    "checkpoints/final.safetensors": read_llama_scope,
    "sae.safetensors": read_sparsify,
    "ae.pt": read_dictionary_learning,
}
"""A layout is known by the file that holds its weights. Readers take the folder and the name it was asked for by."""
CONFIGS = ("cfg.json", "config.json", "hyperparams.json")
DEPTH = 4
"""Folders below the one given in which SAEs are looked for, to say which there are."""
SHOWN = 10


def load_sae(
    name: str | Path,
    *,
    revision: str | None = None,
    layer: int | None = None,
    k: int | None = None,
    model: str | None = None,
) -> SparseAutoencoder:
    """Load an SAE, in float32.

    Args:
        name: a folder, the file of weights in it, or a hub repository with the path inside it, such as
            google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71. Of a repository only that SAE is fetched.
        revision: branch, tag or commit of a hub repository, which may also end its name: org/repository/path@REVISION.
            The SAE's `source`, which a head on it keeps, names the commit.
        layer: index into transformers' `hidden_states`, where the files do not record it.
        k: latents active in a state, where the files do not record it.
        model: the LLM it is for, in place of the one that the files record.

    Raises:
        InputError: nothing is there, the files are damaged or contradict each other, or the SAE is of an architecture
            or place in the LLM that cannot be used; where there are several, the sentence says which.
    """
    plain, asked = named(str(name), revision)
    path, place = Path(plain).expanduser().absolute(), plain.rstrip("/")
    file = next((marker for marker in LAYOUTS if path.as_posix().endswith(f"/{marker}") and not path.is_dir()), None)
    if file is not None:
        path, place = path.parents[file.count("/")], place.removesuffix(f"/{file}")
    source = plain
    if path.exists():
        folder, place = path, path.resolve().as_posix()
    else:
        folder, commit = _fetch(place, asked)
        source = f"{place}@{commit}" if commit else plain
    read = next((read for marker, read in LAYOUTS.items() if (folder / marker).is_file()), None)
    if read is None:
        patterns = [f"{'*/' * depth}{marker}" for depth in range(1, DEPTH + 1) for marker in LAYOUTS]
        below = (file.relative_to(folder).as_posix() for pattern in patterns for file in folder.glob(pattern))
        raise _nothing(str(name), below)
    return read(folder, place).build(source, layer, k, model)


def _fetch(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of one SAE of a hub repository, its few files downloaded, and the commit they are of, if known."""
    parts = name.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") or re.search(r"[*?\[\]\\:~]", part) for part in parts):
        raise InputError(f"there is no SAE at {name!r}; give a folder, or a hub id like org/repository/path/inside")
    repo, inside = "/".join(parts[:2]), parts[2:]
    wanted = ["/".join([*inside, file]) for file in (*LAYOUTS, *CONFIGS)]
    wanted += ["/".join([*inside[:-1], "config.json"])]  # sparsify records the LLM a folder above
    try:
        whole = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        folder = whole.joinpath(*inside)
        if not any((folder / marker).is_file() for marker in LAYOUTS):
            start = "".join(f"{part}/" for part in inside)
            files = HfApi().list_repo_files(repo, revision=revision)
            raise _nothing(name, (file.removeprefix(start) for file in files if file.startswith(start)))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"there is no folder {name!r}, and the hub gives no SAE: {reason}") from error
    return folder, snapshot(whole)


def _nothing(name: str, files: Iterable[str]) -> InputError:
    """What to say of a place with no SAE of its own but these files below it."""
    ends = tuple(f"/{marker}" for marker in LAYOUTS)
    found = {file.removesuffix(end) for file in files for end in ends if file.endswith(end)}
    if not found:
        return InputError(f"there is no SAE in {name!r}: none of {', '.join(LAYOUTS)} is there; give its own folder")
    names = sorted(found, key=lambda name: [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name)])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return InputError(f"{name!r} is no SAE itself, choose one below it: {', '.join(names[:SHOWN])}{more}")
