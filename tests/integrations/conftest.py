"""Models on a tiny LLM that all integrations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_judges import save_tiny_model, save_tiny_people
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("integrations") / "llm")


@pytest.fixture(scope="session")
def model(llm: Path) -> Path:
    """The folder of a reward model."""
    return save_tiny_model(llm, llm.parent / "model")


@pytest.fixture(scope="session")
def people(llm: Path) -> Path:
    """The folder of a personal LLM."""
    return save_tiny_people(llm, llm.parent / "people")


@pytest.fixture
def environment(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model, named in the environment."""
    monkeypatch.setenv("PENCHANT_REWARD_MODEL", str(model))
    return model
