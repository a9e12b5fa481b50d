"""A tiny LLM on disk and pairs for it, shared by the tests of policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from penchant.backbone import load_whole
from penchant.pairs import load_pairs
from penchant.policy.batches import TokenPair, token_pairs
from penchant.policy.build import make_policy, make_trunk
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from tests.tiny_llm import save_tiny_llm, tiny_pairs

Maker = Callable[..., tuple[Policy, list[TokenPair]]]


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("tiny") / "llm")


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    return load_pairs(tiny_pairs(24))


@pytest.fixture
def make(tiny_llm: Path, pairs: Dataset, tmp_path: Path) -> Maker:
    """A fresh policy on the tiny LLM with these settings, and the pairs as ids."""

    def made(**settings: object) -> tuple[Policy, list[TokenPair]]:
        chosen = Settings(**{"codes": 4, "lora": 4, **settings})  # type: ignore[arg-type]
        llm, backbone = load_whole(str(tiny_llm), "float32")
        tokens = token_pairs(backbone, pairs)
        trunk = make_trunk(backbone, chosen, tokens, tmp_path)
        return make_policy(llm, backbone, chosen, trunk, asked=(str(tiny_llm), None)), tokens

    return made
