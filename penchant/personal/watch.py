"""What can be wrong with a personal LLM, in sentences: z that is not used, people of whom too little is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW = 5
"""Pairs below which a person's taste is hardly more than the population's."""
LEAST_SAVED = 0.005
"""Nats a token that knowing z must save for it to count as used."""
NAMED = 5
"""People who are named in a warning, at most."""


def latent_warnings(figures: Mapping[str, float]) -> list[str]:
    """What is wrong with z, by the figures of `evaluate_clap`; empty where it is used."""
    own, prior = (figures[name] for name in ("nats_per_token", "prior"))
    cure = "pretrain on more or more varied answers (--answers, --temperature), or longer (--begin_epochs, --epochs)"
    if not figures["active_units"]:
        return [f"z is not used: no unit of it is active; {cure}."]
    if prior - own < LEAST_SAVED:
        return [
            f"z is hardly used: an answer's own z saves {prior - own:.4f} nats a token over one drawn at random, and "
            f"less than {LEAST_SAVED} is nothing; {cure}."
        ]
    return []


def people_warnings(metrics: Mapping[str, Any], known_before: Sequence[str] = (), outdated: int = 0) -> list[str]:
    """What a reader of a fit's metrics must not overlook; see `fit_run.Fitted` for the others."""
    said = []
    kind, figure = next(iter(metrics["gain"].items()))
    by = {"taste": "taste", "latent": "p(z | x)"}[kind]
    points = f"{100 * figure['value']:+.1f} points ({100 * figure['low']:+.1f} to {100 * figure['high']:+.1f})"
    if figure["high"] < 0:
        said.append(
            f"Knowing who judged does harm: people's own {by} is {points} against the population's; fit them from more "
            "pairs, or use the population."
        )
    elif figure["low"] <= 0:
        said.append(
            f"No gain from knowing who judged is shown: people's own {by} is {points} against the population's. More "
            "pairs a person may bring one, more held-out pairs would show it."
        )
    few = [one["user_id"] for one in metrics["people"] if one["pairs"] < FEW]
    if few:
        said.append(
            f"Fewer than {FEW} pairs were given by {len(few):,} of {len(metrics['people']):,} people: {_names(few)}."
        )
    if known_before:
        said.append(
            f"Known before, and fitted on from there: {_names(known_before)}. If they gave these very pairs then, they "
            "count twice now, and held-out pairs may have been seen; forget them and fit anew."
        )
    if outdated:
        said.append(
            f"Rewards were fitted anew: the tastes of {outdated:,} people who are not in these pairs ended with the "
            "old ones; fit them again on pairs of theirs."
        )
    return said + latent_warnings(metrics["system"]["z"])


def _names(people: Sequence[str]) -> str:
    more = f" and {len(people) - NAMED:,} more" if len(people) > NAMED else ""
    return ", ".join(people[:NAMED]) + more
