"""Bad input of every kind ends in a sentence below 500, and the server goes on."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from penchant.serve import batching
from penchant.serve.app import create_app
from penchant.serve.gate import Log
from penchant.serve.limits import Limits, depth
from penchant.serve.server import Server
from penchant.serve.service import Service
from tests.serve.conftest import Serve

POSTS = ("/score", "/compare", "/get_reward", "/classify", "/pooling", "/v1/score/evaluation")
GOOD = {"prompt": "hello", "responses": ["you"]}
JSON = {"Content-Type": "application/json"}
BYTES = {
    "nothing": (b"", 422),
    "no JSON": (b"{", 400),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', 400),
    "NaN": (b'{"prompt": NaN}', 400),
    "a number too large": (b'{"prompt": "a", "responses": ["b"], "labels": 1e999, "model": "a"}', 400),
    "infinity": (b'{"prompt": "a", "responses": [-Infinity]}', 400),
    "deep": (b"[" * 100_000, 400),
    "deep objects": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400),
    "half a surrogate pair": (
        b'{"prompt": "\\ud800", "responses": ["a"], "query": "\\uDC00", "input": "\\ud800"}',
        400,
    ),
    "a control character": (b'{"prompt": "a\x01b"}', 400),
    "a huge number": (b'{"prompt": 1' + b"0" * 5000 + b"}", 400),
    "a text": (b'"prompt"', 422),
    "a list": (b"[1, 2]", 422),
    "null": (b"null", 422),
    "a NUL": (b"\x00", 400),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), 400),
}


def error_of(answer: Any) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"type", "message", "status"}
    assert error["status"] == answer.status_code
    assert error["message"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", BYTES)
def test_bodies_that_are_no_request(client: TestClient, path: str, name: str) -> None:
    body, status = BYTES[name]
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == status
    error_of(answer)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": 7, "responses": ["a"]}, 422),
        ({"prompt": "a", "responses": "b"}, 422),
        ({"prompt": "a", "responses": []}, 422),
        ({"prompt": "a", "responses": [None]}, 422),
        ({"prompt": "a", "responses": [""]}, 422),
        ({"prompt": "a", "responses": [" \n"]}, 422),
        ({"prompt": "a", "prompts": ["a"], "responses": ["b"]}, 422),
        ({"prompt": [], "responses": ["b"]}, 422),
        ({"prompt": [{"role": "user"}], "responses": ["b"]}, 422),
        ({"prompt": [{"role": "user", "content": None}], "responses": ["b"]}, 422),
        ({"prompt": {"role": "user", "content": "a"}, "responses": ["b"]}, 422),
        ({"prompt": "word " * 100_000, "responses": ["b"]}, 413),
        ({"prompt": "a", "responses": ["word " * 20_000]}, 413),
        ({"prompt": "a", "responses": ["b"] * 2000}, 413),
    ],
)
def test_requests_that_cannot_be_scored(client: TestClient, body: dict[str, Any], status: int) -> None:
    answer = client.post("/score", json=body)
    assert answer.status_code == status
    error_of(answer)


def test_control_characters_in_a_text_are_scored_as_they_are(client: TestClient, rm: Any) -> None:
    prompt, text = "a\0b\x1b[31m", "<script>\u202e\x07</script>\ufeff\U0001f600"
    answer = client.post("/score", json={"prompt": prompt, "responses": [text]})
    assert answer.json()["scores"] == [float(rm.score(prompt, text)[0])]


def test_paths_methods_and_types(client: TestClient) -> None:
    assert error_of(client.get("/nowhere"))["type"] == "not_found"
    assert error_of(client.get("/score"))["type"] == "method_not_allowed"
    assert error_of(client.delete("/health"))["type"] == "method_not_allowed"
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "nonsense"):
        assert (
            error_of(client.post("/score", content=json.dumps(GOOD), headers={"Content-Type": kind}))["status"] == 415
        )
    # A page of another site can make a browser send a body without a type, but not one of this type.
    assert error_of(client.post("/score", content=json.dumps(GOOD)))["status"] == 415
    assert client.post("/score", json=GOOD).status_code == 200
    assert error_of(client.post("/score/", json=GOOD, follow_redirects=False))["type"] == "not_found"


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 100_000, b'{"a": "' + b"\\ud800" * 2000 + b'"}', b"[" * 100])
def test_two_types_and_encodings_are_no_way_round_the_check(client: TestClient, body: bytes) -> None:
    twice = [("Content-Type", "text/plain"), ("Content-Type", "application/json")]
    for headers in (twice, twice[::-1]):
        assert error_of(client.post("/score", content=body, headers=headers))["status"] == 415
    answer = client.post("/score", content=body, headers={**JSON, "Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert "gzip" in error_of(answer)["message"]
    plain = client.post("/score", json=GOOD, headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_a_text_without_its_end_takes_no_longer_than_another() -> None:
    start = time.monotonic()
    assert depth(b'["' + b'\\"' * 500_000) == 1
    assert time.monotonic() - start < 2


def test_a_prompt_is_as_long_as_a_text_may_be(client: TestClient) -> None:
    answer = client.post("/get_reward", json={"query": ["a"], "prompts": ["<pad>" * 50_000]})
    assert answer.status_code == 413
    assert "250,000 characters" in error_of(answer)["message"]


def test_counts_of_a_comparison_are_those_that_were_sent(client: TestClient) -> None:
    answer = client.post("/compare", json={"prompt": ["a", "b", "c"], "first": ["a", "b"], "second": ["a", "b"]})
    assert answer.status_code == 422
    assert "3 prompts for 2 comparisons" in error_of(answer)["message"]


def test_an_unknown_field_is_not_given_back_whole(client: TestClient) -> None:
    answer = client.post("/score", json={**GOOD, "x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(error_of(answer)["message"]) < 200


def test_bodies_are_cut_off(served: Serve) -> None:
    client = served(Limits(body_bytes=1000))
    big = json.dumps({"prompt": "a" * 1000, "responses": ["b"]}).encode()
    assert error_of(client.post("/score", content=big, headers=JSON))["type"] == "too_large"
    pieces = (big[i : i + 100] for i in range(0, len(big), 100))  # without a length that is known before
    assert error_of(client.post("/score", content=pieces, headers=JSON))["type"] == "too_large"
    assert client.post("/score", json=GOOD).status_code == 200


def test_items_tokens_and_depth_are_limited(served: Serve) -> None:
    client = served(Limits(items=3, tokens=100, depth=4, characters=400))
    assert client.post("/score", json={"prompt": "a", "responses": ["b"] * 3}).status_code == 200
    for body, says in (
        ({"prompt": "a", "responses": ["b"] * 4}, "4 responses in one request"),
        ({"prompt": "a", "responses": ["b" * 101]}, "tokens long, and 100 are allowed"),
        ({"prompt": "a", "responses": ["b" * 401]}, "402 characters long"),
    ):
        answer = client.post("/score", json=body)
        assert answer.status_code == 413
        assert says in error_of(answer)["message"]
    talk = [[{"role": "user", "content": '[[[[[[[[ \\" {{{{'}, {"role": "assistant", "content": "b"}]]
    assert client.post("/get_reward", json={"query": talk}).status_code == 200
    assert client.post("/get_reward", json={"query": [talk]}).status_code == 400
    assert depth(b'{"a[[[": ["\\"[[["]}') == 2


class Stuck:
    """Keeps the LLM from running until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.began, real = threading.Event(), threading.Event(), batching.batch_latents

        def wait(*args: Any) -> Any:
            self.began.set()
            assert self.go.wait(30)
            return real(*args)

        monkeypatch.setattr(batching, "batch_latents", wait)


def in_thread(client: TestClient, found: list[Any], body: dict[str, Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(client.post("/score", json=body)))
    thread.start()
    return thread


def test_a_full_queue_is_429_and_too_long_a_wait_504(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "shares", lambda most: (1, 1))
    client = served(Limits(queue_tokens=50, seconds=1.0))
    stuck, found = Stuck(monkeypatch), []
    threads = [in_thread(client, found, GOOD)]
    assert stuck.began.wait(30)
    threads.append(in_thread(client, found, {"prompt": "waits", "responses": ["you"]}))
    batcher = client.app.state.service.batcher  # type: ignore[attr-defined]
    while not batcher.waiting_tokens:
        time.sleep(0.001)
    busy = client.post("/score", json={"prompt": "too much", "responses": ["you"]})
    assert busy.status_code == 429
    assert int(busy.headers["retry-after"]) >= 1
    assert error_of(busy)["type"] == "busy"
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in found] == [504, 504]
    assert error_of(found[0])["type"] == "timeout"
    assert batcher.waiting_tokens == 0  # whoever gave up is not run
    stuck.go.set()
    assert client.post("/score", json=GOOD).status_code == 200


def test_the_time_covers_tokenising_too(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served(Limits(seconds=0.3))
    chat, go = client.app.state.service.backbone.chat, threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setattr(chat, "encode", lambda *_: go.wait(5) and [])
    start = time.monotonic()
    answer = client.post("/score", json=GOOD)
    go.set()
    assert answer.status_code == 504
    assert "0.3 seconds" in error_of(answer)["message"]
    assert time.monotonic() - start < 3


def test_who_went_away_is_not_computed_for(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batching, "shares", lambda most: (1, 1))
    stuck, service = Stuck(monkeypatch), Service.load(model_folder)
    app = create_app(service, log=Log())
    with Server(app) as server, TestClient(app) as first, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(first.post, "/score", json=GOOD)
        assert stuck.began.wait(30)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/score", json={"prompt": "leaves", "responses": ["you"]}, timeout=0.5)
        end = time.monotonic() + 10
        while service.batcher.waiting_tokens and time.monotonic() < end:
            time.sleep(0.01)
        left = service.batcher.waiting_tokens
        stuck.go.set()
        assert waits.result(30).status_code == 200
    assert left == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines] == [499, 200]


def test_too_many_requests_at_once_are_429(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served(Limits(requests=1))
    stuck, found = Stuck(monkeypatch), []
    thread = in_thread(client, found, GOOD)
    assert stuck.began.wait(30)
    assert client.post("/score", json=GOOD).status_code == 429
    assert client.get("/health").status_code == 200
    stuck.go.set()
    thread.join(30)
    assert found[0].status_code == 200


def test_a_failure_inside_is_500_without_details(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret text")

    client = served()
    monkeypatch.setattr(batching, "batch_latents", broken)
    answer = client.post("/score", json=GOOD)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert error_of(answer)["type"] == "internal"
    monkeypatch.undo()
    assert client.post("/score", json=GOOD).status_code == 200


def test_the_log_says_what_happened_and_no_texts(served: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"prompt": "a private question", "responses": ["a private answer"]}
    client = served(log=Log())
    answer = client.post("/score", json=body)
    client.post("/score", json={"prompt": "a private mistake"})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert "private" not in json.dumps(lines)
    assert [line["status"] for line in lines] == [200, 422]
    assert lines[0]["id"] == answer.headers["x-request-id"]
    assert lines[0]["items"] == 1
    assert lines[0]["tokens"] > 0
    assert lines[0]["ms"] > 0
    talkative = served(log=Log(), log_texts=True)
    talkative.post("/score", json=body)
    assert "a private answer" in capsys.readouterr().err


def test_metrics_count(served: Serve) -> None:
    client = served()
    for _ in range(2):
        client.post("/score", json={"prompt": "a", "responses": ["b", "c"]})
    client.get("/somewhere/else")
    page = client.get("/metrics").text
    assert 'penchant_requests_total{path="/score",status="200"} 2.0' in page
    assert 'penchant_requests_total{path="other",status="404"} 1.0' in page
    assert "penchant_items_total 4.0" in page
    assert "penchant_cached_items_total 2.0" in page
    assert "penchant_waiting_tokens 0.0" in page
    assert client.app.state.service.batcher.cache.bytes > 0  # type: ignore[attr-defined]
