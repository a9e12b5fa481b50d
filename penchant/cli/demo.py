"""`penchant demo`: the whole of Penchant's main job on the data it carries."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from penchant.backbone import DEFAULT, Backbone
from penchant.encode import LatentStore
from penchant.evaluate import best_of_n
from penchant.pairs import load_pairs
from penchant.reward_model import RewardModel
from penchant.runs import Run, summary, train_run
from penchant.store_views import open_store

DATA = Path(str(files("penchant") / "data"))


def demo(*, out: str = "runs/demo", cache: str | None = None, model: str = DEFAULT) -> None:
    """Train and evaluate a reward model on the carried demo pairs (simulated annotators), and make its report.

    Args:
        out: folder of the run: model, metrics.json, config.yaml, report.html.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        model: backbone: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
    """
    run = Run(out, "demo", dict(locals()))
    pairs = load_pairs(DATA / "demo.jsonl.gz")
    split = np.array(pairs["split"])
    train, test = (pairs.select(np.flatnonzero(split == part)) for part in ("train", "test"))
    print(f"loading {model} ...", flush=True)
    backbone = Backbone.load(model)
    print(f"running in {str(backbone.dtype).removeprefix('torch.')}: {backbone.dtype_reason}", flush=True)
    names = ("the demo pairs (simulated annotators)", "demo pairs of held-out prompts")
    rm, metrics = train_run(train, test, names, backbone, cache=cache)
    best = metrics["best_of_n"] = demo_best_of_n(rm, open_store(cache, rm.recipe))
    rm.save_pretrained(run.folder / "model")
    report = run.finish({"title": "Penchant demo", **metrics})
    print(summary(metrics))
    picked, random = best["picked"][-1]["value"], best["random"][-1]
    print(f"best of {best['n'][-1]}: mean gold {picked:+.2f} (a random answer {random:+.2f})")
    print(f"total {metrics['cost']['total_seconds']:.0f} s")
    print(f"model:  {run.folder / 'model'}\nreport: {report}")


def demo_best_of_n(rm: RewardModel, store: LatentStore) -> dict[str, Any]:
    """Best-of-n over all answers to the held-out prompts, against the mean of the three annotators' gold scores."""
    with gzip.open(DATA / "demo_candidates.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["split"] == "test"]
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    responses = [response for row in rows for response in row["responses"]]
    gold = np.concatenate([np.mean(list(row["gold"].values()), axis=0) for row in rows])
    group = np.repeat(np.arange(len(rows)), [len(row["responses"]) for row in rows])
    found = best_of_n(rm.score(prompts, responses, store=store), gold, group, "mean gold of three annotators")
    assert found is not None  # every demo prompt has several answers
    return found
