"""Answers that the LLM itself samples to the seed prompts, and their latents: the pool of the text rival in lens.py.

    python benchmarks/lens_pool.py [--sets demo hh novelty ultrafeedback] [--cache FOLDER] [--answers FOLDER]

Four answers to every prompt, sixteen to the demo's prompts: the first four of those are its pool, all of them the
candidates of best-of-16, with gold scores on the scale of the answers that the demo data carry. A run that was killed
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import numpy as np
from common import HERE, data_file
from numpy.typing import NDArray

from penchant.chat import Text
from penchant.cli.demo import DATA
from penchant.encode import encode_texts
from penchant.generation import Generator
from penchant.pairs import load_pairs, prompt_groups
from penchant.store import default_root
from penchant.store_views import open_store

sys.path.insert(0, str(HERE.parent))  # `scripts` is no part of the package
from scripts.demo_annotators import ANNOTATORS

Array = NDArray[np.float32]
CHUNK = 128
"""Prompts whose answers are encoded at once."""


class Pool(NamedTuple):
    """Where the prompts come from, and how they are answered."""

    files: tuple[str, ...]
    max_new_tokens: int
    answers: int = 4


POOLS = {
    "demo": Pool((), 100, 16),
    "hh": Pool(("hh/train",), 32),
    "novelty": Pool(("science/novelty.train",), 40),
    "ultrafeedback": Pool(("ultrafeedback/train", "ultrafeedback/eval"), 64),
}


class Sampled(NamedTuple):
    prompts: list[Text]
    answers: list[list[str]]
    latents: Array
    """Float32 [P, k, dim], views in the order of `Backbone.default_views`; 0 where not valid."""
    valid: NDArray[np.bool_]
    """[P, k]: the answer is not empty."""


def prompts_of(name: str) -> list[Text]:
    """The different prompts of a data set in order of appearance."""
    found: dict[int, Text] = {}
    for path in [data_file(file) for file in POOLS[name].files] or [DATA / "demo.jsonl.gz"]:
        pairs = load_pairs(path)
        for group, prompt in zip(prompt_groups(pairs).tolist(), pairs["prompt"], strict=True):
            found.setdefault(group, prompt)
    return list(found.values())


def answers(
    name: str, folder: Path | str | None = None, generator: Generator | None = None, quick: int | None = None
) -> tuple[list[Text], list[list[str]]]:
    """The prompts and the answers sampled to each, kept in `folder`; `quick` takes that many prompts only."""
    prompts = prompts_of(name)[:quick]
    generator = generator or Generator.load()
    pool = POOLS[name]
    file = Path(folder or default_root() / "lens") / f"{name}.jsonl"
    texts = generator.sample(prompts, answers=pool.answers, max_new_tokens=pool.max_new_tokens, file=file)
    return prompts, texts


def latents(
    name: str,
    cache: str | None = None,
    folder: Path | str | None = None,
    generator: Generator | None = None,
    quick: int | None = None,
) -> Sampled:
    """The answers in `folder` (sampled if need be) with their latents from the cache (encoded if need be)."""
    generator = generator or Generator.load()
    prompts, texts = answers(name, folder, generator, quick)
    views = generator.backbone.default_views()
    recipe = generator.backbone.recipe(views)
    store = open_store(cache, recipe)
    valid = np.array([[bool(text.strip()) for text in row] for row in texts])
    found = np.zeros((*valid.shape, recipe.dim), np.float32)
    for start in range(0, len(prompts), CHUNK):
        here = np.argwhere(valid[start : start + CHUNK]) + np.array([start, 0])
        asked = [prompts[row] for row, _ in here]
        told = [texts[row][column] for row, column in here]
        found[here[:, 0], here[:, 1]] = encode_texts(generator.backbone, asked, told, views, store)
        print(f"{name}: {min(start + CHUNK, len(prompts))} of {len(prompts)} prompts' answers encoded", flush=True)
    store.compact()
    return Sampled(prompts, texts, found, valid)


def demo_gold(prompts: list[str], texts: list[list[str]]) -> dict[str, Array]:
    """Each annotator's gold score [P, k] of each answer, on the scale of the answers that the demo data carry."""
    with gzip.open(DATA / "demo_candidates.jsonl.gz", "rt", encoding="utf-8") as file:
        shipped = [(row["prompt"], text) for row in map(json.loads, file) for text in row["responses"]]
    gold = {}
    for name, taste in ANNOTATORS.items():
        raw = [taste(prompt, text) for prompt, text in shipped]
        mean, spread = fmean(raw), pstdev(raw)
        rows = [
            [(taste(prompt, text) - mean) / spread for text in row] for prompt, row in zip(prompts, texts, strict=True)
        ]
        gold[name] = np.array(rows, np.float32)
    return gold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--cache", help="folder of the latents' cache")
    parser.add_argument("--answers", help="folder of the answers (default: lens in the latents' cache)")
    parser.add_argument("--quick", type=int, help="this many prompts of each set only")
    options = parser.parse_args()
    generator = Generator.load()
    for name in options.sets:
        start = time.perf_counter()
        folder = options.answers or Path(options.cache or default_root()) / "lens"
        found = latents(name, options.cache, folder, generator, options.quick)
        cost = generator.cost.to_dict()
        print(name, found.latents.shape, f"{int((~found.valid).sum())} empty", cost)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
