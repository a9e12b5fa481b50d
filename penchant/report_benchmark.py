"""The part of a report that shows a benchmark: its figures with intervals, beside those of the longer text.

The part `benchmark` of metrics.json is what `evaluate.benchmarks.evaluate_benchmark` returns, with the name of the
`data` and the rows `skipped` by reason.
"""

from __future__ import annotations

from typing import Any

from penchant.report_html import Section, count, escape, finite, interval, percent, points, section, table
from penchant.report_plots import Row, forest
from penchant.report_sections import Metrics, part

SAYS = {
    "rewardbench": "A row is right where the chosen response scores above the rejected one; a tie is wrong. A section "
    "is the mean of its subsets, by the benchmark's own weights, and the average is that of the sections; prior sets, "
    "where they are there, count half a section.",
    "rewardbench2": "A row is right where the right response scores above all others; responses that tie at the top "
    "share the credit. Ties is accuracy (60%) and whether right answers stand further from wrong ones than from each "
    "other (40%). The average is that of the subsets.",
    "rm-bench": "Each prompt has a right and a wrong response in three styles, from plain to fancy. Normal compares "
    "equal styles, easy a fancier right response, hard a fancier wrong one; a tie is wrong. A domain is the mean of "
    "the three, the average that of the domains.",
    "best-of-n": "A row is right where the right response scores above all others; responses that tie at the top "
    "share the credit. The average is that of all rows.",
}
CHANCE = {"rewardbench": 0.5, "rewardbench2": 0.25, "rm-bench": 0.5}
"""What one response at random scores, where every row has as many."""
FEW = "too few prompts"


def benchmark_average(metrics: Metrics) -> dict[str, Any]:
    """The figure that sums the benchmark up, empty without one."""
    found = part(metrics, "benchmark")
    return part(found, "figures", str(found.get("overall")))


def benchmark_headline(metrics: Metrics) -> str:
    """The benchmark's average in one sentence, and a warning where text length does as well; empty without one."""
    found, overall = part(metrics, "benchmark"), benchmark_average(metrics)
    if not finite(overall.get("value")):
        return ""
    longer, over = part(overall, "longer"), part(overall, "over_longer")
    sentence = (
        f"<em>{percent(overall['value'])}</em> on {escape(found.get('name'))} ({ends(overall)}), "
        f"{count(found.get('rows'))} rows; always choosing the longer text: {percent(longer.get('value'))}"
    )
    shown = f'<p class="headline">{sentence}.</p>'
    if finite(over.get("low")) and over["low"] > 0:
        return shown
    difference = f"{points(over.get('value'))} points ({difference_ends(over)})"
    return (
        f'{shown}<p class="note warning" role="note"><strong>Not shown to beat the longer text.</strong> '
        f"The difference is {difference}.</p>"
    )


def ends(figure: dict[str, Any]) -> str:
    """The interval of a figure, where it has one."""
    return interval(figure) if finite(figure.get("low")) else FEW


def difference_ends(figure: dict[str, Any]) -> str:
    """The interval of a difference in points, where it has one."""
    return f"{points(figure['low'])} to {points(figure['high'])}" if finite(figure.get("low")) else FEW


def on_axis(share: float) -> float:
    """Ties goes from -0.01 to 1.01, which the plot does not show."""
    return min(max(share, 0.0), 1.0)


def benchmark(metrics: Metrics) -> Section | None:
    """All figures of the benchmark, its average last."""
    found = part(metrics, "benchmark")
    figures: dict[str, dict[str, Any]] = found.get("figures") or {}
    if not figures:
        return None
    rows = [
        Row(name, on_axis(f["value"]), on_axis(f["low"]), on_axis(f["high"]), name == found.get("overall"))
        for name, f in figures.items()
        if finite(f["low"])
    ]
    cells = [
        [
            escape(name),
            percent(f["value"]),
            ends(f),
            percent(f["longer"]["value"]),
            f"{points(f['over_longer']['value'])} ({difference_ends(f['over_longer'])})",
            count(f["n"]),
        ]
        for name, f in figures.items()
    ]
    strong = [i for i, name in enumerate(figures) if name == found.get("overall")]
    header = ["", "Score", "95% interval", "Longer text", "Difference, points", "Rows"]
    says = f"{SAYS.get(str(found.get('name')), '')} Intervals hold 95% of resamplings of the prompts of each subset."
    says += f" {count(found.get('rows'))} rows of {escape(found.get('data', ''))}."
    if len(rows) < len(figures):
        says += " A figure that rests on a subset of fewer than two prompts has no interval and is in the table alone."
    if found.get("ties"):
        says += f" In {count(found['ties'])} of them a chosen and a rejected response score the same."
    says += "".join(f" {count(n)} rows skipped: {escape(why)}." for why, n in (found.get("skipped") or {}).items())
    name = escape(found.get("name", ""))
    return section(
        "benchmark",
        f"Benchmark: {name}",
        says,
        forest(rows, CHANCE.get(name)) if rows else "",
        table(f"Scores on {name}", header, cells, strong),
    )
