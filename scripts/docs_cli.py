"""Writes the command line's page of the documentation from the verbs themselves; a hook of MkDocs (mkdocs.yml)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from penchant.cli.main import Verb, verbs

PAGE = "reference/cli.md"
PLACE = "<!-- verbs -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with every verb in the place of `PLACE`; other pages as they are."""
    return markdown.replace(PLACE, all_verbs()) if page.file.src_uri == PAGE else markdown


def all_verbs() -> str:
    """A section for each verb, in the order of `penchant --help`."""
    found = []
    for name, verb in verbs().items():
        each = verb if isinstance(verb, dict) else {"": verb}
        found += [section(f"{name} {action}".strip(), one) for action, one in each.items()]
    return "\n\n".join(found)


def section(name: str, verb: Verb) -> str:
    """What `penchant VERB --help` says: its description and a table of its arguments."""
    says, _, about = (inspect.getdoc(verb) or "").partition("Args:\n")
    words = dict(arguments(about))
    signature = inspect.signature(verb).parameters.values()
    given = [p for p in signature if p.default is p.empty]
    usage = " ".join(["penchant", name, *(p.name for p in given), "[--OPTION VALUE ...]"])
    rows = [f"| `{p.name}` |  | {words.get(p.name, '')} |" for p in given]
    rows += [
        f"| `--{p.name}` | {default(p.default)} | {words.get(p.name, '')} |"
        for p in signature
        if p.default is not p.empty
    ]
    table = "\n".join(["| argument | default | what it is |", "|---|---|---|", *rows])
    return f"## penchant {name}\n\n{says.strip()}\n\n```text\n{usage}\n```\n\n{table}"


def default(value: Any) -> str:
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def arguments(about: str) -> Iterator[tuple[str, str]]:
    """Names and words of a docstring's "Args:"; a line that is indented further goes on with the one before."""
    for entry in re.split(r"\n(?= {4}\w)", about.rstrip()):
        name, _, words = " ".join(entry.split()).partition(": ")
        yield name, words.replace("|", "\\|")
