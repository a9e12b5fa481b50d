"""Which self-made pairs to train on next: those whose order the reward, and its uncertainty, are sure of.

For an alignment loop: sample responses with the policy, filter them here, train with any DPO trainer, repeat. Choose
the round, the confidence and everything else by a validation set. The test set is for one look at the end: the best of
several rounds on the test set is too good by as much as luck spreads them.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from scipy.special import expit
from tqdm.auto import tqdm

from penchant.candidates import Judged, Rows
from penchant.encode import TOKEN_BUDGET, LatentStore, encode_texts
from penchant.errors import InputError
from penchant.heads import CommitteeHead
from penchant.latents import Array
from penchant.reward_model import RewardModel
from penchant.store_views import open_store

BATCH = 2048
"""Responses judged at once, about."""
SPREAD_LIMIT = 1.0


PAIR = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Rule:
    """When a pair is kept.

    With margin m = score(chosen) - score(rejected), P = sigmoid(|m| / temperature) is the calibrated probability that
    the response with the higher score is the better one. A pair is *unsure* if P < confidence or m = 0; else
    *disagreeing* if the model is a committee and |m| - spread_limit * (its members' spread) <= 0; else *contrary* if
    m < 0; else kept.

    The temperature is that of single pairs. The best and the worst of many candidates are picked by the very scores, so
    their P is too high, the more candidates the more: there prefer `keep`, or a committee.
    """

    confidence: float = 0.7
    spread_limit: float | None = None
    """Standard deviations over the members; 1 by default, for committees alone."""
    keep: float | None = None
    """Instead of both limits: this share of all pairs, those with the largest |m| - spread_limit * spread that are not
    contrary."""
    relabel: bool = False
    """Keep contrary pairs with chosen and rejected swapped, where their order is as sure as is asked of the others."""

    def check(self, rm: RewardModel) -> None:
        """Raise InputError for numbers out of range, or a limit on what this model does not have."""
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"confidence is {self.confidence}; give at least 0.5 and less than 1")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}; give a share above 0 and at most 1")
        if self.spread_limit is None:
            return
        if not 0 <= self.spread_limit < math.inf:
            raise InputError(f"spread_limit is {self.spread_limit}; give a finite number of 0 or more")
        if not isinstance(rm.head, CommitteeHead):
            raise InputError(
                f"spread_limit is for a committee, and this model has one {rm.head.name} head; train with --committee 8"
            )


class Scores(NamedTuple):
    """Of n pairs."""

    chosen: Array
    rejected: Array
    spread: Array | None
    """Standard deviation of the margin over a committee's members; None for other heads."""
    margin: Array
    confidence: Array
    """P that chosen is better."""


@dataclass(frozen=True)
class Filtered:
    """What became of the pairs."""

    total: int
    counts: dict[str, int]
    """kept, swapped, unsure, disagreeing, contrary."""
    skipped: dict[str, int]
    """Bad rows by reason, not part of the total."""
    replaced: tuple[str, ...]
    """Columns of the data that had the name of one that is written."""
    rule: Rule

    @property
    def kept(self) -> int:
        return self.counts["kept"] + self.counts["swapped"]

    @property
    def says(self) -> str:
        """One line."""
        rule, counts = self.rule, self.counts
        bar = f"confidence below {rule.confidence:g}" if rule.keep is None else f"not among the surest {rule.keep:.0%}"
        left = [f"{counts['unsure']:,} unsure ({bar})", f"{counts['contrary']:,} contrary"]
        if counts["disagreeing"]:
            left.append(f"{counts['disagreeing']:,} on which the committee's members disagree")
        parts = [f"kept {self.kept:,} of {self.total:,} pairs ({self.kept / self.total:.1%})"]
        if rule.relabel:
            parts[0] += f", {counts['swapped']:,} of them swapped"
        parts.append(f"left out: {', '.join(left)}")
        parts += [f"skipped {count:,} rows because {what}" for what, count in self.skipped.items()]
        if self.replaced:
            parts.append(f"the data's own {', '.join(self.replaced)} were replaced")
        return "; ".join(parts)


def filter_pairs(
    rm: RewardModel,
    rows: Rows,
    out: str | Path,
    rule: Rule | None = None,
    *,
    cache: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool = True,
) -> Filtered:
    """Write the pairs that pass as JSON lines in TRL's preference format, and say what became of the others.

    Of candidates, the best and the worst by the reward become chosen and rejected. A line has prompt, chosen and
    rejected, the row's other columns, score_chosen, score_rejected and confidence; of a committee also spread, and with
    `relabel` also swapped. Swapping exchanges all columns whose names differ by chosen and rejected alone, and empties
    margin. The file appears when it is complete; latents are cached, so that an interrupted run goes on.

    Rows are read and judged in batches; with `keep` one number a pair is held until the end.

    Args:
        rows: from `candidates.read_rows`.
        out: a .jsonl file; one that is there is replaced.
        cache, token_budget: as in `RewardModel.train`.

    Raises:
        InputError: the rule or the file will not do, or no pair passes.
    """
    rule = rule or Rule()
    rule.check(rm)
    path = Path(out)
    if path.suffix not in (".jsonl", ".json"):
        raise InputError(f"{path} would hold JSON lines; give an --out that ends in .jsonl")
    part, every = (path.with_name(f".{path.name}.{os.getpid()}.{name}") for name in ("part", "all"))
    try:
        with part.open("w", encoding="utf-8") as file:
            if rule.keep is None:
                found = _write(rm, rows, rule, file, cache, token_budget, show_progress)[0]
            else:
                with every.open("w", encoding="utf-8") as wide:
                    found, sure = _write(rm, rows, rule, wide, cache, token_budget, show_progress)
                found = _keep_surest(every, file, found, np.concatenate(sure))
        if not found.kept:
            raise InputError(f"no pair passes ({found.says}); lower the confidence or raise the share to keep")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    finally:
        for temporary in (part, every):
            temporary.unlink(missing_ok=True)
    return found


def judge(
    rm: RewardModel, rows: list[Judged], candidates: bool, store: LatentStore, token_budget: int = TOKEN_BUDGET
) -> tuple[Scores, list[tuple[int, int]]]:
    """Scores of n rows' pairs, and which two responses of each are its pair; the first of equally good candidates."""
    counts = [len(row.responses) for row in rows]
    prompts = [row.prompt for row in rows for _ in row.responses]
    responses = [response for row in rows for response in row.responses]
    numbers = [row.row for row in rows for _ in row.responses]
    views = rm.recipe.views
    latents = encode_texts(rm.backbone, prompts, responses, views, store, token_budget=token_budget, rows=numbers)
    score, starts = rm.head.score(latents), np.cumsum([0, *counts[:-1]])
    picked = [(0, 1)] * len(rows)
    if candidates:
        own = np.split(score, starts[1:])
        picked = [(int(one.argmax()), int(one.argmin())) for one in own]
    first, second = (starts + np.array([pair[side] for pair in picked]) for side in (0, 1))
    spread = rm.head.spread(latents[first], latents[second]) if isinstance(rm.head, CommitteeHead) else None
    margin = score[first].astype(np.float64) - score[second]
    return Scores(score[first], score[second], spread, margin, expit(margin / rm.temperature)), picked


def verdicts(scores: Scores, rule: Rule) -> Array:
    """What becomes of each pair [n]: kept, swapped, unsure, disagreeing or contrary."""
    m, p = scores.margin, scores.confidence
    unsure, disagreeing = m == 0, np.zeros(len(m), bool)
    if rule.keep is None:
        unsure = unsure | (np.maximum(p, 1 - p) < rule.confidence)
        disagreeing = sureness(scores, rule) <= 0
    against = "swapped" if rule.relabel else "contrary"
    return np.select([unsure, disagreeing, m < 0], ["unsure", "disagreeing", against], "kept")


def sureness(scores: Scores, rule: Rule) -> Array:
    """|m| - spread_limit * spread [n]: how far the margin's bound nearer to zero is from it."""
    size = np.abs(scores.margin)
    limit = SPREAD_LIMIT if rule.spread_limit is None else rule.spread_limit
    return size if scores.spread is None else size - limit * scores.spread


def _write(
    rm: RewardModel,
    rows: Rows,
    rule: Rule,
    file: IO[str],
    cache: str | Path | None,
    token_budget: int,
    show_progress: bool,
) -> tuple[Filtered, list[Array]]:
    """Judge all rows and write those that pass; the sureness of each that was written, where a share is to be kept."""
    store = open_store(cache, rm.recipe)
    counts: Counter[str] = Counter(kept=0, swapped=0, unsure=0, disagreeing=0, contrary=0)
    replaced: dict[str, None] = {}  # in order
    sure: list[Array] = []
    with tqdm(desc="filter", unit="row", total=rows.total, disable=not show_progress, leave=False) as bar:
        for batch in _batches(rows.rows):
            scores, picked = judge(rm, batch, rows.candidates, store, token_budget)
            found = verdicts(scores, rule)
            counts.update(found.tolist())
            passed = np.isin(found, ("kept", "swapped"))
            for i in np.flatnonzero(passed):
                swap = bool(found[i] == "swapped")
                added = _added(scores, int(i), swap, rule)
                replaced.update(dict.fromkeys(name for name in batch[i].others if name in PAIR or name in added))
                line = _pair(batch[i], picked[i], swap) | added
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            if rule.keep is not None:
                sure.append(sureness(scores, rule)[passed])
            store.compact()
            bar.update(len(batch))
    return Filtered(rows.total, dict(counts), rows.skipped, tuple(replaced), rule), sure


def _batches(rows: Iterator[Judged]) -> Iterator[list[Judged]]:
    """Rows that together have at least BATCH responses, but for the last."""
    batch: list[Judged] = []
    responses = 0
    for row in rows:
        batch.append(row)
        responses += len(row.responses)
        if responses >= BATCH:
            yield batch
            batch, responses = [], 0
    if batch:
        yield batch


def _pair(row: Judged, picked: tuple[int, int], swap: bool) -> dict[str, Any]:
    """The row with its pair, or with the two sides exchanged in every column that is of one side."""
    chosen, rejected = (row.responses[i] for i in picked)
    own = {n: v for n, v in row.others.items() if n not in PAIR}  # of candidates, whose row may have had a pair too
    others = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in own.items()}
    pair = {"prompt": row.prompt, "chosen": chosen, "rejected": rejected, **others}
    if not swap:
        return pair
    if "margin" in pair:
        pair["margin"] = None  # it said by how much the other one is better
    sides = {name: name.replace("chosen", "rejected") for name in pair if "chosen" in name}
    partner = {a: b for a, b in sides.items() if b in pair}
    partner |= {b: a for a, b in partner.items()}
    return {name: pair[partner.get(name, name)] for name in pair}


def _added(scores: Scores, i: int, swap: bool, rule: Rule) -> dict[str, Any]:
    """What is written of pair i beside its row, after the swap."""
    chosen, rejected, p = float(scores.chosen[i]), float(scores.rejected[i]), float(scores.confidence[i])
    if swap:
        chosen, rejected, p = rejected, chosen, 1 - p
    added: dict[str, Any] = {"score_chosen": chosen, "score_rejected": rejected, "confidence": p}
    if scores.spread is not None:
        added["spread"] = float(scores.spread[i])
    return {**added, "swapped": swap} if rule.relabel else added


def _keep_surest(every: Path, file: IO[str], found: Filtered, sure: Array) -> Filtered:
    """Copy the surest lines, in their order; the others are unsure now."""
    most = max(1, round(float(found.rule.keep or 1) * found.total))
    kept = np.zeros(len(sure), bool)
    kept[np.argsort(-sure, kind="stable")[:most]] = True
    counts = {**found.counts, "kept": 0, "swapped": 0, "unsure": found.counts["unsure"] + int((~kept).sum())}
    with every.open(encoding="utf-8") as lines:
        for line, keep in zip(lines, kept, strict=True):
            if keep:
                counts["swapped" if found.rule.relabel and json.loads(line)["swapped"] else "kept"] += 1
                file.write(line)
    return replace(found, counts=counts)
