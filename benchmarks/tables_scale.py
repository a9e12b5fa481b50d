"""The tables of docs/scaling.md: what was measured, and what larger LLMs and more pairs and people would cost."""

from __future__ import annotations

from statistics import median
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


def scale_ray(record: dict[str, Any]) -> str:
    figures, details = record["figures"], record["details"]
    runs, stored = details["runs"], details["everything_stored"]
    rows = [["engine", "seconds of encoding", "with start-up", "over local", "with start-up", "everything stored, s"]]
    for name, own in runs.items():
        actors = name.removeprefix("ray ")
        ratios = ["1", "1"]
        if actors != name:
            low, high = figures[f"ray_overhead_{actors}_range"]
            steady, whole = (figures[f"ray_{what}_{actors}"] for what in ("overhead", "with_start_up"))
            ratios = [f"{steady:.2f} ({low:.2f} to {high:.2f})", f"{whole:.2f}"]
        told = "local" if actors == name else f"Ray, {actors} actor{'s' if actors != '1' else ''}"
        seconds = [f"{median(run[what] for run in own):.1f}" for what in ("steady", "seconds")]
        rows.append([told, *seconds, *ratios, f"{stored[name]:.1f}"])
    about = (
        f"{details['pairs']} demo pairs on {details['cores']} cores, medians (lowest to highest) over "
        f"{len(runs['local'])} rounds; latents equal to the last bit: {'yes' if figures['equal'] else 'no'}."
    )
    return f"{markdown(rows)}\n\n{about} {made(record)}"


TOLD = {
    "gather": "gather latents from the cache",
    "linear": "ridge linear head, cross-validated",
    "mlp": "MLP head, one epoch",
    "lens": "LENS, its pairs, and a head on them",
    "memory": "ridge linear head in memory",
}


def scale_memory(record: dict[str, Any]) -> str:
    rows = [["work", "pairs x 4,096", "latents", "peak memory", "seconds", "readings"]]
    for each in record["details"]["results"]:
        rows.append(
            [
                TOLD[each["contender"]],
                f"{each['pairs']:,}",
                size(1e6 * each["latents_mb"]),
                size(1e6 * each["peak_mb"]),
                f"{each['seconds']:.0f}",
                str(each["passes"] or ""),
            ]
        )
    return f"{markdown(rows)}\n\n{made(record)}"


def scale_fit(record: dict[str, Any]) -> str:
    """A linear head on one view: as many readings as at the largest size that was measured."""
    far = record["details"]["far"]
    rate = record["figures"]["disk_gb_s"] * 1e9
    rows = [["LLM", "pairs", "one reading", f"hours of reading at {rate / 1e9:.1f} GB/s"]]
    for shape in SHAPES:
        for pairs, told in ((1e6, "a million"), (1e7, "ten million"), (1e9, "a billion")):
            read = pass_bytes(pairs, shape.width)
            rows.append([shape.name, told, size(read), f"{far['passes'] * read / rate / 3600:,.1f}"])
    about = (
        f"{far['passes']} readings a fit. Here {far['binds']} binds: ten million pairs of 4,096 numbers take "
        f"{far['hours']:.1f} hours."
    )
    return f"{markdown(rows)}\n\n{about} {made(record)}"


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
