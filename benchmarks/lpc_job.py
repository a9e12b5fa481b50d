"""One run of benchmarks/lpc.py in a process of its own: train a policy, test it, keep what it did as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lpc_controls
import lpc_data
import lpc_people
import numpy as np
import torch
from datasets import Dataset

from penchant.backbone import load_whole
from penchant.evaluate.accuracy import correctness
from penchant.policy.align import train_policy
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy, make_trunk
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import generate
from penchant.policy.losses import PairLogProbs
from penchant.policy.people import people_of
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings
from penchant.policy.watch import code_figures

MODEL = "smollm2-135m-instruct"
TOP_LAYERS = 2
TRAINING = {
    "dpo": {"learning_rate": 1e-3},
    "ipo": {"learning_rate": 1e-3},
    "simpo": {"learning_rate": 1e-3},
}
SAMPLED = {"demo": (40, 2, 64), "hh": (24, 2, 64)}
"""Prompts, answers to each and tokens of an answer, for the quality of what is generated."""


def run(job: dict[str, Any], cache: str) -> dict[str, Any]:
    """A job is {set, loss, latent, codes, seed} and, where they differ from the defaults, {posterior, flips, tag,
    people, switch, quick, sample}. `latent` is none, codes, or a control's name. For the posterior "people" annotators
    are the people of the demo data, and sources those of the other sets."""
    name, seed, quick = job["set"], job["seed"], job.get("quick", False)
    part = lpc_data.draw(name, seed, quick=quick, flips=job.get("flips", 0.0), tag=job.get("tag", False))
    llm, backbone = load_whole(MODEL, "auto", None, lpc_data.MAX_LENGTH.get(name, 1024))
    pool, test = token_pairs(backbone, part.pool), token_pairs(backbone, part.test)
    coded = job["latent"] == "codes"
    settings = Settings(
        loss=job["loss"],
        codes=job["codes"] if coded else 0,
        posterior=job.get("posterior", "concat"),
        top_layers=TOP_LAYERS,
        seed=seed,
        **{**TRAINING[job["loss"]], **job.get("settings", {})},
    )
    trunk = make_trunk(backbone, settings, [*pool, *test], cache)
    reference, _ = reference_log_probs(Policy(llm, backbone, trunk=trunk), [*pool, *test], cache)
    if job.get("prepare"):
        return {}
    train, ends = [pool[i] for i in part.rows], (slice(len(pool)), slice(len(pool), None))
    of_pool, of_test = (PairLogProbs(*(column[rows] for column in reference)) for rows in ends)
    of_train = PairLogProbs(*(column[part.rows] for column in of_pool))
    torch.manual_seed(seed)
    latent = None
    if job["latent"] not in ("none", "codes"):
        latent = lpc_controls.make(job["latent"], backbone.width, job["codes"])
    names: list[str] = []
    person = None
    if job.get("posterior") == "people":
        names, person = people_of(lpc_data.by_people(part.train, name))
    policy = make_policy(llm, backbone, settings, trunk, latent=latent, people=names)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = train_policy(
            policy, settings.make_loss(), train, of_train, settings, Path(folder), person=person, show_progress=False
        )
    seconds = time.perf_counter() - start
    policy.eval().requires_grad_(False)
    found = {
        "job": job,
        "train_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "trainable": sum(p.numel() for g in trainer.optimizer.param_groups for p in g["params"]),  # type: ignore[union-attr]
        "history": [row for row in trainer.state.log_history if "loss" in row][-8:],
        **tested(policy, settings, test, of_test, job.get("switch", False), lpc_data.by_people(part.test, name)),
    }
    if coded and job.get("people"):
        found["people"] = lpc_people.people(policy, settings.make_loss(), part, pool, of_pool, test, of_test, seed)
    if name in SAMPLED and job.get("sample"):
        prompts, answers, tokens = SAMPLED[name]
        asked = list(dict.fromkeys(map(json.dumps, part.test["prompt"])))[: 4 if quick else prompts]
        found["prompts"] = [json.loads(prompt) for prompt in asked]
        found["answers"] = generate(
            policy,
            found["prompts"],
            answers=answers,
            max_new_tokens=tokens,
            temperature=0.8,
            top_p=0.95,
            seed=seed,
            show_progress=False,
        )
    return found


def tested(
    policy: Policy, settings: Settings, pairs: Any, reference: PairLogProbs, switch: bool, judged: Dataset
) -> dict[str, Any]:
    """Which test pairs are ordered rightly under which z; for codes also what the codes do."""
    coded = isinstance(policy.codes, LatentCodes)
    shifts: dict[str, Any] = {"prior": policy.expected}
    if coded:
        shifts["posterior"] = policy.by_posterior
        if switch:
            shifts["switched"] = lambda s: policy.by_posterior(s._replace(chosen=s.rejected, rejected=s.chosen))
    states, found = policy.score(pairs, shifts, evidence=policy.known_people(judged))
    loss = settings.make_loss()
    margins = {name: loss.margins(probs, reference).numpy().astype(float) for name, probs in found.items()}
    right: dict[str, Any] = {name: correctness(m, np.zeros_like(m)).tolist() for name, m in margins.items()}
    result: dict[str, Any] = {"right": right, "margin": {name: float(m.mean()) for name, m in margins.items()}}
    if coded:
        with torch.no_grad():
            prior = policy.codes.prior_logits(states.prompt).softmax(-1)
        result["codes"] = code_figures(prior, policy.weights_by_posterior(states))
    return result


if __name__ == "__main__":
    job, file = json.loads(sys.argv[1]), Path(sys.argv[3])
    made = run(job, sys.argv[2])
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(made), encoding="utf-8")
    unfinished.replace(file)
