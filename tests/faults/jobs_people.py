"""People in their SQLite file: one after the other, and fitted by the command line with what all of them share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from penchant.personal.clap_training import ClapSettings
from penchant.personal.fit_run import FITTED
from penchant.personal.people import PEOPLE
from penchant.personal.system import PersonalLLM
from penchant.personal.users import Users
from tests.faults.jobs import Job, cli, digest, write_lines
from tests.tiny_llm import save_tiny_llm

MANY = 40
THINGS = ("a tree", "a dog", "rain", "tea", "a song", "snow")


def users(given: Path, folder: Path) -> str:
    """Everybody twice; who is at the version that a turn leaves is not written again."""
    vectors = np.random.default_rng(0).standard_normal((2, MANY, 300)).astype(np.float32)
    with Users(folder / PEOPLE, "model") as opened:
        for turn in (0, 1):
            for start in range(0, MANY, 4):
                names = [f"person-{number:03d}" for number in range(start, start + 4)]
                known = opened.get_many(names)
                versions = {name: known[name].version if name in known else 0 for name in names}
                rows = zip(names, vectors[turn, start : start + 4], strict=True)
                opened.put_many((name, {"u": row}, 5 + turn, turn) for name, row in rows if versions[name] == turn)
        opened.forget("person-007")
    with Users(folder / PEOPLE) as opened:
        return _everybody(opened)


def _everybody(opened: Users) -> str:
    found = opened.get_many(opened.ids()).values()
    return digest(
        *(
            part
            for person in found
            for part in (person.user_id, person.version, person.pairs, *sum(sorted(person.vectors.items()), ()))
        )
    )


def give_system(given: Path) -> None:
    save_tiny_llm(given / "llm")
    prompts = [f"Say something about {thing}" for thing in THINGS]
    system = PersonalLLM.pretrain(
        prompts,
        given / "system",
        [["aaaa aa", "zz z zzz", "b"]] * len(prompts),
        model=str(given / "llm"),
        dtype="float32",
        latent=8,
        settings=ClapSettings(begin_epochs=1, epochs=0, prompts=2),
        cache=given / "cache",
        show_progress=False,
    )
    system.users.close()
    sides = {"ann": ("aaaa aa", "zz z zzz"), "bob": ("zz z zzz", "aaaa aa"), "cleo": ("b", "zz z zzz")}
    rows = (
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "user_id": who}
        for who, (chosen, rejected) in sides.items()
        for prompt in prompts
    )
    write_lines(given / "judged.jsonl", rows)


def copy_system(given: Path, folder: Path) -> None:
    shutil.copytree(given / "system", folder / "system")


def fit(given: Path, folder: Path) -> str:
    asked = [folder / "system", given / "judged.jsonl", "--out", folder / "run", "--cache", folder / "cache"]
    cli("personal", "fit", *asked, "--examples", 0)
    system = PersonalLLM.load(folder / "system")
    assert system.rewards is not None
    return digest(_everybody(system.users), system.population, system.rewards.temperature)


JOBS = (Job("users", users), Job("people", fit, give_system, copy_system, records=(FITTED,), shared=False))
