"""The whole personal LLM on a tiny LLM: pretrain, load again, fit people, answer in their taste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from penchant.errors import InputError
from penchant.personal.clap_training import ClapSettings
from penchant.personal.fitting import LatentDPOSettings
from penchant.personal.system import PersonalLLM
from tests.tiny_llm import save_tiny_llm

PROMPTS = [f"Say something about {thing}" for thing in ("a tree", "a dog", "rain", "tea", "a song", "snow")]


def pretrain(work: Path, name: str, **more: Any) -> PersonalLLM:
    return PersonalLLM.pretrain(
        PROMPTS,
        work / name,
        model=str(work / "llm"),
        dtype="float32",
        latent=8,
        answers=4,
        max_new_tokens=6,
        settings=ClapSettings(epochs=3, prompts=2, learning_rate=1e-2, others=1),
        show_progress=False,
        **more,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personal")
    save_tiny_llm(folder / "llm")
    pretrain(folder, "system")
    return folder


def judged(people: dict[str, bool]) -> Dataset:
    """Who likes a's, and who does not."""
    rows = []
    for name, likes in people.items():
        for prompt in PROMPTS:
            pair = ("aaaa aa", "zz z zzz") if likes else ("zz z zzz", "aaaa aa")
            rows.append({"prompt": prompt, "chosen": pair[0], "rejected": pair[1], "user_id": name})
    return Dataset.from_list(rows)


def test_people_are_fitted_kept_and_told_apart(work: Path) -> None:
    system = PersonalLLM.load(work / "system")
    before = system.z(PROMPTS)
    assert not before.any()  # of whom nothing is known
    assert system.fit_users(judged({"ann": True, "bob": False})) == {"ann": 1, "bob": 1}
    ann, bob = (system.z(PROMPTS, name) for name in ("ann", "bob"))
    assert (ann - bob).norm() > 0.1
    assert torch.nn.functional.cosine_similarity(ann.mean(0), bob.mean(0), 0) < 0
    again = PersonalLLM.load(work / "system")
    assert torch.equal(again.z(PROMPTS, "ann"), ann)
    assert again.fit_users(judged({"ann": True})) == {"ann": 2}
    assert again.users.known("ann").pairs == 2 * len(PROMPTS)
    assert (again.z(PROMPTS, "ann") - ann).norm() > 1e-3  # went on from where she was
    assert torch.equal(again.z(PROMPTS, "bob"), bob)
    answers = again.generate(PROMPTS, "ann", answers=2, max_new_tokens=5)
    assert [len(row) for row in answers] == [2] * len(PROMPTS)
    with pytest.raises(InputError, match="nobody called 'cleo'"):
        again.generate(PROMPTS, "cleo")


def test_who_is_new_starts_from_the_population_and_who_is_known_stays(work: Path) -> None:
    pretrain(work, "population")
    system = PersonalLLM.load(work / "population")
    system.fit_users(judged({"bob": False}))
    bob = system.z(PROMPTS, "bob")
    system.fit_population(judged({"ann": True, "eve": True}), rewards=False)
    again = PersonalLLM.load(work / "population")
    everybody = again.z(PROMPTS)
    assert everybody.norm() > 0.1
    assert torch.equal(again.z(PROMPTS, "bob"), bob)
    again.fit_users(judged({"dan": True}).select([0]), LatentDPOSettings(pull=1000.0))
    assert torch.allclose(again.z(PROMPTS, "dan"), everybody, atol=0.02)


def test_pretraining_again_goes_on_from_what_is_there(work: Path) -> None:
    whole = {p.name: p.read_bytes() for p in (work / "system").iterdir() if p.suffix == ".safetensors"}
    answers = (work / "system" / "answers.jsonl").read_bytes()
    pretrain(work, "system")
    assert {p.name: p.read_bytes() for p in (work / "system").iterdir() if p.suffix == ".safetensors"} == whole
    assert (work / "system" / "answers.jsonl").read_bytes() == answers
    other = pretrain(work, "other")
    assert other.facts["figures"] == PersonalLLM.load(work / "system").facts["figures"]  # the same from the start


def test_what_cannot_be_used_is_named(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no personal LLM"):
        PersonalLLM.load(tmp_path)
    with pytest.raises(InputError, match="too few"):
        PersonalLLM.pretrain(PROMPTS[:1], tmp_path / "x", model=str(work / "llm"))
    system = PersonalLLM.load(work / "system")
    with pytest.raises(InputError, match="user_id"):
        system.fit_users(judged({"ann": True}).remove_columns("user_id"))
