"""People of a tiny personal LLM: their z and their rewards, together and alone, kept, updated and forgotten."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from penchant.errors import InputError
from penchant.personal.fitting import LatentDPOSettings
from penchant.personal.full_encoder import FullEncoderSettings
from penchant.personal.people import REWARDS
from penchant.personal.rewards import save_rewards
from penchant.personal.system import PersonalLLM
from tests.personal.test_system import PROMPTS, pretrain
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PersonalLLM:
    folder = tmp_path_factory.mktemp("people")
    save_tiny_llm(folder / "llm")
    return pretrain(folder, "system")


@pytest.fixture
def system(made: PersonalLLM, tmp_path: Path) -> Iterator[PersonalLLM]:
    """The same trained parts in a folder of their own, where nobody is known."""
    found = PersonalLLM(made.clap, made.generator, made.facts, tmp_path / "system")
    yield found
    found.users.close()


def again(system: PersonalLLM) -> PersonalLLM:
    """As another process opens it."""
    return PersonalLLM(system.clap, system.generator, system.facts, system.folder)


def swapped(pairs: Dataset) -> Dataset:
    return pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})


def some(likes: dict[str, bool], count: int = 12, seed: int = 0) -> Dataset:
    """Pairs of different texts, of people who like a's and people who do not."""
    rng, rows = np.random.default_rng(seed), []
    for name, liked in likes.items():
        for i in range(count):
            texts = [" ".join(letter * int(n) for n in rng.integers(1, 4, 3)) for letter in "az"]
            good, bad = texts if liked else texts[::-1]
            rows.append({"prompt": PROMPTS[i % len(PROMPTS)], "chosen": good, "rejected": bad, "user_id": name})
    return Dataset.from_list(rows)


CROWD = some({f"fan {i}": True for i in range(4)} | {f"foe {i}": False for i in range(4)}, seed=9)


def test_margins_of_z_say_what_a_person_chose_and_turn_around_with_the_pair(system: PersonalLLM) -> None:
    test = some({"": True}).remove_columns("user_id")
    system.fit_user("ann", test)
    system.fit_user("bob", swapped(test))
    ann, bob = (system.latent_margins(test, name) for name in ("ann", "bob"))
    assert ann.shape == (12,)
    assert ann.dtype == np.float32
    assert (ann > 0).mean() > 0.8
    assert (bob < 0).mean() > 0.8
    assert np.allclose(system.latent_margins(swapped(test), "ann"), -ann, atol=1e-4)
    assert not system.latent_margins(test).any()  # of nobody in particular, before a population is fitted
    with pytest.raises(InputError, match="nobody called 'cleo'"):
        system.latent_margins(test, "cleo")


def test_z_alone_runs_no_layer_of_the_llm(system: PersonalLLM) -> None:
    runs = [0]
    hooks = [
        layer.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
        for layer in system.clap.backbone.layers
    ]
    system.fit_population(CROWD, rewards=False)
    system.fit_users(some({"ann": True}))
    system.fit_user("eve", some({"eve": True}), FullEncoderSettings(steps=2), full=True)
    for name in (None, "ann", "eve"):
        system.z(PROMPTS, name)
        system.latent_margins(some({"": True}), name)
    assert runs == [0]
    system.fit_population(CROWD, cache=system.folder / "cache")
    assert runs[0] > 0
    for hook in hooks:
        hook.remove()


def test_one_persons_pairs_need_not_carry_a_name(system: PersonalLLM) -> None:
    pairs = some({"ann": True})
    assert system.fit_user("ann", pairs.remove_columns("user_id")) == 1
    nameless = system.z(PROMPTS, "ann")
    system.forget("ann")
    assert system.fit_user("ann", pairs) == 1
    assert torch.equal(system.z(PROMPTS, "ann"), nameless)
    system.forget("ann")
    assert system.fit_users(pairs) == {"ann": 1}
    assert torch.equal(system.z(PROMPTS, "ann"), nameless)
    with pytest.raises(InputError, match="row 12 was judged by 'bob', not 'ann'"):
        system.fit_user("ann", some({"ann": True, "bob": True}))
    with pytest.raises(InputError, match="no pairs"):
        system.fit_user("ann", pairs.select([]))
    with pytest.raises(InputError, match="cannot be a user id"):
        system.fit_user("", pairs.remove_columns("user_id"))


def test_scores_are_in_a_persons_taste(system: PersonalLLM, tmp_path: Path) -> None:
    responses = ["aa aaa a", "zz z zzz"]
    with pytest.raises(InputError, match="no rewards yet"):
        system.score(PROMPTS[0], responses)
    system.fit_users(some({"old": True}))
    system.fit_population(CROWD, cache=tmp_path / "cache")
    assert system.rewards is not None
    with pytest.raises(InputError, match="'old' was fitted before these rewards"):
        system.score(PROMPTS[0], responses, "old")
    system.fit_users(some({"ann": True, "bob": False, "old": False}), cache=tmp_path / "cache")
    for name, likes in (("ann", True), ("bob", False), ("old", False)):
        scores = system.score(PROMPTS[0], responses, name)
        assert scores.dtype == np.float32
        assert (scores[0] > scores[1]) == likes
    everybody = system.score(PROMPTS[0], responses)
    assert np.array_equal(everybody, system.rewards.score(PROMPTS[0], responses))
    other = again(system)
    for name in (None, "ann"):
        assert np.array_equal(other.score(PROMPTS[0], responses, name), system.score(PROMPTS[0], responses, name))
    with pytest.raises(InputError, match="nobody called 'cleo'"):
        system.score(PROMPTS[0], responses, "cleo")
    # New directions: tastes in the old ones are not read as if they were in these.
    system.fit_population(some({"fan": True, "foe": False, "joe": False}, seed=4), cache=tmp_path / "cache")
    with pytest.raises(InputError, match="'ann' was fitted before these rewards"):
        system.score(PROMPTS[0], responses, "ann")
    assert not [path for path in system.folder.iterdir() if path.name.startswith(f"{REWARDS}.")]


def test_a_taste_goes_on_from_what_is_known(system: PersonalLLM, tmp_path: Path) -> None:
    system.fit_population(CROWD, cache=tmp_path / "cache")
    pairs, responses = some({"ann": True}, count=24), ["aa aaa a", "zz z zzz"]

    def gap() -> float:
        scores = system.score(PROMPTS[0], responses, "ann")
        return float(scores[0] - scores[1])

    found = []
    for part in (pairs.select(range(12)), pairs.select(range(12, 24))):
        system.fit_users(part, cache=tmp_path / "cache")
        found.append(gap())
    system.forget("ann")
    system.fit_users(pairs, cache=tmp_path / "cache")
    assert system.users.known("ann").pairs == 24
    assert found[0] < gap()
    # Laplace's approximation is coarse where all pairs agree.
    assert abs(found[1] - gap()) < 0.2 * abs(found[0] - gap()) + 0.01


def test_who_is_known_better_moves_less(system: PersonalLLM) -> None:
    system.fit_users(some({"ann": True}, count=24))
    person, start = system.users.known("ann"), system.z(PROMPTS, "ann")
    system.users.put("twin", person.vectors, pairs=1)
    system.fit_users(some({"ann": False, "twin": False}, count=2), LatentDPOSettings(pull=0.1))
    ann, twin = (float((system.z(PROMPTS, name) - start).norm()) for name in ("ann", "twin"))
    assert 0 < ann < 0.5 * twin


def test_a_whole_encoder_is_a_persons_form_from_then_on(system: PersonalLLM) -> None:
    pairs, short = some({"eve": True}), FullEncoderSettings(steps=20, learning_rate=1e-2)
    assert system.fit_user("eve", pairs, short, full=True) == 1
    assert (system.latent_margins(pairs, "eve") > 0).mean() > 0.8
    z = system.z(PROMPTS, "eve")
    assert torch.equal(again(system).z(PROMPTS, "eve"), z)
    assert system.users.known("eve").size > 50 * 8 * 10  # a few thousand numbers even of this tiny LLM
    system.fit_user("eve", pairs, FullEncoderSettings(steps=1, learning_rate=1e-6), full=True)
    assert (system.z(PROMPTS, "eve") - z).norm() < 0.05 * z.norm()  # goes on from there
    system.users.restore("eve", 1)
    # Beside somebody of the compact form, each stays in their own.
    system.fit_users(some({"ann": True, "eve": True}, seed=3))
    assert system.users.known("eve").version == 4
    assert system.users.known("ann").size < 1000
    assert 0 < float((system.z(PROMPTS, "eve") - z).norm()) < float(z.norm())
    system.users.restore("eve", 1)
    assert torch.equal(system.z(PROMPTS, "eve"), z)
    with pytest.raises(InputError, match="'ann' is known in the compact form"):
        system.fit_users(some({"ann": True, "new": True}), full=True)
    assert "new" not in system.users
    with pytest.raises(InputError, match="settings are LatentDPOSettings"):
        system.fit_users(pairs, LatentDPOSettings(), full=True)
    assert len(system.generate(PROMPTS[:1], "eve", max_new_tokens=3)) == 1


def test_of_two_who_write_at_once_one_is_told(system: PersonalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    system.fit_users(some({"ann": True}))
    other, original = again(system), system.users.put_many

    def meanwhile(people: Any) -> int:
        other.fit_users(some({"ann": True}, seed=5))
        return original(people)

    monkeypatch.setattr(system.users, "put_many", meanwhile)
    with pytest.raises(InputError, match="'ann' is at version 2, not 1, for somebody else wrote meanwhile"):
        system.fit_users(some({"aaron": True, "ann": True}))
    assert "aaron" not in system.users  # all or none
    assert system.users.known("ann").pairs == 24  # the other's update is there


def test_adversarial_people_move_nobody_else(system: PersonalLLM) -> None:
    system.fit_users(some({"ann": True}))
    kept = system.users.known("ann")
    ann = system.z(PROMPTS, "ann")
    few = some({"bob": True, "cid": True}, seed=3)
    system.fit_users(few)
    bob = system.z(PROMPTS, "bob")
    system.forget("bob", "cid")
    spoiled = few.map(
        lambda row: {"chosen": row["rejected"], "rejected": row["chosen"]} if row["user_id"] == "cid" else {}
    )
    system.fit_users(spoiled)
    assert torch.equal(system.z(PROMPTS, "bob"), bob)
    assert torch.equal(system.z(PROMPTS, "ann"), ann)
    assert system.users.known("ann").version == kept.version
    # One of seven, with a hundred times as many pairs, has one vote in the population.
    crowd = some({f"fan {i}": True for i in range(6)}, count=6)
    spoiler = some({"spoiler": False}, count=600, seed=8)
    both = Dataset.from_list([*crowd, *spoiler])
    system.fit_population(both, rewards=False)
    assert (system.latent_margins(crowd) > 0).mean() > 0.7
    system.fit_population(both.remove_columns("user_id"), rewards=False)
    assert (system.latent_margins(crowd) > 0).mean() < 0.5


@pytest.mark.parametrize("dies_at", [1, 7, 8, 9, 10, 11, 12])
def test_a_process_that_dies_while_rewards_are_saved_leaves_whole_ones(
    system: PersonalLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Whatever the last step that it took, and whether or not the next one tries again and dies there too."""
    system.fit_population(CROWD, cache=tmp_path / "cache")
    assert system.rewards is not None
    before = system.rewards.score(PROMPTS, ["aa"] * len(PROMPTS))
    steps: list[str] = []

    def step(name: str, act: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if len(steps) == dies_at:
                raise KeyboardInterrupt
            return act(*args, **kwargs)

        return counted

    for _ in range(2):
        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr("penchant.personal.rewards.shutil.rmtree", step("rmtree", shutil.rmtree))
            patch.setattr("penchant.personal.rewards.os.replace", step("replace", os.replace))
            with contextlib.suppress(KeyboardInterrupt):
                save_rewards(system.rewards, system.folder / REWARDS)
        found = again(system).rewards
        assert found is not None
        assert np.array_equal(found.score(PROMPTS, ["aa"] * len(PROMPTS)), before)
    save_rewards(system.rewards, system.folder / REWARDS)
    assert sorted(path.name for path in system.folder.glob("rewards*")) == [REWARDS]


def test_what_all_share_is_refused_with_its_cure_when_a_bit_has_changed(system: PersonalLLM, tmp_path: Path) -> None:
    system.fit_population(some({"ann": True, "bob": False}), cache=tmp_path / "cache")
    for name, damaged, cured in (
        ("population.safetensors", system.folder / "population.safetensors", Path.unlink),
        ("model.safetensors", system.folder / REWARDS, shutil.rmtree),
    ):
        (path,) = system.folder.rglob(name)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{damaged}.* damaged.*delete.*fit the population again"):
            again(system)
        cured(damaged)
        again(system).users.close()


def test_the_population_needs_people_for_rewards(system: PersonalLLM) -> None:
    with pytest.raises(InputError, match="no pairs"):
        system.fit_population(CROWD.select([]))
    for pairs in (some({"ann": True}), CROWD.remove_columns("user_id")):
        with pytest.raises(InputError, match="two people or more"):
            system.fit_population(pairs)
        assert not system.population.any()
        system.fit_population(pairs, rewards=False)
        assert system.population.any()
        system.population = torch.zeros_like(system.population)


@pytest.mark.parametrize("full", [False, True])
def test_who_is_forgotten_is_nowhere_in_the_folder(system: PersonalLLM, full: bool) -> None:
    name = "Zoë-forget-me-4711"
    system.fit_population(some({name: True, "bob": False}), cache=system.folder / "cache")
    settings = FullEncoderSettings(steps=2) if full else None
    for seed in range(2):
        system.fit_user(name, some({name: True}, seed=seed), settings, full=full, cache=system.folder / "cache")
    system.fit_users(some({"bob": False}), cache=system.folder / "cache")

    def traces() -> list[Path]:
        files = [path for path in system.folder.rglob("*") if path.is_file()]
        assert len(files) > 5
        return [path for path in files if b"forget-me-4711" in path.read_bytes() or "4711" in path.name]

    assert traces()
    assert system.forget(name, "never known") == 1
    assert not traces()
    assert name not in system.users
    assert system.users.known("bob").version == 1
    with pytest.raises(InputError, match="nobody called"):
        system.z(PROMPTS, name)
