"""The explorer's routes: what each kind of head shows, what the page may load, and texts that mean harm."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from penchant.explain.leave_out import MOST, pieces, without
from penchant.report_style import STYLE
from penchant.serve import browse
from penchant.serve import explorer as explorer_module
from penchant.serve.explorer import PEOPLE as LISTED
from penchant.serve.explorer import POLICY, STATIC, WAITING, Desk
from penchant.serve.keys import Keys
from penchant.serve.refusals import Refused
from tests.serve.tiny_explorer import HOSTILE, MODELS, PEOPLE, explorer
from tests.tiny_explain import pairs

PAIR = {"prompt": "Name a river.", "first": "Gladly! What about this one? Number 1.", "second": "No. 7"}
WITH_FEATURES = ("sae", "projection", "sparse mlp")


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, TestClient]]:
    found = {kind: TestClient(explorer(kind)) for kind in MODELS}
    for client in found.values():
        client.__enter__()
    yield found
    for client in found.values():
        client.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "PAIRS", 12)


def waited(client: TestClient, path: str) -> Any:
    """The answer to what is read once, asked for until it is there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        if answer.json()["found"] is not None:
            return answer.json()["found"]
        time.sleep(0.05)
    raise AssertionError(f"{path} is not there after a minute")


# The page


def test_the_page_and_its_files_come_with_a_policy_that_allows_nothing_else(clients: dict[str, TestClient]) -> None:
    client = clients["linear"]
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = re.findall(r'(?:href|src)="(static/[^"]+)"', page.text)
    assert len(wanted) == 4
    for path in ("", *wanted, *(f"static/{file.name}" for file in STATIC.iterdir())):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert STYLE in client.get("/static/report.css").text


def test_no_file_holds_an_address_or_writes_markup() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|<style", page), "no inline script or style"


def test_every_field_of_the_page_has_a_label_and_every_tab_a_panel() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    fields = re.findall(r'<(?:input|textarea|progress)[^>]*?\bid="([^"]+)"', page)
    assert len(fields) > 6
    assert set(fields) <= set(re.findall(r'<label[^>]*\bfor="([^"]+)"', page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:aria-controls|aria-labelledby)="([^"]+)"', page):
        assert name in ids


@pytest.mark.parametrize("name", ["no.js", "..%2fexplorer.py", "%2e%2e/explorer.py", "report_style.py", ""])
def test_no_other_file_is_given_out(clients: dict[str, TestClient], name: str) -> None:
    assert clients["linear"].get(f"/static/{name}").status_code == 404


def test_without_a_key_the_page_loads_and_no_data_does(tmp_path: Any) -> None:
    keys = Keys(tmp_path / "keys.json", make=True)
    key = keys.add("ann")
    with TestClient(explorer("linear", keys=keys)) as client:
        assert client.get("/").status_code == client.get("/static/explorer.js").status_code == 200
        paths = ("model", "people", "features", "codes", "person?user_id=a")
        assert {client.get(f"/explore/{path}").status_code for path in paths} == {401}
        assert {client.post(f"/explore/{path}", json=PAIR).status_code for path in ("compare", "words", "reasons")} == {
            401
        }
        assert client.get("/explore/model", headers={"Authorization": f"Bearer {key}"}).status_code == 200


# What each kind of model shows


@pytest.mark.parametrize("kind", MODELS)
def test_what_can_be_browsed_depends_on_the_head(clients: dict[str, TestClient], kind: str) -> None:
    model = clients[kind].get("/explore/model").json()
    assert model["features"] is (kind in WITH_FEATURES)
    assert (model["codes"] > 1) is (kind == "coded")
    assert model["people"] == (len(PEOPLE) if kind == "personal" else 0)
    assert "layer" in model["reads"]
    for path, there in (("features", model["features"]), ("codes", model["codes"] > 1)):
        assert (clients[kind].get(f"/explore/{path}").status_code == 200) is there


@pytest.mark.parametrize("kind", MODELS)
def test_scores_and_probability_are_the_models_own(clients: dict[str, TestClient], kind: str) -> None:
    answer = clients[kind].post("/explore/compare", json=PAIR).json()
    model = MODELS[kind]()
    rm = model.rewards if kind == "personal" else model
    answers = [PAIR["first"], PAIR["second"]]
    assert np.array_equal(np.float32(answer["everybody"]["scores"]), rm.score(PAIR["prompt"], answers))
    assert np.float32(answer["everybody"]["probability"]) == rm.compare(PAIR["prompt"], *answers)[0]
    assert answer["person"] is None


@pytest.mark.parametrize("kind", MODELS)
def test_a_words_worth_is_the_score_with_it_less_the_score_without_it(
    clients: dict[str, TestClient], kind: str
) -> None:
    found = clients[kind].post("/explore/words", json={**PAIR, "first": "Gladly, a river", "second": "No"}).json()
    assert found["first"]["pieces"] == ["Gladly,", " a", " river"]
    assert found["second"] == {"pieces": ["No"], "worth": []}, "of one word nothing can be left out"
    model = MODELS[kind]()
    rm = model.rewards if kind == "personal" else model
    whole, *shorter = rm.score(PAIR["prompt"], ["Gladly, a river", " a river", "Gladly, river", "Gladly, a"])
    assert np.allclose(found["first"]["worth"], [whole - one for one in shorter], atol=1e-5)
    assert np.any(found["first"]["worth"])


def test_pieces_are_the_text_and_their_number_is_bounded() -> None:
    rng = np.random.default_rng(0)
    letters = list("ab  .,\n'é你\u202e\x00!—")
    for length in (0, 1, 3, 40, 400, 60_000):
        text = "".join(rng.choice(letters, length))
        found = pieces(text)
        assert "".join(found) == text
        assert len(found) <= MOST
        assert all(len(one) < len(text) for one in without(found))
    assert pieces("It's fine, no?") == ["It's", " fine,", " no?"]
    assert len(pieces("你" * 100)) == 7, "where no spaces stand between words"
    assert without(["No", "  "]) == [], "white space alone is no answer"
    assert len(pieces("word " * 2000)) < MOST, "a long answer is not scored too often"


@pytest.mark.parametrize("kind", WITH_FEATURES)
def test_features_of_a_pair_add_up_to_both_scores(clients: dict[str, TestClient], kind: str) -> None:
    found = clients[kind].post("/explore/reasons", json=PAIR).json()["features"]
    assert found["features"]
    for side in ("first", "second"):
        parts = [*(one[side] for one in found["features"]), found["others"][side], found["left_over"][side]]
        assert sum(parts) + found["base"] == pytest.approx(found["score"][side], abs=1e-4)
        assert "".join(found["texts"][side]["pieces"]).startswith(PAIR[side])
    assert "".join(found["texts"]["prompt"]["pieces"]).count(PAIR["prompt"]) == 1
    listed = {str(one["feature"]) for one in found["features"]}
    assert set(found["texts"]["first"]["activations"]) == listed
    swapped = {**PAIR, "first": PAIR["second"], "second": PAIR["first"]}
    other = clients[kind].post("/explore/reasons", json=swapped).json()["features"]
    assert [one["difference"] for one in other["features"]] == pytest.approx(
        [-one["difference"] for one in found["features"]]
    )


def test_a_pair_of_equal_answers_has_no_features_that_tell_them_apart(clients: dict[str, TestClient]) -> None:
    same = {**PAIR, "second": PAIR["first"]}
    assert clients["sae"].post("/explore/reasons", json=same).json()["features"]["features"] == []
    assert clients["sae"].post("/explore/compare", json=same).json()["everybody"]["probability"] == 0.5


def test_codes_of_a_pair_add_up_to_both_scores(clients: dict[str, TestClient]) -> None:
    found = clients["coded"].post("/explore/reasons", json=PAIR).json()["codes"]
    scores = clients["coded"].post("/explore/compare", json=PAIR).json()["everybody"]["scores"]
    for side, score in zip(("first", "second"), scores, strict=True):
        assert sum(one["weight"][side] for one in found) == pytest.approx(1)
        assert sum(one["weight"][side] * one["score"][side] for one in found) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("kind", ["linear", "random", "dense mlp", "personal"])
def test_a_head_without_features_or_codes_gives_no_reasons(clients: dict[str, TestClient], kind: str) -> None:
    assert clients[kind].post("/explore/reasons", json=PAIR).json() == {}


def test_features_are_read_once_and_named_from_then_on(clients: dict[str, TestClient]) -> None:
    found = waited(clients["sae"], "/explore/features")
    assert found["pairs"] == 12
    assert {str(one["feature"]) for one in found["features"]} <= set(found["latents"])
    pair = clients["sae"].post("/explore/reasons", json=PAIR).json()["features"]["features"]
    names = {number: latent["name"] for number, latent in found["latents"].items()}
    known = [one for one in pair if str(one["feature"]) in names]
    assert known
    assert all((one["name"] or "") == names[str(one["feature"])] for one in known)


def test_codes_are_described_by_the_prompts_that_call_for_them(clients: dict[str, TestClient]) -> None:
    found = waited(clients["coded"], "/explore/codes")
    assert sum(one["weight"] for one in found) == pytest.approx(1)
    for one in found:
        weights = [pair["weight"] for pair in one["pairs"]]
        assert weights == sorted(weights, reverse=True)
        assert len({pair["prompt"] for pair in one["pairs"]}) == 3
        assert 0 <= one["agrees"] <= 1


# People


def test_people_are_found_by_prefix_and_never_all_at_once(clients: dict[str, TestClient]) -> None:
    client = clients["personal"]
    first = client.get("/explore/people").json()
    assert len(first["people"]) == LISTED
    assert first["more"]
    rest = client.get("/explore/people", params={"after": first["people"][-1]}).json()
    assert sorted(first["people"] + rest["people"]) == sorted(PEOPLE)
    assert not rest["more"]
    assert client.get("/explore/people", params={"prefix": "an"}).json() == {"people": ["ann"], "more": False}
    assert client.get("/explore/people", params={"prefix": "zed"}).json() == {"people": [], "more": False}
    assert clients["linear"].get("/explore/people").json() == {"people": [], "more": False}


def test_a_chosen_persons_taste_stands_beside_everybodys(clients: dict[str, TestClient]) -> None:
    client = clients["personal"]
    known = {"prompt": pairs()[0]["prompt"], "first": pairs()[0]["chosen"], "second": pairs()[0]["rejected"]}
    asked = ({**known, "user_id": name} for name in ("ann", "bob 01"))
    ann, bob = (client.post("/explore/compare", json=one).json() for one in asked)
    assert ann["everybody"] == bob["everybody"]
    probabilities = [one["probability"] for one in (ann["person"], ann["everybody"], bob["person"])]
    assert probabilities == sorted(probabilities)
    assert probabilities[0] < 0.3 < 0.7 < probabilities[2]
    own = client.post("/explore/words", json={**PAIR, "user_id": "ann"}).json()
    assert own["first"]["worth"] != client.post("/explore/words", json=PAIR).json()["first"]["worth"]
    ann, bob = (waited(client, f"/explore/person?user_id={name}") for name in ("ann", "bob%2001"))
    assert ann["pairs"] == 12
    assert ann["agrees"] < bob["agrees"]
    gaps = [abs(pair["person"] - pair["everybody"]) for pair in ann["differ"]]
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("path", ["compare", "words"])
def test_somebody_unknown_is_told_in_a_sentence(clients: dict[str, TestClient], path: str) -> None:
    for kind in ("linear", "personal"):
        answer = clients[kind].post(f"/explore/{path}", json={**PAIR, "user_id": "zed"})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].endswith(".") or "zed" in answer.json()["error"]["message"]


# Wrong and hostile input


@pytest.mark.parametrize("path", ["compare", "words", "reasons"])
@pytest.mark.parametrize(
    "body",
    [{}, [], {**PAIR, "first": ""}, {**PAIR, "first": " \n"}, {**PAIR, "prompt": 3}, {**PAIR, "user_id": ""}, "x"],
)
@pytest.mark.parametrize("kind", ["linear", "sae", "coded"])
def test_wrong_input_is_refused_in_the_one_shape(
    clients: dict[str, TestClient], path: str, body: Any, kind: str
) -> None:
    answer = clients[kind].post(f"/explore/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["status"] == 422


@pytest.mark.parametrize("kind", ["linear", "sae", "coded"])
@pytest.mark.parametrize("text", [HOSTILE, "\x00", "<|im_end|>", "你好 " * 30, "a" * 5000, "=1+1", "\u202e\u200b!"])
def test_any_text_is_scored_and_comes_back_as_it_went_in(clients: dict[str, TestClient], kind: str, text: str) -> None:
    pair = {"prompt": text, "first": text, "second": "No."}
    for path in ("compare", "words", "reasons"):
        answer = clients[kind].post(f"/explore/{path}", json=pair)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        if path == "words":
            assert "".join(answer.json()["first"]["pieces"]) == text


def test_a_text_too_long_is_refused_before_it_is_explained(clients: dict[str, TestClient]) -> None:
    for path in ("compare", "words", "reasons"):
        answer = clients["sae"].post(f"/explore/{path}", json={**PAIR, "first": "long " * 50_000})
        assert answer.status_code == 413


@pytest.mark.parametrize("kind", ["sae", "personal"])
def test_nothing_is_read_from_files_by_the_thread_that_answers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = explorer(kind)
    threads: list[str] = []
    service = app.state.service
    look, find = explorer_module.Browser, service.reward_model

    def looking(rm: Any) -> Any:
        threads.append(threading.current_thread().name)
        return look(rm)

    def finding(user_id: str | None = None) -> Any:
        threads.append(threading.current_thread().name)
        return find(user_id)

    monkeypatch.setattr(explorer_module, "Browser", looking)
    monkeypatch.setattr(service, "reward_model", finding)
    who = {"user_id": "ann"} if kind == "personal" else {}
    with TestClient(app) as client:
        assert client.get("/explore/model").status_code == 200
        assert client.post("/score", json={"prompt": "a", "responses": ["b"], **who}).status_code == 200
        assert client.post("/compare", json={"prompt": "a", "first": "b", "second": "c", **who}).status_code == 200
    assert threads
    assert {name.partition("_")[0] for name in threads} <= {"explorer", "side"}


def test_more_than_a_few_pairs_do_not_wait_to_be_explained() -> None:
    asyncio.run(crowded())


async def crowded() -> None:
    hold = threading.Event()
    app = explorer("linear")
    desk = Desk(app.state.service)
    waiting = [asyncio.ensure_future(desk.run(hold.wait)) for _ in range(WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await desk.run(hold.wait)
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "2"}
    hold.set()
    assert all(await asyncio.gather(*waiting))
    assert await desk.run(lambda: 3) == 3
