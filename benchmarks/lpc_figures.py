"""From the runs of benchmarks/lpc.py to its tables: accuracy with intervals over seeds and prompts, differences."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lpc_data
import lpc_quality
import numpy as np
from lpc_data import MAX_LENGTH
from numpy.typing import NDArray
from table_cells import percent, points

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate import correctness
from penchant.evaluate.learning_curve import seeds_and_prompts_interval
from penchant.heads import LinearHead
from penchant.pairs import prompt_groups
from penchant.store_views import open_store

Run = dict[str, Any]
Figure = dict[str, float]


def name_of(job: dict[str, Any]) -> str:
    """Set, loss, and what stands before the LM head, for example "hh/dpo/codes 64"."""
    latent = job["latent"] + (f" {job['codes']}" if job["latent"] == "codes" else "")
    extras = [job[k] for k in ("posterior",) if k in job]
    extras += [f"flips {job['flips']:.0%}{' tag' if job['tag'] else ''}"] if job.get("flips") else []
    return "/".join([job["set"], job["loss"], latent, *extras])


def plain_of(job: dict[str, Any]) -> str:
    """The run that a run is compared with: the same without a latent."""
    kept = {k: v for k, v in job.items() if k != "posterior"}
    return name_of({**kept, "latent": "none"})


def details(results: list[Run], seeds: int) -> dict[str, Any]:
    """All cells by name. A cell with fewer seeds than asked for says so in `seeds`."""
    runs: dict[str, dict[int, Run]] = {}
    for run in results:
        runs.setdefault(name_of(run["job"]), {})[run["job"]["seed"]] = run
    return {"cells": {name: cell(of, runs) for name, of in runs.items()}, "seeds": seeds}


def cell(of: dict[int, Run], runs: dict[str, dict[int, Run]]) -> dict[str, Any]:
    first = next(iter(of.values()))
    job = first["job"]
    groups = _groups(job["set"], job.get("quick", False))
    found: dict[str, Any] = {
        "seeds": len(of),
        "accuracy": _figure([run["right"]["prior"] for run in of.values()], groups),
    }
    found["train_seconds"] = float(np.mean([run["train_seconds"] for run in of.values()]))
    found["trainable"] = first["trainable"]
    plain = runs.get(plain_of(job), {})
    both = sorted(of.keys() & plain.keys())
    if job["latent"] != "none" and both:
        differences = [np.subtract(of[s]["right"]["prior"], plain[s]["right"]["prior"]) for s in both]
        found["delta"] = _figure(differences, groups)
    if job["latent"] == "codes":
        for way in [name for name in ("posterior", "switched") if name in first["right"]]:
            found[way] = _figure([run["right"][way] for run in of.values()], groups)
            gap = [np.subtract(run["right"][way], run["right"]["prior"]) for run in of.values()]
            found[f"{way}_delta"] = _figure(gap, groups)
        for figure in ("kl", "perplexity", "top_share", "prior_spread"):
            found[figure] = float(np.mean([run["codes"][figure] for run in of.values()]))
    if "people" in first and both:
        found["people"] = _people([of[s] for s in both], [plain[s] for s in both], groups)
    return found


def _people(of: list[Run], plain: list[Run], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy by what is known of the annotator, over all and for each, beside its own prior and a plain policy."""
    users = np.array(of[0]["people"]["users"])
    prior, without = (np.array([run["right"]["prior"] for run in runs]) for runs in (of, plain))
    found: dict[str, Any] = {"prior": {name: float(prior[:, users == name].mean()) for name in np.unique(users)}}
    for way in ("known", "likelihood", "other", "posterior"):
        if way not in of[0]["people"]:
            continue
        right = np.array([run["people"][way] for run in of])
        found[way] = {name: float(right[:, users == name].mean()) for name in np.unique(users)}
        found[f"{way}_all"] = _figure(right, groups)
        found[f"{way}_delta"] = _figure(right - prior, groups)
        found[f"{way}_minus_plain"] = _figure(right - without, groups)
    return found


@functools.cache
def _groups(name: str, quick: bool) -> NDArray[np.int64]:
    return np.asarray(prompt_groups(lpc_data.draw(name, 0, quick=quick).test))


def _figure(right: Any, groups: NDArray[np.int64]) -> Figure:
    found = seeds_and_prompts_interval(np.asarray(right, np.float64), groups)
    return {"value": found.value, "low": found.low, "high": found.high}


def quality(results: list[Run], cache: Path) -> dict[str, Any]:
    """What sampled answers are worth, with codes and without: each against the plain policy of the same seed."""
    found: dict[str, Any] = {}
    for name in ("demo", "hh"):
        by = {
            kind: {
                run["job"]["seed"]: run
                for run in results
                if "answers" in run and run["job"]["set"] == name and run["job"]["latent"] == kind
            }
            for kind in ("none", "codes")
        }
        seeds = sorted(by["none"].keys() & by["codes"].keys())
        if not seeds:
            continue
        judge = None
        if name == "hh":
            train, test = lpc_data.whole("hh")
            known = [lpc_data.draw("hh", seed).train for seed in seeds]
            judge = lpc_quality.train_judge(train, [*known, test], Backbone.load(), str(cache))
        prompts = [by["codes"][s]["prompts"] for s in seeds]
        pairs = [[by[kind][s]["answers"] for kind in ("codes", "none")] for s in seeds]
        found[name] = {
            "words": float(np.mean([len(text.split()) for ours, _ in pairs for row in ours for text in row])),
            "plain_words": float(np.mean([len(text.split()) for _, plain in pairs for row in plain for text in row])),
        }
        values: dict[str, list[Any]] = {}
        for asked, (ours, plain) in zip(prompts, pairs, strict=True):
            if name == "demo":
                gold = [lpc_quality.demo_gold(asked, answers) for answers in (ours, plain)]
                mean = [np.mean(list(each.values()), 0) for each in gold]
                values.setdefault("gold_mean", []).append(mean[0])
                values.setdefault("gold_mean_delta", []).append(mean[0] - mean[1])
            if judge is not None:
                scores = [judge.scores(asked, answers) for answers in (ours, plain)]
                values.setdefault("win_rate", []).append(lpc_quality.wins(*scores))
        for figure, rows in values.items():
            one = seeds_and_prompts_interval(np.stack(rows), np.arange(len(rows[0])))
            found[name] |= {figure: one.value, f"{figure}_ci_low": one.low, f"{figure}_ci_high": one.high}
        if judge is not None:
            found[name]["judge_accuracy"] = judge.accuracy.value
    return found


def ridge(seeds: list[int], cache: Path, sets: tuple[str, ...], *, quick: bool) -> dict[str, Figure]:
    """The strongest simple baseline: a tuned ridge head on the frozen latents of the very same training pairs."""
    found = {}
    for name in sets:
        backbone = Backbone.load(**({"max_length": MAX_LENGTH[name]} if name in MAX_LENGTH else {}))
        views = LinearHead().default_views(backbone)
        store = open_store(str(cache), backbone.recipe(views))
        parts = [lpc_data.draw(name, seed, quick=quick) for seed in seeds]
        pool, test = (encode_pairs(backbone, each, views, store) for each in (parts[0].pool, parts[0].test))
        right = []
        for part in parts:
            head = LinearHead().fit(pool.take(part.rows))
            right.append(correctness(head.score(test.chosen), head.score(test.rejected)))
        found[name] = _figure(right, _groups(name, quick))
    return found


# ---- what is printed ------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any], extra: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows of text."""
    header = ["run", "seeds", "accuracy", "minus plain", "posterior", "switched", "KL", "perplexity", "top share"]
    rows = [header]
    for name, one in sorted(found["cells"].items()):
        rows.append(
            [
                name,
                str(one["seeds"]),
                percent(one["accuracy"]),
                points(one["delta"]) if "delta" in one else "",
                *(points(one[f"{way}_delta"]) if way in one else "" for way in ("posterior", "switched")),
                *(f"{one[figure]:.3g}" if figure in one else "" for figure in ("kl", "perplexity", "top_share")),
            ]
        )
    people = [["run", "z from", "all", "minus prior", "minus plain", *("brief", "concrete", "warm")]]
    for name, one in found["cells"].items():
        for way in ("prior", "known", "likelihood", "other", "posterior"):
            if way in one.get("people", {}):
                by = one["people"][way]
                told = ["", "", ""]
                if way != "prior":
                    ends = ("all", "delta", "minus_plain")
                    told = [(percent if end == "all" else points)(one["people"][f"{way}_{end}"]) for end in ends]
                people.append([name, way, *told, *(f"{100 * value:.1f}" for value in by.values())])
    cost = [["figure", "value"], *([k, f"{v:.3g}"] for k, v in flat({k: extra[k] for k in ("exact", "cost")}).items())]
    simple = [["data", "ridge head on the same pairs"], *([name, percent(one)] for name, one in extra["ridge"].items())]
    good = [["figure", "value"], *([k, f"{v:.3f}"] for k, v in flat(extra["quality"]).items())]
    return [("preference accuracy", rows), ("ridge", simple), ("people", people), ("cost", cost), ("quality", good)]


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Nested numbers by their path; lists are left out."""
    if isinstance(value, dict):
        parts = [flat(v, f"{name}_{k}" if name else str(k)) for k, v in value.items()]
        return {k: v for part in parts for k, v in part.items()}
    return {name: value} if isinstance(value, (int, float)) else {}


def headline(found: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The stable keys: for each set and loss the accuracy without and with 64 codes, and their difference."""
    figures: dict[str, Any] = {}
    for name, one in found["cells"].items():
        parts = name.split("/")
        if len(parts) != 3 or parts[2] not in ("none", "codes 64"):
            continue
        set_, loss, latent = parts
        figures[f"{set_}_{loss}" + ("_lpc" if latent != "none" else "")] = one["accuracy"]["value"]
        if "delta" in one:
            delta = {f"{set_}_{loss}_delta{end}": one["delta"][k] for k, end in _ENDS.items()}
            figures |= delta
    for name, one in found["cells"].items():
        for way in ("known", "likelihood"):
            if f"{way}_delta" in one.get("people", {}):
                short = name.removeprefix("demo/dpo/").replace(" ", "_").replace("/", "_")
                for against in ("delta", "minus_plain"):
                    told = one["people"][f"{way}_{against}"]
                    figures |= {f"people_{short}_{way}_{against}{end}": told[k] for k, end in _ENDS.items()}
    cost = extra["cost"]
    kept = ("overhead_ratio", "overhead_memory", "overhead_people", "speed_vs_trl", "speed_vs_trl_known")
    figures |= {k: cost[k] for k in (*kept, "speed_vs_trl_top_layers") if k in cost}
    figures |= {k: extra["exact"][k] for k in ("trl_difference", "zero_code_difference")}
    figures |= {f"{name}_ridge": one["value"] for name, one in extra["ridge"].items()}
    quality_of = extra["quality"]
    wanted = tuple(f"{k}{end}" for k in ("gold_mean_delta", "win_rate") for end in _ENDS.values())
    figures |= {f"{s}_{k}": v for s, one in quality_of.items() for k, v in one.items() if k in wanted}
    return {k: float(f"{v:.5g}") for k, v in figures.items()}


_ENDS = {"value": "", "low": "_ci_low", "high": "_ci_high"}
