"""Small models on a tiny LLM: a reward model that is one for all, and a personal LLM that knows four people."""

from __future__ import annotations

from pathlib import Path

from penchant import RewardModel, load_pairs
from penchant.heads import LinearHead
from penchant.personal.clap_training import ClapSettings
from penchant.personal.system import PersonalLLM
from tests.test_cli_personal import PROMPTS, judged
from tests.tiny_llm import tiny_pairs


def save_tiny_model(llm: Path, folder: Path) -> Path:
    """A reward model; returns its folder."""
    RewardModel.train(
        tiny_pairs(60), head=LinearHead(), model=str(llm), dtype="float32", views=["3:mean"],
        cache=folder / "cache", show_progress=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_tiny_people(llm: Path, folder: Path) -> Path:
    """A personal LLM of which ann and cleo like warm answers, bob and dan do not; returns its folder."""
    settings = ClapSettings(epochs=1, prompts=2, others=1)
    answers = [[f"{word} {prompt}" for word in "abc"] for prompt in PROMPTS]
    made = PersonalLLM.pretrain(
        PROMPTS, folder, answers, model=str(llm), dtype="float32", latent=8, settings=settings,
        cache=folder / "cache", show_progress=False,
    )  # fmt: skip
    pairs = load_pairs(judged())
    made.fit_population(pairs, cache=folder / "cache")
    made.fit_users(pairs, cache=folder / "cache")
    return folder
