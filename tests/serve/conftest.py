"""A tiny reward model, a personal one, and servers of them in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from fastapi.testclient import TestClient

from penchant import RewardModel
from penchant.personal.clap_training import ClapSettings
from penchant.personal.system import PersonalLLM
from penchant.serve.app import create_app
from penchant.serve.service import Service
from tests.tiny_llm import save_tiny_llm, tiny_pairs

Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reward model on a tiny LLM."""
    folder = tmp_path_factory.mktemp("serve")
    save_tiny_llm(folder / "llm")
    rm = RewardModel.train(
        tiny_pairs(20), model=str(folder / "llm"), dtype="float32", cache=folder / "cache", show_progress=False
    )
    rm.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def rm(model_folder: Path) -> RewardModel:
    """The same model, loaded a second time: what the server has to agree with."""
    return RewardModel.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def client(model_folder: Path) -> Iterator[TestClient]:
    """A server of the model, in this process."""
    with TestClient(create_app(Service.load(model_folder)), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def served(model_folder: Path) -> Iterator[Serve]:
    """Makes a server of the model with limits, keys and so on of its own."""
    opened: list[TestClient] = []

    def serve(limits: Any = None, cache_bytes: int = 1 << 20, **more: Any) -> TestClient:
        service = Service.load(model_folder, limits=limits, cache_bytes=cache_bytes)
        opened.append(TestClient(create_app(service, **more), raise_server_exceptions=False).__enter__())
        return opened[-1]

    yield serve
    for each in opened:
        each.__exit__()


THINGS = ("a tree", "a dog", "rain", "tea", "a song", "snow")


@pytest.fixture(scope="session")
def system_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personal LLM that knows ann, who likes a's, and bob, who does not."""
    folder = tmp_path_factory.mktemp("people")
    save_tiny_llm(folder / "llm")
    prompts = [f"Say something about {thing}" for thing in THINGS]
    system = PersonalLLM.pretrain(
        prompts,
        folder / "system",
        [["aaaa aa", "zz z zzz", "b"]] * len(prompts),
        model=str(folder / "llm"),
        dtype="float32",
        latent=8,
        settings=ClapSettings(begin_epochs=1, epochs=0, prompts=2),
        cache=folder / "cache",
        show_progress=False,
    )
    sides = {"ann": ("aaaa aa", "zz z zzz"), "bob": ("zz z zzz", "aaaa aa")}
    rows = [
        {"prompt": prompt, "chosen": sides[who][0], "rejected": sides[who][1], "user_id": who}
        for who in sides
        for prompt in prompts
    ]
    system.fit_population(Dataset.from_list(rows), cache=folder / "cache")
    system.fit_users(Dataset.from_list(rows), cache=folder / "cache")
    return folder / "system"
