"""user_id: a personal LLM's folder served, each person's scores those of `PersonalLLM.score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset
from fastapi.testclient import TestClient

from penchant.errors import InputError
from penchant.judge import Judge
from penchant.personal.scoring import PersonalRewards
from penchant.personal.system import PersonalLLM
from penchant.serve.app import create_app
from penchant.serve.service import Service

PROMPT, ANSWERS = "Say something about a lake", ["aaaa aa", "zz z zzz"]


@pytest.fixture(scope="module")
def system(system_folder: Path) -> PersonalLLM:
    return PersonalLLM.load(system_folder)


@pytest.fixture(scope="module")
def people(system_folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Service.load(system_folder)), raise_server_exceptions=False) as found:
        yield found


def score(client: TestClient, user_id: str | list[str | None] | None) -> list[float]:
    body = {"prompt": PROMPT, "responses": ANSWERS, "user_id": user_id}
    answer = client.post("/score", json=body)
    assert answer.status_code == 200, answer.text
    scores: list[float] = answer.json()["scores"]
    return scores


def test_each_person_has_their_own_scores(people: TestClient, system: PersonalLLM) -> None:
    for user_id in (None, "ann", "bob"):
        assert score(people, user_id) == [float(s) for s in system.score(PROMPT, ANSWERS, user_id)]
    ann, bob = score(people, "ann"), score(people, "bob")
    assert ann[0] - ann[1] > bob[0] - bob[1]
    assert score(people, ["ann", "bob"]) == [ann[0], bob[1]]
    assert score(people, ["bob", None]) == [bob[0], score(people, None)[1]]


def test_the_llm_runs_once_for_all_people(people: TestClient) -> None:
    body = {"prompt": "Say it", "responses": ["b"], "user_id": "ann"}
    assert people.post("/score", json=body).json()["usage"]["cached"] == 0
    assert people.post("/score", json={**body, "user_id": "bob"}).json()["usage"]["cached"] == 1


def test_user_ids_in_every_shape(people: TestClient, system: PersonalLLM) -> None:
    talk = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    want = float(system.score(PROMPT, ANSWERS[0], "bob")[0])
    who = {"user_id": "bob"}
    assert people.post("/get_reward", json={"query": [talk], **who}).json()["rewards"] == [want]
    assert people.post("/classify", json={"messages": talk, **who}).json()["data"][0]["probs"] == [want]
    assert people.post("/pooling", json={"messages": talk, **who}).json()["data"][0]["data"] == [want]
    assert people.post("/v1/score/evaluation", json={"model": "m", "messages": [talk], **who}).json()["scores"] == [
        want
    ]
    both = {"prompt": PROMPT, "first": ANSWERS[0], "second": ANSWERS[1], **who}
    chance = float(system.rewards_of("bob").compare(PROMPT, *ANSWERS)[0])
    assert people.post("/compare", json=both).json()["probability"] == chance


@pytest.mark.parametrize("user_id", ["cleo", "a\0b", "x" * 513, ["ann"], "", 7])
def test_who_is_not_known_is_said(people: TestClient, user_id: object) -> None:
    answer = people.post("/score", json={"prompt": PROMPT, "responses": ANSWERS, "user_id": user_id})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]


def test_a_person_fitted_meanwhile_is_known(people: TestClient, system: PersonalLLM) -> None:
    assert people.post("/score", json={"prompt": "a", "responses": ["b"], "user_id": "dan"}).status_code == 422
    pair = {"prompt": PROMPT, "chosen": "zz z zzz", "rejected": "aaaa aa", "user_id": "dan"}
    system.fit_users(Dataset.from_list([pair]))
    assert score(people, "dan") == [float(s) for s in system.score(PROMPT, ANSWERS, "dan")]
    assert people.app.state.service.people() == ["ann", "bob", "dan"]  # type: ignore[attr-defined]


def test_a_model_for_all_has_no_people(client: TestClient) -> None:
    answer = client.post("/score", json={"prompt": PROMPT, "responses": ANSWERS, "user_id": "ann"})
    assert answer.status_code == 422
    assert "one taste for all" in answer.json()["error"]["message"]


def test_a_folder_without_rewards_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for folder in (model_folder, tmp_path):
        with pytest.raises(InputError, match="holds no personal LLM"):
            PersonalRewards.load(folder)


def test_server_and_judge_find_the_same_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "clap.safetensors").touch()  # a personal LLM that lost its config
    with pytest.raises(InputError) as judged:
        Judge.load(tmp_path)
    with pytest.raises(InputError) as served:
        Service.load(tmp_path)
    assert str(served.value) == str(judged.value)
