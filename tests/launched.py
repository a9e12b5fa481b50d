"""What the tests of several processes run, in one process or in each of a launch: `python -m tests.launched KIND DIR`.

DIR holds llm/, a tiny LLM, and pairs.jsonl. What a run leaves lies in DIR/KIND; KIND is "one" in one process, "two" in
a launch, and "parts" there with sharded weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from penchant import processes
from penchant.backbone import load_whole
from penchant.cli.main import main as penchant
from penchant.generation import Generator
from penchant.pairs import load_pairs
from penchant.personal.clap_training import ClapSettings
from penchant.personal.system import PersonalLLM
from penchant.policy.align import train_policy
from penchant.policy.batches import token_pairs
from penchant.policy.build import make_policy, make_trunk
from penchant.policy.people import people_of
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings
from penchant.sharding import is_sharded
from tests.tiny_llm import save_tiny_llm

PAIRS = 23
"""Of the last batch of 4 one process has two pairs, the other one; of the last of 2 one has none."""
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "log_steps": 1,
    "save_steps": 3,
    "batch_size": 4,
    "codes": 4,
    "lora": 4,
}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"codes": 0},
    "people": {"posterior": "people", "epochs": 2},
    "micro": {"micro_batch": 2, "lora": 0, "gradient_checkpointing": True},
    "top": {"lora": 0, "top_layers": 1},
}
RESUMED = "people"
PEOPLE: dict[str, dict[str, Any]] = {
    "start": {"settings": ClapSettings(begin_epochs=2, prompts=2)},
    "published": {"settings": ClapSettings.published(prompts=4, unfreeze=True), "adapter": "positions"},
}


def prepare(work: Path) -> None:
    """Short answers: a unit in the last place of a long one's log-probability would be seen in the losses."""
    save_tiny_llm(work / "llm")
    rows = [
        {"prompt": f"Is {i} odd?", "chosen": f"Y{i % 7}", "rejected": f"N{i % 5}.", "user_id": f"u{i % 3}"}
        for i in range(PAIRS)
    ]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(name: str, work: Path, folder: Path) -> int:
    """The training of one policy, of its own reference and trunk; returns how many steps it made."""
    settings = Settings(**{**COMMON, **RUNS[name]})
    llm, backbone = load(work)
    pairs = load_pairs(str(work / "pairs.jsonl"))
    names, person = people_of(pairs) if settings.posterior == "people" else ([], None)
    tokens = token_pairs(backbone, pairs)
    cache = folder.parent / "cache"
    trunk = make_trunk(backbone, settings, tokens, cache)
    policy = make_policy(llm, backbone, settings, trunk, asked=(str(work / "llm"), None), people=names)
    reference, _ = reference_log_probs(policy, tokens, cache)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = train_policy(
        policy, settings.make_loss(), tokens, reference, settings, folder, person=person, show_progress=False
    )
    assert is_sharded(policy) == processes.asked_to_shard()
    trainer.save_policy(folder / "policy")
    return trainer.stepped


def load(work: Path) -> Any:
    processes.asked_to_shard()
    return load_whole(str(work / "llm"), "float32", max_length=256)


def train_on(work: Path, folder: Path) -> None:
    """What is left of the RESUMED run after the first checkpoint that it kept, in a folder beside its own."""
    again = folder.with_name("resumed") / "checkpoints"
    first = min(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if processes.is_main():
        shutil.copytree(first, again / first.name)
        shutil.copy(first.with_name("made_with.json"), again)
    processes.wait()
    assert train(RESUMED, work, again.parent) == COMMON["save_steps"]


def align(work: Path, folder: Path) -> None:
    """The command line, in a folder that it names itself."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    given = {"model": work / "llm", "dtype": "float32", "cache": folder.parent / "cache", "codes": 4, "steps": 3}
    given |= {"log_steps": 1, "max_length": 64}
    words = [f"--{name}={value}" for name, value in given.items()]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert penchant(["align", str(work / "pairs.jsonl"), *words]) == 0
    assert bool(said.getvalue()) == processes.is_main()


def pretrain(name: str, work: Path, folder: Path) -> None:
    """One personal LLM: of 8 prompts 7 are trained on, so the last step of 2 has one."""
    PersonalLLM.pretrain(
        [f"Say {i}" for i in range(8)],
        folder,
        model=str(work / "llm"),
        dtype="float32",
        max_length=128,
        latent=4,
        answers=3,
        max_new_tokens=6,
        cache=folder.parent / "cache",
        show_progress=False,
        **PEOPLE[name],
    )


def sample(work: Path, folder: Path) -> None:
    """Answers by several batches, 5 of them, kept in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [f"Count to {'1' * i}" for i in range(10)]
    generator = Generator(*load(work))
    said = generator.sample(
        prompts, answers=2, rows=4, max_new_tokens=5, file=folder / "answers.jsonl", show_progress=False, shared=True
    )
    if processes.is_main():
        (folder / "said.json").write_text(json.dumps([said, generator.cost.answers]))


def main(kind: str, work: Path) -> None:
    logging.disable(logging.WARNING)
    sharding = os.environ.pop("ACCELERATE_USE_FSDP", None)
    for name in RUNS:
        train(name, work, work / kind / name)
    train_on(work, work / kind / RESUMED)
    align(work, work / kind / "align")
    for name in PEOPLE:
        pretrain(name, work, work / kind / name)
    sample(work, work / kind / "sample")
    if sharding:
        os.environ["ACCELERATE_USE_FSDP"] = sharding
        processes._fsdp_version.cache_clear()
        for name in ("people", "micro"):
            train(name, work, work / "parts" / name)
        train_on(work, work / "parts" / RESUMED)
        align(work, work / "parts" / "align")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
