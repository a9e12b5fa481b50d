"""Saving over what was saved before, and scoring a file: whoever loads meanwhile gets the old, the new or a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from penchant import RewardModel
from penchant.backbone import load_whole
from penchant.cli import score as score_verb
from penchant.heads import LinearHead
from penchant.pairs import load_pairs
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from tests.faults.jobs import Job, cli, digest, of_tensors, read_back, write_lines
from tests.faults.jobs_latents import give_llm
from tests.tiny_llm import tiny_pairs


def give_reward_models(given: Path) -> None:
    give_llm(given)
    for name, rows in (("old", tiny_pairs(20)), ("new", tiny_pairs(20, noise=0.3)[::-1])):
        rm = RewardModel.train(
            rows,
            model=str(given / "llm"),
            head=LinearHead(),
            views=["1:mean", "2:last"],
            dtype="float32",
            cache=given / "cache",
            show_progress=False,
        )
        rm.save_pretrained(given / name)


def copy_old(given: Path, folder: Path) -> None:
    shutil.copytree(given / "old", folder / "model")


def look_at_reward_model(given: Path, folder: Path) -> str:
    rm = RewardModel.from_pretrained(folder / "model")
    latents = np.random.default_rng(0).standard_normal((8, rm.recipe.dim)).astype(np.float32)
    return digest(rm.score_latents(latents, rm.recipe), rm.temperature, rm.recipe.to_dict())


def save_reward_model(given: Path, folder: Path) -> str:
    RewardModel.from_pretrained(given / "new").save_pretrained(folder / "model")
    return look_at_reward_model(given, folder)


def give_policies(given: Path) -> None:
    give_llm(given)
    pairs = load_pairs(str(given / "pairs.jsonl"))
    for seed, name in enumerate(("old", "new")):
        llm, backbone = load_whole(str(given / "llm"), "float32")
        policy = make_policy(
            llm, backbone, Settings(codes=4 + seed, lora=4, seed=seed), asked=(str(given / "llm"), None)
        )
        token_pairs(backbone, pairs)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * (seed + 1)
        policy.save_pretrained(given / name)


def look_at_policy(given: Path, folder: Path) -> str:
    policy = Policy.from_pretrained(folder / "model")
    return digest(of_tensors(dict(policy.state_dict())), policy.facts)


def save_policy(given: Path, folder: Path) -> str:
    Policy.from_pretrained(given / "new").save_pretrained(folder / "model")
    return look_at_policy(given, folder)


def give_lines(given: Path) -> None:
    give_reward_models(given)
    rows = tiny_pairs(48)
    write_lines(given / "lines.jsonl", ({"prompt": row["prompt"], "response": row["chosen"]} for row in rows))


def score(given: Path, folder: Path) -> str:
    score_verb.BATCH = 8
    out = folder / "scored.jsonl"
    cli("score", given / "new", given / "lines.jsonl", "--out", out)
    return digest(read_back(out))


JOBS = (
    Job("reward-model", save_reward_model, give_reward_models, copy_old, look_at_reward_model),
    Job("policy", save_policy, give_policies, copy_old, look_at_policy),
    Job("score", score, give_lines),
)
