"""Prompts of whatever holds some: pairs, rows with several responses, or rows with a prompt alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple

from penchant.candidates import RESPONSES, Judged, read_rows
from penchant.chat import Text
from penchant.errors import InputError
from penchant.pair_checks import BadRow, encodable, kind, plain, text_or_messages
from penchant.pair_files import Row, Source, open_source


class Prompts(NamedTuple):
    """Different prompts, in the order of their first row."""

    prompts: list[Text]
    responses: list[list[str]] | None
    """All that were given for each prompt; None where the data are pairs or prompts alone."""
    skipped: dict[str, int]
    """Bad rows that were left out, by reason."""


def load_prompts(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
) -> Prompts:
    """The different prompts of pairs, of rows {"prompt", "responses": [...]} or of rows {"prompt"}.

    The first row says which. The arguments and the InputErrors are those of `candidates.read_rows`.
    """
    names = dict(columns or {})
    source = open_source(data, split)
    if has_prompts_alone(source, names):
        skipped: Counter[str] = Counter()
        alone = prompts_alone(source, names, on_bad == "skip", limit, skipped)
        return Prompts(list({_key(row.prompt): row.prompt for row in alone}.values()), None, dict(skipped))
    rows = read_rows(data, columns=columns, on_bad=on_bad, split=split, limit=limit)
    prompts: dict[str, Text] = {}
    answers: dict[str, list[str]] = {}
    for row in rows.rows:
        key = _key(row.prompt)
        prompts.setdefault(key, row.prompt)
        if rows.candidates:
            answers.setdefault(key, []).extend(_text(row.row, response) for response in row.responses)
    return Prompts(list(prompts.values()), list(answers.values()) if rows.candidates else None, rows.skipped)


def _key(prompt: Text) -> str:
    return json.dumps(prompt)


def has_prompts_alone(source: Source, names: Mapping[str, str]) -> bool:
    """Whether rows hold a prompt, and nothing that answers it; the first row says."""
    first = next((row.value for row in source.rows() if isinstance(row.value, dict)), {})
    given = {names.get(str(name), str(name)) for name in first}
    return "prompt" in given and not {"chosen", "rejected", RESPONSES} & given


def prompts_alone(
    source: Source, names: Mapping[str, str], skip: bool, limit: int | None, skipped: Counter[str]
) -> Iterator[Judged]:
    """Rows of a prompt alone, without responses, with their other columns; bad ones are counted in `skipped`.

    Raises InputError as `load_prompts`, at the end where no row was good.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 row, not {limit}; leave it out to read all")
    good = 0
    for row in islice(source.rows(), limit):
        try:
            found = _prompt(row, names)
        except BadRow as bad:
            if not skip:
                raise InputError(f'{row.place}: {bad.what}; {bad.cure}, or pass on_bad="skip"') from bad
            skipped[bad.what] += 1
            continue
        good += 1
        yield found
    if not good:
        raise InputError(f"{source.name} has no prompt that can be used; every row was skipped")


def _prompt(row: Row, names: Mapping[str, str]) -> Judged:
    """The row's prompt and other columns. Raises BadRow."""
    if isinstance(row.value, BadRow):
        raise row.value
    if not isinstance(row.value, dict):
        raise BadRow(None, "is not an object", f'it is {kind(row.value)} and must be {{"prompt": ...}}')
    given = {names.get(str(name), str(name)): plain(value) for name, value in row.value.items()}
    if "prompt" not in given:
        raise BadRow("prompt", "is missing", f"there are: {', '.join(map(str, row.value)) or 'none'}")
    prompt = text_or_messages(given.pop("prompt"), "prompt")
    said = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(text.strip() for text in said):
        raise BadRow("prompt", "is empty", "write a prompt")
    if not all(map(encodable, said)):
        raise BadRow("prompt", "is not valid UTF-8 text", "save the data as UTF-8")
    return Judged(row.number, prompt, [], given)


def _text(number: int, response: Text) -> str:
    """A response as a text; InputError where it is a conversation."""
    if isinstance(response, str):
        return response
    if len(response) > 1:
        raise InputError(f"row {number}: a response is a conversation of {len(response)} messages; give one text each")
    return response[0]["content"]
