"""One self-contained HTML page for a run: what was learned from what, how well, how sure, and where it fails.

The page is made from metrics.json alone. It has no script and loads nothing; a part that metrics.json lacks is left
out. All texts and names in it are untrusted: they pass through `report_html.escape`.

metrics.json, where FIGURE is {value, low, high, n}:

    title, created (ISO date-time), seed, versions {package: version}
    data            {train, test: {name, pairs, prompts, skipped, sources {name: pairs}}}; train only where it is known
    recipe          Recipe.to_dict()
    backbone        {name, dtype, dtype_reason, layers_run, parameters}
    head            {name, views, strength, parameters, tried [{views, head, strength, cv_accuracy, chosen}]}
    benchmark       see `report_benchmark`; instead of the next line
    accuracy, baselines, over_baseline, calibration, length_bias, best_of_n, mistakes    see `evaluate_scores`
    synthesis       {kind, arguments, factor, real, unlabelled, says, collapsed,
                    diagnostics {reconstruction_share, reconstruction_on, kl_by_dimension, active_units, seconds,
                    parameters}, order {order_kept, seed_accuracy, synthetic_accuracy, rounds},
                    theory [see `order_preservation`], decision {says, rows [{name, cv_accuracy, cv_loss, gain, error,
                    chosen}]}}; only where it was asked for, each part only where it is known
    learning_curve  [FIGURE and seeds]
    cost            {tokens, unique_tokens, cached_sequences, encoded_sequences, truncated, encode_seconds,
                    tokens_per_second, fit_seconds, total_seconds, peak_memory_mb}
    memory          {pairs, bytes, chosen_on, says}; only where training pairs were read from files
"""

from __future__ import annotations

from pathlib import Path

from penchant.report_benchmark import benchmark, benchmark_average, benchmark_headline
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
from penchant.report_sections import (
    Metrics,
    accuracy,
    best_baseline,
    best_of_n,
    calibration,
    curve,
    ends,
    length,
    mistakes,
    pairs_of,
    part,
    sources,
    tried,
)
from penchant.report_synthesis import synthesis


def write_report(metrics: Metrics, path: str | Path) -> Path:
    """Write the page for `metrics` (the contents of metrics.json) to the file `path`, and return that path."""
    judged = (accuracy, sources, tried, synthesis, curve, calibration, length, best_of_n, mistakes)
    sections = [made for make in (setting, benchmark, *judged, cost) if (made := make(metrics))]
    title = escape(metrics.get("title") or "Reward model")
    return write_page(title, headline(metrics) + tiles(metrics), sections, versions(metrics), path)


def headline(metrics: Metrics) -> str:
    """The result in one sentence of plain words, and a warning where it does not hold up."""
    overall = part(metrics, "accuracy", "overall")
    if not finite(overall.get("value")):
        return benchmark_headline(metrics) or '<p class="headline">No accuracy was measured in this run.</p>'
    sentence = f"Right on <em>{percent(overall['value'])}</em> of {count(overall.get('n'))} held-out pairs"
    sentence += f" ({interval(overall)})"
    longer = part(metrics, "baselines", "longer text")
    if longer:
        sentence += f"; always choosing the longer text: {percent(longer.get('value'))}"
    return f'<p class="headline">{sentence}.</p>{warning(metrics)}'


def warning(metrics: Metrics) -> str:
    """Says so where the model's interval overlaps that of the best baseline, and what the paired comparison shows."""
    overall, best = part(metrics, "accuracy", "overall"), best_baseline(metrics)
    if best is None:
        return ""
    name, figure = best
    (low, high), (rival_low, rival_high) = ends(overall), ends(figure)
    if low > rival_high:
        return ""
    if high < rival_low:
        return (
            '<p class="note warning" role="note"><strong>Worse than a simple baseline.</strong> '
            f"{escape(name)} is right on {percent(figure['value'])} ({interval(figure)}).</p>"
        )
    rival = f"{escape(name)}: {percent(figure['value'])} ({interval(figure)})"
    says = f"The interval overlaps that of the best baseline, {rival}."
    over = part(metrics, "over_baseline")
    paired = over.get("name") == name and finite(over.get("low"))
    if paired:
        side = "ahead" if over["value"] >= 0 else "behind"
        says += (
            f" Compared pair by pair, it is {abs(100 * over['value']):.1f} points {side} "
            f"({points(over['low'])} to {points(over['high'])})."
        )
    if paired and over["low"] > 0:
        return f'<p class="note" role="note">{says} That difference is unlikely to be chance.</p>'
    return (
        f'<p class="note warning" role="note"><strong>Not shown to beat a simple baseline.</strong> {says} '
        "More test pairs would settle it; more or cleaner training pairs may change it.</p>"
    )


def tiles(metrics: Metrics) -> str:
    """The few figures to remember."""
    overall, best = part(metrics, "accuracy", "overall"), best_baseline(metrics)
    fitted, spent = part(metrics, "calibration"), part(metrics, "cost")
    named = "Accuracy"
    if benchmarked := benchmark_average(metrics):
        named, overall = "Average", benchmarked
    found = [(named, percent(overall.get("value")), f"95% interval {interval(overall)}")]
    if best:
        found.append(("Best baseline", percent(best[1]["value"]), escape(best[0])))
    if fitted:
        floor = fitted.get("ece_if_perfect")
        found.append(
            (
                "Calibration error",
                number(fitted.get("ece"), 2),
                f"chance alone: {number(floor, 2)}" if finite(floor) else "ECE",
            )
        )
    if finite(spent.get("total_seconds")):
        found.append(
            ("Time in all", duration(spent["total_seconds"]), f"{count(spent.get('tokens_per_second'))} tokens/s")
        )
    cells = "".join(f"<div><dt>{k}</dt><dd><b>{v}</b><span>{note}</span></dd></div>" for k, v, note in found)
    return f'<dl class="tiles">{cells}</dl>'


def setting(metrics: Metrics) -> Section | None:
    """What was trained on what."""
    train, test = part(metrics, "data", "train"), part(metrics, "data", "test")
    head, backbone, recipe = part(metrics, "head"), part(metrics, "backbone"), part(metrics, "recipe")
    if not (train or test or head or backbone):
        return None

    layers = f", {count(backbone['layers_run'])} layers run" if finite(backbone.get("layers_run")) else ""
    size = f", {count(backbone['parameters'])} parameters" if finite(backbone.get("parameters")) else ""
    reason = f" ({escape(backbone['dtype_reason'])})" if backbone.get("dtype_reason") else ""
    trained = f"{escape(head.get('name', ''))}, {count(head.get('parameters'))} parameters"
    if finite(head.get("parameters")) and finite(backbone.get("parameters")) and backbone["parameters"]:
        trained += f", {100 * head['parameters'] / backbone['parameters']:.2g}% of the backbone's"
    views = ", ".join(f"<code>{escape(view)}</code>" for view in head.get("views") or recipe.get("views") or ())
    listed = facts(
        [
            ("Trained on", pairs_of(train)),
            ("Tested on", pairs_of(test)),
            ("Backbone, frozen", f"{escape(backbone['name'])}{size}{layers}" if backbone.get("name") else ""),
            ("Number type", f"{escape(backbone['dtype'])}{reason}" if backbone.get("dtype") else ""),
            ("Latent: layer and pooling", views),
            ("Head, trained", trained if head.get("name") else ""),
            ("Strength of regularisation", plain(head.get("strength"))),
            ("Longest sequence", f"{count(recipe['max_length'])} tokens" if finite(recipe.get("max_length")) else ""),
        ]
    )
    says = "A head on the latents of a frozen LLM." if train else "A saved reward model, tested on these pairs."
    return section("setting", "What was trained on what", says, data=listed)


def cost(metrics: Metrics) -> Section | None:
    """Time, tokens and memory."""
    spent = part(metrics, "cost")
    if not spent:
        return None
    tokens, unique = spent.get("tokens"), spent.get("unique_tokens")
    share = unique / tokens if finite(unique) and finite(tokens) and tokens else None
    saved = f" ({percent(share)} of all: shared text is run once)" if share else ""
    memory = spent.get("peak_memory_mb")
    listed = facts(
        [
            ("Time in all", duration(spent.get("total_seconds"))),
            ("Encoding", duration(spent.get("encode_seconds"))),
            ("Fitting", duration(spent.get("fit_seconds"))),
            ("Tokens in the pairs", count(tokens)),
            ("Tokens run", f"{count(unique)}{saved}" if finite(unique) else ""),
            ("Tokens per second", count(spent.get("tokens_per_second"))),
            ("Sequences encoded", count(spent.get("encoded_sequences"))),
            ("Sequences from the cache", count(spent.get("cached_sequences"))),
            ("Sequences truncated", count(spent.get("truncated"))),
            ("Peak memory", f"{count(memory)} MB" if finite(memory) else ""),
        ]
    )
    says = f"What this run took. {escape(part(metrics, 'memory').get('says', ''))}".strip()
    return section("cost", "Cost", says, data=listed)


def versions(metrics: Metrics) -> str:
    """When, with which versions and seed."""
    named = [f"{escape(name)} {escape(version)}" for name, version in part(metrics, "versions").items()]
    seed = [f"seed {escape(metrics['seed'])}"] if metrics.get("seed") is not None else []
    created = [escape(metrics["created"])] if metrics.get("created") else []
    return " · ".join([*created, *named, *seed])
