"""The explorer: a web page at / that shows what the model prefers and why, for people who write no Python."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from penchant.errors import InputError
from penchant.explain.leave_out import pieces, without, worth
from penchant.report_style import STYLE
from penchant.report_tokens import TOKEN_STYLE
from penchant.serve.browse import Browser
from penchant.serve.refusals import Refused
from penchant.serve.service import Service

router = APIRouter(include_in_schema=False)  # the page's own; what programs call is in the OpenAPI
T = TypeVar("T")
STATIC = Path(str(files("penchant") / "serve" / "static"))
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
REPORT_STYLE = "report.css"
"""The style sheet of the reports, which the page shares."""
PAGE = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
WAITING = 8
"""Pairs that may wait to be explained at once."""
PEOPLE = 20
"""People listed at once."""
EXAMPLE = {
    "prompt": "I slept badly and have an important exam tomorrow. What should I do tonight?",
    "first": "Stop studying an hour before bed, put your phone in another room, and write down what worries you. One"
    " short night will not undo what you know, and lying quietly rests you too.",
    "second": "Just sleep. It does not matter anyway.",
}

Text = Annotated[str, Field(max_length=1_000_000)]
User = Annotated[str, Field(min_length=1, max_length=512)]


class Pair(BaseModel):
    """A prompt with two answers, and whose taste is asked for."""

    prompt: Text
    first: Text
    second: Text
    user_id: User | None = None


class Desk:
    """What the explorer keeps for one service: the model to look into, and a thread beside the one that scores."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._waiting = 0
        self._begun: dict[str, asyncio.Future[Any]] = {}

    @classmethod
    async def of(cls, request: Request) -> Desk:
        """The desk of the app that a request came to, made at the first."""
        state = request.app.state
        if not hasattr(state, "desk"):
            state.desk = cls(state.service)
        desk: Desk = state.desk
        await desk.open()
        return desk

    async def open(self) -> None:
        """Load what there is to look into, such as an SAE."""
        self.browser: Browser = (await self.once("browser", self._browser, None))["found"]

    def _browser(self) -> Browser:
        return Browser(self.service.reward_model())

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Blocking work, one piece after the other; Refused where too much waits."""
        if self._waiting >= WAITING:
            raise Refused(429, "others are having answers explained; try again in a moment.", Retry_After="2")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        finally:
            self._waiting -= 1

    async def once(self, name: str, work: Callable[[], Any], patience: float | None = 0.3) -> dict[str, Any]:
        """{"found": ...} of long work that is done once; {"found": None} where it takes longer than `patience` seconds.

        Raises what the work raised.
        """
        if name not in self._begun:
            loop = asyncio.get_running_loop()
            self._begun[name] = asyncio.ensure_future(loop.run_in_executor(self._thread, work))
        done, _ = await asyncio.wait([self._begun[name]], timeout=patience)
        return {"found": done.pop().result() if done else None}


@router.get("/")
async def page() -> Response:
    return static(PAGE)


@router.get("/static/{name}")
async def file(name: str) -> Response:
    return static(name)


def static(name: str) -> Response:
    """One file of the page, by name alone; Refused where there is none."""
    if name == REPORT_STYLE:
        return Response(STYLE + TOKEN_STYLE, media_type=KINDS[".css"], headers=HEADERS)
    found = {path.name: path for path in STATIC.iterdir()}.get(name)
    if found is None or found.suffix not in KINDS:
        raise Refused(404, "the page has no such file.")
    return Response(found.read_bytes(), media_type=KINDS[found.suffix], headers=HEADERS)


@router.get("/explore/model")
async def model(request: Request) -> dict[str, Any]:
    """What is served, what of it can be browsed, and an example to begin with."""
    desk = await Desk.of(request)
    service, browser = desk.service, desk.browser
    return {
        **await service.run(lambda: service.description),
        "features": browser.reading is not None,
        "codes": len(browser.coded.codebook_) if browser.coded else 0,
        "reads": browser.reads,
        "limits": {"items": service.limits.items, "characters": service.limits.characters},
        "example": EXAMPLE,
    }


@router.post("/explore/compare")
async def compare(request: Request, body: Pair) -> dict[str, Any]:
    """Scores of both answers and P(first is better), in everybody's taste and in that of the person asked for."""
    service: Service = request.app.state.service
    everybody = await judged(service, body, None)
    return {"everybody": everybody, "person": await judged(service, body, body.user_id) if body.user_id else None}


async def judged(service: Service, pair: Pair, user_id: str | None) -> dict[str, Any]:
    scores = await service.score([pair.prompt] * 2, [pair.first, pair.second], user_id)
    (probability,) = service.probability(scores)
    return {"scores": scores, "probability": probability}


@router.post("/explore/words")
async def words(request: Request, body: Pair) -> dict[str, Any]:
    """For each answer its words with what each is worth: the score with it less the score without it.

    An answer of one word has no worths.
    """
    service: Service = request.app.state.service
    parts = [pieces(text) for text in (body.first, body.second)]
    shorter = [without(words) for words in parts]
    asked = [body.first, body.second, *shorter[0], *shorter[1]]
    first, second, *rest = await service.score([body.prompt] * len(asked), asked, body.user_id)
    cut = len(shorter[0])
    found = worth(first, rest[:cut]), worth(second, rest[cut:])
    sides = zip(("first", "second"), parts, found, strict=True)
    return {name: {"pieces": words, "worth": each} for name, words, each in sides}


@router.post("/explore/reasons")
async def reasons(request: Request, body: Pair) -> dict[str, Any]:
    """Which features, or codes, speak for each answer; {} where the model has neither."""
    desk = await Desk.of(request)
    await desk.service.tokens([body.prompt] * 2, [body.first, body.second])  # refuses what cannot be read
    return await desk.run(desk.browser.pair, body.prompt, body.first, body.second)


@router.get("/explore/features")
async def features(request: Request) -> dict[str, Any]:
    """What each feature does to scores and reacts to, on demo pairs; {"found": None} while they are read."""
    desk = await Desk.of(request)
    if desk.browser.reading is None:
        raise InputError("this model has no features.")
    return await desk.once("features", lambda: desk.browser.features)


@router.get("/explore/codes")
async def codes(request: Request) -> dict[str, Any]:
    """What each code stands for, on demo pairs; {"found": None} while they are read."""
    desk = await Desk.of(request)
    if desk.browser.coded is None:
        raise InputError("this model has no codes.")
    return await desk.once("codes", lambda: desk.browser.codes)


@router.get("/explore/people")
async def people(request: Request, prefix: str = "", after: str = "") -> dict[str, Any]:
    """Some of the people whose id begins with `prefix`, past `after`, and whether there are more."""
    service: Service = request.app.state.service
    found = await service.run(service.people, prefix, PEOPLE + 1, after or None)
    return {"people": found[:PEOPLE], "more": len(found) > PEOPLE}


@router.get("/explore/person")
async def person(request: Request, user_id: User) -> dict[str, Any]:
    """Where one person's taste differs from everybody's, on demo pairs; {"found": None} while they are read."""
    desk = await Desk.of(request)
    rm = await desk.service.run(desk.service.reward_model, user_id)
    if (await desk.once("latents", lambda: desk.browser.latents))["found"] is None:
        return {"found": None}
    return {"found": await desk.run(desk.browser.person, rm)}
