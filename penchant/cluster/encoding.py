"""Pairs -> latents by Ray Data, into the store that the local engine uses and with the latents it makes.

Tasks read, tokenise and pack; actors, each with a backbone of its own, run the batches and store them; Ray Data moves
the rows between them, holds readers back, and gives the work of a lost worker to another. The store is the state of a
run: the same command again goes on with the batches that are not there yet.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import ray
import torch
from tqdm.auto import tqdm

from penchant import encode as encoding
from penchant.backbone import DEFAULT, Backbone
from penchant.cluster.connect import Pool, connected, get
from penchant.cluster.parts import parts_of
from penchant.cluster.planning import COSTS, Job, absolute, check_model, compact, look, plan_chunk, unpacked
from penchant.cluster.reading import PairSource, check_pairs, read_parts
from penchant.cluster.streaming import quiet, stream, told, work_in
from penchant.encode import TOKEN_BUDGET, Cost, check_batch, start_batch
from penchant.errors import InputError, PenchantError
from penchant.hub import named, pinned
from penchant.latents import Recipe
from penchant.pairs import warn_of_skipped
from penchant.store import Writer, default_root

GPU_BATCHES = 16
"""Batches a call where a GPU runs them, in milliseconds each; on the CPU each is a call of its own, so that actors end
together."""


@dataclass(frozen=True)
class Encoded:
    """What a run left."""

    recipe: Recipe
    folder: Path
    """The store's."""
    cost: Cost
    pairs: int
    steady_seconds: float
    """From the first batch that an actor began, its LLM loaded, to the last that was stored."""


def encode_with_ray(
    data: Any,
    *,
    model: str = DEFAULT,
    views: tuple[str, ...] | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    skipped_file: str | os.PathLike[str] | None = None,
    cache: str | Path | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    token_budget: int = TOKEN_BUDGET,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    show_progress: bool = True,
) -> Encoded:
    """Put the latents of all pairs into the cache, where `train`, `evaluate` and `encode_pairs` find them.

    The latents are those of the local engine, bit for bit in float32 on the same kind of machine. Only sequences that
    stand in several chunks of 4,096 pairs may be packed another way, and then differ by rounding, 1e-5 at most.

    Args:
        data: hub id, file, folder, saved data set, or a list of files; on a cluster every machine needs the same paths.
        model: backbone, as in `Backbone.load`.
        views: "LAYER:POOLING" latents to keep; by default `Backbone.default_views`.
        columns, on_bad, split, limit, skipped_file: as in `load_pairs`.
        cache: folder of the cache; by default $PENCHANT_CACHE or ~/.cache/penchant. Shared by the cluster's machines.
        dtype, max_length: as in `Backbone.load`; "auto" is decided on a machine with the actors' resources.
        token_budget: tokens an actor runs at once.
        actors: processes that run the LLM; by default one a GPU or, without GPUs, one a machine, on all its cores.
        gpus_per_actor: by default 1 where there are GPUs; a part of one puts several actors on a GPU, 0 uses the CPU.
        address: "auto" or host:port of a cluster; by default a Ray that runs in this process already, or else one that
            is started on this machine and ended with the call.
        show_progress: a bar on standard error.

    Raises:
        InputError: what `load_pairs`, `Backbone.load` and `encode` raise for the data and the LLM; Ray or the cluster
            is not there.
        PenchantError: the cache cannot be written.
    """
    if on_bad not in ("error", "skip"):
        raise InputError(f'on_bad must be "error" or "skip", not {on_bad!r}')
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 row, not {limit}; leave it out to read all")
    name, parts = parts_of(data, split)
    root, here = absolute(Path(cache) if cache else default_root()), os.getcwd()
    with connected(address, actors, gpus_per_actor) as pool:
        looking = (
            ray.remote(look)
            .options(num_cpus=pool.cores, num_gpus=pool.gpus)
            .remote(model, views, dtype, max_length, token_budget, here)
        )
        listed = Path(skipped_file) if skipped_file else Path(root) / "skipped.jsonl"
        with _list_of_skipped(listed, on_bad == "skip") as list_to:
            pairs = check_pairs(name, parts, columns or {}, skip=on_bad == "skip", limit=limit, list_to=list_to)
        if pairs.skipped:
            warn_of_skipped(name, sum(pairs.rows), pairs.skipped, listed)
        recipe, packed, budget, chat = get(looking)
        job = Job(model, recipe.stored, packed, root, here, budget, ray.put(chat))
        done = _run(pairs, job, pool, show_progress)
        get(ray.remote(compact).remote(job))
    return done


def _list_of_skipped(path: Path, skip: bool) -> IO[str]:
    if not skip:
        return io.StringIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def _run(pairs: PairSource, job: Job, pool: Pool, show_progress: bool) -> Encoded:
    at_once, threads = pool.threads
    a_call = GPU_BATCHES if pool.gpus else 1
    cost, start, spans = Cost(), time.perf_counter(), [float("inf"), 0.0]
    planned = seen = 0
    with quiet(), tqdm(total=0, unit="tok", unit_scale=True, desc="encode", disable=not show_progress) as bar:
        batches = (
            read_parts(len(pairs.parts), pairs.blocks, pool.readers)
            .repartition(target_num_rows_per_block=encoding.CHUNK, strict=True)
            .map_batches(partial(plan_chunk, job=job), batch_size=None, batch_format="pyarrow")
            .repartition(target_num_rows_per_block=a_call, strict=True)
        )
        stored = batches.map_batches(
            Encoder,
            fn_constructor_args=(job, threads),
            batch_size=a_call,
            batch_format="pyarrow",
            compute=pool.strategy(at_once),
            **pool.remote,
        )
        with stream(stored) as rows:
            for row in rows:
                if row["pairs"]:
                    seen, planned = seen + row["pairs"], planned + row["planned"]
                    bar.total = int(planned * len(pairs) / seen)
                    for field, value in zip(COSTS, row["cost"], strict=True):
                        setattr(cost, field, getattr(cost, field) + value)
                if row["tokens"]:
                    cost.unique_tokens += row["tokens"]
                    spans = [min(spans[0], row["began"]), max(spans[1], row["ended"])]
                    bar.update(row["tokens"])
    cost.encode_seconds = time.perf_counter() - start
    folder = Path(job.cache) / job.recipe.fingerprint
    return Encoded(job.recipe, folder, cost, len(pairs), max(0.0, spans[1] - spans[0]))


class Encoder:
    """An actor: the backbone cut above the highest layer, loaded with the first batch that needs it."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job, self.threads = job, threads
        self.loading = threading.Lock()
        self.loaded: tuple[Backbone, Writer] | None = None

    def __call__(self, batches: pa.Table) -> pa.Table:
        """Run and store batches (PLANNED); of each, what it cost. Called from several threads at once on the CPU."""
        torch.set_num_threads(self.threads)  # of this thread
        begun = [self._begin(row) for row in batches.to_pylist()]  # a GPU is given all of them before one is waited for
        return pa.Table.from_pylist([end() for end in begun], DONE)

    def _begin(self, row: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Queue a batch; what is returned waits for its latents, stores them, and gives what is left of the row."""
        if row["error"] or not row["responses"]:
            return lambda: row
        try:
            backbone, writer = self._ready()
            batch, began = unpacked(row), time.time()
            found = start_batch(backbone, self.job.recipe, batch)
        except PenchantError as error:
            said = {"error": told(error)}
            return lambda: said

        def end() -> dict[str, Any]:
            try:
                latents = found()
                check_batch(batch, latents, self.job.recipe)
                writer.write(batch.keys, latents)
            except PenchantError as error:
                return {"error": told(error)}
            return {**row, "began": began, "ended": time.time()}

        return end

    def _ready(self) -> tuple[Backbone, Writer]:
        with self.loading:
            if self.loaded is None:
                job = self.job
                work_in(job.folder)
                backbone = Backbone.load(
                    named(job.model)[0],
                    dtype=job.recipe.dtype,
                    revision=pinned(job.recipe.revision),
                    max_length=job.recipe.max_length,
                )
                check_model(backbone, job.recipe)
                backbone.cut(max(job.recipe.layers))
                self.loaded = backbone, Writer(job.cache, job.recipe)
            return self.loaded


DONE = pa.schema(
    [
        ("tokens", pa.int64()),
        ("pairs", pa.int64()),
        ("planned", pa.int64()),
        ("cost", pa.list_(pa.int64())),
        ("began", pa.float64()),  # seconds since 1970
        ("ended", pa.float64()),
        ("error", pa.string()),
    ]
)
"""What is left of a row of PLANNED when its batch is stored."""
