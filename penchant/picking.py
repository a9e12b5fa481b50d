"""Best of n: of several responses to a prompt keep the one that scores highest, in a file of candidates or sampled."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from penchant.candidates import Judged, Rows, read_rows
from penchant.chat import Text
from penchant.encode import TOKEN_BUDGET, LatentStore
from penchant.errors import InputError
from penchant.judge import Judge
from penchant.pair_checks import BadRow, label
from penchant.pair_files import open_source
from penchant.prompts import has_prompts_alone, prompts_alone
from penchant.store_shard import remove_dead_temps, temp_in
from penchant.store_views import open_store

ROWS = 256
"""Prompts judged at once."""


@dataclass
class Picked:
    """What was picked from what."""

    prompts: int = 0
    responses: int = 0
    unanswered: int = 0
    """Prompts to which every response was empty."""
    gain: float = 0.0
    """Sum over prompts of the best score less the mean score of the prompt's responses."""

    @property
    def says(self) -> str:
        """One line."""
        answered = self.prompts - self.unanswered
        text = f"picked the best of {self.responses:,} responses to {self.prompts:,} prompts"
        if answered:
            text += f"; its score is {self.gain / answered:.3g} above the mean of its prompt's"
        if self.unanswered:
            text += f"; {self.unanswered:,} prompts had only empty responses"
        return text


def prompt_rows(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
) -> tuple[list[Judged], dict[str, int]]:
    """The prompts of what `load_prompts` reads, without responses, and the bad rows left out, by reason.

    Each is there once with the same other columns, so that a prompt may be asked in the name of several people. The
    arguments and the InputErrors are those of `load_prompts`.
    """
    names, source = dict(columns or {}), open_source(data, split)
    skipped: Counter[str] = Counter()
    if has_prompts_alone(source, names):
        rows = prompts_alone(source, names, on_bad == "skip", limit, skipped)
    else:
        read = read_rows(data, columns=columns, on_bad=on_bad, split=split, limit=limit)
        rows, skipped = read.rows, Counter(read.skipped)
    found: dict[str, Judged] = {}
    for row in rows:
        key = json.dumps([row.prompt, row.others], sort_keys=True, default=str)
        found.setdefault(key, row._replace(responses=[]))
    return list(found.values()), dict(skipped)


def sampled_rows(asked: Sequence[Judged], answers: Sequence[Sequence[str]]) -> Rows:
    """Rows of prompts with the answers that were sampled for them."""
    rows = (row._replace(responses=list(texts)) for row, texts in zip(asked, answers, strict=True))
    return Rows(rows, len(asked), True, {})


def pick_best(
    judge: Judge,
    rows: Rows,
    out: str | Path,
    user_id: str | None = None,
    *,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool = True,
) -> Picked:
    """Write each row as a JSON line with its best response, the first of equally good ones, and say how it went.

    A line has prompt, the row's other columns, responses, response (the best), score (its), and scores, one for each of
    the responses. An empty response has no score and is never picked; where all are empty, response and score are null.
    The file appears when it is complete; latents are cached, so that an interrupted run goes on where it was.

    Args:
        rows: from `candidates.read_rows` or `sampled_rows`.
        out: a .jsonl file; one that is there is replaced.
        user_id: in whose taste, where the judge is people; by default that of each row's own user_id, and the
            population's where it has none.
        cache, token_budget: as in `RewardModel.train`.

    Raises InputError for somebody unknown, or a file that cannot be written.
    """
    path = Path(out)
    if path.suffix not in (".jsonl", ".json"):
        raise InputError(f"{path} would hold JSON lines; give an --out that ends in .jsonl")
    judge.check(user_id)
    remove_dead_temps(path.parent)
    part, found = temp_in(path.parent), Picked()
    store = open_store(cache, judge.rewards.recipe)
    try:
        with (
            part.open("w", encoding="utf-8", errors="backslashreplace") as file,
            tqdm(desc="best of n", unit="row", total=rows.total, disable=not show_progress, leave=False) as bar,
        ):
            while batch := list(islice(rows.rows, ROWS)):
                people = [user_id or own_id(judge, row) for row in batch]
                for row, scores in zip(batch, judged(judge, batch, people, store, token_budget), strict=True):
                    file.write(json.dumps(line(row, scores, found), ensure_ascii=False, default=str) + "\n")
                store.compact()
                bar.update(len(batch))
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def check_people(judge: Judge, rows: Sequence[Judged], user_id: str | None = None) -> None:
    """InputError where a row names somebody unknown, and nobody else is to judge."""
    if user_id is None:
        for row in rows:
            own_id(judge, row)


def own_id(judge: Judge, row: Judged) -> str | None:
    """Who the row says should judge; nobody where the reward model is one for all."""
    if judge.people is None:
        return None
    try:
        who = label(row.others.get("user_id"), "user_id")
        judge.check(who)
    except BadRow as bad:
        raise InputError(f"row {row.row}: {bad.what}; {bad.cure}") from bad
    except InputError as error:
        raise InputError(f"row {row.row}: {error}") from error
    return who


def judged(
    judge: Judge, batch: list[Judged], people: list[str | None], store: LatentStore, token_budget: int
) -> list[list[float | None]]:
    """A score for each response of each row, None for those that say nothing."""
    places = [(i, j) for i, row in enumerate(batch) for j, text in enumerate(row.responses) if says_something(text)]
    scores = judge.score(
        [batch[i].prompt for i, _ in places],
        [batch[i].responses[j] for i, j in places],
        [people[i] for i, _ in places],
        store=store,
        token_budget=token_budget,
    )
    found: list[list[float | None]] = [[None] * len(row.responses) for row in batch]
    for (i, j), score in zip(places, scores.tolist(), strict=True):
        found[i][j] = score
    return found


def says_something(response: Text) -> bool:
    return bool((response if isinstance(response, str) else response[-1]["content"]).strip())


def line(row: Judged, scores: list[float | None], found: Picked) -> dict[str, Any]:
    """What is written of a row; counts it in `found`."""
    given = [score for score in scores if score is not None]
    best = scores.index(max(given)) if given else None
    found.prompts += 1
    found.responses += len(scores)
    found.unanswered += best is None
    found.gain += max(given) - float(np.mean(given)) if given else 0.0
    picked = None if best is None else row.responses[best]
    score = None if best is None else scores[best]
    return {
        "prompt": row.prompt, **row.others, "responses": row.responses, "response": picked, "score": score,
        "scores": scores,
    }  # fmt: skip
