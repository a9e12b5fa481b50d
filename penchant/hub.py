"""Models on the hub by commit: a name may carry one, "org/name@REVISION", and what is loaded says which it was."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import hf_hub_download

from penchant.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")


def named(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A name without its "@REVISION", and the revision asked for in either way; a folder may have an @ in its name.

    Raises InputError where both are given and differ.
    """
    if "@" not in name or Path(name).expanduser().exists():
        return name, revision
    plain, _, asked = name.rpartition("@")
    if not asked or revision not in (None, asked):
        raise InputError(f"{name!r} asks for revision {asked!r} and revision is {revision!r}; give one of them.")
    return plain, asked


def pinned(revision: str | None) -> str | None:
    """The commit that a recipe records of a hub model, None for the digest of local files."""
    return revision if revision is not None and COMMIT.fullmatch(revision) else None


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit that a branch or tag (the main one by default) of a hub model stands for now.

    Without a network it is the one that was downloaded last. Raises OSError or ValueError, as the hub's client does.
    """
    if commit := pinned(revision):
        return commit
    commit = snapshot(Path(hf_hub_download(name, "config.json", revision=revision)).parent)
    if commit is None:
        raise ValueError("the hub's cache does not say which commit was loaded")
    return commit


def snapshot(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, .../snapshots/COMMIT; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
