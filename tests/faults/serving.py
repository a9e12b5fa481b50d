"""Messages that are late, cut, doubled, out of order or wrong, and a server that dies under them: whatever is answered
is `RewardModel.score`'s to the last bit, or an error in the server's own shape."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant import RewardModel
from tests.faults.jobs import cli
from tests.faults.kit import EQUAL, FAILED, Outcome
from tests.faults.process import PATIENCE, Child, run

REQUESTS = 6
Body = dict[str, Any]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def raw(body: bytes) -> bytes:
    """A whole request."""
    lines = [
        "POST /score HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def bodies(rng: random.Random) -> list[Body]:
    """Some share their prompt, some their texts."""
    texts = ["Gladly! This one.", "No.", "Perhaps, if it rains.", "Number 4 of them."]
    return [
        {"prompt": f"Question {rng.randrange(4)}?", "responses": [*rng.sample(texts, 2), f"Answer {rng.randrange(9)}."]}
        for _ in range(REQUESTS)
    ]


@dataclass
class Talk:
    """A server, what it is asked, and what came back."""

    rng: random.Random
    folder: Path
    model: Path
    port: int = field(default_factory=free_port)
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    server: Child | None = None

    def start(self) -> None:
        """Serve; returns when the server is ready."""
        port, model = self.port, self.model
        self.server = Child(lambda: cli("serve", model, "--port", port, "--grace", 0.1) or "", self.folder)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                asked.request("GET", "/ready")
                status = asked.getresponse().status
                asked.close()
                if status == 200:
                    return
            time.sleep(0.02)
        self.wrong.append("the server was not ready in time")

    def kill(self) -> None:
        assert self.server is not None
        self.server.signal(signal.SIGKILL)
        self.server.wait()

    def stop(self) -> None:
        """Politely; what a server that was never killed by us must take with code 0."""
        assert self.server is not None
        self.server.signal(signal.SIGTERM)
        ended = self.server.wait()
        if ended.kind != "done":
            self.wrong.append(f"the server {ended.short()}")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def answer(self, sock: socket.socket, expected: list[float] | None) -> int:
        """Read one answer and check it: these scores, or an error (any scores where they are not known)."""
        found = http.client.HTTPResponse(sock)
        found.begin()
        told = json.loads(found.read())
        if found.status == 200:
            if expected is not None and told["scores"] != expected:
                self.wrong.append(f"wrong scores {told['scores']}, not {expected}")
        elif found.status == 500 or set(told.get("error", {})) != {"type", "message", "status"}:
            self.wrong.append(f"status {found.status}: {told}")
        return found.status

    def ask(self, body: Body, expected: list[float]) -> None:
        """A plain request, which has to be answered by the scores."""
        with self.connect() as sock:
            sock.sendall(raw(json.dumps(body).encode()))
            if (status := self.answer(sock, expected)) != 200:
                self.wrong.append(f"status {status} for a plain request")


def killed(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """SIGKILL while requests are under way; a new server on the port is sent them again."""
    socks = [talk.connect() for _ in asked]
    for sock, body in zip(socks, asked, strict=True):
        sock.sendall(raw(json.dumps(body).encode()))
    moment = talk.rng.uniform(0, 0.1)
    talk.said.append(f"SIGKILL {moment:.3f} s after {len(asked)} requests")
    time.sleep(moment)
    talk.kill()
    answered = 0
    for sock, right in zip(socks, expected, strict=True):
        with contextlib.suppress(OSError, http.client.HTTPException), sock:
            answered += talk.answer(sock, right) == 200
    talk.said.append(f"{answered} were answered")
    talk.start()


def delayed(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """Bodies come in pieces, those of all requests mixed, with pauses between them."""
    socks, pieces = [talk.connect() for _ in asked], []
    for number, body in enumerate(asked):
        whole = raw(json.dumps(body).encode())
        cuts = sorted(talk.rng.sample(range(1, len(whole)), 3))
        pieces.append([(number, whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)])
    while any(pieces):
        number, piece = talk.rng.choice([each for each in pieces if each]).pop(0)
        socks[number].sendall(piece)
        time.sleep(talk.rng.uniform(0, 0.02))
    talk.said.append("in pieces, mixed")
    order = talk.rng.sample(range(len(asked)), len(asked))
    for number in order:
        with socks[number] as sock:
            talk.answer(sock, expected[number])


def cut(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """Connections end amid a request, or before its answer is read."""
    for body in asked:
        whole = raw(json.dumps(body).encode())
        size = talk.rng.randint(1, len(whole))
        with talk.connect() as sock:
            sock.sendall(whole[:size])
    talk.said.append("cut off")


def doubled(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """Each is sent twice or three times, on one connection or on several, before any answer is read."""
    waiting = []
    for body, right in zip(asked, expected, strict=True):
        times, sock = talk.rng.choice((2, 3)), talk.connect()
        for _ in range(times):
            if talk.rng.random() < 0.5:
                sock = talk.connect()
            sock.sendall(raw(json.dumps(body).encode()))
            waiting.append((sock, right))
    talk.said.append(f"{len(waiting)} requests of {len(asked)}")
    for sock, right in waiting:
        found = http.client.HTTPResponse(_One(sock))  # type: ignore[arg-type]
        found.begin()
        told = json.loads(found.read())
        if (found.status, told.get("scores")) != (200, right):
            talk.wrong.append(f"status {found.status}: {told}, not {right}")


class _One:
    """A socket that gives an answer no byte of the next one: read byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def makefile(self, mode: str) -> Any:
        return self.sock.makefile(mode, buffering=0)


def stopped(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """The server stands still for a while with requests under way."""
    assert talk.server is not None
    socks = [talk.connect() for _ in asked]
    for number, (sock, body) in enumerate(zip(socks, asked, strict=True)):
        if number == len(asked) // 2:
            talk.server.signal(signal.SIGSTOP)
        sock.sendall(raw(json.dumps(body).encode()))
    seconds = talk.rng.uniform(0.1, 0.6)
    talk.said.append(f"stopped for {seconds:.2f} s")
    time.sleep(seconds)
    talk.server.signal(signal.SIGCONT)
    for sock, right in zip(socks, expected, strict=True):
        with sock:
            talk.answer(sock, right)


def flipped(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """A bit of the body is another: refused, or answered for the text that arrived."""
    statuses = []
    for body in asked:
        content = bytearray(json.dumps(body).encode())
        content[talk.rng.randrange(len(content))] ^= 1 << talk.rng.randrange(8)
        right = None
        with contextlib.suppress(ValueError):
            arrived = json.loads(bytes(content))
            if set(arrived) == {"prompt", "responses"}:
                right = scores(talk.model, [arrived], talk.folder)[0]
        with talk.connect() as sock:
            sock.sendall(raw(bytes(content)))
            statuses.append(talk.answer(sock, right))
    talk.said.append(f"statuses {statuses}")


def terminated(talk: Talk, asked: list[Body], expected: list[list[float]]) -> None:
    """SIGTERM with requests under way: each is answered, or refused with 503."""
    assert talk.server is not None
    socks = [talk.connect() for _ in asked]
    for sock, body in zip(socks, asked, strict=True):
        sock.sendall(raw(json.dumps(body).encode()))
    time.sleep(talk.rng.uniform(0, 0.05))
    talk.server.signal(signal.SIGTERM)
    statuses = []
    for sock, right in zip(socks, expected, strict=True):
        with contextlib.suppress(ConnectionError, http.client.HTTPException), sock:  # not accepted any more
            statuses.append(talk.answer(sock, right))
    talk.said.append(f"statuses {statuses}")
    if not set(statuses) <= {200, 503}:
        talk.wrong.append("another status")
    if (ended := talk.server.wait()).kind != "done":
        talk.wrong.append(f"the server {ended.short()}")
    talk.start()


def scores(model: Path, asked: list[Body], folder: Path) -> list[list[float] | None]:
    """What `RewardModel.score` says, None where it refuses; in a process of its own, as this one must not run torch."""

    def work() -> str:
        rm, found = RewardModel.from_pretrained(model), []
        for body in asked:
            try:
                found.append([float(score) for score in rm.score(body["prompt"], body["responses"])])
            except (ValueError, TypeError, AttributeError):
                found.append(None)
        return json.dumps(found)

    ended = run(work, folder)
    assert ended.kind == "done", ended.text
    told: list[list[float] | None] = json.loads(ended.text)
    return told


def special(fault: Callable[[Talk, list[Body], Any], None]) -> Callable[[random.Random, Path, Path], Outcome]:
    """The fault between a start and plain requests, which must be answered as ever."""

    def happen(rng: random.Random, folder: Path, given: Path) -> Outcome:
        asked = bodies(rng)
        expected: Any = scores(given / "new", asked, folder)
        talk = Talk(rng, folder, given / "new")
        with _running(talk):
            try:
                fault(talk, asked, expected)
                for body, right in zip(asked, expected, strict=True):
                    talk.ask(body, right)
                talk.stop()
            except (OSError, http.client.HTTPException, ValueError) as error:
                talk.wrong.append(f"{type(error).__name__}: {error}")
        return Outcome(FAILED if talk.wrong else EQUAL, [*talk.said, *(f"BECAUSE {each}" for each in talk.wrong[:1])])

    return happen


@contextlib.contextmanager
def _running(talk: Talk) -> Iterator[None]:
    talk.start()
    try:
        yield
    finally:
        talk.kill()


KINDS = {f"http-{f.__name__}": special(f) for f in (killed, delayed, cut, doubled, stopped, flipped, terminated)}
