"""Plots of people: a pair of bars each, and a map with labels that stay apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from penchant.report_html import escape, percent, plain, visible
from penchant.report_plots import WIDTH, svg, ticks, whole_percent

LONGEST = 28
"""Characters of a name that are shown in a plot or a table."""
LABELLED = 24
"""People on a map beyond whom nobody is labelled."""


class Bars(NamedTuple):
    """One person's two shares."""

    name: str
    own: float
    pooled: float


class Place(NamedTuple):
    name: str
    x: float
    y: float


def short(name: str) -> str:
    """A name in one line, its middle left out where it is long, so that ids that begin alike are told apart."""
    line = visible(" ".join(str(name).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 11]}…{line[-10:]}"


def bars_each(rows: Sequence[Bars]) -> str:
    """A person's own share over the pooled one, from 0 to 100%, with a dashed rule at chance."""
    left, right, step = 8, WIDTH - 8, 44
    bottom = step * len(rows) + 4

    def x(value: float) -> float:
        return round(left + value * (right - left), 1)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{whole_percent(tick)}</text>')
    for i, row in enumerate(rows):
        y = step * i
        parts.append(f'<text class="name" x="{left}" y="{y + 17}">{escape(short(row.name))}</text>')
        parts.append(
            f'<text class="strong" x="{right}" y="{y + 17}" text-anchor="end">{percent(row.own, "")} / '
            f"{percent(row.pooled)}</text>"
        )
        for share, style, at in ((row.own, "accent", y + 23), (row.pooled, "other", y + 32)):
            width = round(share * (right - left), 1)
            parts.append(f'<rect class="bar" x="{left}" y="{at}" width="{width}" height="7" fill="var(--{style})"/>')
    parts.append(f'<line class="rule" x1="{x(0.5)}" x2="{x(0.5)}" y1="4" y2="{bottom}"/>')
    says = "; ".join(f"{escape(short(r.name))} {percent(r.own)}, pooled {percent(r.pooled)}" for r in rows)
    return svg(bottom + 22, f"Share right by each person's own taste and by the pooled one. {says}.", parts) + key(
        [("their own", "accent"), ("pooled", "other")]
    )


def scatter(places: Sequence[Place], center: str, x_title: str, y_title: str) -> str:
    """People on a plane whose two axes have one scale, and the `center` at (0, 0)."""
    far = max([abs(v) for p in places for v in (p.x, p.y)] + [0.01])
    lows = [min(0.0, *(getattr(p, axis) for p in places)) - 0.08 * far for axis in "xy"]
    highs = [max(0.0, *(getattr(p, axis) for p in places)) + 0.08 * far for axis in "xy"]
    left, right, top, most = 40, WIDTH - 8, 24, 270
    scale = min((right - left) / (highs[0] - lows[0]), most / max(highs[1] - lows[1], 0.6 * (highs[0] - lows[0])))
    width, height = (right - left) / scale, max(highs[1] - lows[1], 0.6 * (highs[0] - lows[0]))
    low_x = (lows[0] + highs[0] - width) / 2
    low_y = (lows[1] + highs[1] - height) / 2
    bottom = round(top + height * scale, 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return round(left + (x - low_x) * scale, 1), round(bottom - (y - low_y) * scale, 1)

    parts = [f'<text x="0" y="12">{y_title}</text>']
    for tick in ticks(low_y, low_y + height, 5):
        y = at(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{plain(tick)}</text>')
    for tick in ticks(low_x, low_x + width, 5):
        x = at(tick, 0)[0]
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 17:g}" text-anchor="middle">{plain(tick)}</text>')
    parts.append(f'<text x="{(left + right) / 2:g}" y="{bottom + 35:g}" text-anchor="middle">{x_title}</text>')
    dots = [at(p.x, p.y) for p in places]
    origin = at(0, 0)
    radius = 4.5 if len(places) <= LABELLED else 3
    parts += [f'<circle class="accent" cx="{x}" cy="{y}" r="{radius}" fill-opacity=".7"/>' for x, y in dots]
    parts.append(
        f'<rect class="other" x="{origin[0] - 4.5:g}" y="{origin[1] - 4.5:g}" width="9" height="9" '
        f'transform="rotate(45 {origin[0]} {origin[1]})"/>'
    )
    names = [short(p.name) for p in places] if len(places) <= LABELLED else []
    labels = place_labels([*names, center], [*dots[: len(names)], origin], (left, WIDTH, top, bottom))
    for label in labels:
        parts.append(
            f'<text class="name" x="{label.x:g}" y="{label.y:g}" text-anchor="middle">{escape(label.text)}</text>'
        )
    shown = "; ".join(f"{escape(short(p.name))} at {p.x:.2f}, {p.y:.2f}" for p in places[:LABELLED])
    more = f"; and {len(places) - LABELLED:,} more" if len(places) > LABELLED else ""
    return svg(bottom + 40, f"Map of people, {center} at 0, 0. {shown}{more}.", parts) + key(
        [("a person", "accent"), (center, "other")]
    )


class Label(NamedTuple):
    """A text centred at x, its base line at y, and the box it takes."""

    text: str
    x: float
    y: float
    box: tuple[float, float, float, float]


def place_labels(
    names: Sequence[str], dots: Sequence[tuple[float, float]], frame: tuple[float, float, float, float]
) -> list[Label]:
    """A label beside each dot it fits beside: none over another, over a dot, or out of the frame (left, right, top,
    bottom); where there is no such place the dot has none. The last are placed first."""
    taken = [(x - 5, x + 5, y - 5, y + 5) for x, y in dots]
    found: list[Label] = []
    for name, (x, y) in reversed(list(zip(names, dots, strict=True))):
        half = sum(12 if unicodedata.east_asian_width(c) in "WF" else 7 for c in name) / 2
        beside = half + 7
        for dx, dy in (
            (beside, 4),
            (-beside, 4),
            (0, -8),
            (0, 17),
            (beside, -7),
            (-beside, -7),
            (beside, 15),
            (-beside, 15),
        ):
            box = (x + dx - half, x + dx + half, y + dy - 10, y + dy + 3)
            inside = frame[0] <= box[0] and box[1] <= frame[1] and frame[2] <= box[2] and box[3] <= frame[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(Label(name, round(x + dx, 1), round(y + dy, 1), box))
                break
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def key(entries: Sequence[tuple[str, str]]) -> str:
    """What the colours mean; all of it is safe HTML already."""
    mark = '<svg viewBox="0 0 14 14" aria-hidden="true"><rect class="{0}" x="2" y="2" width="10" height="10"/></svg>'
    return '<ul class="legend">' + "".join(f"<li>{mark.format(s)}{name}</li>" for name, s in entries) + "</ul>"
