"""What every request passes before and after its route: key, size, JSON, time, count, one line of log.

Plain ASGI, so that a body too large is never held and nothing is parsed for somebody without a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.errors import InputError
from penchant.serve.keys import Keys
from penchant.serve.limits import check_json
from penchant.serve.refusals import Refused, error_bytes
from penchant.serve.service import Service

OPEN = ("/health", "/ready", "/")
JSON_KIND = re.compile(r"application/([^/]+\+)?json")
OPEN_BELOW = "/static/"
PORT = re.compile(r":\d+$")
GONE = 499
"""The status in log and metrics of a request whose client went away before its answer."""
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Log:
    """One JSON object a line: what happened, and no texts."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def write(self, **facts: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        print(json.dumps(line, ensure_ascii=True), file=self.stream or sys.stderr, flush=True)


class Warnings(logging.Handler):
    """Warnings of the libraries, as lines of the log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.write(event=record.levelname.lower(), logger=record.name, message=record.getMessage())


class Gate:
    """The outermost layer of the app."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        keys: Keys | None,
        log: Log | None,
        log_texts: bool,
        public: frozenset[str],
        hosts: frozenset[str] | None = None,
    ) -> None:
        self.app, self.service, self.keys = app, service, keys
        self.log, self.log_texts, self.public, self.hosts = log, log_texts, public, hosts
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        facts: dict[str, Any] = {"id": uuid.uuid4().hex[:16], "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})["facts"] = facts
        sent: dict[str, Any] = {"status": None, "all": False}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", facts["id"].encode())]}
            sent["all"] = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        self.in_flight += 1
        self.service.metrics.in_flight.set(self.in_flight)
        try:
            body = await self._admitted(scope, receive, facts)
            await self._answered(scope, body, receive, sending, sent)
        except Refused as no:
            await _refuse(no.status, no.message, no.headers, sending)
        except asyncio.CancelledError:  # the server was told to stop at once
            if sent["status"] is None:
                await _refuse(503, "the server was stopped; ask again later.", {"Connection": "close"}, sending)
        except Exception as error:
            facts["error"] = f"{type(error).__name__}: {error}" if self.log_texts else type(error).__name__
            if sent["status"] is not None:
                raise
            await _refuse(500, "the server failed; its log names this request by x-request-id.", {}, sending)
        finally:
            self.in_flight -= 1
            self.service.metrics.in_flight.set(self.in_flight)
            seconds = time.perf_counter() - start
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.service.metrics.request(path, sent["status"] or GONE, seconds)
            if self.log is not None:
                self.log.write(**facts, status=sent["status"] or GONE, ms=round(1000 * seconds, 2))

    async def _answered(self, scope: Scope, body: bytes, receive: Receive, send: Send, sent: dict[str, Any]) -> None:
        """Let the app answer, for as long as its client is there and the time is not up; Refused where it is."""
        gone = asyncio.ensure_future(_gone(receive))
        work = asyncio.ensure_future(self.app(scope, _replayed(body, gone), send))
        seconds = self.service.limits.seconds
        try:
            await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or sent["all"]:
                await work
            elif not gone.done() and sent["status"] is None:
                raise Refused(504, f"no answer within {seconds:g} seconds; send less at once, or ask later.")
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})

    async def _admitted(self, scope: Scope, receive: Receive, facts: dict[str, Any]) -> bytes:
        """The request's body, checked; none of a method that has none. Raises Refused."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None and PORT.sub("", headers.get("host", "")).lower() not in self.hosts:
            raise Refused(403, "this server answers to this machine's own names alone; with --keys it does to any.")
        if self.keys is not None and not self._is_public(scope["path"]):
            facts["key"] = self._caller(headers)
        if scope["method"] not in WITH_BODY:
            return b""
        if self.service.draining:
            raise Refused(503, "the server is shutting down; ask again later.", Retry_After="5", Connection="close")
        if self.in_flight > self.service.limits.requests:
            raise Refused(429, f"{self.in_flight - 1} requests are worked on already.", Retry_After="1")
        limits = self.service.limits
        given = headers.get("content-length", "")
        too_large = f"the body is larger than {limits.body_bytes:,} bytes; send less at once."
        if given.isdigit() and int(given) > limits.body_bytes:
            raise Refused(413, too_large, Connection="close")
        body = bytearray()
        end = time.monotonic() + limits.seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                raise Refused(408, "the body did not arrive in time.", Connection="close") from None
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            if len(body) > limits.body_bytes:
                raise Refused(413, too_large, Connection="close")
            if not message.get("more_body"):
                break
        facts["bytes"] = len(body)
        if body:
            _check_kind(scope["headers"])
            check_json(bytes(body), limits)
            if self.log_texts:
                facts["body"] = body.decode()
        return bytes(body)

    def _is_public(self, path: str) -> bool:
        return path in self.public or path.startswith(OPEN_BELOW)

    def _caller(self, headers: dict[str, str]) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        assert self.keys is not None
        try:
            name = self.keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        except InputError as error:
            raise Refused(503, "the file of keys cannot be read just now.", Retry_After="5") from error
        if name is None:
            raise Refused(
                401, "this needs a valid API key: send the header Authorization: Bearer KEY.", WWW_Authenticate="Bearer"
            )
        return name


def _check_kind(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refused unless a body is said to be plain JSON.

    A page of another site can make a browser send a body without a type, but not one of this type.
    """
    given = [(name.lower(), value.decode("latin-1").strip().lower()) for name, value in headers]
    kinds = [value.partition(";")[0].strip() for name, value in given if name == b"content-type"]
    if len(kinds) != 1 or not JSON_KIND.fullmatch(kinds[0]):
        raise Refused(415, "send Content-Type: application/json.")
    for name, value in given:
        if name == b"content-encoding" and value != "identity":
            raise Refused(415, f"the body's Content-Encoding is {value[:40]!r}; send it as it is, without one.")


async def _gone(receive: Receive) -> None:
    """Return once the client is away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _replayed(body: bytes, gone: asyncio.Future[None]) -> Receive:
    """The request's messages for the app: the body, read already, and in time that the client is away."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            await asyncio.wait({gone})
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(status: int, message: str, headers: dict[str, str], send: Callable[[Message], Any]) -> None:
    body = error_bytes(status, message)
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
