"""The OpenAPI is complete, and no request made from it, right or wrong, ends in a 5xx or a hang."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from penchant.backbone import Backbone
from penchant.serve import schemas
from penchant.serve.app import create_app
from penchant.serve.server import Server
from penchant.serve.service import Service

CASES = int(os.environ.get("PENCHANT_API_CASES", "240"))
"""How many requests are made up; a thorough run takes 2,000 or more."""
PATHS = ("/score", "/compare", "/get_reward", "/classify", "/pooling", "/v1/score/evaluation")
ALL = (*PATHS, "/health", "/ready", "/metrics")
SECONDS = 60
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def url(model_folder: Path) -> Iterator[str]:
    with Server(create_app(Service.load(model_folder))) as server:
        yield server.url


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_whatever_is_asked_is_answered(url: str, path: str, mode: GenerationMode) -> None:
    api: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: dict[int, int] = {}

    @seed(0)
    @settings(
        max_examples=max(1, CASES // (2 * len(PATHS))),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        start = time.monotonic()
        response = case.call()
        assert time.monotonic() - start < SECONDS
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1

    ask()
    print(path, mode, statuses)


def test_every_route_is_described(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    shapes = spec["components"]["schemas"]

    def shape(content: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = shapes[content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        return found

    assert set(spec["paths"]) == set(ALL)
    for path in PATHS:
        post = spec["paths"][path]["post"]
        assert post["summary"]
        assert post["description"]
        assert {"200", "400", "401", "413", "422", "429", "503", "504"} <= set(post["responses"])
        (example, *_) = shape(post["requestBody"]["content"])["examples"]
        answer = client.post(path, json=example)
        assert answer.status_code == 200, (path, answer.text)
        assert set(answer.json()) == set(shape(post["responses"]["200"]["content"])["properties"])


@pytest.mark.slow
def test_the_example_is_what_the_default_llms_template_renders() -> None:
    before, after = Backbone.load().chat.render(schemas.QUESTION, schemas.GOOD)
    assert before + after == schemas.RENDERED
