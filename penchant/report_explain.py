"""One self-contained HTML page that says why a reward model scores as it does, made from explanation.json alone.

Like the report of a run it has no script and loads nothing, and every text and name in it passes through `escape`.

explanation.json, where SIDES is {chosen, rejected, difference} and FEATURE {feature (the SAE latent's number), view}:

    title, created, versions
    model        {head, views, additive, projects, base, sae {source, architecture, latents}}
    backbone, data, accuracy    as in metrics.json; accuracy is one FIGURE
    features     [FEATURE and strength, mean, right, weight, chosen, rejected (see `Figures`), share of all strengths]
    others       {features, share}: the rest of the features
    rest         share of what the SAE does not describe; 0 but for linear heads
    latents      {feature: {name, tokens and ending [{text, mean, count}], length, share, examples [{row, side, peak,
                 cut, pieces, content, activations}]}}
    pairs        [{why, row, score SIDES, base, features [FEATURE and SIDES, activation SIDES], others {features and
                 SIDES}, rest SIDES or null, left_over SIDES}]
    texts        {row: {prompt, chosen, rejected: {pieces, content, activations {feature: [[place, activation]]}}}}
    token_pairs, tokens         how many were looked at token by token
    cost         {total_seconds, peak_memory_mb}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.explain.tokens import END
from penchant.report_explain_pairs import pairs
from penchant.report_features import Bar, Explanation, bars, called, effect, signed
from penchant.report_html import (
    Section,
    count,
    duration,
    escape,
    facts,
    interval,
    number,
    percent,
    section,
    table,
    write_page,
)
from penchant.report_tokens import TOKEN_STYLE, Shade, shaded, tokens

BACKGROUND = 0.2
"""Share of tokens from which a feature that is active there names no concept."""
TELLING = 0.3
"""Correlation with length from which it is worth a sentence."""


def write_explanation(explanation: Explanation, path: str | Path) -> Path:
    """Write the page for `explanation` (the contents of explanation.json) to the file `path`, and return that path."""
    sections = [made for make in (how_to_read, carried, responds, pairs, setting) if (made := make(explanation))]
    title = escape(explanation.get("title") or "Reward model explained")
    opening, created = headline(explanation) + tiles(explanation), escape(explanation.get("created", ""))
    return write_page(title, opening, sections, created, path, TOKEN_STYLE)


def headline(explanation: Explanation) -> str:
    """What carries the score, in one sentence, and how far that can be trusted."""
    features = explanation["features"]
    if not features:
        return '<p class="headline">No feature tells chosen from rejected in these pairs.</p>'
    total = len(features) + explanation["others"]["features"]
    carried, first = sum(one["share"] for one in features), features[0]
    says = (
        f"{count(len(features))} of {count(total)} features carry <em>{percent(carried)}</em> of the score; the"
        f" strongest, <em>“<bdi>{escape(called(explanation, first))}</bdi>”</em>, {effect(first['weight']).verb} it."
    )
    notes = []
    if explanation["rest"]:
        notes.append(
            f"<strong>{percent(explanation['rest'])} of the score is not explained here.</strong> This head scores "
            "states directly; the SAE describes them as features and a rest, and that share is in the rest."
        )
    if not explanation["model"]["additive"]:
        notes.append(
            "<strong>Contributions are approximate.</strong> This head is not a sum over features; they are integrated "
            "gradients from the mean of the training pairs."
        )
    return f'<p class="headline">{says}</p>' + "".join(f'<p class="note warning" role="note">{n}</p>' for n in notes)


def tiles(explanation: Explanation) -> str:
    """The few figures to remember."""
    right, others, features = explanation["accuracy"], explanation["others"], explanation["features"]
    found = [
        ("Accuracy on these pairs", percent(right["value"]), f"95% interval {interval(right)}"),
        ("Features with a say", count(len(features) + others["features"]), f"the {len(features)} strongest are shown"),
        ("Tokens looked at", count(explanation["tokens"]), f"in {count(explanation['token_pairs'])} pairs"),
    ]
    if explanation["rest"]:
        found.append(("Outside the SAE", percent(explanation["rest"]), "share of the score"))
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in found)
    return f'<dl class="tiles">{cells}</dl>'


def how_to_read(explanation: Explanation) -> Section:
    """What a feature is, what the score reads, and what the shades mean."""
    says = (
        "A feature is a direction in the LLM's states that a sparse autoencoder (SAE) has found; it is silent at most "
        "tokens. Its name is made of the words that activate it most in these texts: a hint, not a definition."
    )
    key = (
        f"<p>{what_is_read(explanation['model'])} The shades below show something else beside it: how active a feature "
        "is at each single token.</p>"
        '<p class="key"><mark class="up2">active</mark> <mark class="up4">very active</mark> <span class="raises">▲ '
        'raises the score</span></p><p class="key"><mark class="down2">active</mark> <mark class="down4">very active'
        '</mark> <span class="lowers">▼ lowers the score</span></p>'
        '<p class="key"><mark class="up4 peak">word<sup>5.2</sup></mark> the most active token of a text, with its '
        'activation; <span class="dim">&lt;|user|&gt;</span> written by the chat template</p>'
    )
    return section("reading", "How to read this", says, data=key)


def what_is_read(model: dict[str, Any]) -> str:
    """Which states the score reads, and what of them."""
    layer = model["views"][0].split(":")[0]
    words = {"last": "at the response's last token", "mean": "averaged over the response's tokens"}
    poolings = [view.split(":")[1] for view in model["views"]]
    says = f"The score reads the LLM's state at layer {escape(layer)}, {' and '.join(words[one] for one in poolings)}."
    if "last" in poolings:
        says += " The last token often only ends the turn; by then the LLM has read prompt and response in full."
    if model["projects"]:
        says += " It is made from how far that state points along each feature, also where the feature is silent."
    return says


def carried(explanation: Explanation) -> Section | None:
    """The strongest features, how much they carry, and how often they are active."""
    features = explanation["features"]
    if not features:
        return None
    rows = [
        [
            f'<a href="#feature-{one["feature"]}"><bdi>{escape(called(explanation, one))}</bdi></a> '
            f'<span class="meta">{one["feature"]} · {escape(one["view"])}</span>',
            percent(one["share"]),
            f'<span class="{effect(one["weight"]).verb}">{effect(one["weight"]).sign} {signed(one["weight"])}</span>',
            percent(one["chosen"]),
            percent(one["rejected"]),
            percent(one["right"]),
        ]
        for one in features
    ]
    header = ["Feature", "Share", "Weight", "In chosen", "In rejected", "Right"]
    others = explanation["others"]
    says = (
        "Share: how much of the differences between chosen and rejected scores a feature makes up, whichever way it "
        "pulls. Weight: what a unit of its activation adds. In chosen, in rejected: how often it is active there. "
        "Right: of the pairs in which it has a say, how often it sides with the chosen response; a coin has 50%."
    )
    if others["features"]:
        says += f" {count(others['features'])} weaker features share {percent(others['share'])}."
    drawn = [
        Bar(called(explanation, one), one["share"], percent(one["share"]), effect(one["weight"])) for one in features
    ]
    return section(
        "carried", "What carries the score", says, bars(drawn, "share"), table("Strongest features", header, rows)
    )


def responds(explanation: Explanation) -> Section | None:
    """For each of the features, its words and the texts in which it is most active."""
    firsts = {one["feature"]: one for one in reversed(explanation["features"])}
    ordered = sorted(firsts.values(), key=lambda one: -one["share"])
    if not ordered:
        return None
    blocks = [feature_block(explanation, one, number == 0) for number, one in enumerate(ordered)]
    says = (
        "For each feature the words with the highest mean activation, how often they occur, and the texts with its "
        "strongest tokens."
    )
    return section("responds", "What the features respond to", says, data="".join(blocks))


def feature_block(explanation: Explanation, one: dict[str, Any], first: bool) -> str:
    """Words and examples of one feature, closed until asked for."""
    found = explanation["latents"][str(one["feature"])]
    style, verb, sign = effect(one["weight"])
    most = max((max(example["activations"]) for example in found["examples"]), default=1.0)
    examples = "".join(
        f'<li><span class="meta">row {count(example["row"])} · {escape(example["side"])}</span>'
        f'<div class="text" dir="auto">{example_text(example, Shade(style, most))}</div></li>'
        for example in found["examples"]
    )
    says = [words(found["tokens"], "Words that activate it")]
    if found["tokens"] and found["tokens"][0]["text"] == END:
        says.append(words(found["ending"], "Words of the responses at whose end it is most active"))
        if abs(found["length"]) > TELLING:
            long = "long" if found["length"] > 0 else "short"
            says.append(
                f"<p>It is most active at the end of {long} answers (correlation {signed(found['length'], 2)}).</p>"
            )
    if found["share"] > BACKGROUND:
        says.insert(
            0, "<p>Active at so many tokens, it is more of a background than a concept: do not trust its name.</p>"
        )
    return (
        f'<details id="feature-{one["feature"]}"{" open" if first else ""}><summary><span class="{verb}">{sign}</span> '
        f'<bdi>{escape(called(explanation, one))}</bdi> <span class="meta">feature {one["feature"]}, {verb} the score'
        f" · {percent(one['share'])} of it · active at {percent(found['share'])} of tokens</span></summary>"
        f'{"".join(says)}<h3>Texts in which it is most active</h3><ol class="examples">{examples}</ol></details>'
    )


def words(found: list[dict[str, Any]], title: str) -> str:
    """Words with their mean activation and how often they occur."""
    if not found:
        return ""
    cells = "".join(
        f"<li><bdi>{escape(one['text'])}</bdi> <span>{number(one['mean'], 2)} × {count(one['count'])}</span></li>"
        for one in found
    )
    return f'<h3>{title}</h3><ul class="words">{cells}</ul>'


def example_text(example: dict[str, Any], shade: Shade) -> str:
    text = tokens(example["pieces"], example["content"], example["activations"])
    return shaded(text, shade, cut=example["cut"])


def setting(explanation: Explanation) -> Section:
    """Of what, through what, and on what."""
    model, data, spent = explanation["model"], explanation["data"], explanation.get("cost") or {}
    sae = model["sae"]
    listed = facts(
        [
            ("Head", escape(model["head"])),
            ("It reads", ", ".join(f"<code>{escape(view)}</code>" for view in model["views"])),
            ("LLM, frozen", escape(explanation["backbone"]["name"])),
            (
                "Sparse autoencoder",
                f"{escape(sae['source'])}: {escape(sae['architecture'])}, {count(sae['latents'])} latents",
            ),
            ("Pairs", f"{count(data['pairs'])}, {count(data['prompts'])} prompts: {escape(data.get('name', ''))}"),
            (
                "Looked at token by token",
                f"{count(explanation['token_pairs'])} pairs, {count(explanation['tokens'])} tokens",
            ),
            ("Time in all", duration(spent.get("total_seconds"))),
        ]
    )
    return section("setting", "What was explained", "All figures are of these pairs.", data=listed)
