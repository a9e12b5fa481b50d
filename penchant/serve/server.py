"""Running the app: where it listens, and how it stops."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from typing_extensions import Self

from penchant.errors import InputError, PenchantError
from penchant.serve.connection import Connection
from penchant.serve.keys import Keys
from penchant.serve.service import Service

LOCAL = ("127.0.0.1", "::1", "localhost")
LOCAL_NAMES = (*LOCAL, "[::1]")
"""How a client writes them in the header Host."""


def check_host(host: str, keys: Keys | None) -> None:
    """InputError for an address that others reach where there are no keys."""
    if host not in LOCAL and not keys:
        raise InputError(
            f"others can reach {host}, so keys are needed: make one with penchant keys add NAME --file keys.json and"
            " give --keys keys.json; or serve on 127.0.0.1."
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. PenchantError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise PenchantError(f"cannot listen on {host}:{port} ({why}); choose another --port or --host.") from error
    return found


def url_of(host: str, sock: socket.socket) -> str:
    """Where the socket is reached; an IPv6 address stands in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


class Draining(uvicorn.Server):
    """A uvicorn server that, asked to stop, says so at /ready, refuses new work and finishes what it accepted.

    It goes on answering for at least `grace` seconds, so that load balancers see /ready before the port closes. A
    second signal stops it at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace: float) -> None:
        super().__init__(config)
        self.app, self.grace = app, grace
        self._asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit = self._asked
        self._asked = True
        service: Service = self.app.state.service
        service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._asked and not self.should_exit:
            self.grace -= 0.1  # uvicorn ticks ten times a second
            busy = any(not task.done() for task in self.server_state.tasks)
            self.should_exit = self.grace <= 0 and not busy
        return await super().on_tick(counter)


def config_of(app: FastAPI) -> uvicorn.Config:
    """Without uvicorn's logs, and its lifespan, which cannot be left at once: who runs the app closes the service."""
    return uvicorn.Config(
        app,
        http=Connection,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )


def serve(app: FastAPI, sock: socket.socket, grace: float) -> bool:
    """Run until SIGTERM or SIGINT, then finish what was accepted; False where a second signal cut that short."""
    server = Draining(config_of(app), app, grace)
    server.run([sock])
    if not server.force_exit:
        app.state.service.close()
    return not server.force_exit


class Server:
    """The app in a thread of this process, for tests and benchmarks: `with Server(app) as server: server.url`."""

    def __init__(self, app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> None:
        self._service: Service = app.state.service
        self._socket = listen(host, port)
        self.url = url_of(host, self._socket)
        self._server = uvicorn.Server(config_of(app))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise PenchantError("the server did not start")
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._service.close()
