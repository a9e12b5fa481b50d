"""What CLaP learns from: only prompts with different responses, and every row that is not usable is named."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.personal.groups import check_responses, groups_of
from tests.personal.tiny import make_clap, prompts
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Clap:
    return make_clap(save_tiny_llm(tmp_path_factory.mktemp("llm")))


def test_sampled_prompts_with_one_response_are_left_out(clap: Clap) -> None:
    (group,) = groups_of(clap, prompts(2), [["a", "a", "b"], ["one", " "]])
    assert len({item.key for item in group}) == len(group) == 2
    with pytest.raises(InputError, match="two different responses"):
        groups_of(clap, prompts(2), [["same", "same"], ["one", " "]])


@pytest.mark.parametrize("row", [["one"], [], ["same", "same"], ["one", "one<|im_end|>"]])
def test_given_prompts_with_one_response_are_named(clap: Clap, row: list[str]) -> None:
    with pytest.raises(InputError, match=rf"row 1: .* {len(row[:1])} differ"):
        groups_of(clap, prompts(2), [["a", "b"], row], sampled=False)
    assert len(groups_of(clap, prompts(2), [["a", "b"], row])) == 1


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        ([["a", "b"]], "2 prompts and 1 lists"),
        ([["a", "b"]] * 3, "2 prompts and 3 lists"),
        ([["a", "b"], "two"], "row 1: the responses are a str"),
        ([["a", "b"], None], "row 1: the responses are a NoneType"),
        ([["a", 3], ["a", "b"]], "row 0: response 1 is not a text"),
        ([["a", "b"], [" ", "b"]], "row 1: response 0 is not a text, or is empty"),
    ],
)
def test_what_is_not_a_list_of_texts_for_each_prompt_is_named(responses: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_responses(prompts(2), responses)
    check_responses(prompts(2), [["a", "b"], ("a",)])
