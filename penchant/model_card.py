"""The README that a saved reward model carries."""

from __future__ import annotations

from typing import Any

from penchant.latents import Recipe


def model_card(recipe: Recipe, facts: dict[str, Any]) -> str:
    """Markdown with the hub's metadata, how to use the model, and what was measured."""
    head, cost = facts.get("head", {}), facts.get("cost", {})
    lines = [
        "---",
        "library_name: penchant",
        "pipeline_tag: text-classification",
        "tags: [reward-model, preference-learning, penchant]",
        "---",
        "",
        "# Reward model",
        "",
        f"A {head.get('name', '')} head ({head.get('parameters', 0):,} numbers) on latents of a frozen LLM,"
        f" `{recipe.model}`, revision `{recipe.revision}`, views {', '.join(f'`{view}`' for view in recipe.views)}.",
        "Made with Penchant. Scores compare responses to one prompt; they have no meaning across prompts.",
        "",
        "```python",
        "from penchant import RewardModel",
        "",
        'rm = RewardModel.from_pretrained("PATH_OR_HUB_ID")',
        'rm.score(["How do I boil an egg?"], ["Eight minutes in boiling water."])',
        "```",
        "",
        "## Measured",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    rows: list[tuple[str, str]] = []
    for name, data in facts.get("data", {}).items():
        rows.append((f"{name} pairs", f"{data['pairs']:,} of {data['name']} ({data['prompts']:,} prompts)"))
    if facts.get("synthesis"):
        rows.append(("synthetic pairs", facts["synthesis"]["says"]))
    accuracy = facts.get("accuracy")
    if accuracy:
        rows.append(("accuracy on held-out pairs", _interval(accuracy["overall"])))
    for name, figure in facts.get("baselines", {}).items():
        rows.append((f"baseline: {name}", _interval(figure)))
    if facts.get("calibration"):
        rows.append(("expected calibration error", f"{facts['calibration']['ece']:.3f}"))
    if facts.get("adapted"):
        rows.append(("adapted to a person or subset", f"with {facts['adapted']} pairs of theirs"))
    if facts.get("steering"):
        steered = ", ".join(f"{latent} by {factor:g}" for latent, factor in facts["steering"].items())
        rows.append(("SAE features steered after these figures", steered))
    if cost.get("unique_tokens"):
        rows.append(("tokens encoded", f"{cost['unique_tokens']:,} at {cost['tokens_per_second']:,.0f} a second"))
    if "fit_seconds" in cost:
        rows.append(("seconds to fit the head", f"{cost['fit_seconds']:.1f}"))
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(lines) + "\n"


def _interval(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
