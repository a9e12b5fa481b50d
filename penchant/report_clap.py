"""The page of a personal LLM's pretraining: whether it uses z, and how training went.

Made from metrics.json alone, in the manner of `report`; every part may be missing:

    title, created, versions, seed, warnings [sentence]
    data         {name, prompts, skipped, given (responses a prompt in the data) | null (sampled)}
    system       {folder, base, dtype, latent, adapter ("shift" | "positions")}
    z            what `evaluate_clap` says
    sampling     {answers_each, max_new_tokens, answers, new_tokens, seconds} | null
    settings     of `ClapSettings`
    log          [{loss, nats_per_token, kl, contrastive, gradient}], a row a step
    cost         {total_seconds, peak_memory_mb}
"""

from __future__ import annotations

from pathlib import Path

from penchant.report import versions
from penchant.report_align import STYLE
from penchant.report_codes import notes
from penchant.report_curves import curve, figure, thinned
from penchant.report_html import (
    Section,
    count,
    duration,
    escape,
    facts,
    finite,
    number,
    percent,
    plain,
    section,
    table,
    write_page,
)
from penchant.report_sections import Metrics, part

ADAPTERS = {"shift": "is added to the LLM's states", "positions": "stands in front of the prompt"}
CURVES = {
    "nats_per_token": ("nats a token", "answers, under their own z"),
    "kl": ("nats", "KL of the posterior"),
    "contrastive": ("nats", "contrastive term"),
    "gradient": ("norm", "gradient, before it is clipped"),
}


def write_clap_report(metrics: Metrics, path: str | Path) -> Path:
    """Write the page for `metrics` (the contents of metrics.json) to the file `path`, and return that path."""
    sections = [made for make in (used, training, setting) if (made := make(metrics))]
    title = escape(metrics.get("title") or "Pretraining")
    opening = headline(metrics) + notes(metrics.get("warnings") or []) + tiles(metrics)
    return write_page(title, opening, sections, versions(metrics), path, STYLE)


def headline(metrics: Metrics) -> str:
    """Whether z is used, in one sentence."""
    z = part(metrics, "z")
    own, plain_ = z.get("nats_per_token"), z.get("plain")
    if not (finite(own) and finite(plain_)):
        return '<p class="headline">It was not measured whether z is used.</p>'
    return (
        f'<p class="headline">A held-out answer takes <em>{number(own)}</em> nats a token with its own z, '
        f"{number(plain_)} without z.</p>"
    )


def tiles(metrics: Metrics) -> str:
    """The few figures to remember."""
    z, spent = part(metrics, "z"), part(metrics, "cost")
    size = part(metrics, "system").get("latent")
    shown = []
    if finite(z.get("plain")) and finite(z.get("nats_per_token")):
        shown.append(("z saves", number(z["plain"] - z["nats_per_token"], 2), "nats a token"))
    if z:
        shown += [
            ("Active units", count(z.get("active_units")), f"of {count(size)}"),
            ("Told apart", percent(z.get("contrastive_accuracy")), "of answers, by z, among those to one prompt"),
            ("Mutual information", number(z.get("mutual_information"), 2), "nats, of z and the answer"),
        ]
    if finite(spent.get("total_seconds")):
        shown.append(("Time in all", duration(spent["total_seconds"]), ""))
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in shown)
    return f'<dl class="tiles">{cells}</dl>'


def used(metrics: Metrics) -> Section | None:
    """The figures on prompts that were held out."""
    z = part(metrics, "z")
    if not z:
        return None
    told = z.get("contrastive_accuracy")
    listed = facts(
        [
            ("With the answer's own z", nats(z.get("nats_per_token"))),
            ("With a z drawn at random", nats(z.get("prior"))),
            ("Without z, the LLM as it is", nats(z.get("plain"))),
            ("A whole answer gains by z", gain_of(z)),
            ("Active units", f"{count(z.get('active_units'))} of {count(part(metrics, 'system').get('latent'))}"),
            ("Mutual information of z and the answer", f"{number(z.get('mutual_information'))} nats"),
            ("Likeliest under their own z", f"{percent(told)} of answers" if finite(told) else ""),
            ("Answers judged", count(z.get("responses"))),
        ]
    )
    says = (
        "On prompts that were held out. An LLM that ignores z writes the same whoever asks: then the first two figures "
        "are equal, and no unit is active (its posterior's mean is the same for all answers). Mutual information "
        "cannot exceed the logarithm of the number of answers judged."
    )
    return section("used", "Is z used?", says, data=listed)


def gain_of(z: Metrics) -> str:
    ends = f" ({number(z.get('gain_ci_low'))} to {number(z.get('gain_ci_high'))})"
    return f"{number(z['gain'])} nats{ends}" if finite(z.get("gain")) else ""


def nats(value: object) -> str:
    return f"{number(value)} nats a token" if finite(value) else ""


def training(metrics: Metrics) -> Section | None:
    """Curves over the steps."""
    # The first stage has no contrastive term, which its rows call 0.
    log = [{**row, "contrastive": row.get("contrastive") or None} for row in metrics.get("log") or [] if row]
    rows = [{"step": i, **row} for i, row in enumerate(log, 1)]
    drawn = [
        plot for key, (title, label) in CURVES.items() if (plot := curve(title, [(label, key, "accent")], rows, plain))
    ]
    if not drawn:
        return None
    header = ["Step", "Nats a token", "KL", "Contrastive", "Gradient"]
    cells = [[count(row["step"]), *(number(row[key]) for key in CURVES)] for row in thinned(rows, tuple(CURVES))]
    listed = f"<details><summary>The numbers</summary>{table('Training, step by step', header, cells)}</details>"
    says = (
        "Means over the prompts of neighbouring steps. The contrastive term, which asks that an answer be likelier "
        "under its own z than under another answer's, begins with the second stage."
    )
    half = (len(drawn) + 1) // 2
    first, second = "".join(map(figure, drawn[:half])), "".join(map(figure, drawn[half:]))
    return section("training", "How training went", says, first, second + listed)


def setting(metrics: Metrics) -> Section | None:
    """What was trained on what, and what it took."""
    data, system, sampled = part(metrics, "data"), part(metrics, "system"), part(metrics, "sampling")
    settings, spent = part(metrics, "settings"), part(metrics, "cost")
    if not (data or system):
        return None
    skipped = data.get("skipped")
    memory = spent.get("peak_memory_mb")
    answers = f"{count(sampled.get('answers_each'))} a prompt, sampled from the LLM itself" if sampled else ""
    if finite(data.get("given")):
        answers = f"{number(data['given'], 2)} a prompt, from the data"
    listed = facts(
        [
            ("Prompts", f"{count(data.get('prompts'))}: {escape(data.get('name', ''))}" if data else ""),
            ("Rows skipped", count(skipped) if skipped else ""),
            ("Answers", answers),
            ("Sampling", duration(sampled.get("seconds"))),
            ("Personal LLM", escape(system.get("folder") or "")),
            ("LLM", escape(system.get("base") or "")),
            ("Number type", escape(system.get("dtype") or "")),
            ("Size of z", count(system.get("latent"))),
            ("z", ADAPTERS.get(kind := system.get("adapter") or "", escape(kind))),
            *((escape(name.replace("_", " ").capitalize()), setting_of(value)) for name, value in settings.items()),
            ("Peak memory", f"{count(memory)} MB" if finite(memory) else ""),
        ]
    )
    says = "An encoder reads an answer into z, and by z an adapter changes what the LLM writes; a VAE, as CLaP says."
    return section("setting", "What was trained on what", says, data=listed)


def setting_of(value: object) -> str:
    return escape(value) if isinstance(value, bool | str) else plain(value)
