"""The whole personal LLM on a tiny LLM: pretrain, load again, fit people, answer in their taste."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from penchant.chat import Tokens
from penchant.errors import InputError, RecipeMismatch
from penchant.generation import Generator
from penchant.personal.adapter import LatentPositions
from penchant.personal.clap import Clap
from penchant.personal.clap_training import ClapSettings
from penchant.personal.encoder import Gaussian
from penchant.personal.fitting import LatentDPOSettings
from penchant.personal.system import PersonalLLM
from penchant.policy.batches import token_pairs
from penchant.writing import SEAL
from tests.tiny_llm import save_tiny_llm

PROMPTS = [f"Say something about {thing}" for thing in ("a tree", "a dog", "rain", "tea", "a song", "snow")]

SETTINGS = ClapSettings(begin_epochs=2, epochs=3, prompts=2, learning_rate=1e-2, first_stage=0.5, others=1)


def pretrain(work: Path, name: str, **more: Any) -> PersonalLLM:
    usual = {
        "model": str(work / "llm"),
        "dtype": "float32",
        "latent": 8,
        "answers": 4,
        "max_new_tokens": 6,
        "settings": SETTINGS,
        "cache": work / "cache",
        "show_progress": False,
    }
    return PersonalLLM.pretrain(PROMPTS, work / name, **{**usual, **more})


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
    assert {"beginning.safetensors", "training.safetensors", "clap.safetensors"} <= set(whole)
    other = pretrain(work, "other")
    assert other.facts["figures"] == PersonalLLM.load(work / "system").facts["figures"]  # the same from the start


def test_z_of_what_was_pretrained_on_is_kept_and_not_read_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClapSettings(begin_epochs=2, prompts=2)
    answers = [["aaaa aa", "zz z zzz", f"bbb {row}"] for row in range(len(PROMPTS))]
    pretrain(work, "kept", responses=answers, settings=settings)
    system = PersonalLLM.load(work / "kept")
    z = torch.stack(list(system.kept.values()))
    assert torch.allclose(z.mean(0), torch.zeros(8), atol=1e-4)  # the latents' own principal coordinates
    assert torch.allclose(z.T @ z / len(z), torch.eye(8), atol=1e-3)
    texts = token_pairs(system.clap.backbone, judged({"ann": True}))
    seen = [row for row, pair in enumerate(texts) if all(item.key in system.kept for item in pair)]
    assert 0 < len(seen) < len(PROMPTS)  # those held out were not pretrained on
    apart = torch.stack([system.kept[texts[row][0].key] - system.kept[texts[row][1].key] for row in seen])
    read: list[int] = []
    own = Clap.read

    def counted(clap: Clap, items: Sequence[Tokens]) -> Gaussian:
        read.append(len(items))
        return own(clap, items)

    monkeypatch.setattr(Clap, "read", counted)
    system.fit_users(judged({"ann": True}).select(seen), LatentDPOSettings(pull=100.0))
    assert read == []
    toward = system.users.known("ann").vectors["latent"].astype("float32")
    assert torch.nn.functional.cosine_similarity(torch.from_numpy(toward), apart.mean(0), 0) > 0.999
    system.fit_users(judged({"bob": True}), read="encoder")
    assert sum(read) == 2 * (len(PROMPTS) - len(seen))  # the rest, once
    read.clear()
    system.fit_users(judged({"eve": True}).select(seen), full=True)
    assert sum(read) == 2 * len(seen)  # an encoder a person needs how wide posteriors are
    read.clear()
    system.kept = {}  # the LLM's latents say the same as was kept
    system.fit_users(judged({"dan": True}).select(seen), LatentDPOSettings(pull=100.0), cache=work / "cache")
    assert read == []
    assert torch.allclose(system.z(PROMPTS, "dan"), system.z(PROMPTS, "ann"), rtol=0.01, atol=1e-5)
    test = judged({"dan": True})
    margins = system.latent_margins(test, "dan", cache=work / "cache")
    assert (margins > 0).all()
    turned = test.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    assert np.allclose(system.latent_margins(turned, "dan", cache=work / "cache"), -margins, atol=1e-5)
    moved = PersonalLLM.load(work / "system")
    assert moved.kept == {}  # CLaP's own epochs moved z
    with pytest.raises(InputError, match="moved z away"):
        moved.fit_users(test, read="llm")


def test_the_papers_way_keeps_no_latents_and_comes_back_as_it_was(work: Path) -> None:
    settings = ClapSettings.published(epochs=3, prompts=2, learning_rate=1e-2, others=1)
    cache = work / "unused"
    made = pretrain(work, "published", adapter="positions", settings=settings, cache=cache)
    assert not cache.exists()
    assert not (work / "published" / "beginning.safetensors").exists()
    made.fit_users(judged({"ann": True}))
    again = PersonalLLM.load(work / "published")
    assert isinstance(again.clap.adapter, LatentPositions)
    assert torch.equal(again.z(PROMPTS, "ann"), made.z(PROMPTS, "ann"))
    answers = made.generate(PROMPTS, "ann", max_new_tokens=5)
    assert again.generate(PROMPTS, "ann", max_new_tokens=5) == answers
    with pytest.raises(InputError, match="adapter is 'prefix'"):
        pretrain(work, "prefix", adapter="prefix")
    assert not (work / "prefix").exists()


@pytest.fixture(scope="module")
def unfrozen(work: Path) -> PersonalLLM:
    return pretrain(work, "unfrozen", dtype="auto", settings=replace(SETTINGS, unfreeze=True, llm_learning_rate=1e-2))


def test_an_llm_that_was_trained_moves_with_the_system(work: Path, unfrozen: PersonalLLM, tmp_path: Path) -> None:
    unfrozen.fit_users(judged({"ann": True}))
    z, answers = unfrozen.z(PROMPTS, "ann"), unfrozen.generate(PROMPTS, "ann", max_new_tokens=5)
    moved = shutil.copytree(work / "unfrozen", tmp_path / "elsewhere")
    system = PersonalLLM.load(moved)
    assert json.loads((moved / "config.json").read_text())["llm"] == "llm"
    assert torch.equal(system.z(PROMPTS, "ann"), z)
    assert system.generate(PROMPTS, "ann", max_new_tokens=5) == answers
    plain = AutoModelForCausalLM.from_pretrained(moved / "llm").state_dict()
    base = AutoModelForCausalLM.from_pretrained(work / "llm").state_dict()
    for name, value in system.generator.model.state_dict().items():
        assert torch.equal(value, unfrozen.generator.model.state_dict()[name]), name
        assert torch.equal(value, plain[name]), name
        assert torch.equal(value, base[name]) == (".layers." not in name), name
    ours, theirs = (llm.clap.backbone.recipe(("3:last",)) for llm in (system, unfrozen))
    assert ours.revision == theirs.revision != PersonalLLM.load(work / "system").clap.backbone.revision
    assert ours.dtype == "float32"


def test_pretraining_an_unfrozen_llm_again_ends_the_same(work: Path, unfrozen: PersonalLLM) -> None:
    whole = {p: p.read_bytes() for p in (work / "unfrozen").rglob("*") if p.suffix in (".safetensors", ".json")}
    assert len(whole) > 4
    again = pretrain(work, "unfrozen", settings=ClapSettings(**unfrozen.facts["settings"]))
    assert {p: p.read_bytes() for p in whole} == whole
    frozen = PersonalLLM.load(work / "system").facts["figures"]
    assert again.facts["figures"]["plain"] == frozen["plain"]  # the LLM as it was before
    assert again.facts["figures"]["nats_per_token"] != frozen["nats_per_token"]


def test_an_llm_that_is_not_the_systems_is_refused(work: Path, unfrozen: PersonalLLM, tmp_path: Path) -> None:
    moved = shutil.copytree(work / "unfrozen", tmp_path / "system")
    shutil.copy(work / "llm" / "model.safetensors", moved / "llm")
    with pytest.raises(RecipeMismatch, match="get the same weights"):
        PersonalLLM.load(moved)
    shutil.rmtree(moved / "llm")
    with pytest.raises(InputError, match="no folder at"):
        PersonalLLM.load(moved)


def test_given_responses_are_learned_from_and_nothing_is_sampled(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Generator.sample

    def by_z_alone(generator: Generator, asked: Any, *, z: Any = None, **settings: Any) -> Any:
        assert z is not None  # how far z may go is measured; nothing is learned from
        assert settings.get("file") is None
        return original(generator, asked, z=z, **settings)

    monkeypatch.setattr(Generator, "sample", by_z_alone)
    given = [["aaaa aa", f"b {prompt}", "cc", "cc"][: 3 + row % 2] for row, prompt in enumerate(PROMPTS)]
    shutil.copytree(work / "llm", tmp_path / "llm")
    system = pretrain(tmp_path, "given", responses=given)
    assert system.facts["sampling"] is None
    assert system.facts["figures"]["responses"] == 3  # of the one prompt held out
    assert not (tmp_path / "given" / "answers.jsonl").exists()
    with pytest.raises(InputError, match="another texts"):
        pretrain(tmp_path, "given", responses=[[*row, "new"] for row in given])
    for wrong, says in (
        (given[1:], "6 prompts and 5 lists"),
        ([*given[:-1], "text"], "row 5: .* list of texts"),
        ([["one"], *given[1:]], "row 0: .* 1 differ"),
    ):
        with pytest.raises(InputError, match=says):
            pretrain(tmp_path, "wrong", responses=wrong)


def test_weights_that_are_not_all_there_are_refused(work: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(work / "system", tmp_path / "system")
    path = moved / "clap.safetensors"
    whole, content = load_file(path), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"clap.safetensors is damaged.*run pretrain again"):
        PersonalLLM.load(moved)
    (moved / SEAL).unlink()
    assert not any(name.startswith("skip.") for name in whole)
    without = {name: value for name, value in whole.items() if name != "adapter.axes"}
    for weights, says in (
        (without, "lacks adapter.axes; pretrain anew"),
        ({**whole, "adapter.gates": torch.zeros(1)}, "holds the unknown adapter.gates"),
        ({**whole, "adapter.axes": torch.zeros(1)}, "other sizes"),
    ):
        save_file(weights, path)
        with pytest.raises(InputError, match=says) as caught:
            PersonalLLM.load(moved)
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"clap\.safetensors is missing or damaged"):
        PersonalLLM.load(moved)


def test_what_an_older_version_wrote_is_refused_in_a_sentence(work: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(work / "system", tmp_path / "system")
    path = moved / "config.json"
    facts = json.loads(path.read_text())
    for lacking in (["reach"], ["adapter"], ["digest", "base"], ["latent", "reach"]):
        path.write_text(json.dumps({name: value for name, value in facts.items() if name not in lacking}))
        with pytest.raises(InputError, match=r"lacks .*; run pretrain again") as caught:
            PersonalLLM.load(moved)
        assert all(name in str(caught.value) for name in lacking)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(facts | {"reach": {"slope": [0.0] * 8, "bend": 1.0}}))
    with pytest.raises(InputError, match=r"lacks reach\.metric, .*; run pretrain again"):
        PersonalLLM.load(moved)


def test_what_cannot_be_used_is_named(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no personal LLM"):
        PersonalLLM.load(tmp_path)
    with pytest.raises(InputError, match="too few"):
        PersonalLLM.pretrain(PROMPTS[:1], tmp_path / "x", model=str(work / "llm"))
    with pytest.raises(InputError, match="give dtype float32"):
        pretrain(work, "coarse", dtype="bfloat16", settings=replace(SETTINGS, unfreeze=True))
    assert not (work / "coarse").exists()  # before anything is sampled
    system = PersonalLLM.load(work / "system")
    with pytest.raises(InputError, match="user_id"):
        system.fit_users(judged({"ann": True}).remove_columns("user_id"))
