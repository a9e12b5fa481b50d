"""The server as a process: asked to stop under load, killed under load, and started again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from penchant import RewardModel

PATIENCE = 120


@contextmanager
def started(model: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str, list[dict[str, Any]]]]:
    """A server's process, its address, and its log as it grows."""
    command = [sys.executable, "-m", "penchant", "serve", str(model), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    stderr, log, ready = process.stderr, [], threading.Event()
    other: list[str] = []
    assert stderr is not None

    def read() -> None:
        for line in stderr:
            if line.startswith("{"):
                log.append(json.loads(line))
                log[0]["other"] = other  # lines that are no JSON
                ready.set()
            else:
                other.append(line)
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(PATIENCE)
        assert log, "the server ended at once"
        yield process, log[0]["url"], log
    finally:
        process.kill()
        process.wait(PATIENCE)
        reader.join(PATIENCE)


class Load:
    """Clients that ask as fast as they are answered, until told to stop; what they were answered, by prompt."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.stop = url, threading.Event()
        self.answers: dict[str, list[float]] = {}
        self.refused: list[int] = []
        self.broken = 0
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, client: int) -> None:
        with httpx.Client(timeout=60) as http:
            number = 0
            while not self.stop.is_set():
                prompt = f"Question {client} {number}"
                number += 1
                try:
                    answer = http.post(f"{self.url}/score", json=body_of(prompt))
                except httpx.HTTPError:
                    self.broken += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.answers[prompt] = answer.json()["scores"]
                else:
                    self.refused.append(answer.status_code)
                    time.sleep(0.02)

    def wait_for(self, answers: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.answers) < answers and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.answers) >= answers

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def body_of(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [f"An answer to {prompt}", "No."]}


def check(load: Load, rm: RewardModel) -> None:
    for prompt, scores in load.answers.items():
        assert scores == [float(score) for score in rm.score(prompt, body_of(prompt)["responses"])]


def test_killed_and_started_again_under_load(model_folder: Path, rm: RewardModel) -> None:
    with started(model_folder) as (process, url, _):
        load = Load(url)
        load.wait_for(20)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    before = len(load.answers)
    with started(model_folder, int(url.rpartition(":")[2])):
        load.wait_for(before + 20)
        load.end()
    assert load.broken
    assert set(load.refused) <= {503}
    check(load, rm)


def test_a_second_sigterm_refuses_what_was_accepted(model_folder: Path) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with started(model_folder) as (process, url, log), ThreadPoolExecutor(1) as pool:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as sock:
            sock.sendall(b"no HTTP\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
        texts = [f"{i} " + "word " * 1500 for i in range(400)]
        with socket.create_connection(address, timeout=30) as sock:
            sock.sendall(head)  # and never the rest, so it is not done before
            asked = pool.submit(httpx.post, f"{url}/score", json={"prompts": texts, "responses": texts}, timeout=60)
            time.sleep(0.7)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            error = json.load(answer)["error"]
        assert asked.result().status_code in (200, 503)
        assert process.wait(10) == 1
    assert (answer.status, error["type"]) == (503, "unavailable")
    assert log[-1]["event"] == "stopped"
    assert [line["logger"] for line in log if line.get("event") == "warning"] == ["uvicorn.error"]
    assert not log[0]["other"], "".join(log[0]["other"])


def test_sigterm_finishes_what_was_accepted(model_folder: Path, rm: RewardModel) -> None:
    with started(model_folder) as (process, url, log):
        load = Load(url)
        load.wait_for(20)
        assert httpx.get(f"{url}/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        seen = []
        while process.poll() is None:
            try:
                seen.append(httpx.get(f"{url}/ready", timeout=5).status_code)
            except httpx.HTTPError:
                break
            time.sleep(0.02)
        assert process.wait(PATIENCE) == 0
        load.end()
    assert 503 in seen
    assert set(load.refused) <= {503}
    scored = [line for line in log if line.get("path") == "/score" and line["status"] == 200]
    assert len(scored) == len(load.answers)  # whatever was scored reached who had asked
    assert log[-1]["event"] == "stopped"
    check(load, rm)
