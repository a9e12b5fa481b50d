"""The page of an align run: how often the policy is right, whether its codes are alive, and how training went.

Made from metrics.json alone, in the manner of `report`. What differs from a reward model's metrics.json, where FIGURE
is {value, low, high, n} and every part may be missing:

    policy       {base, dtype, dtype_reason, loss ("dpo" | "ipo" | "simpo"), beta, gamma, label_smoothing, codes (K; 0:
                 none), kl_weight, latent {posterior, temperature} | null, lora {rank, layers} | null, top_layers,
                 trainable, parameters}
    accuracy     {overall FIGURE, by_source {name: FIGURE}}: of the implicit reward, z from the prior's expectation
    codes        what `code_figures` says, and accuracy_prior, accuracy_posterior FIGURE, gap, warnings [sentence]
    history      [{step, epoch, loss, accuracy, margin, kl, g, perplexity, top_share, gap, learning_rate, seconds}]
    examples     [{prompt, base, policy, codes {k: text}}]: sampled answers
    cost         {total_seconds, reference_seconds, train_seconds, step_seconds, steps, tokens, tokens_per_second,
                 truncated, peak_memory_mb}
"""

from __future__ import annotations

from pathlib import Path

from penchant.policy.codes import PEOPLE
from penchant.policy.watch import MOST_GAP
from penchant.report import versions, warning
from penchant.report_codes import notes, side_by_side
from penchant.report_curves import collapse, training
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
    plain,
    points,
    section,
    write_page,
)
from penchant.report_sections import Metrics, accuracy, best_baseline, intervals, pairs_of, part, sources
from penchant.report_synthesis import bars

STYLE = """
figure > * + svg, .scroll + dl, figure + figure, figure + details { margin-top: 1.25rem; }
"""


def write_align_report(metrics: Metrics, path: str | Path) -> Path:
    """Write the page for `metrics` (the contents of metrics.json) to the file `path`, and return that path."""
    makers = (setting, accuracy, sources, codes, training, collapse, examples, cost)
    sections = [made for make in makers if (made := make(metrics))]
    title = escape(metrics.get("title") or "Aligned policy")
    alive = notes(part(metrics, "codes").get("warnings") or [])
    return write_page(title, headline(metrics) + alive + tiles(metrics), sections, versions(metrics), path, STYLE)


def headline(metrics: Metrics) -> str:
    """The result in one sentence of plain words, and a warning where a baseline does as well."""
    overall = part(metrics, "accuracy", "overall")
    if not finite(overall.get("value")):
        return '<p class="headline">No accuracy was measured in this run.</p>'
    says = (
        f"The policy sides with the chosen response in <em>{percent(overall['value'])}</em> of "
        f"{count(overall.get('n'))} held-out pairs ({interval(overall)})"
    )
    longer = part(metrics, "baselines", "longer text")
    says += f"; always choosing the longer text: {percent(longer.get('value'))}." if longer else "."
    return f'<p class="headline">{says}</p>{meaning(metrics)}{warning(metrics)}'


def meaning(metrics: Metrics) -> str:
    """What siding with a response means under the run's loss."""
    policy = part(metrics, "policy")
    if not policy.get("base"):
        return ""
    if policy.get("loss") == "simpo":
        return "<p>Sides with: gives it the higher mean log-probability a token.</p>"
    return (
        f"<p>Sides with: since it was {escape(policy['base'])}, training has raised that response's log-probability "
        "more than the other's, or lowered it less.</p>"
    )


def tiles(metrics: Metrics) -> str:
    """The few figures to remember."""
    overall, best, found = part(metrics, "accuracy", "overall"), best_baseline(metrics), part(metrics, "codes")
    spent = part(metrics, "cost")
    shown = [("Accuracy", percent(overall.get("value")), f"95% interval {interval(overall)}")]
    if best:
        shown.append(("Best baseline", percent(best[1]["value"]), escape(best[0])))
    if found:
        used = number(found.get("perplexity"), 2)
        shown.append(("Codes in use", used, f"of {count(len(found.get('usage') or []))}, by the prior's weights"))
        shown.append(
            ("Posterior over prior", points(found.get("gap")), f"points; KL {number(found.get('kl'), 2)} nats")
        )
    if finite(spent.get("total_seconds")):
        shown.append(("Time in all", duration(spent["total_seconds"]), f"{duration(spent.get('step_seconds'))} a step"))
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in shown)
    return f'<dl class="tiles">{cells}</dl>'


def setting(metrics: Metrics) -> Section | None:
    """Which policy was trained on what, and how."""
    policy = part(metrics, "policy")
    train, test = part(metrics, "data", "train"), part(metrics, "data", "test")
    if not (policy or train or test):
        return None

    latent, lora = part(policy, "latent"), part(policy, "lora")
    reason = f" ({escape(policy['dtype_reason'])})" if policy.get("dtype_reason") else ""
    number_of, of = policy.get("trainable"), policy.get("parameters")
    share = f", {percent(number_of / of)} of all" if finite(number_of) and finite(of) and of else ""
    layers = f", {count(len(lora['layers']))} layers" if isinstance(lora.get("layers"), list) else ""
    weights = f"LoRA, rank {count(lora.get('rank'))}{layers}" if lora else "all of the weights"
    if not lora and policy.get("top_layers"):
        weights = f"the top {count(policy['top_layers'])} layers"
    listed = facts(
        [
            ("Trained on", pairs_of(train)),
            ("Tested on", pairs_of(test)),
            ("Starting point and reference", escape(policy.get("base") or "")),
            ("Number type", f"{escape(policy['dtype'])}{reason}" if policy.get("dtype") else ""),
            ("Loss", escape(str(policy.get("loss") or "").upper())),
            ("Beta", plain(policy.get("beta"))),
            ("Gamma", plain(policy.get("gamma"))),
            ("Label smoothing", plain(policy.get("label_smoothing")) if policy.get("label_smoothing") else ""),
            ("Trained", weights if policy else ""),
            ("Trained parameters", f"{count(number_of)}{share}" if finite(number_of) else ""),
            ("Latent codes", count(policy["codes"]) if policy.get("codes") else "none" if "codes" in policy else ""),
            ("Weight of the KL", plain(policy.get("kl_weight")) if policy.get("codes") else ""),
            ("The posterior sees", escape(_SEEN.get(seen := latent.get("posterior") or "", seen))),
            ("People", count(len(policy["people"])) if policy.get("people") else ""),
            ("Temperature of the draws", plain(latent.get("temperature")) if seen != PEOPLE else ""),
        ]
    )
    says = "A policy trained on preference pairs, with z from latent codes added before the vocabulary's head."
    if not policy.get("codes"):
        says = "A policy trained on preference pairs."
    return section("setting", "What was trained on what", says, data=listed)


def codes(metrics: Metrics) -> Section | None:
    """Whether the codes are in use, and whether what they know can be used at inference."""
    found = part(metrics, "codes")
    if not found:
        return None
    named = {"z from the prior": found.get("accuracy_prior"), "z from the posterior": found.get("accuracy_posterior")}
    forest, data = intervals("Share of test pairs right, by where z comes from", named, "z from the prior")
    usage = sorted((share for share in found.get("usage") or [] if finite(share)), reverse=True)
    plot = bars(usage, "Pairs by their prompt's best code, largest first") if usage else ""
    listed = facts(
        [
            (
                "Codes in use (perplexity of the mean prior)",
                f"{number(found.get('perplexity'))} of {count(len(usage))}",
            ),
            ("Pairs on the most frequent best code", percent(found.get("top_share"))),
            ("KL of posterior from prior", f"{number(found.get('kl'))} nats"),
            ("What a prompt tells on its code", f"{number(found.get('prior_spread'))} nats"),
            ("Entropy of the prior", f"{number(found.get('prior_entropy'))} nats a prompt"),
            ("Posterior over prior", f"{points(found.get('gap'))} points" if finite(found.get("gap")) else ""),
        ]
    )
    says = (
        "At inference z comes from the prior, which sees the prompt alone. The posterior has seen both responses and "
        "which was chosen: where it is far ahead, the codes hold what no prompt tells "
        f"(a warning is given from {100 * MOST_GAP:.0f} points on)."
    )
    if part(metrics, "policy").get("people"):
        says = (
            "For somebody new z comes from the prior, which sees the prompt alone. The posterior knows who judged each "
            "pair, by that person's training pairs, and not which response was chosen."
        )
    return section("latent-codes", "Latent codes", says, forest + plot, data + listed)


_SEEN = {
    "concat": "both responses",
    "difference": "the difference of both responses",
    "both": "both responses and their difference",
    "people": "what else the same person judged",
}


def examples(metrics: Metrics) -> Section | None:
    """Sampled answers of the reference, the policy and single codes, prompt by prompt."""
    found = metrics.get("examples") or []
    if not found:
        return None
    blocks = []
    for i, one in enumerate(found):
        texts = [
            (label, one[key]) for key, label in (("base", "Before"), ("policy", "After")) if one.get(key) is not None
        ]
        texts += [(f"After, code {escape(k)} alone", text) for k, text in (one.get("codes") or {}).items()]
        blocks.append(side_by_side(str(one.get("prompt", "")), texts, f"{count(len(texts))} answers", is_open=i == 0))
    says = "The same prompts answered before and after training. A few answers prove nothing; they show what changed."
    return section("examples", "Answers before and after", says, data="".join(blocks))


def cost(metrics: Metrics) -> Section | None:
    """Time, tokens and memory."""
    spent = part(metrics, "cost")
    if not spent:
        return None
    memory = spent.get("peak_memory_mb")
    listed = facts(
        [
            ("Time in all", duration(spent.get("total_seconds"))),
            ("Reference, once", duration(spent.get("reference_seconds"))),
            ("Training", duration(spent.get("train_seconds"))),
            ("Steps", count(spent.get("steps"))),
            ("A step", f"{number(spent.get('step_seconds'))} s" if finite(spent.get("step_seconds")) else ""),
            ("Tokens in the pairs", count(spent.get("tokens"))),
            ("Tokens per second", count(spent.get("tokens_per_second"))),
            ("Sequences truncated", count(spent.get("truncated"))),
            ("Peak memory", f"{count(memory)} MB" if finite(memory) else ""),
        ]
    )
    return section("cost", "Cost", "What this run took.", data=listed)
