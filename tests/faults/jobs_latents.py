"""Latents into a store: hand-made ones with many merges, an LLM's, and those that the command line encodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penchant.backbone import Backbone
from penchant.encode import encode_pairs, read_latents, tokenize_pairs
from penchant.packing import stack_keys
from penchant.pairs import load_pairs
from penchant.store import Store
from tests import tiny
from tests.faults.jobs import Job, cli, digest, write_lines
from tests.store_batches import RECIPE, batch
from tests.tiny_llm import save_tiny_llm, tiny_pairs

BATCHES = 24
VIEWS = ("1:last", "2:mean")


def store(given: Path, folder: Path) -> str:
    opened = Store(folder, RECIPE)
    parts = [batch(seed, 40) for seed in range(BATCHES)]
    for number, (keys, latents) in enumerate(parts):
        if not opened.has(keys).all():
            opened.write(keys, latents)
        if number % 6 == 5:
            opened.compact(8_000)
    return digest(Store(folder, RECIPE).read(np.concatenate([keys for keys, _ in parts])))


def encode(given: Path, folder: Path) -> str:
    backbone, pairs = tiny.backbone(), tiny.pairs(30, 5)
    recipe = backbone.recipe(tiny.VIEWS)
    found = encode_pairs(
        backbone, pairs, tiny.VIEWS, Store(folder, recipe), token_budget=tiny.BUDGET, show_progress=False
    )
    tokens = tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
    kept = Store(folder, recipe).read(stack_keys(item.key for item in tokens))
    return digest(found.chosen, found.rejected, found.prompt, kept)


def give_llm(given: Path) -> None:
    save_tiny_llm(given / "llm")
    write_lines(given / "pairs.jsonl", tiny_pairs(24))


def encode_by_cli(given: Path, folder: Path) -> str:
    model, data = given / "llm", given / "pairs.jsonl"
    asked = ["--model", model, "--views", f"[{','.join(VIEWS)}]", "--cache", folder, "--token_budget", 128]
    cli("encode", data, *asked, "--dtype", "float32")
    backbone, pairs = Backbone.load(str(model), dtype="float32"), load_pairs(str(data))
    recipe = backbone.recipe(VIEWS)
    keys = stack_keys(
        item.key for item in tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
    )
    return digest(read_latents(Store(folder, recipe), recipe, keys, keys))


JOBS = (Job("store", store), Job("encode", encode), Job("encode-cli", encode_by_cli, give_llm))
