"""Curves of a policy's training over its steps: loss and accuracy, and what became of the codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from penchant.report_html import Section, count, finite, number, percent, plain, points, section, table
from penchant.report_plots import Line, lines, whole_percent
from penchant.report_sections import Metrics

DRAWN = 40
"""Points drawn of a curve at most; of more, the means of neighbours are drawn."""


def training(metrics: Metrics) -> Section | None:
    """Loss and accuracy over the steps."""
    rows = metrics.get("history") or []
    loss = curve("loss", [("training loss", "loss", "accent")], rows, plain)
    right = [("training batches", "accuracy", "accent"), ("held-out pairs", "eval_accuracy", "other")]
    drawn = [plot for plot in (loss, curve("right", right, rows)) if plot]
    if not drawn:
        return None
    shown = thinned([row for row in rows if finite(row.get("loss"))], ("loss", "accuracy", "margin", "learning_rate"))
    cells = [
        [
            count(x["step"]),
            number(x.get("loss")),
            percent(x.get("accuracy")),
            number(x.get("margin")),
            number(x.get("learning_rate")),
        ]
        for x in shown
    ]
    header = ["Step", "Loss", "Right", "Margin", "Learning rate"]
    listed = f"<details><summary>The numbers</summary>{table('Training, step by step', header, cells)}</details>"
    says = (
        "Each point averages the training batches since the one before. Right: how often the implicit reward of the "
        "chosen response is the higher one; a coin has 50%."
    )
    return section("training", "How training went", says, drawn[0], "".join(map(figure, drawn[1:])) + listed)


def collapse(metrics: Metrics) -> Section | None:
    """KL, codes in use and the top code's share over the steps."""
    rows = [row for row in metrics.get("history") or [] if finite(row.get("kl"))]
    drawn = [
        curve("nats", [("KL of posterior from prior", "kl", "accent")], rows, plain),
        curve("codes", [("codes in use (perplexity)", "perplexity", "accent")], rows, plain),
        curve("prompts", [("prompts on the top code", "top_share", "accent")], rows),
        curve("points", [("accuracy with the posterior − with the prior", "gap", "accent")], rows, points),
    ]
    shown = [plot for plot in drawn if plot]
    if not shown:
        return None
    says = (
        "Collapse looks like this: the KL falls to 0, so that the pair says nothing the prompt does not; or one code "
        "takes all prompts and the codes in use fall to 1. z is drawn from the posterior at first and from the prior "
        "in the end, so that training ends as inference works."
    )
    half = (len(shown) + 1) // 2
    return section(
        "collapse", "The codes over training", says, "".join(shown[:half]), "".join(map(figure, shown[half:]))
    )


def curve(
    title: str,
    series: Sequence[tuple[str, str, str]],
    rows: Sequence[Metrics],
    y_format: Callable[[Any], str] = whole_percent,
) -> str:
    """A plot of (name, key, style) over the steps; empty with fewer than two points."""
    drawn = []
    for name, key, style in series:
        found = thinned([row for row in rows if finite(row.get(key)) and finite(row.get("step"))], (key,))
        if len(found) > 1:
            drawn.append(Line(name, [row["step"] for row in found], [row[key] for row in found], style=style))
    if not drawn:
        return ""
    return lines(drawn, "step", title, x_format=count, y_format=y_format)


def thinned(rows: Sequence[Metrics], keys: Sequence[str]) -> list[Metrics]:
    """At most DRAWN rows {step, *keys}: the means of as many neighbours each, at the last one's step."""
    size = -(-len(rows) // DRAWN) or 1
    found = []
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        row = {"step": some[-1]["step"]}
        for key in keys:
            values = [one[key] for one in some if finite(one.get(key))]
            row[key] = sum(values) / len(values) if values else None
        found.append(row)
    return found


def figure(plot: str) -> str:
    return f"<figure>{plot}</figure>"
