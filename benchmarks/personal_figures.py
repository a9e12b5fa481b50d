"""The figures of benchmarks/personal.py from what its runs kept: win rates with intervals, the keys, the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from personal_sentiment import TASTES, scored, wins

from penchant.evaluate.learning_curve import seeds_and_prompts_interval

Array = NDArray[np.float64]
Result = dict[str, Any]
PEOPLE = list(TASTES)


def name_of(job: dict[str, Any]) -> str:
    """One row of the table: a job without its seed and person."""
    if job["method"] != "latent":
        return str(job["method"])
    parts = ["latent"]
    parts += [f"{key} {job[key]}" for key in ("adapter", "latent", "read", "flips", "domain", "limit") if key in job]
    return " / ".join([*parts, *(["full"] if job.get("full") else [])]).replace(" / adapter shift", "")


def figures_of(results: list[Result]) -> dict[str, Any]:
    """Per method: win rate, gain in score, perplexity and seconds; what z is worth; correlations of the reward."""
    base = {
        (r["job"]["seed"], r["job"].get("domain"), r["job"]["draw"]): r for r in results if r["job"]["method"] == "base"
    }
    rows: dict[str, dict[tuple[int, str], tuple[Array, Array, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for result in results:
        job = result["job"]
        if "answers" not in result or job["method"] == "base":
            continue
        asked = job["seed"], job.get("domain")
        against = base[(*asked, 0)]
        for who, texts in result["answers"].items():
            own, theirs = scored(who, texts), scored(who, against["answers"]["base"])
            ratio = result["perplexity"][who] / against["perplexity"]["base"]
            rows.setdefault(name_of(job), {})[job["seed"], who] = wins(own, theirs), own.mean(1) - theirs.mean(1), ratio
        seconds.setdefault(name_of(job), []).append(result["seconds_reading" if "read" in job else "seconds"])
    methods = {name: _row(found) | _seconds(seconds[name]) for name, found in rows.items()}
    for result in results:
        if result["job"]["method"] == "latent" and name_of(result["job"]) in methods:
            kept = {k: result[k] for k in ("norms", "pairs", "bytes", "seconds_reading")}
            methods[name_of(result["job"])].setdefault("runs", []).append({"seed": result["job"]["seed"], **kept})
    again = {(s, None): _again(base, s) for s, domain, draw in base if draw == 1 and domain is None}
    found = {
        "methods": methods,
        "z": [{**r["job"], **r["figures"], "seconds": r["seconds"]} for r in results if "figures" in r],
    }
    found["base_again"] = {who: float(np.mean([one[who] for one in again.values()])) for who in PEOPLE} if again else {}
    rewards = [r["correlation"] for r in results if r["job"]["method"] == "reward"]
    found["reward"] = {who: [one[who] for one in rewards] for who in PEOPLE} if rewards else {}
    examples = {
        name_of(r["job"]): {who: t[0][0] for who, t in r["answers"].items()}
        for r in results
        if "answers" in r and r["job"]["seed"] == 0
    }
    farther = {name: _compared(rows, name) for name in rows if " limit " in name}
    return {**found, "examples": examples, "compared": _compared(rows), "compared_farther": farther}


def _again(base: dict[Any, Result], seed: int) -> dict[str, float]:
    """Win rate of the unadapted LLM's second sample over its first: what nothing gives."""
    first, second = (base[seed, None, draw]["answers"]["base"] for draw in (0, 1))
    return {who: float(wins(scored(who, second), scored(who, first)).mean()) for who in PEOPLE}


def _row(found: dict[tuple[int, str], tuple[Array, Array, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    people = [who for who in PEOPLE if any(key[1] == who for key in found)]
    for who in people:
        mine = [value for key, value in found.items() if key[1] == who]
        row[who] = {
            "win": _interval([win for win, _, _ in mine]),
            "gain": _interval([gain for _, gain, _ in mine]),
            "perplexity_ratio": float(np.mean([ratio for _, _, ratio in mine])),
        }
    if people == PEOPLE:
        row["win"] = _interval(_means(found, 0))
        row["gain"] = _interval(_means(found, 1))
        row["perplexity_ratio"] = float(np.mean([row[who]["perplexity_ratio"] for who in PEOPLE]))
    row["seeds"] = len({seed for seed, _ in found})
    return row


def _means(found: dict[tuple[int, str], Any], which: int) -> list[Array]:
    """Per seed, the mean over people, by prompt."""
    seeds = sorted({seed for seed, _ in found})
    return [np.mean([found[seed, who][which] for who in PEOPLE if (seed, who) in found], axis=0) for seed in seeds]


def _interval(values: Iterable[Array]) -> dict[str, float]:
    stacked = np.stack(list(values))
    return dict(seeds_and_prompts_interval(stacked, np.arange(stacked.shape[1]))._asdict())


def _seconds(values: list[float]) -> dict[str, float]:
    return {"seconds": float(np.median(values))}


def _compared(rows: dict[str, Any], ours: str = "latent") -> dict[str, Any]:
    """Latent DPO's win rate less that of each rival, where both have the same seeds and people."""
    found = {}
    for rival in [name for name in rows if name != ours]:
        both = rows.get(ours, {}).keys() & rows[rival].keys()
        if both and len({who for _, who in both}) == len(PEOPLE):
            of = [{key: value for key, value in part.items() if key in both} for part in (rows[ours], rows[rival])]
            found[rival] = _interval([a - b for a, b in zip(_means(of[0], 0), _means(of[1], 0), strict=True)])
    return found


def headline(details: dict[str, Any]) -> dict[str, Any]:
    """The stable keys."""
    methods = details["sentiment"]["methods"]
    found: dict[str, Any] = {}
    for name, row in methods.items():
        key = name.replace(" / ", "_").replace(" ", "_")
        if "win" in row:
            found |= _ended(f"win_{key}", row["win"]) | {f"perplexity_ratio_{key}": row["perplexity_ratio"]}
        found[f"seconds_{key}"] = row["seconds"]
    for rival, delta in details["sentiment"]["compared"].items():
        found |= _ended(f"win_latent_minus_{rival.replace(' / ', '_').replace(' ', '_')}", delta)
    for name, rivals in details["sentiment"]["compared_farther"].items():
        if "lora" in rivals:
            found |= _ended(f"win_{name.replace(' / ', '_').replace(' ', '_')}_minus_lora", rivals["lora"])
    if "lora" in methods and "latent" in methods:
        reading = float(np.median([run["seconds_reading"] for run in methods["latent"]["runs"]]))
        found["time_share_of_lora"] = methods["latent"]["seconds"] / methods["lora"]["seconds"]
        found["time_share_of_lora_reading"] = reading / methods["lora"]["seconds"]
    for who, values in details["sentiment"]["reward"].items():
        found[f"reward_correlation_{who}"] = float(np.mean(values))
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def _ended(name: str, figure: dict[str, float]) -> dict[str, float]:
    return {name: figure["value"], f"{name}_ci_low": figure["low"], f"{name}_ci_high": figure["high"]}


def tables(details: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Plain tables for the terminal; tables.py has the README's."""
    return [("sentiment", sentiment_rows(details["sentiment"]))]


def sentiment_rows(found: dict[str, Any]) -> list[list[str]]:
    header = ["method", "seeds", "win rate, %", *PEOPLE, "perplexity / the LLM's", "seconds a person"]
    rows = [header]
    for name, row in sorted(found["methods"].items(), key=lambda item: -item[1].get("win", {"value": 0})["value"]):
        each = [
            f"{100 * row[who]['win']['value']:.0f} ({row[who]['perplexity_ratio']:.2f})" if who in row else ""
            for who in PEOPLE
        ]
        win, ratio = row.get("win"), row.get("perplexity_ratio")
        rows.append(
            [
                name,
                str(row["seeds"]),
                f"{100 * win['value']:.1f} ({100 * win['low']:.1f}-{100 * win['high']:.1f})" if win else "",
                *each,
                f"{ratio:.2f}" if ratio else "",
                f"{row['seconds']:.1f}",
            ]
        )
    return rows
