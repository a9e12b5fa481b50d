"""The report's plots as inline SVG: intervals in rows, and lines with bands. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from penchant.report_html import escape, percent, plain

WIDTH = 320  # A phone's width, so that 12 px letters stay 12 px there
Format = Callable[[Any], str]


class Row(NamedTuple):
    """One interval of a forest plot."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = False


class Line(NamedTuple):
    """One line of a line plot; a band, or whiskers, where `low` and `high` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = "accent"
    joined: bool = True
    """Points joined by a line with a band, or single points with whiskers."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """About `most` round numbers within [low, high]."""
    raw = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s for s in (power, 2 * power, 2.5 * power, 5 * power, 10 * power) if s >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """A range a little wider than the values."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


def svg(height: float, says: str, parts: Sequence[str]) -> str:
    """A picture with its text alternative."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{says}">{"".join(parts)}</svg>'


def whole_percent(value: Any) -> str:
    return f"{100 * value:.3g}%"


def forest(rows: Sequence[Row], rule: float | None = 0.5) -> str:
    """Rows of intervals on one axis of percentages, with a dashed rule at chance."""
    low, high = span([v for r in rows for v in (r.low, r.high)] + ([] if rule is None else [rule]))
    low, high = max(low, 0.0), min(high, 1.0)
    left, right, step = 8, WIDTH - 8, 40

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    bottom = step * len(rows) + 4
    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{whole_percent(tick)}</text>')
    if rule is not None:
        parts.append(f'<line class="rule" x1="{x(rule)}" x2="{x(rule)}" y1="4" y2="{bottom}"/>')
    for i, row in enumerate(rows):
        y, style = step * i, "accent" if row.strong else "other"
        name = row.name if len(row.name) <= 32 else row.name[:31] + "…"
        parts.append(f'<rect x="0" y="{y + 5}" width="{WIDTH}" height="16" fill="var(--card)"/>')
        parts.append(
            f'<text class="{"strong" if row.strong else "name"}" x="{left}" y="{y + 17}">{escape(name)}</text>'
        )
        parts.append(f'<text class="strong" x="{right}" y="{y + 17}" text-anchor="end">{percent(row.value)}</text>')
        parts.append(
            f'<line class="whisker {style}" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y + 30}" y2="{y + 30}"/>'
        )
        parts.append(f'<circle class="{style}" cx="{x(row.value)}" cy="{y + 30}" r="4.5"/>')
    says = "; ".join(f"{escape(r.name)} {percent(r.value)}, from {percent(r.low)} to {percent(r.high)}" for r in rows)
    return svg(bottom + 22, f"Accuracy with intervals. {says}.", parts)


def lines(
    series: Sequence[Line],
    x_title: str,
    y_title: str,
    *,
    x_format: Format = plain,
    y_format: Format = whole_percent,
    log: bool = False,
    diagonal: bool = False,
) -> str:
    """Lines over one pair of axes, with a legend below; `diagonal` draws y = x, `log` a logarithmic x axis
    with a tick at each point."""
    xs = [math.log(v) if log else v for line in series for v in line.x]
    x_low, x_high = span(xs, 0.04)
    y_low, y_high = span(
        [v for line in series for part in (line.y, line.low, line.high) for v in part] + (xs if diagonal else [])
    )
    labels = [(tick, y_format(tick)) for tick in ticks(y_low, y_high)]
    left, right, top, bottom = 10 + 7 * max(len(text) for _, text in labels), WIDTH - 10, 24, 196

    def x(value: float) -> float:
        return round(left + ((math.log(value) if log else value) - x_low) / (x_high - x_low) * (right - left), 1)

    def y(value: float) -> float:
        return round(bottom - (value - y_low) / (y_high - y_low) * (bottom - top), 1)

    parts = [f'<text x="0" y="12">{y_title}</text>']
    for tick, text in labels:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:g}" text-anchor="end">{text}</text>')
    last = -math.inf
    for tick in sorted({v for line in series for v in line.x}) if log else ticks(x_low, x_high):
        if x(tick) - last > 9 * len(x_format(tick)):  # leave out a label that would touch its neighbour
            last = x(tick)
            parts.append(f'<text x="{last}" y="{bottom + 17}" text-anchor="middle">{x_format(tick)}</text>')
            parts.append(f'<line class="axis" x1="{last}" x2="{last}" y1="{bottom}" y2="{bottom + 4}"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(left + right) / 2:g}" y="{bottom + 35}" text-anchor="middle">{x_title}</text>')
    if diagonal:
        a, b = max(x_low, y_low), min(x_high, y_high)
        parts.append(f'<line class="rule" x1="{x(a)}" y1="{y(a)}" x2="{x(b)}" y2="{y(b)}"/>')
    for line in series:
        at = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
        if line.style == "rule":
            parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{at[0][1]}" y2="{at[0][1]}"/>')
            continue
        if line.joined and line.low:
            edge = list(zip(line.x, line.high, strict=True)) + list(zip(line.x, line.low, strict=True))[::-1]
            parts.append(f'<polygon class="band {line.style}" points="{" ".join(f"{x(a)},{y(b)}" for a, b in edge)}"/>')
        if not line.joined:
            for a, low, high in zip(line.x, line.low, line.high, strict=True):
                parts.append(
                    f'<line class="whisker {line.style}" x1="{x(a)}" x2="{x(a)}" y1="{y(low)}" y2="{y(high)}"/>'
                )
        else:
            parts.append(f'<polyline class="line {line.style}" points="{" ".join(f"{a},{b}" for a, b in at)}"/>')
        parts.extend(f'<circle class="{line.style}" cx="{a}" cy="{b}" r="3.5"/>' for a, b in at)
    says = "; ".join(
        f"{escape(line.name)}: "
        + ", ".join(f"{y_format(b)} at {x_format(a)}" for a, b in zip(line.x, line.y, strict=True))
        for line in series
    )
    return svg(bottom + 40, f"{y_title} against {x_title}. {says}.", parts) + legend(series, diagonal)


def legend(series: Sequence[Line], diagonal: bool) -> str:
    entries = [(line.name, line.style) for line in series] + ([("perfectly calibrated", "rule")] if diagonal else [])
    key = '<svg viewBox="0 0 32 14" aria-hidden="true"><line class="{0}" x1="2" x2="30" y1="7" y2="7"/></svg>'
    return '<ul class="legend">' + "".join(f"<li>{key.format(s)}{escape(name)}</li>" for name, s in entries) + "</ul>"
