"""The tables of docs/scaling.md: what was measured, and what larger LLMs and more pairs and people would cost."""

from __future__ import annotations

from typing import Any

from scale_model import KEY_BYTES, SHAPES, Shape, Trees, pass_bytes, rows_of, store_bytes
from table_cells import made, markdown, result

RATE = 790e12
"""Operations a second that a large bf16 matrix product reaches on an H200: what its users report, not measured here."""
FRACTION = 0.5
"""Share of it that encoding is assumed to reach."""
DOLLARS = 3.5
"""An H200 for an hour, assumed; rents differ by half and more, and every figure in dollars is proportional to it."""
KEPT = 6
"""Views in a stored row: the prompt's own mean stands beside the response's (see `Recipe.stored`)."""
PEOPLE_PAIRS = 20
"""Pairs a person, for a million people."""


def scale_model(record: dict[str, Any]) -> str:
    found = record["details"]["model"]
    about = (
        f"Encoding hh to layer 20 reaches {found['fraction']:.2f} of a large product's rate, "
        f"{found['product_gflops']:,.0f} GFLOP/s. Bytes of the store, foretold over those on disk: "
        f"{found['bytes_foretold']:.3f}."
    )
    return f"{markdown(rows_of(found))}\n\n{about} {made(record)}"


def hours(shape: Shape, trees: Trees) -> float:
    return shape.operations(trees, shape.top) / (RATE * FRACTION) / 3600


def scale_cost(record: dict[str, Any]) -> str:
    """A million and a billion pairs of hh's mean length."""
    per_pair = Trees(**record["details"]["model"]["per_pair"]["hh"])
    head = [
        "LLM",
        "pairs",
        "tokens",
        "operations",
        "hours of one H200",
        "dollars",
        "latents, default views",
        "latents, one view",
        "index in memory",
    ]
    rows = [head]
    for shape in SHAPES:
        for pairs, told in ((1e6, "a million"), (1e9, "a billion")):
            trees = per_pair.times(pairs)
            spent = hours(shape, trees)
            kept = [store_bytes(3 * pairs, views * shape.width) for views in (KEPT, 1)]
            rows.append(
                [
                    shape.name,
                    told,
                    f"{trees.tokens:.1e}",
                    f"{shape.operations(trees, shape.top):.1e}",
                    f"{spent:,.1f}" if spent < 100 else f"{spent:,.0f}",
                    f"{spent * DOLLARS:,.0f}",
                    *(size(bytes_) for bytes_ in kept),
                    size(3 * pairs * KEY_BYTES),
                ]
            )
    tokens = f"{per_pair.tokens:.0f} unique tokens a pair, as hh has; prompts are taken to differ."
    return f"{markdown(rows)}\n\n{tokens}"


def scale_fit(record: dict[str, Any]) -> str:
    """One reading of both sides of all pairs, and how many a fit needs."""
    memory = record["details"]["memory"]
    rows = [["LLM", "pairs", "bytes of one reading, one view", "minutes at 2 GB/s"]]
    for shape in SHAPES:
        for pairs, told in ((1e6, "a million"), (1e7, "ten million"), (1e9, "a billion")):
            read = pass_bytes(pairs, shape.width)
            rows.append([shape.name, told, size(read), f"{read / 2e9 / 60:,.1f}"])
    return f"{markdown(rows)}\n\nReadings of a fit: {memory['passes']}. {made(record)}"


def scale_people(record: dict[str, Any]) -> str:
    """A million people with PEOPLE_PAIRS pairs each, by the record of benchmarks/personal_many.py."""
    figures = result("personal_many")["figures"]
    per_pair = Trees(**record["details"]["model"]["per_pair"]["hh"])
    people = 1e6
    rows = [["a million people", "cost", "from"]]
    rows += [
        ["fitted", f"{people / figures['users_per_second'] / 60:,.1f} minutes of a CPU core", "measured rate"],
        ["kept", size(people * figures["bytes_per_user"]), "measured size"],
        ["one of them found", f"{figures['lookup_ms']:.2f} ms (p99 {figures['lookup_ms_p99']:.2f})", "measured"],
        ["one of them forgotten", f"{figures['forget_ms']:.0f} ms", "measured"],
    ]
    for shape in SHAPES:
        spent = hours(shape, per_pair.times(people * PEOPLE_PAIRS))
        told = f"{spent:,.0f} hours of one H200, {spent * DOLLARS:,.0f} dollars"
        rows.append([f"{PEOPLE_PAIRS} pairs of each read by {shape.name}", told, "the model above"])
    return markdown(rows)


def size(bytes_: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if bytes_ < 1000:
            return f"{bytes_:,.0f} {unit}" if bytes_ >= 10 else f"{bytes_:.1f} {unit}"
        bytes_ /= 1000
    return f"{bytes_:,.1f} PB"
