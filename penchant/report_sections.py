"""The sections of the report, one function each: metrics in, safe HTML out, empty where metrics.json lacks the part."""

from __future__ import annotations

import math
from typing import Any

from penchant.report_html import (
    Section,
    count,
    escape,
    facts,
    finite,
    interval,
    number,
    percent,
    plain,
    section,
    table,
    text_box,
)
from penchant.report_plots import Line, Row, forest, lines, whole_percent

Metrics = dict[str, Any]


def part(metrics: Metrics, *keys: str) -> dict[str, Any]:
    """The nested part at `keys`, or an empty one."""
    for key in keys:
        metrics = metrics.get(key) or {}
    return metrics


def pairs_of(data: dict[str, Any]) -> str:
    """What some pairs are: how many, from where, and how many were left out."""
    if not data:
        return ""
    text = f"{count(data.get('pairs'))} pairs, {count(data.get('prompts'))} prompts: {escape(data.get('name', ''))}"
    if data.get("skipped"):
        text += f"<br>{count(data['skipped'])} rows skipped"
    names = data.get("sources") or {}
    if len(names) > 1:
        text += "<br>" + ", ".join(f"{escape(name)} {count(n)}" for name, n in list(names.items())[:12])
    return text


def best_baseline(metrics: Metrics) -> tuple[str, dict[str, Any]] | None:
    """Name and figure of the baseline with the highest accuracy."""
    found = {name: f for name, f in part(metrics, "baselines").items() if f and finite(f.get("value"))}
    return max(found.items(), key=lambda item: item[1]["value"]) if found else None


def figure_row(name: str, figure: dict[str, Any]) -> list[str]:
    """Cells of one accuracy in a table."""
    return [escape(name), percent(figure.get("value")), interval(figure), count(figure.get("n"))]


def ends(figure: dict[str, Any]) -> tuple[float, float]:
    """Both ends of an interval; one that is missing has no width."""
    low, high = figure.get("low"), figure.get("high")
    return (low, high) if finite(low) and finite(high) else (figure["value"], figure["value"])


def intervals(caption: str, named: dict[str, Any], strong: str = "") -> tuple[str, str]:
    """A forest plot and its table for named accuracies; those without a value are left out."""
    named = {name: f for name, f in named.items() if f and finite(f.get("value"))}
    rows = [Row(name, f["value"], *ends(f), name == strong) for name, f in named.items()]
    header = ["", "Right", "95% interval", "Pairs"]
    cells = [figure_row(name, f) for name, f in named.items()]
    return (
        (forest(rows), table(caption, header, cells, [i for i, r in enumerate(rows) if r.strong])) if rows else ("", "")
    )


def accuracy(metrics: Metrics) -> Section | None:
    """Accuracy with its interval, beside the baselines."""
    overall = part(metrics, "accuracy", "overall")
    if not finite(overall.get("value")):
        return None
    named = {"This model": overall, **part(metrics, "baselines")}
    ties = f" {count(overall['ties'])} tied pairs count one half." if overall.get("ties") else ""
    says = (
        "How often the chosen response scores higher than the rejected one. Intervals hold 95% of resamplings of "
        f"the prompts; the dashed rule is a coin.{ties}"
    )
    return section(
        "accuracy", "Accuracy against the baselines", says, *intervals("Share of test pairs right", named, "This model")
    )


def sources(metrics: Metrics) -> Section | None:
    """Accuracy by source, lowest first."""
    named = part(metrics, "accuracy", "by_source")
    if len(named) < 2:
        return None
    ordered = sorted(
        ((n, f) for n, f in named.items() if f and finite(f.get("value"))), key=lambda item: item[1]["value"]
    )
    says = "Where the model is weak and where it is strong, weakest first. Few pairs make wide intervals."
    return section("sources", "By source", says, *intervals("Share of test pairs right, by source", dict(ordered)))


def tried(metrics: Metrics) -> Section | None:
    """What AutoHead tried, best first."""
    found = sorted(part(metrics, "head").get("tried") or [], key=lambda t: -(t.get("cv_accuracy") or 0))
    if not found:
        return None
    header = ["Latent", "Head", "Strength", "Right"]
    rows = [
        [
            " + ".join(escape(view) for view in t.get("views") or ()) + (" ✓ chosen" if t.get("chosen") else ""),
            escape(t.get("head", "")),
            plain(t.get("strength")),
            percent(t.get("cv_accuracy")),
        ]
        for t in found
    ]
    strong = [i for i, t in enumerate(found) if t.get("chosen")]
    shown = 8
    data = table("Accuracy on held-out training prompts", header, rows[:shown], strong)
    if len(rows) > shown:
        rest = table("The others", header, rows[shown:], [i - shown for i in strong])
        data += f"<details><summary>{len(rows) - shown} more</summary>{rest}</details>"
    says = f"{len(found)} candidates, compared by cross-validation over the training prompts; no test pair was used."
    return section("tried", "What was tried", says, data=data)


def curve(metrics: Metrics) -> Section | None:
    """Accuracy against the number of training pairs."""
    found = metrics.get("learning_curve") or []
    if len(found) < 2:
        return None
    n = [p["n"] for p in found]
    series = [Line("this model", n, *columns(found))]
    best = best_baseline(metrics)
    if best:
        series.append(Line(f"{best[0]}, all training pairs", [n[-1]], [best[1]["value"]], style="rule"))
    gain = found[-1]["value"] - found[-2]["value"]
    says = (
        f"From {count(n[-2])} to {count(n[-1])} training pairs the accuracy went {'up' if gain >= 0 else 'down'} by "
        f"{abs(100 * gain):.1f} points. The band resamples test prompts and "
        f"{count(found[-1].get('seeds'))} draws of the training pairs."
    )
    plot = lines(series, "training pairs", "accuracy", x_format=count, log=True)
    data = table(
        "Accuracy by number of training pairs",
        ["Training pairs", "Right", "95% interval"],
        [[count(p["n"]), percent(p["value"]), interval(p)] for p in found],
    )
    return section("curve", "Would more pairs help?", says, plot, data)


def columns(points: list[dict[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Values, lower and upper ends of a list of figures."""
    return [p["value"] for p in points], [p["low"] for p in points], [p["high"] for p in points]


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share of n, never empty and within [0, 1] (Wilson 1927)."""
    z = 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def calibration(metrics: Metrics) -> Section | None:
    """The reliability curve, and the errors around it."""
    fitted = part(metrics, "calibration")
    bins = [b for b in fitted.get("curve") or [] if b.get("n")]
    if not bins:
        return None
    spread = [wilson(b["accuracy"], b["n"]) for b in bins]
    series = [
        Line(
            "pairs in equal parts by confidence, 95% interval",
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            [low for low, _ in spread],
            [high for _, high in spread],
            joined=False,
        )
    ]
    floor = fitted.get("ece_if_perfect")
    chance = (
        f"; a perfectly calibrated model would show about {number(floor, 2)} on so few pairs" if finite(floor) else ""
    )
    says = (
        "When the model says it is 70% sure, is it right 70% of the time? On the dashed rule, yes; below it, the model "
        "is too sure. "
        f"The mean gap (ECE) is {number(fitted.get('ece'), 2)}{chance}."
    )
    plot = lines(series, "how sure the model is", "how often it is right", x_format=whole_percent, diagonal=True)
    errors = facts(
        [
            ("ECE before temperature scaling", number(fitted.get("ece_before"), 2)),
            ("Temperature", number(fitted.get("temperature"))),
            ("Brier score (a coin: 0.25)", number(fitted.get("brier"))),
            ("Log loss (a coin: 0.693)", number(fitted.get("nll"))),
        ]
    )
    data = table(
        "Confidence and accuracy",
        ["Confidence", "Right", "Pairs"],
        [[percent(b["confidence"]), percent(b["accuracy"]), count(b["n"])] for b in bins],
    )
    return section("calibration", "Calibration", says, plot + errors, data)


def length(metrics: Metrics) -> Section | None:
    """Accuracy by which of the two responses is longer."""
    found = part(metrics, "length_bias")
    named = {"Chosen is longer": found.get("chosen_longer"), "Chosen is shorter": found.get("chosen_shorter")}
    plot, data = intervals("Share of test pairs right", named)
    if not plot:
        return None
    correlation = found.get("correlation")
    says = (
        f"The chosen response is the longer one in {percent(found.get('share_chosen_longer'))} of the test pairs. "
        f"The correlation of score and length is {number(correlation, 2)}. "
        "A model that is much better where the longer response was chosen has learned length, not quality."
    )
    return section("length", "Length bias", says, plot, data)


def best_of_n(metrics: Metrics) -> Section | None:
    """Gold of the picked response among n, between random and the best possible."""
    found = part(metrics, "best_of_n")
    n = found.get("n") or []
    if len(n) < 2:
        return None
    picked = found["picked"]
    series = [
        Line("the best of n by gold", n, found["oracle"], style="other"),
        Line("picked by this model", n, *columns(picked)),
        Line("one at random", n, found["random"], style="rule"),
    ]
    room, won = found["oracle"][-1] - found["random"][-1], picked[-1]["value"] - found["random"][-1]
    share = f", {100 * won / room:.0f}% of what a perfect judge would win" if room > 0 else ""
    gold = escape(found.get("gold", "gold"))
    decimals = max(0, 2 - math.floor(math.log10(room))) if room > 0 else 3

    def mean(value: float) -> str:
        return f"{value:.{decimals}f}".replace("-", "−")

    says = (
        f"Sample n responses to a prompt and keep the one that scores highest: how good is it by <code>{gold}</code>? "
        f"At n = {count(n[-1])} the model gains {mean(won)} over one at random{share}. "
        f"{count(found.get('prompts'))} prompts."
    )
    plot = lines(series, "responses to choose from, n", f"mean {gold}", x_format=count, y_format=plain, log=True)
    data = table(
        f"Mean {gold} of the response kept",
        ["n", "Model", "95% interval", "Random", "Best"],
        [
            [count(k), mean(p["value"]), f"{mean(p['low'])} to {mean(p['high'])}", mean(r), mean(o)]
            for k, p, r, o in zip(n, picked, found["random"], found["oracle"], strict=True)
        ],
    )
    return section("best-of-n", "Best of n", says, plot, data)


def mistakes(metrics: Metrics) -> Section | None:
    """The worst wrong pairs, one block each, closed until asked for."""
    found = metrics.get("mistakes") or []
    if not found:
        return None

    def pair(m: dict[str, Any]) -> str:
        prompt = " ".join(str(m.get("prompt", "")).split())
        teaser = prompt if len(prompt) <= 90 else "…" + prompt[-90:]
        chosen, rejected = m.get("score_chosen"), m.get("score_rejected")
        gap = f"wrong by {number(rejected - chosen)}" if finite(chosen) and finite(rejected) else ""
        about = " · ".join(p for p in (f"row {escape(m.get('row', ''))}", escape(m.get("source") or ""), gap) if p)
        texts = (
            text_box("Prompt", m.get("prompt", ""), wide=True)
            + text_box(f"Chosen in the data, scored {number(chosen)}", m.get("chosen", ""))
            + text_box(f"Preferred by the model, scored {number(rejected)}", m.get("rejected", ""))
        )
        return (
            f'<details><summary><bdi>{escape(teaser) or "(no prompt)"}</bdi> <span class="meta">{about}</span>'
            "</summary>"
            f'<div class="answers">{texts}</div></details>'
        )

    says = (
        "The test pairs where the rejected response scored highest above the chosen one, worst first. In some of them "
        "the label may be what is wrong."
    )
    return section("mistakes", "Worst mistakes", says, data="".join(pair(m) for m in found))
