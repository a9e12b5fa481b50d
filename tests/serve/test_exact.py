"""A score over HTTP is `RewardModel.score` and `penchant score` to the last bit, whoever else asks at that moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from penchant import RewardModel, load_pairs
from penchant.cli.main import main
from penchant.serve.app import create_app
from penchant.serve.server import Server
from penchant.serve.service import Service

DEMO = Path(__file__).parents[2] / "penchant" / "data" / "demo.jsonl.gz"


def rows_of(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """n requests of most different lengths, which share prompts and whole texts."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(["hello", "you", "no", "42", "naïve", "how\n"]) for _ in range(rng.randint(1, most)))

    prompts, answers = [words(20) for _ in range(n // 4)], [words(30) for _ in range(n)]
    return [{"prompt": rng.choice(prompts), "responses": rng.choices(answers, k=rng.randint(1, 5))} for _ in range(n)]


def ask_all(url: str, rows: list[dict[str, Any]], clients: int) -> list[list[float]]:
    """Scores of each row, asked by many clients at once."""
    with httpx.Client(timeout=60) as http, ThreadPoolExecutor(clients) as pool:

        def ask(row: dict[str, Any]) -> list[float]:
            answer = http.post(f"{url}/score", json=row)
            answer.raise_for_status()
            scores: list[float] = answer.json()["scores"]
            return scores

        return list(pool.map(ask, rows))


def test_equal_while_others_are_batched_along(model_folder: Path, rm: RewardModel) -> None:
    rows = rows_of(60)
    wanted = [[float(score) for score in rm.score(row["prompt"], row["responses"])] for row in rows]
    with Server(create_app(Service.load(model_folder))) as server:
        assert ask_all(server.url, rows, 16) == wanted
        assert ask_all(server.url, rows, 4) == wanted  # from the cache


def test_equal_to_the_command_line(
    model_folder: Path, client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": row["prompt"], "response": row["responses"]} for row in rows_of(12, seed=1)]
    lines = tmp_path / "answers.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", str(model_folder), str(lines)]) == 0
    for line, row in zip(capsys.readouterr().out.splitlines(), rows, strict=True):
        body = {"prompt": row["prompt"], "responses": row["response"]}
        assert client.post("/score", json=body).json()["scores"] == json.loads(line)["score"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_with_the_embedded_llm(tmp_path: Path, dtype: str) -> None:
    pairs = load_pairs(str(DEMO))
    rm = RewardModel.train(pairs.select(range(12)), dtype=dtype, cache=tmp_path, views=["12:last", "12:mean"])
    rm.backbone.cut(12)
    prompts, chosen, rejected = (pairs[name][:24] for name in ("prompt", "chosen", "rejected"))
    rows = [{"prompt": p, "responses": [a, b]} for p, a, b in zip(prompts, chosen, rejected, strict=True)]
    score: Callable[..., Any] = rm.score
    one_by_one = [[float(score(row["prompt"], a)[0]) for a in row["responses"]] for row in rows[:8]]
    with Server(create_app(Service(rm))) as server:
        found = ask_all(server.url, rows, 8)
    together = [[float(s) for s in score(row["prompt"], row["responses"])] for row in rows]
    if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported():
        # AMX's products of few rows round in another order than those of many: equal but for bf16's rounding.
        spread = float(np.std(np.concatenate(together)))
        assert np.allclose(np.concatenate(found), np.concatenate(together), rtol=0, atol=0.1 * spread)
        assert np.allclose(np.concatenate(found[:8]), np.concatenate(one_by_one), rtol=0, atol=0.1 * spread)
        return
    assert found[:8] == one_by_one
    assert found == together
