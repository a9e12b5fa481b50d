"""Slow and misled clients: headers that never end, an idle connection, a page that was led to this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penchant.serve.app import create_app
from penchant.serve.connection import Connection
from penchant.serve.server import LOCAL_NAMES, Server
from penchant.serve.service import Service
from tests.serve.conftest import Serve

SECONDS = 0.3
REQUEST = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def address(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(Connection, "seconds", SECONDS)
    with Server(create_app(Service.load(model_folder))) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        yield host, int(port)


@pytest.mark.parametrize("begun", [b"", b"G", REQUEST[:-2]], ids=["nothing", "a letter", "all but the end"])
def test_headers_that_do_not_arrive_end_the_connection(address: tuple[str, int], begun: bytes) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(begun)
        assert client.recv(100) == b""  # closed, and not for the client's own patience


def test_a_byte_now_and_then_does_not_put_it_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(REQUEST[:-2])
        client.settimeout(SECONDS / 5)
        for _ in range(100):
            try:
                client.sendall(b"X: y\r\n")
                if client.recv(100) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
        raise AssertionError("it was never closed")


def test_between_two_requests_a_client_may_wait_longer(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as client:
        for _ in range(2):
            client.sendall(REQUEST[:9])
            client.sendall(REQUEST[9:])
            found = b""
            while b"\r\n\r\n" not in found:
                found += client.recv(1000)
            assert found.startswith(b"HTTP/1.1 200")
            client.settimeout(2 * SECONDS)
            try:
                while client.recv(1000):  # the body, and then nothing
                    pass
                raise AssertionError("it was closed between two requests")
            except TimeoutError:
                client.settimeout(30)


def test_an_answer_may_take_longer_than_headers(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    run = Service.score_tokens

    async def late(self: Service, *given: Any) -> Any:
        await self.run(go.wait, 30)
        return await run(self, *given)

    monkeypatch.setattr(Service, "score_tokens", late)
    body = b'{"prompt": "a", "responses": ["b"]}'
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    head = f"POST /score HTTP/1.1\r\nHost: here\r\n{kind}\r\n\r\n"
    with socket.create_connection(address, timeout=2 * SECONDS) as client:
        client.sendall(head.encode() + body)
        with pytest.raises(TimeoutError):
            client.recv(1)
        go.set()
        client.settimeout(60)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_without_keys_only_this_machines_names_are_answered_to(served: Serve) -> None:
    client = served(hosts=LOCAL_NAMES)
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost:x", ""):
        found = client.get("/health", headers={"Host": host})
        assert found.status_code == 403
        assert "names alone" in found.json()["error"]["message"]
    assert served().get("/health", headers={"Host": "evil.example"}).status_code == 200
