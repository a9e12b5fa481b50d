"""The one shape in which the server says no."""

from __future__ import annotations

import json
from typing import Any

TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "invalid_request",
    422: "invalid_request",
    429: "busy",
    500: "internal",
    503: "unavailable",
    504: "timeout",
}


class Refused(Exception):
    """A request that is not answered: the status, one sentence why, and headers such as Retry-After."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_body(status: int, message: str) -> dict[str, Any]:
    """{"error": {"type", "message", "status"}}."""
    return {"error": {"type": TYPES.get(status, "invalid_request"), "message": message, "status": status}}


def error_bytes(status: int, message: str) -> bytes:
    return json.dumps(error_body(status, message), ensure_ascii=False).encode("utf-8", "replace")
