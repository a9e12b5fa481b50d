"""The file of sampled answers: one line of JSON a batch, appended when the batch is done."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from penchant.writing import writing

SUM = "sum"
"""Of a line: the checksum of the rest of it."""


def read_batches(path: Path) -> dict[str, Any]:
    """Whole batches of the file by their key; a line that a killed run left unfinished, or a bit of which has changed,
    is passed over."""
    found = {}
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                if record.pop(SUM, None) == _sum(record):
                    found[record["batch"]] = record
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return found


def append_batch(path: Path, record: dict[str, Any]) -> None:
    """One line more; what a killed run left unfinished is ended first. Raises PenchantError where the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({**record, SUM: _sum(record)}).encode() + b"\n")


def _sum(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=8).hexdigest()
