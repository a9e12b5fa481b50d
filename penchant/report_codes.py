"""One self-contained HTML page on what a policy's codes stand for, made from codes.json alone.

Like the report of a run it has no script and loads nothing, and every text and name in it passes through `escape`.

codes.json:

    title, created, versions
    policy       {base, loss, beta, codes (K)}
    data         {name, pairs, prompts, skipped, sources}
    figures      what `code_figures` says of the prompts (n of them), and kl of the pairs
    warnings     [sentence]
    codes        [{code, weight (the prior's mean), best (share of prompts whose best code it is), posterior_weight,
                 name, switch_kl, words [{text, lift, count}], raises, lowers [{text, effect}],
                 callers [{row, weight, text}], answers [text]}], all K, largest weight first
    shown        [code]: those shown in full
    answers      {prompts [{row, text}], expectation [text], max_new_tokens}; codes' answers are in the same order
    agreement    [{label, weights, unit, n, values, nmi, chance {mean, high}, above}], see `agreement`
    switched_prompts    at how many prompts codes were switched
    cost         {total_seconds, peak_memory_mb}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penchant.policy.codes import PEOPLE
from penchant.policy.watch import LEAST_KL
from penchant.report_features import signed
from penchant.report_html import (
    Section,
    count,
    duration,
    escape,
    facts,
    number,
    percent,
    plain,
    section,
    table,
    text_box,
    write_page,
)
from penchant.report_synthesis import bars
from penchant.report_tokens import TOKEN_STYLE

Codes = dict[str, Any]

STYLE = (
    TOKEN_STYLE
    + """
.code { padding: .25rem 0 1rem; }
.code h3 { margin-top: .6rem; }
.callers { margin: .2rem 0 0; padding-left: 1.2rem; }
.callers li { margin: .15rem 0; }
"""
)


def write_codes(found: Codes, path: str | Path) -> Path:
    """Write the page for `found` (the contents of codes.json) to the file `path`, and return that path."""
    makers = (in_use, each, answers, agreement, others, setting)
    sections = [made for make in makers if (made := make(found))]
    title = escape(found.get("title") or "The codes of a policy")
    return write_page(title, headline(found) + tiles(found), sections, escape(found.get("created", "")), path, STYLE)


def headline(found: Codes) -> str:
    """How many codes are in use, and whether they matter, in one sentence; then what is wrong with them."""
    figures, shown = found["figures"], shown_codes(found)
    telling = sum(changes(one) for one in shown)
    says = f"About <em>{figures['perplexity']:.1f} of {count(found['policy']['codes'])}</em> codes are in use"
    says += f"; {count(telling)} of the {count(len(shown))} shown here change what the policy says."
    return f'<p class="headline">{says}</p>{notes(found.get("warnings") or [])}'


def notes(warnings: Sequence[str]) -> str:
    """What is wrong, where it cannot be missed; the part before the first colon stands out."""
    said = []
    for text in warnings:
        first, colon, rest = text.partition(":")
        said.append(f'<p class="note warning" role="note"><strong>{escape(first)}{colon}</strong>{escape(rest)}</p>')
    return "".join(said)


def tiles(found: Codes) -> str:
    """The few figures to remember."""
    figures, first = found["figures"], found["codes"][0]
    strongest = max(found["codes"], key=lambda one: float(one["switch_kl"]))
    shown = [
        (
            "Codes in use",
            f"{figures['perplexity']:.1f}",
            f"of {count(found['policy']['codes'])}, by the prior's weights",
        ),
        ("Largest code", percent(first["weight"]), f"code {first['code']}, of the weight"),
        (
            "What a pair adds" if seen_pair(found) else "What knowing who judged adds",
            number(figures["kl"], 2),
            "nats, posterior over prior",
        ),
        ("Strongest switch", number(strongest["switch_kl"], 2), f"nats at the first token, code {strongest['code']}"),
    ]
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in shown)
    return f'<dl class="tiles">{cells}</dl>'


def seen_pair(found: Codes) -> bool:
    """Whether the posterior has seen the pair; otherwise it knows who judged."""
    return bool(found["policy"].get("posterior") != PEOPLE)


def shown_codes(found: Codes) -> list[dict[str, Any]]:
    """The codes that are shown in full, largest weight first."""
    return [one for one in found["codes"] if one["code"] in found["shown"]]


def changes(one: dict[str, Any]) -> bool:
    """Whether switching to this code does anything to the next token."""
    return bool(one["switch_kl"] >= LEAST_KL)


def in_use(found: Codes) -> Section:
    """The prior's weights, and what switching to each code does."""
    says = (
        "Weight: what the prior gives a code on average; z, which is added before the vocabulary's head, is the codes' "
        "mean by these weights. Best of: the prompts in which no code has more. Posterior: its mean weight once the "
        "pair is seen. Switch: how far the distribution of an answer's first token moves, in nats, when this code "
        f"alone speaks instead of the prior's mixture (mean KL over {count(found['switched_prompts'])} prompts; below "
        f"{plain(LEAST_KL)} is nothing)."
    )
    plot = bars([one["weight"] for one in found["codes"]], "Mean weight, by code, largest first")
    header = ["Code", "Weight", "Best of", "Posterior", "Switch"]
    rows = [
        [
            f'<a href="#code-{one["code"]}">{one["code"]}: <bdi>{escape(one["name"])}</bdi></a>',
            percent(one["weight"]),
            percent(one["best"]),
            percent(one["posterior_weight"]),
            number(one["switch_kl"], 2),
        ]
        for one in shown_codes(found)
    ]
    return section("use", "Which codes are in use", says, plot, table("Codes shown in full", header, rows))


def each(found: Codes) -> Section:
    """For every code shown: the words it is called by, the tokens it moves, the prompts that call it."""
    says = (
        "What a code does to the tokens is read off its vector: by how many nats it changes their log-probability, "
        "compared with the mean z, which all answers share. Only tokens that occur in the data's responses are listed. "
        "Called by: words of the prompts that give it more weight than chance explains, and how many times its mean "
        "weight they give it."
    )
    return section("codes", "Code by code", says, data="".join(one_code(one) for one in shown_codes(found)))


def one_code(one: dict[str, Any]) -> str:
    nothing = "" if changes(one) else '<p class="meta">Switching to this code hardly changes anything.</p>'
    words = [(word["text"], f"{word['lift']:.1f}×") for word in one["words"]]
    raised, lowered = ([(token["text"], signed(token["effect"], 2)) for token in one[k]] for k in ("raises", "lowers"))
    callers = "".join(
        f'<li><bdi>{escape(teaser(caller["text"], 200))}</bdi> <span class="meta whole">row {count(caller["row"])} · '
        f"{percent(caller['weight'])}</span></li>"
        for caller in one["callers"]
    )
    return (
        f'<details id="code-{one["code"]}" open><summary><strong>{one["code"]}</strong> '
        f'<bdi>{escape(one["name"])}</bdi> <span class="meta">weight {percent(one["weight"])} · best of '
        f"{percent(one['best'])} of the prompts · switch {number(one['switch_kl'], 2)} nats</span></summary>"
        f'<div class="code">{nothing}'
        f"{chips('Called by', words)}{chips('Raises ▲', raised)}{chips('Lowers ▼', lowered)}"
        f'<h3>Prompts with the largest weight</h3><ol class="callers">{callers}</ol></div></details>'
    )


def chips(title: str, items: Sequence[tuple[str, str]]) -> str:
    """Words with a figure each, in a row."""
    inside = "".join(f"<li><bdi>{escape(text)}</bdi> <span>{note}</span></li>" for text, note in items)
    return f'<h3>{title}</h3><ul class="words">{inside}</ul>' if inside else ""


def answers(found: Codes) -> Section | None:
    """The same prompts, answered under each code."""
    given = found["answers"]
    if not given["prompts"]:
        return None
    shown, usual = shown_codes(found), given["expectation"]
    blocks = []
    for i, prompt in enumerate(given["prompts"]):
        texts = [("As the policy answers (the prior's mixture)", usual[i])]
        texts += [(f"Code {one['code']}: {escape(one['name'])}", one["answers"][i]) for one in shown]
        other = sum(one["answers"][i] != usual[i] for one in shown)
        about = f"row {count(prompt['row'])} · {count(other)} of {count(len(shown))} codes answer otherwise"
        blocks.append(side_by_side(prompt["text"], texts, about, is_open=i == 0))
    says = (
        "The likeliest answer to each prompt under the prior's mixture and under each code alone, cut off after "
        f"{count(given['max_new_tokens'])} tokens. The prompts are those that call the codes most strongly."
    )
    return section("answers", "Answers side by side", says, data="".join(blocks))


def side_by_side(prompt: str, texts: Sequence[tuple[str, str]], about: str, is_open: bool = False) -> str:
    """One prompt and answers to it, (label as safe HTML, text) each; closed until asked for. `about` is safe HTML."""
    boxes = text_box("Prompt", prompt, wide=True) + "".join(text_box(label, text) for label, text in texts)
    return (
        f"<details{' open' if is_open else ''}><summary><bdi>{escape(teaser(prompt)) or '(no prompt)'}</bdi> "
        f'<span class="meta">{about}</span></summary><div class="answers">{boxes}</div></details>'
    )


def teaser(text: str, most: int = 90) -> str:
    """The end of a text in one line."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    cut = line[-most:]
    first, space, rest = cut.partition(" ")
    return "…" + (rest if space and len(first) < 20 else cut)


def agreement(found: Codes) -> Section | None:
    """How far the codes follow labels that training never saw."""
    rows = found.get("agreement") or []
    if not rows:
        return None
    verdicts = []
    for label in dict.fromkeys(row["label"] for row in rows):
        above = [f"the {row['weights']}'s" for row in rows if row["label"] == label and row["above"]]
        who = f"follow it above chance: {' and '.join(above)}" if above else "follow it no more than by chance"
        verdicts.append(f"<code>{escape(label)}</code>: best codes {who}.")
    knows = "has seen the pair" if seen_pair(found) else "knows who judged"
    says = (
        " ".join(verdicts) + " Normalised mutual information is 1 where the best code and the label say the same, and"
        " never quite 0 by chance: shuffled labels show how much chance makes, and only what exceeds 95% of them"
        f" counts. The posterior {knows}, the prior the prompt alone."
    )
    header = ["Label and codes", "Agreement", "Shuffled", "95% below", "Labels", "n"]
    cells = [
        [
            f"{escape(row['label'])}, {row['weights']}{' ✓ above chance' if row['above'] else ''}",
            f"{row['nmi']:.3f}",
            f"{row['chance']['mean']:.3f}",
            f"{row['chance']['high']:.3f}",
            count(row["values"]),
            f"{count(row['n'])} {row['unit']}",
        ]
        for row in rows
    ]
    strong = [i for i, row in enumerate(rows) if row["above"]]
    data = table("Normalised mutual information of best code and label", header, cells, strong)
    return section("agreement", "Do the codes follow a source?", says, data=data)


def others(found: Codes) -> Section | None:
    """The codes that are not shown in full."""
    rest = [one for one in found["codes"] if one["code"] not in found["shown"]]
    if not rest:
        return None
    rows = [
        [str(one["code"]), percent(one["weight"]), percent(one["best"]), number(one["switch_kl"], 2)] for one in rest
    ]
    listed = table("The other codes", ["Code", "Weight", "Best of", "Switch"], rows)
    says = f"{count(len(rest))} codes share {percent(sum(one['weight'] for one in rest))} of the weight."
    data = f"<details><summary>All {count(len(rest))}</summary>{listed}</details>"
    return section("others", "The other codes", says, data=data)


def setting(found: Codes) -> Section:
    """Which policy was read from which pairs."""
    policy, data, cost = found["policy"], found["data"], found.get("cost") or {}
    memory = cost.get("peak_memory_mb")
    listed = facts(
        [
            ("LLM", escape(policy.get("base") or "")),
            ("Loss", escape(str(policy.get("loss") or "").upper())),
            ("Beta", plain(policy.get("beta"))),
            (
                "Read from",
                f"{count(data['pairs'])} pairs, {count(data['prompts'])} prompts: {escape(data.get('name', ''))}",
            ),
            ("Entropy of the prior", f"{number(found['figures']['prior_entropy'])} nats a prompt"),
            ("What the prompt tells", f"{number(found['figures']['prior_spread'])} nats on the code"),
            ("Time in all", duration(cost.get("total_seconds"))),
            ("Peak memory", f"{count(memory)} MB" if memory else ""),
        ]
    )
    return section(
        "setting", "What was read", "A policy's codes, on pairs that it need not have been trained on.", data=listed
    )
