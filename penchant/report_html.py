"""What every section of the report is made of: safe text, numbers with sensible digits, tables, the page itself."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from penchant.report_style import STYLE

LONGEST = 8000
"""Characters shown of any one text."""
KEPT = {"\n", "\t", "\u200c", "\u200d"}
"""Invisible characters left as they are: line breaks, tabs, and the joiners that Persian and emoji need."""
DASH = "–"


def escape(value: Any) -> str:
    """Untrusted text made safe inside an element or a quoted attribute, what cannot be seen made visible."""
    text = str(value).replace("\r\n", "\n")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… [{len(text) - LONGEST:,} more characters]"
    return html.escape(visible(text), quote=True)


def visible(text: str) -> str:
    """The text with characters that cannot be seen (null bytes, direction overrides, zero-width spaces, lone
    surrogates) as their code point, "[U+202E]", so that it can neither hide part of itself nor reorder what stands
    around it."""
    unseen = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(f"[U+{ord(c):04X}]" if c not in KEPT and unicodedata.category(c) in unseen else c for c in text)


def finite(value: Any) -> TypeGuard[float]:
    """Whether the value is there, a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def count(value: Any) -> str:
    """1013 -> 1,013"""
    return f"{round(value):,}" if finite(value) else DASH


def percent(value: Any, sign: str = "%") -> str:
    """0.6712 -> 67.1%"""
    return f"{100 * value:.1f}{sign}" if finite(value) else DASH


def points(value: Any) -> str:
    """-0.0312 -> −3.1, a difference of two percentages"""
    return f"{100 * value:+.1f}".replace("-", "−") if finite(value) else DASH


def number(value: Any, digits: int = 3) -> str:
    """0.034567 -> 0.0346, three significant digits"""
    if not finite(value):
        return DASH
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def plain(value: Any) -> str:
    """0.50 -> 0.5, for settings and ticks, which are round already"""
    return f"{value:.6g}".replace("-", "−") if finite(value) else DASH


def duration(seconds: Any) -> str:
    """182.3 -> 3 min 2 s"""
    if not finite(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def interval(figure: dict[str, Any]) -> str:
    """{"low": 0.642, "high": 0.699} -> 64.2–69.9, kept on one line"""
    return f'<span class="whole">{percent(figure.get("low"), "")}–{percent(figure.get("high"), "")}</span>'


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[int] = ()) -> str:
    """A table of cells that are safe HTML already; the first column names the row, the others are numbers.

    It scrolls by itself, with the keyboard too, where it is wider than the page. `strong` rows are emphasised.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(
        f'<tr{" class=strong" if i in strong else ""}><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values (safe HTML already); empty values are left out."""
    return "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs if v and v != DASH) + "</dl>"


class Section(NamedTuple):
    """A part of the page and how the list of parts names it."""

    anchor: str
    title: str
    html: str


def section(anchor: str, title: str, says: str, figure: str = "", data: str = "") -> Section:
    """One part of the page: a heading, what it says in plain words, a plot, and the numbers behind the plot."""
    sides = f'<div class="sides"><figure>{figure}</figure><div>{data}</div></div>' if figure else data
    return Section(
        anchor,
        title,
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{title}</h2>'
        f"<p>{says}</p>{sides}</section>",
    )


def text_box(label: str, text: Any, wide: bool = False) -> str:
    """A text under its label (safe HTML already), in a box that scrolls by itself where it is long."""
    return (
        f"<div{' class=wide' if wide else ''}><h3>{label}</h3>"
        f'<div class="text" dir="auto" tabindex="0" role="region" aria-label="{label}">{escape(text)}</div></div>'
    )


def write_page(
    title: str, opening: str, sections: Sequence[Section], footer: str, path: str | Path, more_style: str = ""
) -> Path:
    """Write a page of sections, with links to them below its opening, to `path`; returns that path.

    All but `sections` is safe HTML already.
    """
    links = "".join(f'<li><a href="#{s.anchor}">{s.title}</a></li>' for s in sections)
    content = "\n".join(s.html for s in sections)
    body = (
        f'<header><h1>{title}</h1>{opening}<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{content}\n</main>\n<footer>{footer}</footer>"
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(title, body, more_style), encoding="utf-8")
    return target


def page(title: str, body: str, more_style: str = "") -> str:
    """The whole document. Its policy forbids scripts and every load, whatever slipped into the body."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{more_style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
