"""The file of sampled answers: one line of JSON a batch, appended when the batch is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_batches(path: Path) -> dict[str, Any]:
    """Whole batches of the file by their key; a line that a killed run left unfinished is passed over."""
    found = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
                found[record["batch"]] = record
            except (ValueError, KeyError, TypeError):
                continue
    return found


def append_batch(path: Path, record: dict[str, Any]) -> None:
    """One line more; what a killed run left unfinished is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
