"""`penchant personal`: from prompts to people, what they are told and scored, and what is said to wrong input."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from penchant.cli.main import main
from penchant.personal import fit_run as fit_module
from penchant.personal.judging import margins
from penchant.personal.people_pairs import rows_by_person
from penchant.personal.system import PersonalLLM
from penchant.personal.users import Users
from penchant.writing import alone
from tests.test_report import Page
from tests.tiny_llm import save_tiny_llm

THINGS = ("a tree", "a dog", "rain", "tea", "a song", "snow", "a river", "bread", "the sea", "a hill")
PROMPTS = [f"Say something about {thing}" for thing in THINGS]
LIKES = {"ann": True, "bob": False, "cleo": True, "dan": False}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def judged(likes: dict[str, bool] = LIKES) -> list[dict[str, Any]]:
    """Who likes warm answers, and who does not, about the same prompts."""
    rows = []
    for name, warm in likes.items():
        for number, prompt in enumerate(PROMPTS):
            texts = [f"Gladly! {number} of them.", f"No. {number * 7 % 10} it is."]
            chosen, rejected = texts if warm else texts[::-1]
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "user_id": name})
    return rows


def pretrain(work: Path, data: str, out: Path, *more: str) -> int:
    small = ["--answers", "4", "--max_new_tokens", "6", "--latent", "8", "--epochs", "3", "--prompts", "2"]
    asked = ["personal", "pretrain", str(work / data), "--out", str(out), "--model", str(work / "llm")]
    small += ["--others", "1", "--learning_rate", "1e-2", "--cache", str(work / "cache")]
    return main([*asked, "--dtype", "float32", *small, *more])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM, pairs and a personal LLM that knows nobody, which no test changes."""
    folder = tmp_path_factory.mktemp("people")
    save_tiny_llm(folder / "llm")
    write(folder / "pairs.jsonl", judged())
    assert pretrain(folder, "pairs.jsonl", folder / "system") == 0
    return folder


@pytest.fixture(scope="module")
def fitted(work: Path) -> Path:
    """One that knows four people, and the run that fitted them in `run`; no test changes it."""
    shutil.copytree(work / "system", work / "fitted")
    assert fit(work, "fitted", "run", "--examples", "2", "--max_new_tokens", "5") == 0
    return work / "fitted"


def fit(work: Path, system: str, out: str, *more: str, data: str = "pairs.jsonl") -> int:
    asked = [str(work / system), str(work / data), "--out", str(work / out), "--cache", str(work / "cache")]
    return main(["personal", "fit", *asked, *more])


def copy(work: Path, system: Path, name: str) -> Path:
    return Path(shutil.copytree(system, work / name))


# Pretraining


def test_pretraining_says_whether_z_is_used(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also: the same command again goes on from what is there, and gives the same."""
    before = {path.name: path.read_bytes() for path in (work / "system").glob("*.safetensors")}
    assert pretrain(work, "pairs.jsonl", work / "system") == 0
    assert {path.name: path.read_bytes() for path in (work / "system").glob("*.safetensors")} == before
    said, found = capsys.readouterr().out, metrics(work / "system")
    assert found["data"]["prompts"] == len(PROMPTS)  # each once, though four people judged it
    assert found["z"] == PersonalLLM.load(work / "system").facts["figures"]
    assert f"{found['z']['nats_per_token']:.3f} nats a token with their own z" in said
    assert f"{found['z']['active_units']:.0f} of 8 units" in said
    assert all(f"warning: {sentence}" in said for sentence in found["warnings"])
    page = Page(work / "system" / "report.html")
    assert "Is z used?" in page.text
    assert {"#used", "#training", "#setting"} == set(page.attributes("href"))
    assert "is added to the LLM's states" in page.text


def test_answers_in_the_data_take_the_place_of_sampled_ones(work: Path, tmp_path: Path) -> None:
    rows = [{"question": prompt, "responses": [f"{a} {prompt}" for a in "abc"]} for prompt in PROMPTS]
    write(work / "several.jsonl", rows)
    assert pretrain(work, "several.jsonl", tmp_path, "--columns", "{question: prompt}") == 0
    assert metrics(tmp_path)["data"] == {
        "name": str(work / "several.jsonl"),
        "prompts": len(PROMPTS),
        "skipped": 0,
        "given": 3.0,
    }
    assert not (tmp_path / "answers.jsonl").exists()


def test_the_papers_way_is_one_word(work: Path, tmp_path: Path) -> None:
    assert pretrain(work, "pairs.jsonl", tmp_path, "--published", "true") == 0
    found = metrics(tmp_path)
    assert (found["settings"]["begin_epochs"], found["settings"]["first_stage"], found["settings"]["others"]) == (
        0,
        0.5,
        3,
    )
    assert found["system"]["adapter"] == "positions"
    assert "stands in front of the prompt" in Page(tmp_path / "report.html").text


def test_prompts_alone_serve_too(work: Path, tmp_path: Path) -> None:
    write(work / "prompts.jsonl", [{"prompt": prompt, "topic": 1} for prompt in (*PROMPTS, PROMPTS[0])])
    assert pretrain(work, "prompts.jsonl", tmp_path, "--limit", "6") == 0
    assert metrics(tmp_path)["data"]["prompts"] == 6


# Fitting


def test_a_fit_says_whether_knowing_people_pays(work: Path, fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = metrics(work / "run")
    assert [one["user_id"] for one in found["people"]] == sorted(LIKES)
    assert {one["held_out"] for one in found["people"]} == {2}  # a fifth of ten prompts
    assert {one["pairs"] for one in found["people"]} == {8}
    own, pooled = (found["accuracy"][f"taste_{by}"]["value"] for by in ("own", "pooled"))
    assert own == 1.0  # the tiny people are easy,
    assert pooled == pytest.approx(0.5)  # and no taste is right for two who want the opposite
    assert found["gain"]["taste"]["value"] == pytest.approx(own - pooled)
    assert found["system"]["people"] == len(LIKES)
    assert found["data"]["test"]["pairs"] == 8
    assert len(found["examples"]) == 2
    assert [one["user_id"] for one in found["examples"][0]["people"]] == sorted(LIKES)
    assert len(found["map"]["people"]) == len(LIKES)
    x = {one["user_id"]: one["x"] for one in found["map"]["people"]}
    assert x["ann"] * x["bob"] < 0 < x["ann"] * x["cleo"]
    page = Page(work / "run" / "report.html")
    assert "A person's own taste is right on 100.0% of 8 held-out pairs" in page.text
    assert main(["report", str(work / "run")]) == 0
    assert Page(work / "run" / "report.html").source == page.source
    assert main(["report", str(work / "system")]) == 0
    capsys.readouterr()


def test_margins_are_those_of_scores_and_of_z(fitted: Path) -> None:
    system, pairs = PersonalLLM.load(fitted), Dataset.from_list(judged())
    found = margins(system, pairs, cache=fitted.parent / "cache")
    for name, rows in rows_by_person(pairs).items():
        own = pairs.select(rows)
        for kind, user_id in (("own", name), ("pooled", None)):
            chosen, rejected = (
                system.score(own["prompt"][:], own[side][:], user_id) for side in ("chosen", "rejected")
            )
            np.testing.assert_allclose(found[f"taste_{kind}"][rows], chosen - rejected, atol=1e-4)
            np.testing.assert_allclose(found[f"latent_{kind}"][rows], system.latent_margins(own, user_id), atol=1e-4)
    assert np.abs(found["taste_own"] - found["taste_pooled"]).min() > 0.01


def test_the_same_command_again_fits_nobody_twice(
    work: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after people were kept and before they were judged; then whole; then with other pairs."""
    system = copy(work, work / "system", "again")
    few = ("--examples", "0")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "judge", stopped)
        assert fit(work, "again", "run-again", *few) == 130
    assert "run the same command" in capsys.readouterr().err
    assert fit(work, "again", "run-again", *few) == 0
    assert fit(work, "again", "run-again", *few) == 0
    directions = (system / "rewards" / "model.safetensors").read_bytes()
    shutil.rmtree(system / "rewards")  # as is said of rewards that are damaged
    assert fit(work, "again", "run-again", *few) == 0
    assert (system / "rewards" / "model.safetensors").read_bytes() == directions
    assert fit(work, "again", "again", *few) == 2
    assert "is the system's own folder" in capsys.readouterr().err
    with alone(work / "run-again"):
        assert fit(work, "again", "run-again", *few) == 2
    assert "another process is at work in" in capsys.readouterr().err
    assert {person.pairs for person in PersonalLLM.load(system).users.get_many(LIKES).values()} == {8}
    found = metrics(work / "run-again")
    assert {one["version"] for one in found["people"]} == {1}
    assert not any("Known before" in sentence for sentence in found["warnings"])
    assert fit(work, "again", "run-other", *few, "--seed", "1") == 0
    assert "warning: Known before, and fitted on from there: ann, bob, cleo, dan." in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_killed_around_the_very_moment_when_people_are_kept(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Right after it nobody may be fitted twice, right before it everybody has to be."""
    system = copy(work, work / "system", tmp_path.name)
    real = Users.put_many

    def killed(self: Users, people: Any) -> int:
        if kept:
            real(self, people)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Users, "put_many", killed)
        assert fit(work, tmp_path.name, f"run-{tmp_path.name}", "--examples", "0") == 130
    assert fit(work, tmp_path.name, f"run-{tmp_path.name}", "--examples", "0") == 0
    people = PersonalLLM.load(system).users.get_many(LIKES).values()
    assert {(person.version, person.pairs) for person in people} == {(1, 8)}


def test_a_run_that_does_not_know_whether_people_were_fitted_says_so(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(work, work / "system", "unsure")
    assert fit(work, "unsure", "run-unsure", "--examples", "0") == 0
    marker = work / "run-unsure" / "fitted.json"
    broken = {
        marker.read_text()[:40]: "missing or damaged",
        "[]": "missing or damaged",
        "{}": "damaged (it lacks a part)",
    }
    for text, what in broken.items():
        marker.write_text(text)
        assert fit(work, "unsure", "run-unsure", "--examples", "0") == 2
        said = capsys.readouterr().err
        assert f"{marker} is {what}" in said
        assert "put a copy in its place, or give another --out" in said


def test_without_rewards_people_are_judged_by_z_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = copy(work, work / "system", "bare")
    assert fit(work, "bare", "run-bare", "--rewards", "false", "--examples", "0") == 0
    found = metrics(work / "run-bare")
    assert {"taste_own", "taste_pooled"} & set(found["accuracy"]) == set()
    assert "win_rates" not in found
    assert "own - pooled by p(z | x)" in capsys.readouterr().out
    assert "A person's own p(z | x) is right on" in Page(work / "run-bare" / "report.html").text
    write(work / "few.jsonl", [{"prompt": "Hi", "response": "a"}])
    assert main(["personal", "score", str(system), str(work / "few.jsonl")]) == 2
    assert "no personal rewards yet" in capsys.readouterr().err
    for _ in range(2):  # asked for now, and then there
        assert fit(work, "bare", "run-bare", "--examples", "0") == 0
        assert metrics(work / "run-bare")["accuracy"].keys() >= {"taste_own", "taste_pooled"}


def test_one_persons_pairs_and_a_test_file(work: Path, fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(work, fitted, "one")
    rows = [{k: v for k, v in row.items() if k != "user_id"} for row in judged({"eve": True})]
    write(work / "eve.jsonl", rows[:6])
    write(work / "eve-test.jsonl", rows[6:])
    more = ("--user_id", "eve", "--test", str(work / "eve-test.jsonl"), "--examples", "0")
    assert fit(work, "one", "run-one", *more, data="eve.jsonl") == 0
    assert "population_seconds" not in metrics(work / "run-one")["cost"]  # it has one
    assert [(one["user_id"], one["pairs"], one["held_out"]) for one in metrics(work / "run-one")["people"]] == [
        ("eve", 6, 4)
    ]
    assert metrics(work / "run-one")["accuracy"]["taste_own"]["value"] == 1.0
    strangers = judged({"eve": True, "fay": True})
    write(work / "both-test.jsonl", strangers)
    write(work / "eve-named.jsonl", judged({"eve": True})[:6])
    more = ("--test", str(work / "both-test.jsonl"), "--examples", "0")
    assert fit(work, "one", "run-two", *more, data="eve-named.jsonl") == 0
    assert metrics(work / "run-two")["data"]["test"]["strangers"] == 1
    assert "left out: 1" in Page(work / "run-two" / "report.html").text
    write(work / "new.jsonl", judged({"gil": True, "hal": False}))
    assert fit(work, "one", "run-three", "--examples", "0", "--population", "true", data="new.jsonl") == 0
    assert "the tastes of 5 people who are not in these pairs ended" in capsys.readouterr().out


def test_a_whole_encoder_a_person(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(work, work / "system", "whole")
    more = ("--full", "true", "--steps", "3", "--examples", "0", "--rewards", "false")
    assert fit(work, "whole", "run-whole", *more) == 0
    found = metrics(work / "run-whole")
    assert found["system"]["full"] is True
    assert found["system"]["bytes_each"] > 10_000
    assert "an encoder of their own" in Page(work / "run-whole" / "report.html").text
    assert fit(work, "whole", "run-whole-2", *more, "--pull", "1") == 2
    assert "--pull belongs to the small form" in capsys.readouterr().err


# Using what was fitted


def test_answers_come_in_each_persons_taste(work: Path, fitted: Path, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS[:3])]
    write(tmp_path / "in.jsonl", rows)
    some = ("--max_new_tokens", "16", "--temperature", "1")
    asked = ["personal", "generate", str(fitted), str(tmp_path / "in.jsonl"), *some]
    assert main([*asked, "--user_id", "ann", "--out", str(tmp_path / "ann.jsonl")]) == 0
    found = read(tmp_path / "ann.jsonl")
    assert [{k: v for k, v in row.items() if k != "response"} for row in found] == rows
    system = PersonalLLM.load(fitted)
    of = {name: system.generate(PROMPTS[:3], name, max_new_tokens=16, temperature=1.0) for name in ("ann", "bob", None)}
    assert [[row["response"]] for row in found] == of["ann"]
    assert of["ann"] != of["bob"]
    mixed = [{**rows[0], "user_id": "bob"}, {**rows[1], "user_id": None}, rows[2]]
    write(tmp_path / "mixed.jsonl", mixed)
    asked = ["personal", "generate", str(fitted), str(tmp_path / "mixed.jsonl"), *some]
    assert main([*asked, "--out", str(tmp_path / "mixed-out.jsonl")]) == 0
    answers = [[row["response"]] for row in read(tmp_path / "mixed-out.jsonl")]
    assert answers == [of["bob"][0], of[None][1], of[None][2]]


def test_several_answers_are_a_list_and_batches_change_nothing(
    work: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in.jsonl", [{"q": prompt} for prompt in PROMPTS[:4]])
    asked = ["personal", "generate", str(fitted), "--prompt", "q", "--answers", "3", "--temperature", "1"]
    asked += ["--max_new_tokens", "4", "--user_id", "ann"]
    assert main([*asked, str(tmp_path / "in.jsonl")]) == 0
    whole = capsys.readouterr().out
    assert [len(json.loads(line)["responses"]) for line in whole.splitlines()] == [3] * 4
    monkeypatch.setattr("penchant.cli.personal_people.GENERATED", 2)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in.jsonl").read_bytes())))
    assert main([*asked, "-"]) == 0
    assert capsys.readouterr().out == whole


def test_scores_are_those_of_each_persons_taste(work: Path, fitted: Path, tmp_path: Path) -> None:
    texts = ["Gladly! 3 of them.", "No. 3 it is."]
    rows = [{"prompt": PROMPTS[0], "response": texts, "user_id": who} for who in ("ann", "bob", None)]
    write(tmp_path / "in.jsonl", [*rows, {"prompt": PROMPTS[0], "response": texts[0], "user_id": "bob"}])
    out = tmp_path / "out.jsonl"
    assert main(["personal", "score", str(fitted), str(tmp_path / "in.jsonl"), "--out", str(out)]) == 0
    found = [row["score"] for row in read(out)]
    assert found[0][0] > found[0][1]
    assert found[1][0] < found[1][1]
    assert found[3] == pytest.approx(found[1][0], abs=1e-5)
    system = PersonalLLM.load(fitted)
    for who, scores in zip(("ann", "bob", None), found, strict=False):
        np.testing.assert_allclose(system.score([PROMPTS[0]] * 2, texts, who), scores, atol=1e-5)
    assert (
        main(["personal", "score", str(fitted), str(tmp_path / "in.jsonl"), "--out", str(out), "--user_id", "ann"]) == 0
    )
    assert read(out)[1]["score"] == pytest.approx(found[0], abs=1e-5)


def test_people_are_listed_shown_restored_forgotten_and_carried(
    work: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = str(copy(tmp_path, fitted, "system"))

    def said(*more: str) -> str:
        assert main(["personal", "users", system, *more]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    assert said().startswith("4 people in ")
    assert [line.split()[-1] for line in said().splitlines()[2:]] == sorted(LIKES)
    assert "dan" not in said("--limit", "2")
    assert "past bob" in said("--limit", "2")
    assert [line.split()[-1] for line in said("--prefix", "c").splitlines()[2:]] == ["cleo"]
    assert "8 pairs" in said("--show", "ann")
    assert "4 people" in said("--export", str(tmp_path / "all.jsonl"))
    assert "at version 2" in said("--restore", "ann", "--version", "1")
    assert [line.split()[0] for line in said("--show", "ann").splitlines()[2:]] == ["2", "1"]
    assert "3 people are left" in said("--forget", "bob")
    assert "bob" not in said()
    assert "4 people came in; 4 are known" in said("--import_from", str(tmp_path / "all.jsonl"))


def test_the_list_does_not_obey_what_an_id_says(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(tmp_path, work / "system", "system")
    PersonalLLM.load(folder).users.put("x\x1b[2J\u202ey\nz", {"latent": np.zeros(2, np.float32)}, 3)
    capsys.readouterr()
    assert main(["personal", "users", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(r"x\x1b[2J\u202ey\nz")


WRONG = {
    "nobody judged": ("fit {system} {w}/nobody.jsonl", "no column user_id"),
    "one row without a person": ("fit {system} {w}/partly.jsonl", "row 1 has no user_id"),
    "another's pairs": ("fit {system} {w}/pairs.jsonl --user_id ann", "row 10 was judged by 'bob'"),
    "an id that is none": ("fit {system} {w}/nobody.jsonl --user_id ''", "cannot be a user id"),
    "a share of all": ("fit {system} {w}/pairs.jsonl --test_share 1", "test_share is 1"),
    "one prompt a person": ("fit {system} {w}/single.jsonl", "nobody judged two different prompts"),
    "test people unknown": (
        "fit {system} {w}/pairs.jsonl --test {w}/strangers.jsonl",
        "strangers.jsonl is known",
    ),
    "no system": ("fit {w}/llm {w}/pairs.jsonl", "no personal LLM"),
    "a rate of the small form": ("fit {system} {w}/pairs.jsonl --learning_rate 1", "--learning_rate belong to --full"),
    "no steps": ("fit {system} {w}/pairs.jsonl --full true --steps 0", "steps is 0"),
    "nothing to hold by": ("fit {system} {w}/pairs.jsonl --pull 0", "pull is 0"),
    "no beta": ("fit {system} {w}/pairs.jsonl --beta 0", "beta is 0"),
    "too few examples": ("fit {system} {w}/pairs.jsonl --examples -1", "examples is -1"),
    "negative seed": ("fit {system} {w}/pairs.jsonl --seed -1", "the seed is -1"),
    "no pairs": ("fit {system} {w}/missing.jsonl", "missing.jsonl"),
    "one prompt to train on": (
        "pretrain {w}/single.jsonl --out {no} --limit 1 --model {w}/llm",
        "1 prompts are too few",
    ),
    "empty prompt": ("pretrain {w}/empty.jsonl --out {no} --model {w}/llm", '"prompt" is empty'),
    "latent that does not divide": ("pretrain {w}/pairs.jsonl --out {no} --latent 6 --model {w}/llm", "latent is 6"),
    "no epochs": ("pretrain {w}/pairs.jsonl --out {no} --epochs -1 --model {w}/llm", "epochs is -1"),
    "nothing trained": ("pretrain {w}/pairs.jsonl --out {no} --begin_epochs 0 --model {w}/llm", "are both 0"),
    "an LLM that is not trained": (
        "pretrain {w}/pairs.jsonl --out {no} --unfreeze true --model {w}/llm",
        "epochs is 0",
    ),
    "an adapter that is none": ("pretrain {w}/pairs.jsonl --out {no} --adapter glue", "glue"),
    "rows of nothing": ("pretrain {w}/odd.jsonl --out {no} --model {w}/llm", '"chosen" is missing'),
    "no LLM": ("pretrain {w}/pairs.jsonl --out {no} --model ./nowhere", "no folder at"),
    "no output": ("pretrain {w}/pairs.jsonl --model {w}/llm", "pretrain.out"),
    "answers for a stranger": ("generate {fitted} {w}/nobody.jsonl --user_id zoe", "nobody called 'zoe'"),
    "a stranger's line": ("generate {fitted} {w}/strangers.jsonl", "line 1: nobody called 'zoe'"),
    "no prompts": ("generate {fitted} {w}/missing.jsonl", "there is no file"),
    "no prompt column": ("generate {fitted} {w}/nobody.jsonl --prompt q", "line 1 has no 'q'"),
    "no room for a taste": ("generate {fitted} {w}/nobody.jsonl --perplexity_limit 1", "limit of perplexity is 1.0"),
    "no answers": ("generate {fitted} {w}/nobody.jsonl --answers 0", "answers is 0"),
    "answers over prompts": (
        "generate {fitted} {w}/nobody.jsonl --out {w}/nobody.jsonl",
        "cannot be read and overwritten",
    ),
    "nothing to score": ("score {fitted} {w}/nobody.jsonl", "line 1 has no 'response'"),
    "scores for a stranger": ("score {fitted} {w}/scored.jsonl --user_id zoe", "nobody called 'zoe'"),
    "an id of the wrong kind": ("score {fitted} {w}/scored.jsonl", 'line 1: column "user_id" is not a name'),
    "users of nothing": ("users {w}/llm", "no personal LLM"),
    "two wishes": ("users {fitted} --show ann --forget bob", "--show and --forget"),
    "a version of nobody": ("users {fitted} --version 1", "belong together"),
    "a version that is gone": ("users {fitted} --restore ann --version 9", "version 9 of 'ann' is not kept"),
    "forget a stranger": ("users {fitted} --forget zoe", "nobody called 'zoe'"),
    "export elsewhere": ("users {fitted} --export all.txt", ".jsonl"),
    "import of nothing": ("users {fitted} --import_from {w}/missing.jsonl", "missing.jsonl"),
    "a negative limit": ("users {fitted} --limit -1", "limit is -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(
    case: str, work: Path, fitted: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = judged()
    nobody = [{k: v for k, v in row.items() if k != "user_id"} for row in rows]
    write(work / "nobody.jsonl", nobody)
    write(work / "partly.jsonl", [{**row, "user_id": None if i == 1 else "ann"} for i, row in enumerate(rows[:5])])
    write(work / "single.jsonl", [rows[0], rows[10]])
    write(work / "strangers.jsonl", [{**row, "user_id": "zoe"} for row in rows[:4]])
    write(work / "empty.jsonl", [{"prompt": "a"}, {"prompt": " "}])
    write(work / "odd.jsonl", [{"text": "a"}])
    write(work / "scored.jsonl", [{"prompt": "a", "response": "b", "user_id": ["ann"]}])
    command, says = WRONG[case]
    system = copy(tmp_path, work / "system", "system") if "{system}" in command else ""
    words = command.format(system=system, fitted=fitted, w=work, no=tmp_path / "no").split()
    words = ["" if word == "''" else word for word in words]
    out = ["--out", str(tmp_path / "run")] if words[0] == "fit" else []
    assert main(["personal", *words, *out]) == 2
    said = capsys.readouterr().err.strip().split("penchant: ")[-1]
    assert says in said
    assert "\n" not in said
    assert not (tmp_path / "no" / "config.json").exists()
