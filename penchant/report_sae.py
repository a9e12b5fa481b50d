"""The page of a sparse autoencoder: what it is, how good it is on held-out text, and how training went."""

from __future__ import annotations

from typing import Any

from penchant.report_html import count, duration, escape, facts, number, page, percent, section
from penchant.report_plots import Line, lines

DEAD_TOO_MANY = 0.1
EXPLAINED_TOO_LITTLE = 0.5


def sae_summary(metrics: dict[str, Any]) -> str:
    """What the terminal says."""
    sae = metrics["sae"]
    said = [f"{sae['architecture']} SAE, {sae['d_sae']:,} latents, width {sae['d_in']}, {place(sae)}"]
    if sae["architecture"] != "jumprelu":
        said[0] += f", k {sae['k']}"
    if found := metrics.get("quality"):
        said.append(
            f"on {found['states']:,} held-out states: variance explained {found['variance_explained']:.3f},"
            f" L0 {found['l0']:.1f}, dead {found['dead_share']:.1%}"
        )
    if loss := metrics.get("loss"):
        said.append(
            f"the LLM's loss a token: {loss['plain']:.3f}, with reconstructions {loss['spliced']:.3f}, with the mean"
            f" state {loss['mean']:.3f}, with zeros {loss['zero']:.3f}; recovered {loss['recovered']:.1%} of zeros',"
            f" {loss['recovered_of_mean']:.1%} of the mean's"
        )
    if done := metrics.get("training"):
        rate = done["tokens"] / done["seconds"] if done["seconds"] else 0
        said.append(f"trained on {done['tokens']:,} states in {done['seconds']:.0f} s ({rate:,.0f}/s, the LLM apart)")
    return "\n".join([*said, *(f"warning: {text}" for text in warnings(metrics))])


def place(sae: dict[str, Any]) -> str:
    layer = f"layer {sae['layer']}" if sae.get("layer") is not None else "unknown layer"
    return f"{layer} of {sae.get('model') or 'an unknown LLM'}"


def warnings(metrics: dict[str, Any]) -> list[str]:
    """What is wrong with an SAE, in sentences."""
    found, said = metrics.get("quality"), []
    if found and found["dead_share"] > DEAD_TOO_MANY and found["states"] > 20 * metrics["sae"]["d_sae"]:
        said.append(
            f"{percent(found['dead_share'])} of the latents never fire here; train on more text, or with fewer latents"
        )
    if found and found["variance_explained"] < EXPLAINED_TOO_LITTLE:
        said.append("less than half of the variance is explained; check the layer, or train longer or with a larger k")
    return said


def sae_page(metrics: dict[str, Any]) -> str:
    """The whole page, from metrics.json."""
    sae, found, loss = metrics["sae"], metrics.get("quality") or {}, metrics.get("loss") or {}
    headline = f"{count(sae['d_sae'])} latents, {escape(place(sae))}"
    if found:
        headline = f"<em>{percent(found['variance_explained'])}</em> of the variance explained by {headline}"
    tiles = [
        ("Variance explained", percent(found.get("variance_explained")), "on held-out text"),
        ("Active a state (L0)", number(found.get("l0")), f"of {count(sae['d_sae'])} latents"),
        ("Dead latents", percent(found.get("dead_share")), f"silent in {count(found.get('states'))} states"),
        ("Loss recovered", percent(loss.get("recovered")), f"{percent(loss.get('recovered_of_mean'))} of the mean's"),
    ]
    shown = "".join(f"<div><dt>{n}</dt><dd><b>{v}</b><span>{s}</span></dd></div>" for n, v, s in tiles if v != "–")
    notes = "".join(
        f'<p class="note warning" role="note"><strong>Take care.</strong> {escape(text)}.</p>'
        for text in warnings(metrics)
    )
    parts = [section("what", "What it is", SAYS, data=facts(described(metrics)))]
    if log := metrics.get("log"):
        parts.append(training(log))
    if loss:
        parts.append(losses(loss))
    body = "".join(part.html for part in parts)
    return page(
        "Penchant: sparse autoencoder",
        f'<header><h1>Sparse autoencoder</h1><p class="headline">{headline}</p>{notes}<dl class="tiles">{shown}</dl>'
        f"</header><main>{body}</main><footer>Made by Penchant, {escape(metrics.get('created', ''))}</footer>",
    )


SAYS = (
    "A sparse autoencoder writes each hidden state of the LLM as a sum of a few directions out of many. A direction "
    "that means something to a reader is a feature that a reward can be built of, and explained by."
)


def described(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    sae, data, done = metrics["sae"], metrics.get("data") or {}, metrics.get("training") or {}
    return [
        ("Architecture", escape(sae["architecture"])),
        ("LLM", escape(sae.get("model") or "")),
        ("Layer (as in views)", escape(sae["layer"]) if sae.get("layer") is not None else ""),
        ("Width", count(sae["d_in"])),
        ("Latents", count(sae["d_sae"])),
        ("k", count(sae["k"]) if sae.get("k") else ""),
        ("Loaded from", escape(sae.get("source") or "")),
        ("Data", escape(data.get("name", ""))),
        ("Rows trained on", count(data.get("rows"))),
        ("Rows held out", count(data.get("held_out_rows"))),
        ("States trained on", count(done.get("tokens"))),
        ("Training time, the LLM apart", duration(done.get("seconds"))),
    ]


def training(log: list[dict[str, float]]) -> Any:
    """Variance explained and dead latents, block by block."""
    x = [row["tokens"] / 1e6 for row in log]
    explained = lines([Line("variance explained", x, [1 - row["loss"] for row in log])], "million states", "explained")
    dead = lines([Line("dead", x, [row["dead"] for row in log])], "million states", "latents", y_format=count)
    says = (
        "Share of the variance that the reconstruction explains in the training batches, and latents counted as dead."
    )
    return section("training", "How training went", says, explained + dead)


def losses(loss: dict[str, float]) -> Any:
    names = {"plain": "left alone", "spliced": "replaced by reconstructions", "mean": "by the mean", "zero": "by zeros"}
    says = (
        "How well the LLM predicts the next token when its states at this layer are replaced, in nats a token over "
        f"{count(loss['tokens'])} held-out tokens."
    )
    return section("loss", "What the LLM loses", says, data=facts((names[k], number(loss[k], 4)) for k in names))
