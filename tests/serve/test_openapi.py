"""The OpenAPI is complete, and no request made from it, right or wrong, ends in a 5xx or a hang."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

CASES = int(os.environ.get("PENCHANT_API_CASES", "300"))
"""How many requests are made up; a whole run takes 2,000 or more."""
PATHS = ("/score", "/compare", "/get_reward", "/classify", "/pooling", "/v1/score/evaluation")
ALL = (*PATHS, "/health", "/ready", "/metrics")
EACH = max(1, CASES // len(ALL))
SECONDS = 30


@pytest.fixture(scope="module")
def app(client: TestClient) -> Any:
    return client.app


@pytest.fixture(scope="module")
def api(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=EACH,
    deadline=1000 * SECONDS,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_asked_is_answered(case: Any) -> None:
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}


def test_every_route_is_described(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    assert set(spec["paths"]) == set(ALL)
    for path in PATHS:
        post = spec["paths"][path]["post"]
        assert post["summary"]
        assert post["description"]
        assert {"200", "400", "401", "413", "422", "429", "503", "504"} <= set(post["responses"])
        body = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        (example, *_) = spec["components"]["schemas"][body]["examples"]
        answer = client.post(path, json=example)
        assert answer.status_code == 200, (path, answer.text)
        assert set(answer.json()) == set(
            spec["components"]["schemas"][
                post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            ]["properties"]
        )
