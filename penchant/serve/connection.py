"""A connection that does not wait for ever for headers, as uvicorn's does; how long a body takes is for the app."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closed where the headers of a request have not all arrived `seconds` after its first byte, or after connecting.

    Between two requests uvicorn's own limit holds (timeout_keep_alive).
    """

    seconds = 20.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()  # the headers are there
        elif self._due is None:  # once a request: each further byte would put it off
            self._due = self.loop.call_later(self.seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
