"""What the tables of all benchmarks are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def made(record: dict[str, Any]) -> str:
    return f"Measured {record['date']} on {record['machine']}; torch {record['versions']['torch']}."


def percent(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def points(delta: dict[str, float]) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{100 * delta['value']:+.1f} ({100 * delta['low']:+.1f} to {100 * delta['high']:+.1f})"


def result(name: str) -> dict[str, Any]:
    """The recorded full run of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def spread(deltas: list[dict[str, float]]) -> str:
    """The least and the largest of several differences, and how many are clearly above and below 0."""
    values = [100 * delta["value"] for delta in deltas]
    above, below = sum(delta["low"] > 0 for delta in deltas), sum(delta["high"] < 0 for delta in deltas)
    return f"{min(values):+.1f} to {max(values):+.1f}; of {len(deltas)} cells {above} clearly above 0, {below} below"
