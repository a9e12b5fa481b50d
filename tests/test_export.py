"""An exported classifier gives the reward model's scores, or is not made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from penchant import Backbone, InputError, LinearHead, MLPHead, RewardModel
from penchant.export import closing_template
from tests.tiny_llm import CHATML, LAYERS, save_tiny_llm, tiny_pairs

FINAL = f"{LAYERS}:last"
WITHOUT_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DATE = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML + "\n"
PROMPTS = ["Hi", "What is the longest river that you know of?", "Why?", "Name a colour."]
RESPONSES = ["Hello.", "The Nile.\n", "Because, as so often, nobody had thought of it before.  ", " Blue\n\nor green"]

Maker = Callable[..., RewardModel]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def made(views: tuple[str, ...] = (FINAL,), head: Any = None, llm: str = "llm", **tiny: Any) -> RewardModel:
        backbone = Backbone.load(str(save_tiny_llm(tmp_path / llm, **tiny)), dtype="float32", max_length=256)
        head = head or LinearHead(strength=0.1)
        return RewardModel.train(
            tiny_pairs(20), model=backbone, head=head, views=views, cache=tmp_path / "cache", show_progress=False
        )

    return made


def conversations(prompts: list[Any], responses: list[str]) -> list[list[dict[str, str]]]:
    asked = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    return [[*before, {"role": "assistant", "content": r}] for before, r in zip(asked, responses, strict=True)]


def scores_of(folder: Path, prompts: list[Any], responses: list[str], side: str, batch: int) -> np.ndarray[Any, Any]:
    """What a user of transformers alone gets."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    talks, found = conversations(prompts, responses), []
    for first in range(0, len(talks), batch):
        ids = tokenizer.apply_chat_template(
            talks[first : first + batch], return_tensors="pt", return_dict=True, padding=True, truncation=True
        )
        with torch.inference_mode():
            found.append(model(**ids).logits[:, 0].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("template", [CHATML, WITHOUT_END, WITH_DATE])
@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>", None])
def test_scores_are_equal_at_any_batch_size_and_padding_side(
    make: Maker, tmp_path: Path, template: str, pad: str | None
) -> None:
    rm = make(template=template, pad=pad)
    rows = rm.backbone.vocabulary
    # The last one is longer than the 256 tokens that are kept.
    prompts, responses = [*PROMPTS, "So? " * 100], [*RESPONSES, "So it is."]
    expected = rm.score(prompts, responses)
    assert np.ptp(expected) > 0.1
    folder = rm.export(tmp_path / "out")
    for side in ("left", "right"):
        for batch in (1, 2, 5):
            found = scores_of(folder, prompts, responses, side, batch)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=f"{side}, {batch} a batch")
    # The backbone that was exported still scores as before.
    assert rm.backbone.vocabulary == rows == len(rm.backbone.model.get_input_embeddings().weight)
    np.testing.assert_array_equal(rm.score(prompts, responses), expected)


def test_the_folder_says_what_servers_need(make: Maker, tmp_path: Path) -> None:
    folder = make().export(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"
    assert model.score.bias is None
    assert model.dtype == torch.float32
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer) == len(model.get_input_embeddings().weight)
    assert not list(folder.glob("*.bin"))


@pytest.mark.parametrize("template", [CHATML, WITHOUT_END, WITH_DATE])
def test_the_template_ends_where_scoring_does(make: Maker, tmp_path: Path, template: str) -> None:
    rm = make(template=template)
    tokenizer = AutoTokenizer.from_pretrained(rm.export(tmp_path / "out"))
    talks = conversations(PROMPTS, RESPONSES)
    for talk, tokens in zip(talks, rm.backbone.chat.encode(PROMPTS, RESPONSES), strict=True):
        whole = [*tokens.prompt.tolist(), *tokens.response.tolist()]
        assert tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False) == whole
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        assert tokenizer(text, add_special_tokens=False).input_ids == whole
        asked = tokenizer.apply_chat_template(talk[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
        assert asked == tokens.prompt.tolist()


def test_a_template_keeps_its_own_white_space() -> None:
    """A line break right at either end of the template is text, and stays."""

    class Tokens:
        response = np.array([7])

    class Fake:
        eos_token = "</s>"

        def get_chat_template(self) -> str:
            return "\n{{ messages[0].content }} \n\n"

        def __call__(self, text: str, **_: Any) -> Any:
            return type("Ids", (), {"input_ids": [1]})

    chat: Any = type(
        "Chat",
        (),
        {"tokenizer": Fake(), "encode": lambda *_: [Tokens], "render": lambda *_: ("", "Hello.")},
    )()
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [[{"role": "user", "content": "Hi"}]]
    plain = render_jinja_template(messages, chat_template=Fake().get_chat_template())[0]
    assert render_jinja_template(messages, chat_template=closing_template(chat))[0] == [plain[0] + "</s>"]


def test_what_is_not_exact_is_refused(make: Maker, tmp_path: Path) -> None:
    cases = [
        (make(head=MLPHead(epochs=1)), "mlp head"),
        (make((f"{LAYERS}:mean",)), "last token only"),
        (make((FINAL, f"{LAYERS}:mean")), "last token only"),
        (make(("2:last",)), "last layer only"),
        (make(llm="base", template=None), "no chat template"),
    ]
    for rm, reason in cases:
        with pytest.raises(InputError, match=reason) as caught:
            rm.export(tmp_path / "out")
        assert "--head linear --views [" in str(caught.value)
    assert FINAL in str(_refusal(cases[3][0], tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_splits_the_boundary_otherwise_is_refused(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rm = make()
    monkeypatch.setattr("penchant.export.closing_template", lambda chat: chat.tokenizer.chat_template)
    assert "splits a whole conversation otherwise" in str(_refusal(rm, tmp_path))


def test_a_folder_that_is_a_file_is_refused(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "choose another folder" in str(_refusal(make(), tmp_path))
    assert (tmp_path / "out").read_text() == "mine"


def _refusal(rm: RewardModel, tmp_path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        rm.export(tmp_path / "out")
    return caught.value
