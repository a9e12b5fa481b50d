"""Small models on a tiny LLM: a reward model that is one for all, and a personal LLM that knows four people."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant import RewardModel, load_pairs
from penchant.heads import LinearHead
from penchant.personal.clap_training import ClapSettings
from penchant.personal.system import PersonalLLM
from tests.test_cli_personal import PROMPTS, judged
from tests.tiny_llm import save_tiny_llm, tiny_pairs


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("integrations") / "llm")


@pytest.fixture(scope="session")
def model(llm: Path) -> Path:
    """The folder of a reward model."""
    folder = llm.parent / "model"
    rm = RewardModel.train(
        tiny_pairs(60), head=LinearHead(), model=str(llm), dtype="float32", views=["3:mean"],
        cache=llm.parent / "cache", show_progress=False,
    )  # fmt: skip
    rm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def people(llm: Path) -> Path:
    """The folder of a personal LLM; ann and cleo like warm answers, bob and dan do not."""
    folder, cache = llm.parent / "people", llm.parent / "cache"
    settings = ClapSettings(epochs=1, prompts=2, others=1)
    answers = [[f"{word} {prompt}" for word in "abc"] for prompt in PROMPTS]
    made = PersonalLLM.pretrain(
        PROMPTS, folder, answers, model=str(llm), dtype="float32", latent=8, settings=settings, cache=cache,
        show_progress=False,
    )  # fmt: skip
    pairs = load_pairs(judged())
    made.fit_population(pairs, cache=cache)
    made.fit_users(pairs, cache=cache)
    return folder


@pytest.fixture
def environment(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model, named in the environment."""
    monkeypatch.setenv("PENCHANT_REWARD_MODEL", str(model))
    return model
