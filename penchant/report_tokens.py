"""Texts whose tokens are shaded by how active a feature is at them, and the style that shades them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from penchant.explain.tokens import visible
from penchant.report_html import escape, number

LEVELS = 4
AROUND = 60
"""Tokens shown before and behind the strongest one of a long text."""
TOKEN_STYLE = """
:root {
  --up-1: #e4ecfd; --up-2: #c8d8fa; --up-3: #a9c3f6; --up-4: #8aadf2;
  --down-1: #fcebd8; --down-2: #fad7ae; --down-3: #f5bf82; --down-4: #efa658; --down: #a64b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --up-1: #1f2c4b; --up-2: #263b6e; --up-3: #2d4a92; --up-4: #3459b5;
    --down-1: #3a2a18; --down-2: #55391a; --down-3: #70481b; --down-4: #8b571c; --down: #ffb066;
  }
}
mark { background: none; color: inherit; border-radius: .2rem; padding: .08em 0; }
mark.up1 { background: var(--up-1); } mark.up2 { background: var(--up-2); }
mark.up3 { background: var(--up-3); } mark.up4 { background: var(--up-4); }
mark.down1 { background: var(--down-1); } mark.down2 { background: var(--down-2); }
mark.down3 { background: var(--down-3); } mark.down4 { background: var(--down-4); }
mark.up3, mark.down3 { box-shadow: inset 0 -1px 0 currentColor; }
mark.up4, mark.down4 { box-shadow: inset 0 -2px 0 currentColor; }
mark.peak { font-weight: 700; padding-inline: .15em; }
mark sup { font-size: .7em; font-weight: 600; line-height: 0; padding-left: .15em; font-variant-numeric: tabular-nums; }
.dim { font-size: .85em; }
span.dim, .cut { color: var(--muted); }
.words { display: flex; flex-wrap: wrap; gap: .4rem; margin: .2rem 0 .8rem; padding: 0; list-style: none; }
.words li {
  padding: .1rem .6rem; border: 1px solid var(--line); border-radius: 1rem; font-size: .92rem; background: var(--page);
}
.words span { color: var(--muted); font-size: .82rem; font-variant-numeric: tabular-nums; }
.raises { color: var(--accent); } .lowers { color: var(--down); }
svg .raises { fill: var(--accent); } svg .lowers { fill: var(--down); }
section > .key { margin: .3rem 0; color: var(--ink); }
td a, th a { color: var(--accent); text-underline-offset: .2em; }
th .meta { display: block; white-space: nowrap; }
#carried th:first-child, #pairs th:first-child { min-width: 8.5rem; }
.key mark { padding: .1em .4em; }
.examples { margin: 0 0 1rem; padding: 0; list-style: none; display: grid; gap: .6rem; }
.examples .text { max-height: none; }
.meta { color: var(--muted); font-size: .85rem; font-variant-numeric: tabular-nums; }
h4 { margin: .5rem 0 .25rem; font-size: .82rem; font-weight: 600; color: var(--muted); }
details details { margin-left: 1rem; }
summary { text-wrap: pretty; }
"""


class Shade(NamedTuple):
    """How a feature shades a text."""

    style: str
    """"up" where it raises the score, "down" where it lowers it."""
    most: float
    """The activation with the darkest shade."""

    def level(self, activation: float) -> int:
        """0 for a silent token, 1 to LEVELS for an active one."""
        return min(LEVELS, 1 + int(LEVELS * activation / self.most)) if activation > 0 else 0


class Token(NamedTuple):
    """A token to be shown."""

    text: str
    content: bool
    """False for what the chat template wrote."""
    activation: float


def tokens(pieces: Sequence[str], content: Sequence[int], activations: Sequence[float]) -> list[Token]:
    """The tokens of a text; those that make up one character are one, as active as the most active of them."""
    found: list[Token] = []
    for text, inside, activation in zip(pieces, content, activations, strict=True):
        if text or not found:
            found.append(Token(text, bool(inside), activation))
        else:
            found[-1] = found[-1]._replace(activation=max(activation, found[-1].activation))
    return found


def said(text: Sequence[Token]) -> str:
    """What the messages say, on one line, with a space where the chat template stands between them."""
    return " ".join("".join(token.text if token.content else " " for token in text).split())


def shaded(text: Sequence[Token], shade: Shade, around: int = AROUND, cut: Sequence[bool] = (False, False)) -> str:
    """Tokens as safe HTML, the strongest one with its activation; a long text is cut around that.

    `cut` says whether tokens are missing before and behind the text.
    """
    peak = max(range(len(text)), key=lambda i: text[i].activation)
    first, end = max(0, peak - around), min(len(text), peak + around + 1)
    shown = []
    for (active, inside), run in groupby(range(first, end), lambda i: (text[i].activation > 0, text[i].content)):
        if active:
            shown += [_mark(text[i], shade, i == peak) for i in run]
        else:
            plain = "".join(text[i].text for i in run)
            template = f"{' ' if shown else ''}{' '.join(plain.split())}"
            shown.append(escape(plain) if inside else f'<span class="dim">{escape(template)}</span> ')
    before, behind = first > 0 or cut[0], end < len(text) or cut[1]
    return f"{_left_out(first) if before else ''}{''.join(shown)}{_left_out(len(text) - end) if behind else ''}"


def _mark(token: Token, shade: Shade, peak: bool) -> str:
    """One active token; white space stays outside its shade, unless it is all there is."""
    word = token.text.strip()
    if word:
        left, right = token.text.split(word, 1)
    else:
        left, right = "", token.text if "\n" in token.text else ""
    if not token.content:
        right = " " if right else ""
    classes = f"{shade.style}{shade.level(token.activation)}{' peak' if peak else ''}{'' if token.content else ' dim'}"
    value = number(token.activation, 2)
    figure = f"<sup>{value}</sup>" if peak else ""
    said = escape(word or visible(token.text))
    return f'{escape(left)}<mark class="{classes}" title="{value}">{said}{figure}</mark>{escape(right)}'


def _left_out(count: int) -> str:
    return f' <span class="cut">[… {count:,} tokens …]</span> ' if count else '<span class="cut">…</span>'
