"""The page of a fit of people: whether knowing who judged pays, for whom, where people stand, and what they are told.

Made from metrics.json alone, in the manner of `report`. FIGURE is {value, low, high, n}, and every part may be missing:

    title, created, versions, seed, warnings [sentence]
    data         {train {name, people, pairs, prompts, skipped, sources}, test {the same, strangers (people of whom
                 nothing is known, left out)}}
    system       {folder, base, dtype, latent, full (an encoder a person), rewards, population, people (all known),
                 bytes_each (of what is kept of one), z {see `evaluate_clap`}}
    accuracy     {taste_own, taste_pooled, latent_own, latent_pooled, longer: FIGURE}: by the score of a person's own
                 taste and of the population's, by p(z | x) of both, by length
    gain         {taste, latent: FIGURE}: own minus pooled, pair by pair
    people       [{user_id, pairs (fitted from), version, held_out, taste_own, ... longer, gain FIGURE}]
    win_rates    {prompts, overall FIGURE, people [{user_id, changed (answers), FIGURE}]}, see `compare_answers`
    map          {people [{user_id, x, y}], explained [2], prompts}, see `people_map`
    examples     [{prompt, population, people [{user_id, text}]}]
    cost         {population_seconds, fit_seconds, people_per_second, judge_seconds, answer_seconds, total_seconds,
                 peak_memory_mb}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.report import versions
from penchant.report_align import STYLE as ALIGN_STYLE
from penchant.report_codes import notes, side_by_side
from penchant.report_html import (
    Section,
    count,
    duration,
    escape,
    facts,
    finite,
    interval,
    number,
    percent,
    points,
    section,
    table,
    write_page,
)
from penchant.report_people import LABELLED, Bars, Place, bars_each, scatter, short
from penchant.report_sections import Metrics, intervals, pairs_of, part

DRAWN = 15
"""People with bars, at most,"""
LISTED = 60
"""and in tables: those with the most held-out pairs."""
STYLE = f"{ALIGN_STYLE}#people th, #people td {{ padding-inline: .3rem; }}\n"
NAMES = {
    "taste_own": "their own taste",
    "taste_pooled": "the pooled taste",
    "latent_own": "their own p(z | x)",
    "latent_pooled": "the pooled p(z | x)",
    "longer": "longer text",
}


def write_personal_report(metrics: Metrics, path: str | Path) -> Path:
    """Write the page for `metrics` (the contents of metrics.json) to the file `path`, and return that path."""
    makers = (setting, accuracy, people, wins, places, examples, cost)
    sections = [made for make in makers if (made := make(metrics))]
    title = escape(metrics.get("title") or "People")
    wrong = notes(metrics.get("warnings") or [])
    return write_page(title, headline(metrics) + wrong + tiles(metrics), sections, versions(metrics), path, STYLE)


def judge(metrics: Metrics) -> str:
    """What is shown first: tastes where there are any, else p(z | x)."""
    return "taste" if finite(part(metrics, "accuracy", "taste_own").get("value")) else "latent"


def headline(metrics: Metrics) -> str:
    """The result in one sentence of plain words."""
    kind = judge(metrics)
    own, gain = part(metrics, "accuracy", f"{kind}_own"), part(metrics, "gain", kind)
    if not finite(own.get("value")):
        return '<p class="headline">No accuracy was measured in this run.</p>'
    what = {"taste": "A person's own taste", "latent": "A person's own p(z | x)"}[kind]
    says = (
        f"{what} is right on <em>{percent(own['value'])}</em> of {count(own.get('n'))} held-out pairs ({interval(own)})"
    )
    if finite(gain.get("value")):
        says += f", {points(gain['value'])} points against the pooled one ({between(gain)})"
    return f'<p class="headline">{says}.</p>'


def between(figure: dict[str, Any]) -> str:
    return f'<span class="whole">{points(figure.get("low"))} to {points(figure.get("high"))}</span>'


def tiles(metrics: Metrics) -> str:
    """The few figures to remember."""
    kind = judge(metrics)
    own, pooled = (part(metrics, "accuracy", f"{kind}_{by}") for by in ("own", "pooled"))
    gain, won, system = part(metrics, "gain", kind), part(metrics, "win_rates", "overall"), part(metrics, "system")
    spent = part(metrics, "cost")
    shown = [
        ("Their own", percent(own.get("value")), f"pooled: {percent(pooled.get('value'))}"),
        ("Own − pooled", points(gain.get("value")), f"points, {between(gain)}"),
    ]
    if won:
        shown.append(("Answers won", percent(won.get("value")), f"by their own taste, {interval(won)}"))
    if finite(system.get("people")):
        shown.append(("People known", count(system["people"]), f"{count(system.get('bytes_each'))} bytes each"))
    if finite(spent.get("total_seconds")):
        rate = spent.get("people_per_second")
        note = f"{number(rate, 2)} people fitted a second" if finite(rate) else ""
        shown.append(("Time in all", duration(spent["total_seconds"]), note))
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in shown)
    return f'<dl class="tiles">{cells}</dl>'


def setting(metrics: Metrics) -> Section | None:
    """Who was fitted from what, into which system."""
    system, train, test = part(metrics, "system"), part(metrics, "data", "train"), part(metrics, "data", "test")
    if not (system or train or test):
        return None
    z = part(system, "z")
    nats = f"{number(z.get('nats_per_token'))} nats a token with an answer's own z, {number(z.get('plain'))} without z"
    units = f"{count(z.get('active_units'))} of {count(system.get('latent'))} active"
    strangers = ""
    if test.get("strangers"):
        strangers = f"<br>people of whom nothing is known, left out: {count(test['strangers'])}"
    listed = facts(
        [
            ("Fitted from", f"{count(train.get('people'))} people, {pairs_of(train)}" if train else ""),
            ("Judged on", f"{count(test.get('people'))} people, {pairs_of(test)}{strangers}" if test else ""),
            ("Personal LLM", escape(system.get("folder") or "")),
            ("LLM, frozen", escape(system.get("base") or "")),
            ("Number type", escape(system.get("dtype") or "")),
            ("Size of z", units if finite(system.get("latent")) else ""),
            ("Is z used?", nats if z else ""),
            ("Kept of a person", kept(system) if system else ""),
            ("What all share", "fitted from pairs" if system.get("population") else "nothing yet" if system else ""),
        ]
    )
    tastes = ", and a taste, which scores what anybody wrote" if system.get("rewards") else ""
    says = f"One LLM stays as it is; of each person is kept what makes p(z | x), which steers what it writes{tastes}."
    return section("setting", "Who was fitted from what", says, data=listed)


def kept(system: dict[str, Any]) -> str:
    encoder = "an encoder of their own" if system.get("full") else "their mean z"
    return f"{encoder}{', and a taste' if system.get('rewards') else ''}"


def accuracy(metrics: Metrics) -> Section | None:
    """Own and pooled, by taste and by p(z | x), beside the longer text."""
    found = part(metrics, "accuracy")
    named = {label: found.get(key) for key, label in NAMES.items()}
    plot, data = intervals("Share of held-out pairs right", named, NAMES[f"{judge(metrics)}_own"])
    if not plot:
        return None
    gains = [
        (f"Own − pooled, {label}", f"{points(figure.get('value'))} points ({between(figure)})")
        for kind, label in (("taste", "by taste"), ("latent", "by p(z | x)"))
        if finite((figure := part(metrics, "gain", kind)).get("value"))
    ]
    says = (
        "How often the response that a person chose comes out ahead, on prompts of theirs that were held out. A taste "
        "scores each response; p(z | x) prefers the response whose z is likelier under it. Ties count one half. "
        "Intervals hold 95% of resamplings of people and prompts; the dashed rule is a coin."
    )
    return section("accuracy", "Does knowing who judged help?", says, plot, data + facts(gains))


def people(metrics: Metrics) -> Section | None:
    """Each person's own and pooled accuracy."""
    kind = judge(metrics)
    own, pooled = f"{kind}_own", f"{kind}_pooled"
    found = [one for one in metrics.get("people") or [] if one and finite(one.get(own)) and finite(one.get(pooled))]
    if not found:
        return None
    most = sorted(found, key=lambda one: -(one.get("held_out") or 0))
    drawn, others = sorted(most[:DRAWN], key=lambda one: one[pooled] - one[own]), most[DRAWN:LISTED]
    plot = bars_each([Bars(str(one.get("user_id")), one[own], one[pooled]) for one in drawn])
    header = ["Person", "Own", "Pooled", "Own − pooled", "Pairs", "Held out"]

    def listed(caption: str, some: list[dict[str, Any]]) -> str:
        rows = [
            [
                name(one),
                percent(one[own]),
                percent(one[pooled]),
                f"{points(part(one, 'gain').get('value'))} ({between(part(one, 'gain'))})",
                count(one.get("pairs")),
                count(one.get("held_out")),
            ]
            for one in some
        ]
        return table(caption, header, rows)

    data = listed("Share of held-out pairs right; own − pooled in points, with its interval over prompts", drawn)
    if others:
        data += f"<details><summary>{count(len(others))} more</summary>{listed('Others', others)}</details>"
    few = (
        f"The {count(len(drawn))} with the most held-out pairs of {count(len(found))} people"
        if others
        else "All people"
    )
    says = f"{few}, those who gain most first. Of few held-out pairs a share says little: look at the intervals."
    if len(found) > LISTED:
        says += " metrics.json has everybody."
    return section("people", "Person by person", says, plot, data)


def name(one: dict[str, Any]) -> str:
    return f"<bdi>{escape(short(str(one.get('user_id'))))}</bdi>"


def wins(metrics: Metrics) -> Section | None:
    """How often answers in a person's taste beat the population's."""
    found = part(metrics, "win_rates")
    rows = [one for one in found.get("people") or [] if one and finite(one.get("value"))]
    if not rows:
        return None
    right = {one.get("user_id"): one.get("taste_own") for one in metrics.get("people") or [] if one}
    named = {"all together": found.get("overall"), **{short(str(one.get("user_id"))): one for one in rows}}
    plot, _ = intervals("", named, "all together")
    header = ["Person", "Answers won", "95% interval", "Other texts", "Judge right"]
    cells = [
        [
            name(one),
            percent(one["value"]),
            interval(one),
            count(one.get("changed")),
            percent(right.get(one.get("user_id"))),
        ]
        for one in rows
    ]
    says = (
        f"{count(found.get('prompts'))} held-out prompts, answered for each person and for the population. <strong>The "
        "judge is that person's own taste</strong>, learned from the same pairs: how often it is right on their "
        "held-out pairs stands beside it, and where that is near 50%, winning by it means nothing. Equal texts are one "
        "half, an empty answer loses. Other texts: how many answers differ from the population's at all."
    )
    return section(
        "wins", "Are answers more to their taste?", says, plot, table("Answers won, person by person", header, cells)
    )


def places(metrics: Metrics) -> Section | None:
    """The map of people, and the numbers behind it."""
    found = part(metrics, "map")
    rows = [one for one in found.get("people") or [] if one and finite(one.get("x")) and finite(one.get("y"))]
    if not rows:
        return None
    held = [share for share in found.get("explained") or [] if finite(share)]
    titles = [
        f"direction {i + 1}" + (f" ({100 * held[i]:.0f}% of the spread)" if i < len(held) else "") for i in (0, 1)
    ]
    plot = scatter([Place(str(one.get("user_id")), one["x"], one["y"]) for one in rows], "the population", *titles)
    header = ["Person", "Direction 1", "Direction 2", "From the population"]
    cells = [
        [name(one), number(one["x"]), number(one["y"]), number((one["x"] ** 2 + one["y"] ** 2) ** 0.5)]
        for one in rows[:LISTED]
    ]
    listed = table("Where people stand, in deviations of z's prior", header, cells)
    more = f" {count(len(rows) - LISTED)} more are in metrics.json." if len(rows) > LISTED else ""
    labels = " Names are left out where there are many; the table has them." if len(rows) > LABELLED else ""
    says = (
        f"Each person's z, averaged over {count(found.get('prompts'))} held-out prompts, in the two directions in "
        "which people differ most. Who stand together are answered alike. The unit is the deviation of z's prior, and "
        f"both axes have the same scale.{labels}"
    )
    return section("map", "Map of people", says, plot, listed + (f"<p>{more}</p>" if more else ""))


def examples(metrics: Metrics) -> Section | None:
    """The same prompts, answered for nobody in particular and for each person."""
    found = [one for one in metrics.get("examples") or [] if one]
    if not found:
        return None
    blocks = []
    for i, one in enumerate(found):
        usual, own = one.get("population"), [each for each in one.get("people") or [] if each]
        texts = [("The population", str(usual))] if usual is not None else []
        texts += [
            (f"<bdi>{escape(short(str(each.get('user_id'))))}</bdi>", str(each.get("text") or "")) for each in own
        ]
        other = sum(each.get("text") != usual for each in own)
        about = f"{count(other)} of {count(len(own))} people are answered otherwise"
        blocks.append(side_by_side(str(one.get("prompt") or ""), texts, about, is_open=i == 0))
    says = "The likeliest answers to held-out prompts. A few prove nothing; they show what z changes."
    return section("examples", "Answers side by side", says, data="".join(blocks))


def cost(metrics: Metrics) -> Section | None:
    """Time and memory."""
    spent = part(metrics, "cost")
    if not spent:
        return None
    memory = spent.get("peak_memory_mb")
    listed = facts(
        [
            ("Time in all", duration(spent.get("total_seconds"))),
            ("What all share", duration(spent.get("population_seconds"))),
            ("Everybody's own", duration(spent.get("fit_seconds"))),
            ("People fitted a second", number(spent.get("people_per_second"))),
            ("Judging", duration(spent.get("judge_seconds"))),
            ("Answers", duration(spent.get("answer_seconds"))),
            ("Bytes a person", count(part(metrics, "system").get("bytes_each"))),
            ("Peak memory", f"{count(memory)} MB" if finite(memory) else ""),
        ]
    )
    return section("cost", "Cost", "What this run took.", data=listed)
