"""What every request passes before and after its route: key, size, JSON, time, count, one line of log.

Plain ASGI, so that a body too large is never held and nothing is parsed for somebody without a key.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.errors import InputError
from penchant.serve.keys import Keys
from penchant.serve.limits import check_json
from penchant.serve.refusals import Refused, error_bytes
from penchant.serve.service import Service

OPEN = ("/health", "/ready", "/")
OPEN_BELOW = "/static/"
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Log:
    """One JSON object a line: what happened, and no texts."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def write(self, **facts: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        print(json.dumps(line, ensure_ascii=True), file=self.stream or sys.stderr, flush=True)


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
    ) -> None:
        self.app, self.service, self.keys = app, service, keys
        self.log, self.log_texts, self.public = log, log_texts, public
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        facts: dict[str, Any] = {"id": uuid.uuid4().hex[:16], "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})["facts"] = facts
        sent: dict[str, Any] = {"status": None}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", facts["id"].encode())]}
            await send(message)

        self.in_flight += 1
        self.service.metrics.in_flight.set(self.in_flight)
        try:
            await self.app(scope, await self._admitted(scope, receive, facts), sending)
        except Refused as no:
            await _refuse(no.status, no.message, no.headers, sending)
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
            self.service.metrics.request(path, sent["status"] or 499, seconds)
            if self.log is not None:
                self.log.write(**facts, status=sent["status"], ms=round(1000 * seconds, 2))

    async def _admitted(self, scope: Scope, receive: Receive, facts: dict[str, Any]) -> Receive:
        """The request's own messages, its body checked; raises Refused."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.keys is not None and not self._is_public(scope["path"]):
            facts["key"] = self._caller(headers)
        if scope["method"] not in WITH_BODY:
            return receive
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
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and (not kind or kind == "application/json" or kind.endswith("+json")):
            check_json(bytes(body), limits)
            if self.log_texts:
                facts["body"] = body.decode()
        return _replayed(bytes(body), receive)

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


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body, read already, as its first message."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(status: int, message: str, headers: dict[str, str], send: Callable[[Message], Any]) -> None:
    body = error_bytes(status, message)
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
