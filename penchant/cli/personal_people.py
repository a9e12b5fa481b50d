"""`penchant personal generate | score | users`: a personal LLM writes and scores for people, and says whom it knows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from penchant.chat import Text
from penchant.cli.lines import check_data, over_lines
from penchant.errors import InputError
from penchant.judge import by_person
from penchant.latents import Array
from penchant.pair_checks import BadRow, label
from penchant.personal.people import PEOPLE
from penchant.personal.reach import LIMIT
from penchant.personal.system import CONFIG, PersonalLLM
from penchant.personal.users import Users
from penchant.responses import REMEDY, Lines, check_prompt, check_row, put_scores

GENERATED = 64
"""Prompts answered, and written, at once."""
SCORED = 512
"""Rows scored, and written, at once."""


def generate(
    system: str,
    prompts: str,
    *,
    user_id: str | None = None,
    out: str | None = None,
    prompt: str = "prompt",
    answers: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    perplexity_limit: float = LIMIT,
) -> None:
    """Answer prompts in a person's taste: reads JSON lines with a prompt, writes the same lines with a response.

    Args:
        system: folder that `penchant personal pretrain` wrote.
        prompts: JSON lines file; "-" reads standard input.
        user_id: whose taste; by default that of each line's own user_id, and the population's where it has none.
        out: JSON lines file to write; standard output by default.
        prompt: name of the prompt's column; its value is a string or a list of messages.
        answers: texts for each prompt; more than 1 give a list of responses.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the fewest likeliest that reach this probability.
        seed: of the draws; each (seed, prompt) has its own.
        perplexity_limit: how far a taste may go: the LLM's perplexity of the answers, in units of that of its own.
    """
    check_data(prompts, "answer")
    loaded = PersonalLLM.load(system)

    def work(rows: Lines) -> None:
        for who, own in by_person([user_id or row.get("user_id") for row in rows]).items():
            asked: list[Text] = [rows[i][prompt] for i in own]
            texts = loaded.generate(
                asked,
                who,
                answers=answers,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                perplexity_limit=perplexity_limit,
            )
            for i, some in zip(own, texts, strict=True):
                rows[i] |= {"response": some[0]} if answers == 1 else {"responses": some}

    def check(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return check_prompt(number, row, prompt, "name the column with --prompt")

    over_lines(prompts, out, "generate", checked(loaded.users, user_id, check), work, GENERATED)


def score(
    system: str,
    data: str,
    *,
    user_id: str | None = None,
    out: str | None = None,
    prompt: str = "prompt",
    response: str = "response",
) -> None:
    """Score responses by a person's taste: reads JSON lines with a prompt and a response, adds a score to each.

    Args:
        system: folder that `penchant personal pretrain` wrote, with people who were fitted with rewards.
        data: JSON lines file; "-" reads standard input.
        user_id: whose taste; by default that of each line's own user_id, and the population's where it has none.
        out: JSON lines file to write; standard output by default.
        prompt: name of the prompt's column; its value is a string or a list of messages.
        response: name of the response's column; a list of strings gives a list of scores.
    """
    check_data(data, "score")
    loaded = PersonalLLM.load(system)
    if loaded.rewards is None:
        raise InputError(f"{system} has no personal rewards yet; fit people first, with --rewards true (the default)")

    def work(rows: Lines) -> None:
        def scorer(asked: list[Text], answers: list[Text], owner: list[int]) -> Array:
            found = np.zeros(len(asked), np.float32)
            for who, own in by_person([user_id or rows[i].get("user_id") for i in owner]).items():
                found[own] = loaded.score([asked[i] for i in own], [answers[i] for i in own], who)
            return found

        put_scores(rows, prompt, response, scorer)

    def check(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return check_row(number, row, prompt, response, REMEDY)

    over_lines(data, out, "score", checked(loaded.users, user_id, check), work, SCORED)


Check = Callable[[int, dict[str, Any]], dict[str, Any]]


def checked(known: Users, user_id: str | None, check: Check) -> Check:
    """`check`, and InputError for a line of somebody unknown; for an unknown `user_id` at once."""
    if user_id is not None:
        known.known(user_id)
        return check

    def both(number: int, row: dict[str, Any]) -> dict[str, Any]:
        row = check(number, row)
        try:
            if "user_id" in row:
                row["user_id"] = label(row["user_id"], "user_id")
            if row.get("user_id") is not None:
                known.known(row["user_id"])
        except BadRow as bad:
            raise InputError(f"line {number + 1}: {bad.what}; {bad.cure}") from bad
        except InputError as error:
            raise InputError(f"line {number + 1}: {error}") from error
        return row

    return both


def users(
    system: str,
    *,
    prefix: str = "",
    after: str | None = None,
    limit: int = 20,
    show: str | None = None,
    restore: str | None = None,
    version: int | None = None,
    forget: str | None = None,
    export: str | None = None,
    import_from: str | None = None,
) -> None:
    """List the people a personal LLM knows, show or restore one, forget one for good, or carry all to another folder.

    Args:
        system: folder that `penchant personal pretrain` wrote; its LLM is not loaded.
        prefix: list only ids that begin so.
        after: list only ids past this one.
        limit: list at most so many.
        show: id of whom to show: each version that is kept.
        restore: id of whom to take back to --version.
        version: that version.
        forget: id of whom to remove, older versions too, from every byte of the file.
        export: file to write everybody to, .jsonl or .jsonl.gz.
        import_from: such a file, of the same personal LLM, to add everybody from.
    """
    asked = {"show": show, "restore": restore, "forget": forget, "export": export, "import_from": import_from}
    wanted = [f"--{name}" for name, value in asked.items() if value is not None]
    if len(wanted) > 1:
        raise InputError(f"{' and '.join(wanted)} are asked for at once; give one of them")
    if (restore is None) != (version is None):
        raise InputError("--restore and --version belong together; give both")
    with opened(system) as known:
        if show is not None:
            print(shown(known, show))
        elif restore is not None and version is not None:
            now = known.restore(restore, version)
            print(f"{printable(restore)} is at version {now}, which holds what version {version} held")
        elif forget is not None:
            known.known(forget)
            known.forget(forget)
            print(f"forgot {printable(forget)}; {len(known):,} people are left")
        elif export is not None:
            print(f"{known.export(export):,} people: {export}")
        elif import_from is not None:
            print(f"{known.import_from(import_from):,} people came in; {len(known):,} are known")
        else:
            print(listed(known, prefix, after, limit))


def opened(system: str) -> Users:
    """The people of a personal LLM; InputError where there is none."""
    folder = Path(system)
    if not (folder / CONFIG).is_file() or not (folder / PEOPLE).is_file():
        raise InputError(f"{system} holds no personal LLM; give the folder that `penchant personal pretrain` wrote")
    return Users(folder / PEOPLE)


def shown(known: Users, user_id: str) -> str:
    """The versions of one person."""
    person, history = known.known(user_id), known.history(user_id)
    lines = [
        f"{printable(user_id)}: {person.pairs:,} pairs, {person.size:,} bytes a version",
        "version  pairs  updated",
    ]
    lines += [f"{entry.version:7}  {entry.pairs:5}  {when(entry.updated)}" for entry in history]
    return "\n".join(lines)


def listed(known: Users, prefix: str, after: str | None, limit: int) -> str:
    """How many there are, and some of them."""
    count = len(known)
    lines = [f"{count:,} people in {known.bytes_per_user * count:,.0f} bytes: {known.path}"]
    found = known.ids(prefix, limit, after)
    if found:
        lines.append("pairs  version  bytes  updated           id")
    lines += [
        f"{person.pairs:5}  {person.version:7}  {person.size:5}  {when(person.updated)}  {printable(person.user_id)}"
        for person in known.get_many(found).values()
    ]
    if found and known.ids(prefix, 1, found[-1]):
        lines.append(f"and more, past {printable(found[-1])}: list them with --after")
    return "\n".join(lines)


def when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc).astimezone():%Y-%m-%d %H:%M}"


def printable(text: str) -> str:
    """The text with what a terminal would obey, or not show, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
