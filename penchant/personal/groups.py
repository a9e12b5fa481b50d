"""What CLaP learns from: prompts, each with several different responses, sampled by the LLM itself or given."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.chat import Text, Tokens
from penchant.errors import InputError
from penchant.personal.clap import Clap

Group = list[Tokens]
"""One prompt with each of its responses, all different."""


def check_responses(prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> None:
    """InputError, with the row, where there is not a list of texts for each prompt."""
    if len(responses) != len(prompts):
        raise InputError(
            f"there are {len(prompts)} prompts and {len(responses)} lists of responses; give one list for each prompt."
        )
    for row, texts in enumerate(responses):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"row {row}: the responses are a {type(texts).__name__}; give a list of texts.")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"row {row}: response {number} is not a text, or is empty; leave it out.")


def groups_of(
    clap: Clap, prompts: Sequence[Text], responses: Sequence[Sequence[str]], *, sampled: bool = True
) -> list[Group]:
    """Prompts with their different responses as ids, none with fewer than two.

    Of `sampled` responses a prompt with fewer is left out, and InputError says where no prompt has two; of others
    InputError names its row.
    """
    chat = clap.backbone.chat
    found = []
    for row, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
        texts = [text for text in dict.fromkeys(answers) if text.strip()]
        items = chat.encode([prompt] * len(texts), texts, [row] * len(texts))
        unique = list({item.key: item for item in items}.values())
        if len(unique) > 1:
            found.append(unique)
        elif not sampled:
            raise InputError(
                f"row {row}: of the prompt's responses {len(unique)} differ, as the LLM reads them; give two or more"
                " that do, or leave the prompt out."
            )
    if not found:
        raise InputError("no prompt has two different responses; sample more answers, or at a higher temperature.")
    return found
