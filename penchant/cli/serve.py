"""`penchant serve` and `penchant keys`: a reward model over HTTP, and who may ask it."""

from __future__ import annotations

from collections.abc import Callable

from penchant.errors import InputError


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | None = None,
    cache_mb: int = 256,
    max_body_mb: int = 8,
    max_items: int = 1024,
    max_tokens: int = 16384,
    max_queue_tokens: int = 262144,
    max_requests: int = 512,
    timeout: float = 120.0,
    grace: float = 1.0,
    log_texts: bool = False,
) -> None:
    """Serve a reward model over HTTP, in the shapes that trainers ask for (OpenRLHF, verl and others).

    Logs one JSON object a request on stderr. SIGTERM finishes what was accepted and ends with code 0; a
    second one refuses it and ends with code 1.

    Args:
        model: folder of a reward model (or hub id, org/name@REVISION), or of a personal LLM whose people were fitted
            with rewards.
        host: address to listen on; any but this machine's own takes --keys.
        port: port to listen on; 0 takes a free one.
        keys: file of API keys, as `penchant keys add` makes it; keys added and revoked later count at once.
        cache_mb: latents of the texts asked for last that are kept, so that the same text again costs nothing.
        max_body_mb: largest body of a request.
        max_items: most responses in a request.
        max_tokens: longest prompt with its response, before the model's own max_length cuts its start.
        max_queue_tokens: most tokens that wait; beyond, the answer is 429 with Retry-After.
        max_requests: most requests worked on at once; beyond, the answer is 429.
        timeout: seconds from a request's last byte after which it is given up.
        grace: seconds for which /ready says 503 before the port closes.
        log_texts: log the bodies of requests as well.
    """
    import logging
    import os

    from penchant.serve.app import create_app
    from penchant.serve.explorer import router
    from penchant.serve.gate import Log, Warnings
    from penchant.serve.keys import Keys
    from penchant.serve.limits import Limits
    from penchant.serve.server import LOCAL_NAMES, check_host, listen, url_of
    from penchant.serve.server import serve as run
    from penchant.serve.service import Service

    amounts = {"max_body_mb": max_body_mb, "max_items": max_items, "max_tokens": max_tokens}
    amounts |= {"max_queue_tokens": max_queue_tokens, "max_requests": max_requests}
    if wrong := [name for name, value in amounts.items() if value < 1]:
        raise InputError(f"--{wrong[0]} is too small; give at least 1.")
    if cache_mb < 0:
        raise InputError("--cache_mb is too small; give at least 0.")
    if not timeout > 0:
        raise InputError("--timeout is too small; give a number of seconds above 0.")
    known = Keys(keys) if keys is not None else None
    check_host(host, known)
    limits = Limits(
        body_bytes=max_body_mb << 20,
        items=max_items,
        characters=max(200_000, 12 * max_tokens),
        tokens=max_tokens,
        requests=max_requests,
        queue_tokens=max_queue_tokens,
        seconds=timeout,
    )
    sock = listen(host, port)
    service = Service.load(model, limits=limits, cache_bytes=cache_mb << 20)
    log = Log()
    hosts = LOCAL_NAMES if known is None else None
    app = create_app(service, routers=[router], keys=known, log=log, log_texts=log_texts, hosts=hosts)
    warnings = logging.getLogger("uvicorn")
    warnings.addHandler(Warnings(log))
    warnings.propagate = False  # a library may have given the root logger a handler that writes plain lines
    log.write(
        event="listening",
        url=url_of(host, sock),
        pid=os.getpid(),
        keys=len(known) if known else 0,
        **service.description,
    )
    finished = run(app, sock, grace)
    log.write(event="stopped")
    if not finished:
        os._exit(1)  # an interpreter that ends under threads which run the LLM crashes


def add(name: str, *, file: str = "keys.json") -> None:
    """Make an API key and print it; only its hash is kept, so it is shown this once.

    Args:
        name: whose key it is, for the log and for revoking it.
        file: file of keys, made where it is not there.
    """
    from penchant.serve.keys import Keys

    print(Keys(file, make=True).add(name))


def list_keys(*, file: str = "keys.json") -> None:
    """List the names of the API keys and when they were made.

    Args:
        file: file of keys.
    """
    from penchant.serve.keys import Keys

    for name, made in Keys(file).names():
        print(f"{made}  {name}")


def revoke(name: str, *, file: str = "keys.json") -> None:
    """Revoke an API key; a server that runs refuses it from the next request on.

    Args:
        name: whose.
        file: file of keys.
    """
    from penchant.serve.keys import Keys

    Keys(file).revoke(name)
    print(f"revoked {name}")


KEY_VERBS: dict[str, Callable[..., None]] = {"add": add, "list": list_keys, "revoke": revoke}
