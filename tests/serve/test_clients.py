"""The requests of OpenRLHF, verl and LLaMA-Factory, as their trainers' code builds them, and what they read back."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from penchant import RewardModel

QUESTIONS = ["Name a river.", "Name a song that begins with b, please."]
ANSWERS = ["Gladly! What about this one?", "No. So there."]


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def wanted(rm: RewardModel) -> list[float]:
    return [float(score) for score in rm.score(QUESTIONS, ANSWERS)]


def decoded(rm: RewardModel, question: str, answer: str) -> tuple[str, str]:
    """Prompt and query as a trainer has them: ids of the rendered prompt, then those generated, decoded together."""
    tok = rm.backbone.chat.tokenizer
    prompt = tok.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tok(prompt, add_special_tokens=False).input_ids
    ids += [*tok(answer, add_special_tokens=False).input_ids, tok.eos_token_id]
    return prompt, tok.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("at_once", [1, 2])
def test_openrlhf(client: TestClient, rm: RewardModel, at_once: int) -> None:
    rewards: list[float] = []
    for first in range(0, 2, at_once):
        rows = [decoded(rm, q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)][first : first + at_once]
        payload = {
            "query": [query for _, query in rows],
            "prompts": [prompt for prompt, _ in rows],
            "labels": [None] * at_once,
        }
        response = client.post("/get_reward", json=payload)
        response.raise_for_status()
        info = response.json()
        assert set(info) == {"rewards", "scores", "extra_logs"}
        assert all(len(column) == at_once for column in (info["rewards"], info["scores"], *info["extra_logs"].values()))
        rewards += info["rewards"]
    assert rewards == wanted(rm)


def test_openrlhf_before_prompts_were_sent_with_padding(client: TestClient, rm: RewardModel) -> None:
    queries = [decoded(rm, q, a)[1] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    pad = rm.backbone.chat.tokenizer.pad_token
    queries = [pad * 5 + queries[0], queries[1] + pad * 3]
    headers = {"Content-Type": "application/json"}
    answer = client.post("/get_reward", json={"query": queries}, headers=headers).json()
    assert answer["rewards"] == wanted(rm)


def test_openrlhf_without_a_chat_template(client: TestClient, rm: RewardModel) -> None:
    payload = {"query": [q + a for q, a in zip(QUESTIONS, ANSWERS, strict=True)], "prompts": QUESTIONS}
    assert client.post("/get_reward", json=payload).json()["rewards"] == wanted(rm)


@pytest.mark.parametrize("flag", [{"use_activation": False}, {"activation": False}, {}])
def test_verl(client: TestClient, rm: RewardModel, flag: dict[str, bool]) -> None:
    tok = rm.backbone.chat.tokenizer
    for question, answer, score in zip(QUESTIONS, ANSWERS, wanted(rm), strict=True):
        chat = talk(question, answer)
        rm_prompt = tok.apply_chat_template(chat, add_generation_prompt=False, tokenize=False)
        if tok.bos_token is not None and rm_prompt.startswith(tok.bos_token):
            rm_prompt = rm_prompt[len(tok.bos_token) :]
        payload = {"model": "/models/rm", "input": rm_prompt, **flag}
        response = client.post("/classify", json=payload)
        response.raise_for_status()
        output = response.json()
        assert output["data"][-1]["probs"][-1] == score
        assert output["model"] == "/models/rm"
        assert output["object"] == "list"
        assert output["data"][0]["num_classes"] == 1
        pooled = client.post("/pooling", json=payload).json()
        assert pooled["data"] == [{"index": 0, "object": "pooling", "data": [score]}]


def test_llama_factory(client: TestClient, rm: RewardModel) -> None:
    tok = rm.backbone.chat.tokenizer
    messages = [decoded(rm, q, a)[1] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    assert messages == tok.batch_decode([tok(m, add_special_tokens=False).input_ids for m in messages])
    payload = {"model": "model", "messages": messages}
    answer = client.post("/v1/score/evaluation", json=payload, headers={"Content-Type": "application/json"}).json()
    assert answer["scores"] == wanted(rm)
    assert answer["object"] == "score.evaluation"
    assert answer["model"] == "model"
    assert answer["id"]
    short = client.post("/v1/score/evaluation", json={**payload, "max_length": 10})
    assert short.status_code == 422
    assert "max_length is 10" in short.json()["error"]["message"]


def test_messages_everywhere(client: TestClient, rm: RewardModel) -> None:
    talks = [talk(q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    score = wanted(rm)
    assert client.post("/get_reward", json={"query": talks}).json()["rewards"] == score
    assert client.post("/v1/score/evaluation", json={"model": "m", "messages": talks}).json()["scores"] == score
    assert client.post("/classify", json={"messages": talks[0]}).json()["data"][0]["probs"] == score[:1]
    parts: dict[str, Any] = {"prompts": [t[:1] for t in talks], "responses": [t[1:] for t in talks]}
    assert client.post("/score", json=parts).json()["scores"] == score


def test_the_activation_is_a_sigmoid(client: TestClient, rm: RewardModel) -> None:
    body = {"messages": talk(QUESTIONS[0], ANSWERS[0]), "use_activation": True}
    (value,) = client.post("/classify", json=body).json()["data"][0]["probs"]
    assert value == pytest.approx(1 / (1 + 2.718281828459045 ** -wanted(rm)[0]), rel=1e-6)


def test_compare(client: TestClient, rm: RewardModel) -> None:
    first, second = ANSWERS
    one = client.post("/compare", json={"prompt": QUESTIONS[0], "first": first, "second": second}).json()
    assert one["probability"] == float(rm.compare(QUESTIONS[0], first, second)[0])
    many = {"prompt": QUESTIONS, "first": ANSWERS, "second": ANSWERS[::-1]}
    assert client.post("/compare", json=many).json()["probabilities"] == [
        float(p) for p in rm.compare(QUESTIONS, ANSWERS, ANSWERS[::-1])
    ]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/get_reward", {"query": ["no template at all"]}, "query 0 is not in this model's chat format"),
        ("/get_reward", {"query": ["a", "b"], "prompts": ["a"]}, "1 prompts for 2 texts"),
        ("/get_reward", {"query": ["a", talk("b", "c")]}, "send one kind at once"),
        ("/classify", {"model": "m", "input": [1, 2, 3]}, "valid string"),
        ("/classify", {"model": "m"}, "give input or messages"),
        ("/classify", {"messages": talk("a", "b")[:1]}, "does not end in an answer"),
        ("/score", {"prompt": "a"}, "give response, or responses"),
        ("/score", {"prompt": "a", "responses": ["b"], "userid": "c"}, "userid"),
        ("/score", {"prompts": ["a"], "responses": ["b", "c"]}, "1 prompts for 2 responses"),
        ("/compare", {"prompt": "a", "first": ["b"], "second": ["c", "d"]}, "1 first responses for 2"),
        ("/v1/score/evaluation", {"model": "m", "messages": ["a"]}, "message 0 is not in this model's chat format"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(client: TestClient, path: str, body: dict[str, Any], says: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["type"] == "invalid_request"
    assert says in error["message"]
