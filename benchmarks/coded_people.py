"""Conflict for one and the same prompt, on reward heads: a person's code from a few of their pairs.

The demo data's three annotators judge answers to the same prompts, so a prompt cannot say who judges. A coded head
learns a taste an annotator (`use_source`, the source being who judged); of a person it is then told nothing but 1 to 32
pairs that it was not fitted on, and `CodedHead.adapt` weighs the tastes by how well they explain those.

    pooled          one taste for all
    prior           the coded head as it is: its gate sees prompt and response
    posterior, n    adapted to n pairs of each annotator
    own head, 8     LinearHead on layer 24's mean, fitted on the 8 pairs alone
    true annotator  the taste that was learned from this annotator: the most that adapting can reach

    python benchmarks/coded_people.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from typing import Any

import numpy as np
from common import finish, table
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.cli.demo import DATA
from penchant.encode import encode_pairs
from penchant.evaluate import correctness
from penchant.evaluate.learning_curve import seeds_and_prompts_interval
from penchant.heads import CodedHead, Head, LinearHead
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

KNOWN = (1, 2, 4, 8, 16, 32)
Rows = dict[str, NDArray[np.float64]]


def run(pairs: LatentPairs, test: LatentPairs, seed: int) -> Rows:
    """Whether each test pair is ordered rightly, by method."""
    assert pairs.source is not None and test.source is not None  # noqa: PT018
    order = np.random.default_rng(seed).permutation(len(pairs))
    names = np.unique(pairs.source)
    known = {name: order[pairs.source[order] == name][: max(KNOWN)] for name in names}
    fitted = pairs.take(np.setdiff1d(order, np.concatenate(list(known.values()))))
    coded = CodedHead(use_source=True).fit(fitted)
    rows = {"pooled": right(CodedHead(codes=1).fit(fitted), test), "prior": right(coded, test)}

    def by_person(head_of: Any) -> NDArray[np.float64]:
        found = np.empty(len(test))
        for name in names:
            at = np.flatnonzero(test.source == name)
            found[at] = right(head_of(name), test.take(at))
        return found

    for n in KNOWN:
        few = lambda name, n=n: pairs.take(known[name][:n])  # noqa: E731
        rows[f"posterior, {n}"] = by_person(lambda name, few=few: coded.adapt(few(name)))
    mean = (pairs.recipe.response_views[-1],)
    own = {name: LinearHead().fit(pairs.take(known[name][:8]).select(mean)) for name in names}
    rows["own head, 8"] = by_person(lambda name: _Selected(own[name], mean))
    rows["true annotator"] = by_person(lambda name: sure(coded, name))
    return rows


class _Selected:
    """A head that reads some of the views."""

    def __init__(self, head: Head, views: tuple[str, ...]) -> None:
        self.head, self.views = head, views


def sure(head: CodedHead, name: str) -> CodedHead:
    """The head under one annotator's taste."""
    alone = copy.copy(head)
    alone.gate_ = np.zeros_like(head.gate_)
    alone.gate_bias_ = np.where(np.arange(len(head.sources_)) == head.sources_.index(name), 0.0, -np.inf)
    return alone


def right(head: Any, test: LatentPairs) -> NDArray[np.float64]:
    if isinstance(head, _Selected):
        return right(head.head, test.select(head.views))
    return np.asarray(correctness(head.score(test.chosen), head.score(test.rejected)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--cache", help="folder of the latents' cache")
    args = parser.parse_args()
    seeds = args.seeds[:2] if args.quick else args.seeds
    backbone = Backbone.load()
    views = CodedHead().default_views(backbone)
    rows = load_pairs(DATA / "demo.jsonl.gz")
    latents = encode_pairs(backbone, rows, views, open_store(args.cache, backbone.recipe(views)), label="encode")
    latents = replace(latents, source=np.array(rows["user_id"], dtype=object))
    split = np.array(rows["split"])
    pairs, test = (latents.take(np.flatnonzero(split == part)) for part in ("train", "test"))
    runs = [run(pairs, test, seed) for seed in seeds]
    figures: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        values = np.stack([each[name] for each in runs])
        pooled = np.stack([each["pooled"] for each in runs])
        figures[name] = {
            **seeds_and_prompts_interval(values, test.group)._asdict(),
            "minus_pooled": seeds_and_prompts_interval(values - pooled, test.group)._asdict(),
        }
    shown = [["z from", "accuracy", "minus pooled"]]
    for name, one in figures.items():
        delta = one["minus_pooled"]
        shown.append(
            [
                name,
                f"{one['value']:.3f} ({one['low']:.3f}-{one['high']:.3f})",
                f"{delta['value']:+.3f} ({delta['low']:+.3f} to {delta['high']:+.3f})",
            ]
        )
    print(table(shown))
    finish("coded_people", {_key(name): one for name, one in figures.items()}, full=not args.quick, seeds=seeds)


def _key(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


if __name__ == "__main__":
    main()
