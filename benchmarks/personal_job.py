"""One run of the sentiment task in a process of its own; what it did is kept as JSON.

A job is {method, seed} and, by method,

    base                 nothing is trained; {draw} tells its two samples apart
    pretrain             {adapter, latent, published}: a system that `latent` jobs use
    latent               {adapter, latent, full, read, flips, domain, limit}: Latent DPO, for the people side by side
    reward               {adapter}: does the latent reward r(x, z) know what answers from z are worth?
    lora, full, ptuning  {person, rate}: DPO on the same pairs, by Penchant's trainer; P-tuning by its own loop

With {valid}, answers are to the prompts that settings are chosen by.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import personal_sentiment as task
import torch
from datasets import Dataset, concatenate_datasets
from personal_ptuning import ptuned
from personal_sentiment import MODEL, Split, pairs_of, perplexity, sample_args, split
from scipy.stats import spearmanr

from penchant.backbone import load_whole
from penchant.cli.demo import DATA as DEMO
from penchant.generation import Generator
from penchant.pairs import load_pairs
from penchant.personal.clap_training import ClapSettings
from penchant.personal.encoder import log_normal
from penchant.personal.people import PEOPLE
from penchant.personal.reach import LIMIT
from penchant.personal.system import PersonalLLM
from penchant.personal.users import Users
from penchant.policy.align import train_policy
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy
from penchant.policy.generate import generate
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings

LORA = {"lora": 8, "learning_rate": 5e-4}
FULL = {"lora": 0, "learning_rate": 1e-5}


def run(job: dict[str, Any], work: Path) -> dict[str, Any]:
    quick = job.get("quick", False)
    data = split(task.pool(work, task.QUICK_POOL if quick else task.POOL), job["seed"], quick)
    method = {
        "base": base,
        "pretrain": pretrain,
        "latent": latent,
        "reward": reward,
        "ptuning": aligned,
        "lora": aligned,
        "full": aligned,
    }
    found = method[job["method"]](job, data, work)
    if "answers" in found:
        model, backbone = load_whole(MODEL, "auto", None, 512)
        asked = asked_of(job, data)
        found["perplexity"] = {
            who: perplexity(model, backbone, asked, texts) for who, texts in found["answers"].items()
        }
    return {"job": job, **found}


def base(job: dict[str, Any], data: Split, work: Path) -> dict[str, Any]:
    generator = Generator.load(MODEL, max_length=512)
    asked = asked_of(job, data)
    arguments = sample_args(job["seed"]) | {"seed": 5000 + 100 * job.get("draw", 0) + job["seed"]}
    return {"answers": {"base": generator.sample(asked, **arguments)}}


def system_folder(job: dict[str, Any], work: Path) -> Path:
    kind = f"{job['adapter']}-{job.get('latent', 32)}-{job['seed']}" + ("-quick" if job.get("quick") else "")
    return work / "systems" / kind


def loaded(job: dict[str, Any], work: Path) -> PersonalLLM:
    """The system, with people of this job's own: others of the same names are fitted side by side."""
    system = PersonalLLM.load(system_folder(job, work))
    system.users = Users(Path(tempfile.mkdtemp()) / PEOPLE, system.facts["digest"])
    return system


def pretrain(job: dict[str, Any], data: Split, work: Path) -> dict[str, Any]:
    start = time.perf_counter()
    settings = ClapSettings.published(seed=job["seed"]) if job["adapter"] == "positions" else None
    system = PersonalLLM.pretrain(
        data.train.prompts,
        system_folder(job, work),
        data.train.answers,
        model=MODEL,
        max_length=512,
        latent=job.get("latent", 32),
        adapter=job["adapter"],
        settings=settings,
        cache=work / "cache",
        seed=job["seed"],
        show_progress=False,
    )
    return {"seconds": time.perf_counter() - start, "figures": system.facts["figures"]}


def latent(job: dict[str, Any], data: Split, work: Path) -> dict[str, Any]:
    """All three people, fitted together; seconds of one alone, whose texts' z was kept at pretraining, or is read."""
    system = loaded(job, work)
    people, full, kept = list(task.TASTES), job.get("full", False), system.kept
    pairs = {who: turned(pairs_of(data.train, who), job.get("flips", 0.0), job["seed"]) for who in people}

    def fitted(of: Dataset) -> float:
        start = time.perf_counter()
        system.fit_users(of, full=full, read="encoder")
        seconds = time.perf_counter() - start
        system.forget(*people)
        return seconds

    found: dict[str, Any] = {"seconds": fitted(pairs[people[0]])}
    system.kept = {}
    found["seconds_reading"] = fitted(pairs[people[0]])
    system.kept = {} if job.get("read") == "encoder" else kept
    system.fit_users(concatenate_datasets(list(pairs.values())), full=full, read="encoder")
    asked = asked_of(job, data)
    arguments, limit = sample_args(job["seed"]), job.get("limit", LIMIT)
    found["answers"] = {who: system.generate(asked, who, perplexity_limit=limit, **arguments) for who in people}
    z = {who: system.z(asked, who) for who in people}
    held = {who: system.reach.within(z[who], limit) for who in people}
    found["norms"] = {who: [float(own.norm(dim=1).mean()) for own in (z[who], held[who])] for who in people}
    found["bytes"] = {who: system.users.known(who).size for who in people}
    return {**found, "pairs": {who: len(of) for who, of in pairs.items()}}


def asked_of(job: dict[str, Any], data: Split) -> list[str]:
    """The prompts to answer: of the task, or of another domain that training never saw."""
    if job.get("domain") == "demo":
        rows = load_pairs(DEMO / "demo.jsonl.gz")["prompt"]
        return list(dict.fromkeys(rows))[: len(data.test)]
    return data.valid if job.get("valid") else data.test


def turned(pairs: Dataset, share: float, seed: int) -> Dataset:
    """The pairs with a share of the labels turned round."""
    flip = np.random.default_rng([3, seed]).permutation(len(pairs)) < share * len(pairs)

    def turn(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if flip[number] else row

    return pairs.map(turn, with_indices=True)


def reward(job: dict[str, Any], data: Split, work: Path) -> dict[str, Any]:
    """Spearman's correlation, for each person, of log p(z | x) - log N(z) with the gold score of an answer from z,
    over z drawn from N(0, I / 4), about as far as `reach` lets z go, for each test prompt."""
    system = loaded(job, work)
    people = list(task.TASTES)
    system.fit_users(concatenate_datasets([pairs_of(data.train, who) for who in people]), read="encoder")
    draws = 4
    asked = [prompt for prompt in data.test for _ in range(draws)]
    z = torch.randn(len(asked), system.clap.latent, generator=torch.Generator().manual_seed(job["seed"])) / 2
    sampling = sample_args(job["seed"]) | {"answers": 1}
    texts = [each[0] for each in system.generator.sample(asked, z=z, **sampling)]
    found = {}
    for who in people:
        own = system.person(asked, who)
        value = (own.log_prob(z) - log_normal(z).sum(-1)).numpy()
        gold = np.array([task.TASTES[who](task.sentiment(text)) for text in texts])
        found[who] = float(spearmanr(value, gold).statistic)
    return {"correlation": found, "draws": len(asked)}


def aligned(job: dict[str, Any], data: Split, work: Path) -> dict[str, Any]:
    """DPO on one person's pairs; the seconds leave out the reference, which could be known beforehand."""
    who, asked = job["person"], asked_of(job, data)
    pairs = pairs_of(data.train, who)
    if job["method"] == "ptuning":
        seconds, answers = ptuned(pairs, asked, job["seed"], work / "cache", sample_args(job["seed"]))
    else:
        seconds, answers = dpo(job, pairs, asked, work)
    return {"seconds": seconds, "answers": {who: answers}, "pairs": {who: len(pairs)}}


def dpo(job: dict[str, Any], pairs: Dataset, asked: list[str], work: Path) -> tuple[float, list[list[str]]]:
    chosen = (LORA if job["method"] == "lora" else FULL) | ({"learning_rate": job["rate"]} if "rate" in job else {})
    settings = Settings(codes=0, seed=job["seed"], **chosen)  # type: ignore[arg-type]
    llm, backbone = load_whole(MODEL, "auto" if settings.lora else "float32", None, 512)
    tokens = token_pairs(backbone, pairs)
    reference, _ = reference_log_probs(Policy(llm, backbone), tokens, work / "cache")
    torch.manual_seed(job["seed"])
    policy = make_policy(llm, backbone, settings, None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train_policy(policy, settings.make_loss(), tokens, reference, settings, Path(folder), show_progress=False)
    seconds = time.perf_counter() - start
    policy.eval().requires_grad_(False)
    return seconds, generate(policy, asked, **sample_args(job["seed"]))


if __name__ == "__main__":
    asked_for, kept = json.loads(sys.argv[1]), Path(sys.argv[3])
    made = run(asked_for, Path(sys.argv[2]))
    unfinished = kept.with_suffix(".part")
    unfinished.write_text(json.dumps(made), encoding="utf-8")
    unfinished.replace(kept)
