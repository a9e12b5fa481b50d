"""The app: routes, the gate before them, and every refusal in one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from penchant.errors import PenchantError
from penchant.serve.gate import OPEN, Gate, Log
from penchant.serve.keys import Keys
from penchant.serve.refusals import Refused, error_body
from penchant.serve.routes import scoring, watching
from penchant.serve.service import Service

SAYS = {404: "there is no such path; /openapi.json lists those there are.", 405: "this path takes another method."}


def create_app(
    service: Service,
    *,
    keys: Keys | None = None,
    routers: Sequence[APIRouter] = (),
    public: Iterable[str] = OPEN,
    log: Log | None = None,
    log_texts: bool = False,
    hosts: Iterable[str] | None = None,
) -> FastAPI:
    """The server as an ASGI app; `app.state.service` is the service, closed with the app.

    Args:
        keys: without them every request is let in.
        routers: further routes, such as the explorer's.
        public: paths that need no key; everything below /static/ needs none either.
        log: where a line a request goes; nowhere by default.
        log_texts: log the bodies of requests as well.
        hosts: names that it answers to; any by default. Without keys it should be this machine's own, or else the page
            of an attacker, whose name leads to this machine the second time it is looked up, is let in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Penchant",
        summary="A reward model over HTTP.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # /score/ is a path there is none of, as any other
    )
    app.state.service = service
    app.include_router(scoring)
    app.include_router(watching)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(PenchantError, _unusable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    known = None if hosts is None else frozenset(hosts)
    app.add_middleware(
        Gate, service=service, keys=keys, log=log, log_texts=log_texts, public=frozenset(public), hosts=known
    )
    if keys is not None:
        _secured(app)
    return app


def _secured(app: FastAPI) -> None:
    """Say in the OpenAPI that a bearer key is needed."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema["components"].setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
        schema["security"] = [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return JSONResponse(error_body(error.status, error.message), error.status, error.headers)


async def _unusable(_: Request, error: Exception) -> JSONResponse:
    message = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    return JSONResponse(error_body(422, message), 422)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    where = ".".join(str(part)[:40] for part in first["loc"][:6] if part != "body") or "the body"
    message = f"{where}: {first['msg']}."
    return JSONResponse(error_body(422, message.encode("utf-8", "replace").decode()), 422)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = SAYS.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)
