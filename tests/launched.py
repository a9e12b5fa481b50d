"""What the tests of several processes run, in one process or in each of a launch: `python -m tests.launched KIND DIR`.

DIR holds llm/, a tiny LLM. Each run leaves its folder in DIR/KIND.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from penchant.pairs import load_pairs
from penchant.personal.clap_training import ClapSettings
from penchant.personal.system import PersonalLLM
from penchant.policy.align import align_run
from penchant.policy.settings import Settings

PAIRS = 21
"""The last batch of 4 has one pair, and of two processes one has none."""
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"codes": 0, "batch_size": 4},
    "codes": {"codes": 4, "batch_size": 4},
    "people": {"codes": 4, "batch_size": 4, "posterior": "people", "epochs": 2},
    "parts": {"codes": 4, "batch_size": 4, "micro_batch": 2, "lora": 0},
    "top": {"codes": 4, "batch_size": 4, "lora": 0, "top_layers": 1},
}


def settings_of(name: str, **more: Any) -> Settings:
    common = {"lora": 4, "learning_rate": 1e-3, "log_steps": 1, "save_steps": 3}
    return Settings(**{**common, **RUNS[name], **more})


def align(name: str, work: Path, kind: str, **more: Any) -> None:
    """One run of align into DIR/KIND/NAME, with a cache of its own."""
    rows = [
        {"prompt": f"Is {i} odd?", "chosen": f"Y{i % 7}", "rejected": f"N{i % 5}.", "user_id": f"u{i % 3}"}
        for i in range(PAIRS + 5)
    ]  # short: a unit in the last place of a long answer's log-probability would be seen in the losses
    pairs, held_out = load_pairs(rows[:PAIRS]), load_pairs(rows[PAIRS:])
    folder = work / kind / name
    align_run(
        pairs,
        held_out,
        ("some", "others"),
        settings_of(name, **more),
        folder,
        model=str(work / "llm"),
        dtype="float32",
        max_length=256,
        cache=work / kind / "cache",
        show_progress=False,
    )


PEOPLE: dict[str, dict[str, Any]] = {
    "start": {"settings": ClapSettings(begin_epochs=2, epochs=1, prompts=2, others=1)},
    "published": {"settings": ClapSettings.published(prompts=2, unfreeze=True), "adapter": "positions"},
}


def pretrain(name: str, work: Path, kind: str) -> None:
    """One personal LLM in DIR/KIND/NAME: of 7 prompts 6 are trained on."""
    PersonalLLM.pretrain(
        [f"Say {i}" for i in range(8)],
        work / kind / name,
        model=str(work / "llm"),
        dtype="float32",
        max_length=128,
        latent=4,
        answers=3,
        max_new_tokens=6,
        cache=work / kind / "cache",
        show_progress=False,
        **PEOPLE[name],
    )


def main(kind: str, work: Path) -> None:
    logging.disable(logging.WARNING)
    for name in RUNS:
        align(name, work, kind)
    for name in PEOPLE if kind != "fsdp" else ():
        pretrain(name, work, kind)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
