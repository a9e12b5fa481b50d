"""The data of benchmarks/lens.py: which pairs are seeds, which are unlabelled, which are tested, at each seed."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import lens_pool
import numpy as np
from common import data_file
from lens_methods import Answers, Seeds
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.cli.demo import DATA
from penchant.encode import encode_pairs
from penchant.evaluate.learning_curve import nested_order
from penchant.generation import Generator
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs, to_text
from penchant.store_views import open_store
from penchant.synthesis.text import llm_judge

Rows = NDArray[np.int64]
SIZES = (100, 300, 1000)
JUDGED = ("hh", "demo")
"""Sets whose answers the LLM judges too: a quarter of an hour a set for a judge that is no better than chance."""
HELD_OUT = 0.4
"""Share of the pairs tested at each seed, where there is no test part of its own; less where the seeds need more."""


class Candidates(NamedTuple):
    """Best-of-16 on the demo's prompts: latents [P, 16, dim], gold [P, 16] (mean over annotators), groups [P]."""

    latents: NDArray[np.float32]
    gold: NDArray[np.float32]
    groups: Rows


@dataclass
class Source:
    """A data set: its pairs, and the test part where it has one of its own."""

    name: str
    pairs: LatentPairs
    test: LatentPairs | None
    """None: seeds and test pairs are drawn anew at each seed, by whole prompts, from all pairs."""
    answers: Answers | None
    """One row a pair."""
    candidates: Candidates | None

    def sizes(self) -> list[int]:
        """100, 300, 1,000, or, where that leaves no fifth to be tested, four fifths of the pairs in place of 1,000."""
        most = len(self.pairs) if self.test else int(0.8 * len(self.pairs))
        return sorted({min(size, most) for size in SIZES})

    def draw(self, size: int, seed: int) -> tuple[Seeds, Rows]:
        """The seeds, and the rows of `tested` that are tested."""
        order = nested_order(self.pairs.group, seed)
        end = len(order)
        if self.test is None:
            end -= int(min(HELD_OUT * len(order), len(order) - size))
        tested = order[end:] if self.test is None else np.arange(len(self.test))
        taken, others = order[:size], order[size:end]
        if self.test is None:  # whole prompts only: a prompt that is tested gives no seed
            apart = ~np.isin(self.pairs.group[tested], self.pairs.group[order[:end]])
            tested = tested[apart]
        others = others[~np.isin(self.pairs.group[others], self.pairs.group[taken])]
        free = self.pairs.take(others)
        unlabelled = np.concatenate([free.chosen, free.rejected])
        answers = None
        if self.answers is not None:
            llm = None if self.answers.llm is None else self.answers.llm[taken]
            answers = Answers(self.answers.latents[taken], self.answers.valid[taken], llm)
        return Seeds(self.pairs.take(taken), unlabelled, answers, seed), tested

    @property
    def tested(self) -> LatentPairs:
        return self.pairs if self.test is None else self.test


FILES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "hh": (("hh/train",), "hh/test"),
    "novelty": (("science/novelty.train",), "science/novelty.test"),
    "ultrafeedback": (("ultrafeedback/train", "ultrafeedback/eval"), None),
    "demo": ((), None),
}


def _encoded(backbone: Backbone, path: Path, cache: str | None) -> tuple[LatentPairs, list[str]]:
    pairs = load_pairs(path)
    views = backbone.default_views()
    latents = encode_pairs(backbone, pairs, views, open_store(cache, backbone.recipe(views)), label=f"encode {path}")
    prompts = [to_text(prompt) for prompt in pairs["prompt"]]
    bare = LatentPairs(latents.chosen, latents.rejected, latents.prompt, latents.recipe, latents.group)
    return bare, prompts


def load(name: str, generator: Generator, cache: str | None, folder: str | None, text: bool, llm: bool) -> Source:
    """A data set with its latents and, if `text`, the LLM's own answers; `llm` has them judged by the LLM too."""
    files, held_out = FILES[name]
    backbone = generator.backbone
    parts = [_encoded(backbone, data_file(file), cache) for file in files]
    if not files:
        parts = [_encoded(backbone, DATA / "demo.jsonl.gz", cache)]
    pairs = LatentPairs.concatenate([part for part, _ in parts])
    prompts = [prompt for _, found in parts for prompt in found]
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    group = np.array([number[prompt] for prompt in prompts])
    pairs = replace(pairs, group=group)
    test = _encoded(backbone, data_file(held_out), cache)[0] if held_out else None
    answers, candidates = None, None
    if text or name == "demo":
        sampled = lens_pool.latents(name, cache, folder, generator)
        place = {to_text(prompt): i for i, prompt in enumerate(sampled.prompts)}
        row = np.array([place[prompt] for prompt in prompts])
        few = slice(0, 4)
        judged = None
        if llm:
            judged = _judged(name, generator, sampled, folder, cache)[row]
        answers = Answers(sampled.latents[row][:, few], sampled.valid[row][:, few], judged)
        if name == "demo":
            gold = lens_pool.demo_gold([to_text(p) for p in sampled.prompts], sampled.answers)
            groups = np.array([number[to_text(prompt)] for prompt in sampled.prompts])
            candidates = Candidates(sampled.latents, np.mean(list(gold.values()), axis=0), groups)
    return Source(name, pairs, test, answers if text else None, candidates)


def _judged(
    name: str, generator: Generator, sampled: lens_pool.Sampled, folder: str | None, cache: str | None
) -> NDArray[np.float32]:
    """The LLM's judgement of the first four answers to each prompt [P, 4], kept beside the answers."""
    root = Path(folder) if folder else Path(cache or lens_pool.default_root()) / "lens"
    file = root / f"{name}.judged.jsonl.gz"
    texts = [row[:4] for row in sampled.answers]
    if file.is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if [row["answers"] for row in rows] == texts:
            return np.array([row["scores"] for row in rows], np.float32)
    scores = llm_judge(generator, sampled.prompts, [[text or " " for text in row] for row in texts])
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for row, score in zip(texts, scores.tolist(), strict=True):
            lines.write(json.dumps({"answers": row, "scores": score}) + "\n")
    return scores
