"""How the pages on explanations speak of a feature: its name, what it does to the score, and bars of either kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from penchant.report_html import DASH, escape, finite, number
from penchant.report_plots import WIDTH, svg

Explanation = dict[str, Any]
Feature = dict[str, Any]


class Effect(NamedTuple):
    """What an active feature does to the score."""

    style: str
    """Of its shades: "up" or "down"."""
    verb: str
    """"raises" or "lowers", which is the class of its colour too."""
    sign: str


UP, DOWN = Effect("up", "raises", "▲"), Effect("down", "lowers", "▼")


def effect(value: float | None) -> Effect:
    """By its weight or contribution; one without a weight counts as raising."""
    return DOWN if (value or 0.0) < 0 else UP


def called(explanation: Explanation, feature: Feature) -> str:
    """A feature's name, as untrusted text."""
    number_ = feature["feature"]
    return explanation["latents"][str(number_)]["name"] or f"feature {number_}"


def signed(value: Any, decimals: int | None = None) -> str:
    """A number with its sign, with so many decimals or three significant digits; 0 has neither."""
    if not finite(value):
        return DASH
    digits = number(abs(value)) if decimals is None else f"{abs(value):,.{decimals}f}"
    return f"{'−' if value < 0 else '+'}{digits}" if value else "0"


class Bar(NamedTuple):
    """A bar from the zero line to its value."""

    name: str
    value: float
    label: str
    effect: Effect


def bars(rows: Sequence[Bar], title: str) -> str:
    """Bars below each other, each under its name and its label; to the left of the zero line where negative."""
    low, high = min(0.0, *(row.value for row in rows)), max(0.0, *(row.value for row in rows))
    left, right, step = 4, WIDTH - 4, 36

    def x(value: float) -> float:
        return round(left + (value - low) / ((high - low) or 1.0) * (right - left), 1)

    parts = [f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="2" y2="{step * len(rows)}"/>']
    for i, row in enumerate(rows):
        y, name = step * i, row.name if len(row.name) <= 34 else row.name[:33] + "…"
        edges = sorted((x(0), x(row.value)))
        parts.append(f'<rect x="0" y="{y + 3}" width="{WIDTH}" height="16" fill="var(--card)"/>')
        parts.append(f'<text class="name" x="{left}" y="{y + 15}">{row.effect.sign} {escape(name)}</text>')
        parts.append(f'<text class="strong" x="{right}" y="{y + 15}" text-anchor="end">{row.label}</text>')
        size = f'x="{edges[0]}" y="{y + 21}" width="{max(1.5, round(edges[1] - edges[0], 1))}" height="9" rx="2"'
        parts.append(f'<rect class="bar {row.effect.verb}" {size}/>')
    says = "; ".join(f"{escape(row.name)} {row.label}" for row in rows)
    return svg(step * len(rows) + 4, f"{title}: {says}.", parts)
