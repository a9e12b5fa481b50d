"""The report's section on synthetic pairs: what was made, how good the VAE is, whether the order of a pair survives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penchant.report_html import Section, count, duration, escape, facts, finite, number, percent, plain, section, table
from penchant.report_plots import WIDTH, Line, lines, svg, ticks
from penchant.report_sections import Metrics, part


def synthesis(metrics: Metrics) -> Section | None:
    """What was made or why nothing was, the VAE's diagnostics, the order that a judge finds, and auto's comparison."""
    found = part(metrics, "synthesis")
    if not found:
        return None
    diagnostics, order = part(found, "diagnostics"), part(found, "order")
    theory = [row for row in found.get("theory") or [] if finite(row.get("order_kept"))]
    kept = order.get("order_kept")
    says = escape(found.get("says", ""))
    if finite(kept):
        says += (
            f" A linear judge, fitted on the other half of the prompts, keeps the order of {percent(kept)} of the "
            "synthetic pairs whose seeds it orders rightly."
        )
    figure = warning(found) + units(diagnostics) + order_plot(theory) + numbers(found)
    data = candidates(found) + order_table(theory) + arguments(found)
    return section("synthesis", "Synthetic pairs", says, figure, data)


def warning(found: dict[str, Any]) -> str:
    """Says so where the VAE has collapsed."""
    if not found.get("collapsed"):
        return ""
    diagnostics = part(found, "diagnostics")
    return (
        '<p class="note warning" role="note"><strong>The VAE has collapsed.</strong> '
        f"It reconstructs {percent(diagnostics.get('reconstruction_share'))} of the latents' variance with "
        f"{count(diagnostics.get('active_units'))} active dimensions, so its pairs carry little of their seeds. "
        "A lower beta or gamma, or more pairs or unlabelled responses, may help.</p>"
    )


def numbers(found: dict[str, Any]) -> str:
    """What was made, in numbers."""
    diagnostics, order = part(found, "diagnostics"), part(found, "order")
    units = diagnostics.get("kl_by_dimension") or []
    where = escape(diagnostics.get("reconstruction_on", ""))
    share = percent(diagnostics.get("reconstruction_share"))
    real, factor = found.get("real"), found.get("factor")
    made = (factor - 1) * real if finite(real) and finite(factor) else None
    if found.get("kind") == "none":
        return ""
    listed = [
        ("Synthesizer", escape(found.get("kind", ""))),
        ("Synthetic pairs", f"{count(made)} from {count(real)}, {count(factor)}x in all" if made else ""),
        ("Unlabelled responses", count(found["unlabelled"]) if found.get("unlabelled") else ""),
        ("Variance reconstructed", f"{share} ({where} latents)" if diagnostics else ""),
        ("Active dimensions", f"{count(diagnostics.get('active_units'))} of {len(units)}" if diagnostics else ""),
        ("Order kept", percent(order.get("order_kept"))),
        ("Judge right on the seeds", percent(order.get("seed_accuracy"))),
        ("Judge right on synthetic pairs", percent(order.get("synthetic_accuracy"))),
        ("The VAE's parameters", count(diagnostics.get("parameters"))),
        ("Fitting the VAE", duration(diagnostics.get("seconds"))),
    ]
    return facts(listed)


def arguments(found: dict[str, Any]) -> str:
    """The synthesizer's arguments, closed until asked for."""
    given = part(found, "arguments")
    said = ", ".join(f"<code>{escape(name)}={escape(value)}</code>" for name, value in given.items())
    return f"<details><summary>Arguments of the synthesizer</summary><p>{said}</p></details>" if given else ""


def units(diagnostics: dict[str, Any]) -> str:
    """A bar for each of the VAE's dimensions."""
    found = [kl for kl in diagnostics.get("kl_by_dimension") or [] if finite(kl)]
    return bars(sorted(found, reverse=True), "KL by dimension of the VAE (nats), largest first") if found else ""


def bars(values: Sequence[float], title: str) -> str:
    """Bars from 0 for values of at least 0."""
    highest = max(*values, 1e-3)
    left, right, top, bottom = 36, WIDTH - 10, 24, 120
    step = (right - left) / len(values)
    parts = [f'<text x="0" y="12">{title}</text>']
    for tick in ticks(0.0, highest, 4):
        y = round(bottom - tick / highest * (bottom - top), 1)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{plain(tick)}</text>')
    for i, value in enumerate(values):
        height = round(max(value, 0.0) / highest * (bottom - top), 1)
        x, width = round(left + (i + 0.15) * step, 1), round(0.7 * step, 1)
        place = f'x="{x}" y="{bottom - height:g}" width="{width}" height="{height}"'
        parts.append(f'<rect class="bar" {place} fill="var(--accent)"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return svg(bottom + 16, f"{title}: {', '.join(number(value, 2) for value in values)}.", parts)


def order_plot(theory: list[dict[str, Any]]) -> str:
    """The share of pairs that keep their order, measured and guaranteed, against the noise."""
    noisy = [row for row in theory if finite(row.get("noise")) and row["noise"] > 0 and finite(row.get("guaranteed"))]
    if len(noisy) < 2:
        return ""
    noise = [row["noise"] for row in noisy]
    series = [
        Line("order kept, measured", noise, [row["order_kept"] for row in noisy]),
        Line("guaranteed by the bound", noise, [row["guaranteed"] for row in noisy], style="other"),
    ]
    still = [row for row in theory if row.get("noise") == 0]
    if still:
        series.append(Line("measured without noise", [noise[0]], [still[0]["order_kept"]], style="rule"))
    return lines(series, "noise in the VAE's latent space (deviation)", "pairs that keep their order", log=True)


def order_table(theory: list[dict[str, Any]]) -> str:
    """The numbers behind `order_plot`."""
    if not theory:
        return ""
    header = ["Noise", "Order kept", "Guaranteed", "Moved / margin", "Moved / bound"]
    rows = [
        [
            plain(row.get("noise")),
            percent(row["order_kept"]),
            percent(row.get("guaranteed")),
            number(ratio(row.get("movement_mean"), row.get("margin_mean")), 2),
            number(row.get("tightness"), 2),
        ]
        for row in theory
    ]
    caption = "All pairs, both sides perturbed: mean movement over mean margin, largest movement over its bound"
    return table(caption, header, rows)


def ratio(part: Any, whole: Any) -> float | None:
    return part / whole if finite(part) and finite(whole) and whole else None


def candidates(found: dict[str, Any]) -> str:
    """What auto compared."""
    rows = part(found, "decision").get("rows") or []
    if not any(finite(row.get("cv_loss")) for row in rows):
        return ""
    cells = [
        [
            escape(row.get("name", "")) + (" ✓ chosen" if row.get("chosen") else ""),
            percent(row.get("cv_accuracy")),
            f"{row['cv_loss']:.4f}" if finite(row.get("cv_loss")) else "",
            signed(row.get("gain")),
            f"{row['error']:.4f}" if finite(row.get("error")) else "",
        ]
        for row in rows
    ]
    header = ["Synthesis", "Right", "Log-loss", "Gain", "Standard error"]
    strong = [i for i, row in enumerate(rows) if row.get("chosen")]
    return table("Real training pairs, held out by prompt", header, cells, strong)


def signed(value: Any) -> str:
    return f"{value:+.4f}".replace("-", "−") if finite(value) else ""
