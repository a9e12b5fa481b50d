"""The page's part on single pairs: each score as a sum of parts, and where in the texts the features are active."""

from __future__ import annotations

import math
from typing import Any

from penchant.report_features import Bar, Explanation, bars, called, effect, signed
from penchant.report_html import Section, count, escape, section, table
from penchant.report_tokens import Shade, Token, said, shaded, tokens

SIDES = {"prompt": "Prompt", "chosen": "Chosen in the data", "rejected": "Rejected in the data"}
REST = "what the SAE does not describe"
ROUNDING = 1e-5
"""What is left over beyond this share of the score's parts is shown as a part of its own."""


def pairs(explanation: Explanation) -> Section | None:
    """A handful of pairs, one block each, the first one open."""
    found = explanation["pairs"]
    if not found:
        return None
    exact = (
        "Each column adds up to the score."
        if explanation["model"]["additive"]
        else "Contributions are integrated gradients from the mean of the training pairs: each column adds up to the"
        " score but for what is left over."
    )
    says = (
        f"The score of both responses, part by part. {exact} The difference says which response a part speaks for: "
        "above 0 for the chosen one."
    )
    blocks = "".join(pair(explanation, one, i == 0) for i, one in enumerate(found))
    return section("pairs", "Pairs taken apart", says, data=blocks)


def pair(explanation: Explanation, one: dict[str, Any], is_open: bool) -> str:
    """One pair: what its scores are made of, then its texts."""
    margin = one["score"]["difference"]
    verdict = "right" if margin > 0 else "wrong" if margin < 0 else "tied"
    by = f"{verdict} by {signed(abs(margin))[1:]}" if margin else verdict
    texts = explanation["texts"][str(one["row"])]
    prompt = said(side(texts, "prompt"))
    teaser = prompt if len(prompt) <= 90 else "…" + prompt[-90:]
    drawn = [
        Bar(called(explanation, part), part["difference"], signed(part["difference"]), effect(part["difference"]))
        for part in one["features"]
    ]
    sums = table("The score, part by part", ["", "Chosen", "Rejected", "Difference"], *rows(explanation, one))
    figure = bars(drawn, "Difference between chosen and rejected, by feature") if drawn else ""
    sides = f'<div class="sides"><figure>{figure}</figure><div>{sums}</div></div>' if figure else sums
    return (
        f"<details{' open' if is_open else ''}><summary><bdi>{escape(teaser) or '(no prompt)'}</bdi> "
        f'<span class="meta">row {count(one["row"])} · {escape(one["why"])} · {by}</span></summary>'
        f"<p>{sentence(explanation, one)}</p>{sides}<h3>Where its features are active</h3>"
        f"{active(explanation, one, texts)}{whole(texts)}</details>"
    )


def sentence(explanation: Explanation, one: dict[str, Any]) -> str:
    """Which response wins and which features speak most for it, and against it."""
    margin = one["score"]["difference"]
    parts = [(f"“<bdi>{escape(called(explanation, part))}</bdi>”", part["difference"]) for part in one["features"]]
    if one["rest"]:
        parts.append((REST, one["rest"]["difference"]))
    parts.sort(key=lambda part: -abs(part[1]))

    def most(side: float) -> str:
        found = [f"{name} ({signed(difference)})" for name, difference in parts if difference * side > 0]
        return " and ".join(found[:2])

    if not margin:
        return "Both responses score the same."
    says = f"The {'chosen' if margin > 0 else 'rejected'} response scores higher by {signed(abs(margin))[1:]}"
    says += f", most of all by {most(margin)}" if most(margin) else ""
    return says + (f"; against it speaks {most(-margin)}." if most(-margin) else ".")


def rows(explanation: Explanation, one: dict[str, Any]) -> tuple[list[list[str]], list[int]]:
    """The table's rows, all with as many decimals, and which of them is the sum."""
    parts = [
        (
            f'<bdi>{escape(called(explanation, part))}</bdi> <span class="meta">{part["feature"]} · '
            f"{escape(part['view'])}</span>",
            part,
        )
        for part in one["features"]
    ]
    others = one["others"]
    if others["features"]:
        parts.append((f"{count(others['features'])} other features", others))
    if one["rest"]:
        parts.append((REST, one["rest"]))
    if one["base"]:
        parts.append(("base, the same for all", {"chosen": one["base"], "rejected": one["base"], "difference": 0.0}))
    largest = max(abs(part[name]) for _, part in [*parts, ("", one["score"])] for name in ("chosen", "rejected"))
    if abs(one["left_over"]["chosen"]) + abs(one["left_over"]["rejected"]) > ROUNDING * largest:
        parts.append(("left over by the approximation", one["left_over"]))
    parts.append(("Score", one["score"]))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    cells = [
        [name, *(signed(part[column], decimals) for column in ("chosen", "rejected", "difference"))]
        for name, part in parts
    ]
    return cells, [len(cells) - 1]


def active(explanation: Explanation, one: dict[str, Any], texts: dict[str, Any]) -> str:
    """For each of the pair's features its texts, shaded; sides in which it is silent are named, not shown."""
    blocks: dict[int, str] = {}
    for part in one["features"]:
        latent, does = part["feature"], effect(part["weight"])
        found = {name: side(texts, name, str(latent)) for name in SIDES if name in texts}
        most = max((token.activation for text in found.values() for token in text), default=0.0)
        if not most or latent in blocks:
            continue
        speaks = {name: any(token.activation for token in text) for name, text in found.items()}
        shown = [
            text_block(name, shaded(text, Shade(does.style, most))) for name, text in found.items() if speaks[name]
        ]
        silent = " and ".join(f"the {name}" for name in found if not speaks[name])
        note = f"<p>Silent in {silent}.</p>" if silent else ""
        blocks[latent] = (
            f'<details{"" if blocks else " open"}><summary><span class="{does.verb}">{does.sign}</span> '
            f'<bdi>{escape(called(explanation, part))}</bdi> <span class="meta">feature {latent}, {does.verb} the score'
            f" · chosen {signed(part['chosen'])}, rejected {signed(part['rejected'])}</span></summary>"
            f'<div class="answers">{"".join(shown)}</div>{note}</details>'
        )
    return "".join(blocks.values()) or "<p>They are silent at every single token.</p>"


def whole(texts: dict[str, Any]) -> str:
    """The texts in full, without shades."""
    shown = []
    for name in SIDES:
        if text := side(texts, name):
            shown.append(text_block(name, shaded(text, Shade("up", 1.0), around=len(text))))
    return f'<details><summary>The texts in full</summary><div class="answers">{"".join(shown)}</div></details>'


def side(texts: dict[str, Any], name: str, latent: str = "") -> list[Token]:
    """The tokens of the prompt or of a response, with what one SAE latent does at them."""
    found = texts.get(name)
    if found is None:
        return []
    activations = [0.0] * len(found["pieces"])
    for place, value in found["activations"].get(latent, []):
        activations[place] = value
    return tokens(found["pieces"], found["content"], activations)


def text_block(name: str, shown: str) -> str:
    label = SIDES[name]
    return (
        f"<div{' class=wide' if name == 'prompt' else ''}><h4>{label}</h4>"
        f'<div class="text" dir="auto" tabindex="0" role="region" aria-label="{label}">{shown}</div></div>'
    )
