"""Requests and answers: the shapes of OpenRLHF, vLLM (which verl calls) and LLaMA-Factory, and Penchant's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

QUESTION = "How do I rest my eyes?"
GOOD, BAD = "Look out of the window for a minute.", "No."
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
RENDERED = "".join(
    f"<|im_start|>{role}\n{text}<|im_end|>\n"
    for role, text in (("system", SYSTEM), ("user", QUESTION), ("assistant", GOOD))
)
"""As the default LLM's chat template renders it."""
CONVERSATION = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}]


class Shape(BaseModel):
    """What clients of other servers send: fields that mean nothing here are let through."""

    model_config = ConfigDict(extra="ignore")


class Own(BaseModel):
    """Penchant's own requests: an unknown field is a mistake."""

    model_config = ConfigDict(extra="forbid")


class MessageIn(BaseModel):
    """One turn of a conversation; further fields go to the chat template."""

    model_config = ConfigDict(extra="allow")
    role: StrictStr
    content: StrictStr


Messages = Annotated[list[MessageIn], Field(min_length=1)]
TextIn = StrictStr | Messages
User = Annotated[StrictStr, Field(min_length=1, max_length=512)]
Users = Annotated[
    User | list[User | None] | None,
    Field(description="In whose taste to score: one person for all, or one (or null) for each response."),
]


class ErrorDetail(BaseModel):
    type: Literal[
        "invalid_request", "unauthorized", "not_found", "method_not_allowed", "too_large", "busy", "unavailable",
        "timeout", "internal",
    ]  # fmt: skip
    message: str = Field(description="One sentence: what, where, what to do.")
    status: int


class Error(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class ScoreRequest(Own):
    """Either one `prompt` with its `responses`, or `prompts` with one response each."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": QUESTION, "responses": [GOOD, BAD]}]}
    )
    prompt: TextIn | None = None
    prompts: list[TextIn] | None = None
    response: TextIn | None = None
    responses: Annotated[list[TextIn], Field(min_length=1)] | None = None
    user_id: Users = None


class Usage(BaseModel):
    """What a request cost."""

    tokens: int = Field(description="Tokens of all sequences, each prompt counted with each of its responses.")
    cached: int = Field(description="Different sequences whose latent was there already.")
    truncated: int = Field(description="Sequences that lost tokens at the start, as in training.")


class ScoreAnswer(BaseModel):
    """Higher is better; only scores for the same prompt compare."""

    model: str
    scores: list[float]
    usage: Usage


class CompareRequest(Own):
    """`prompt`, `first` and `second` as one text each, or as lists of equal length; one prompt may stand for all."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": QUESTION, "first": GOOD, "second": BAD}]}
    )
    prompt: TextIn | list[TextIn]
    first: TextIn | list[TextIn]
    second: TextIn | list[TextIn]
    user_id: User | None = None


class CompareAnswer(BaseModel):
    """Calibrated probabilities that the first response is the better one."""

    model: str
    probability: float | None = Field(description="Of the only comparison; null where lists were sent.")
    probabilities: list[float]


class RewardRequest(Shape):
    """OpenRLHF's remote reward: conversations rendered by the policy's chat template, or lists of messages."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": [RENDERED], "prompts": None, "labels": None}]})
    query: TextIn | list[TextIn]
    prompts: StrictStr | list[StrictStr | None] | None = Field(
        None, description="What each query begins with: says for certain where the response starts."
    )
    labels: Any = Field(None, description="Ignored.")
    user_id: Users = None


class RewardAnswer(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ScoreEvaluationRequest(Shape):
    """LLaMA-Factory's: rendered conversations, or lists of messages."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "reward", "messages": [RENDERED]}]})
    model: StrictStr
    messages: list[TextIn]
    max_length: StrictInt | None = Field(None, ge=1, description="Refused where a text is longer than it.")
    user_id: Users = None


class ScoreEvaluationAnswer(BaseModel):
    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


class PoolingRequest(Shape):
    """vLLM's: `input`, one or several rendered conversations, or `messages`, one that ends in an answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "reward", "input": RENDERED, "use_activation": False}]}
    )
    model: StrictStr | None = None
    input: StrictStr | list[StrictStr] | None = None
    messages: Messages | None = None
    activation: StrictBool | None = Field(None, description="Older name of use_activation.")
    use_activation: StrictBool | None = Field(
        None, description="true: the score's sigmoid; otherwise the score itself, which is what a reward is."
    )
    user_id: Users = None


class VllmUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyItem(BaseModel):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyAnswer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassifyItem]
    usage: VllmUsage


class PoolingItem(BaseModel):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class PoolingAnswer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PoolingItem]
    usage: VllmUsage


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    model: str
