"""The routes that score: each turns its client's request into sequences, and their scores into its client's answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from penchant.chat import Text, Tokens
from penchant.errors import InputError
from penchant.serve.refusals import Refused
from penchant.serve.schemas import (
    ClassifyAnswer,
    ClassifyItem,
    CompareAnswer,
    CompareRequest,
    Error,
    Health,
    MessageIn,
    PoolingAnswer,
    PoolingItem,
    PoolingRequest,
    Ready,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoreEvaluationAnswer,
    ScoreEvaluationRequest,
    ScoreRequest,
    TextIn,
    Usage,
    VllmUsage,
)
from penchant.serve.service import Scored, Service

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The body is not JSON that can be read."},
    401: {"model": Error, "description": "No valid API key."},
    405: {"model": Error, "description": "The path takes another method."},
    408: {"model": Error, "description": "The body did not arrive in time."},
    413: {"model": Error, "description": "Larger than a limit of the server."},
    415: {"model": Error, "description": "The body is not said to be JSON, or is encoded."},
    422: {"model": Error, "description": "A field or a text is not usable; the message says which and why."},
    429: {"model": Error, "description": "Too much is waiting; Retry-After says when to ask again."},
    503: {"model": Error, "description": "Shutting down."},
    504: {"model": Error, "description": "No answer within the server's time."},
}
scoring = APIRouter(responses=REFUSALS)
watching = APIRouter(responses={401: REFUSALS[401], 405: REFUSALS[405]})


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.state.service
    return service


@scoring.post("/score", tags=["penchant"], summary="Scores of responses to prompts")
async def score(request: Request, body: ScoreRequest) -> ScoreAnswer:
    """Scores, higher is better, of several responses to one prompt, or of one response to each of several prompts."""
    if (body.prompt is None) == (body.prompts is None):
        raise InputError("give prompt, or prompts with one response each.")
    if (body.response is None) == (body.responses is None):
        raise InputError("give response, or responses.")
    responses = [body.response] if body.response is not None else body.responses or []
    prompts = _texts([body.prompt]) * len(responses) if body.prompt is not None else _texts(body.prompts or [])
    service = service_of(request)
    scored = await _scored(request, await service.tokens(prompts, _texts(responses)), body.user_id)
    usage = Usage(tokens=scored.tokens, cached=scored.cached, truncated=scored.truncated)
    return ScoreAnswer(model=service.name, scores=_floats(scored), usage=usage)


@scoring.post("/compare", tags=["penchant"], summary="Calibrated probability that the first response is better")
async def compare(request: Request, body: CompareRequest) -> CompareAnswer:
    """P(first is better than second), from score differences at the temperature fitted in training."""
    first, second = _several(body.first), _several(body.second)
    prompts = _several(body.prompt)
    if len(first) != len(second):
        raise InputError(f"{len(first)} first responses for {len(second)} second ones; give as many of each.")
    if len(prompts) not in (1, len(first)):
        raise InputError(f"{len(prompts)} prompts for {len(first)} comparisons; give one for all, or one for each.")
    asked = _texts(prompts) * (2 if len(prompts) == len(first) else 2 * len(first))
    service = service_of(request)
    items = await service.tokens(asked, [*_texts(first), *_texts(second)])
    scored = await _scored(request, items, body.user_id)
    found = service.probability(scored.scores)
    return CompareAnswer(model=service.name, probability=found[0] if len(found) == 1 else None, probabilities=found)


@scoring.post("/get_reward", tags=["openrlhf"], summary="OpenRLHF's remote reward")
async def get_reward(request: Request, body: RewardRequest) -> RewardAnswer:
    """Rewards of conversations that OpenRLHF's trainer has rendered; start it with --reward.remote_url or its kin."""
    queries = _several(body.query)
    prompts = [body.prompts] if isinstance(body.prompts, str) else body.prompts
    items = await _conversations(service_of(request), queries, prompts, "query")
    scores = _floats(await _scored(request, items, body.user_id))
    return RewardAnswer(rewards=scores, scores=scores, extra_logs={"reward": scores})


@scoring.post("/v1/score/evaluation", tags=["llama-factory"], summary="LLaMA-Factory's score evaluation")
async def score_evaluation(request: Request, body: ScoreEvaluationRequest) -> ScoreEvaluationAnswer:
    """Scores of conversations that LLaMA-Factory's PPO trainer has rendered."""
    items = await _conversations(service_of(request), body.messages, None, "message")
    if body.max_length is not None:
        longest = max((len(item) + item.cut for item in items), default=0)
        if longest > body.max_length:
            raise InputError(
                f"max_length is {body.max_length}, and a text has {longest} tokens; a reward model reads the length it"
                " was trained with, so leave max_length out or shorten the text."
            )
    scored = await _scored(request, items, body.user_id)
    return ScoreEvaluationAnswer(id=_id("scoreeval"), model=body.model, scores=_floats(scored))


@scoring.post("/classify", tags=["vllm"], summary="vLLM's classification, as verl calls it")
async def classify(request: Request, body: PoolingRequest) -> ClassifyAnswer:
    """The score of each conversation as the only number in `probs`."""
    scored, values, envelope = await _pooled(request, body, "classify")
    data = [ClassifyItem(index=i, label="LABEL_0", probs=[v], num_classes=1) for i, v in enumerate(values)]
    return ClassifyAnswer(**envelope, data=data, usage=_vllm_usage(scored))


@scoring.post("/pooling", tags=["vllm"], summary="vLLM's pooling")
async def pooling(request: Request, body: PoolingRequest) -> PoolingAnswer:
    """The score of each conversation as the only number in `data`."""
    scored, values, envelope = await _pooled(request, body, "pool")
    data = [PoolingItem(index=i, data=[v]) for i, v in enumerate(values)]
    return PoolingAnswer(**envelope, data=data, usage=_vllm_usage(scored))


@watching.get("/health", tags=["state"], summary="Whether the server runs")
async def health() -> Health:
    """Always ok where anything answers."""
    return Health()


@watching.get("/ready", tags=["state"], summary="Whether the server takes work", responses={503: {"model": Error}})
async def ready(request: Request) -> Ready:
    """Ready, or 503 once the server has been asked to stop."""
    service = service_of(request)
    if service.draining:
        raise Refused(503, "the server is shutting down.", Retry_After="5")
    return Ready(model=service.name)


@watching.get(
    "/metrics",
    tags=["state"],
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, times, batches, cache and queue in Prometheus' text format."""
    return Response(service_of(request).metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _scored(request: Request, items: list[Tokens], user_id: str | Sequence[str | None] | None) -> Scored:
    """Scores of a request's sequences; what they cost goes into its line of the log."""
    people = [user_id] * len(items) if user_id is None or isinstance(user_id, str) else list(user_id)
    if len(people) != len(items):
        raise InputError(f"{len(people)} user ids for {len(items)} responses; give one for each, or one for all.")
    if not items:
        return Scored(np.zeros(0, np.float32), 0, 0, 0)
    scored = await service_of(request).score_tokens(items, people)
    costs = {"items": len(items), "tokens": scored.tokens, "cached": scored.cached, "truncated": scored.truncated}
    request.state.facts.update(costs)
    return scored


async def _pooled(request: Request, body: PoolingRequest, kind: str) -> tuple[Scored, list[float], dict[str, Any]]:
    if (body.input is None) == (body.messages is None):
        raise InputError("give input or messages.")
    given: list[TextIn] = [body.messages] if body.messages is not None else _several(body.input or [])
    service = service_of(request)
    scored = await _scored(request, await _conversations(service, given, None, "input"), body.user_id)
    values = scored.scores
    if body.use_activation or (body.use_activation is None and body.activation):
        values = (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)
    envelope = {"id": _id(kind), "created": int(time.time()), "model": body.model or service.name}
    return scored, [float(v) for v in values], envelope


async def _conversations(
    service: Service, given: Sequence[TextIn], prompts: Sequence[str | None] | None, what: str
) -> list[Tokens]:
    """Sequences of conversations: rendered strings are cut, messages end in the answer to what is before."""
    strings = [i for i, each in enumerate(given) if isinstance(each, str)]
    if len(strings) == len(given):
        return await service.rendered_tokens([str(each) for each in given], prompts, what)
    if strings:
        raise InputError(f"{what} {strings[0]} is a text and others are messages; send one kind at once.")
    talks: list[Any] = _texts(given)
    for i, talk in enumerate(talks):
        if talk[-1]["role"] != "assistant" or len(talk) < 2:
            raise InputError(f"{what} {i} does not end in an answer; let a message of role assistant be the last.")
    return await service.tokens([talk[:-1] for talk in talks], [talk[-1:] for talk in talks])


def _several(given: TextIn | Sequence[TextIn]) -> list[TextIn]:
    """One text or several as a list; a list of messages is one text."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], MessageIn):
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


def _texts(given: Sequence[TextIn]) -> list[Text]:
    return [each if isinstance(each, str) else [message.model_dump() for message in each] for each in given]


def _floats(scored: Scored) -> list[float]:
    return [float(score) for score in scored.scores]


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _vllm_usage(scored: Scored) -> VllmUsage:
    return VllmUsage(prompt_tokens=scored.tokens, total_tokens=scored.tokens)
