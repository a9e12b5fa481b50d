"""`penchant encode`: latents into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from penchant.backbone import DEFAULT, Backbone
from penchant.cli.engine import Engine, check_engine
from penchant.encode import TOKEN_BUDGET, Cost, fill
from penchant.pairs import load_pairs
from penchant.store_views import open_store


def encode(
    data: str,
    *,
    model: str = DEFAULT,
    views: list[str] | None = None,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    token_budget: int = TOKEN_BUDGET,
    engine: Engine = "local",
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
) -> None:
    """Run the LLM once over preference pairs and keep the latents in the cache.

    Args:
        data: hub id, file (.jsonl, .json, .csv, .parquet, .gz) or folder with preference pairs.
        model: backbone: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
        views: latents to keep, each LAYER:POOLING, for example [20:mean,20:last]; three layers by default.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        dtype: auto, float32 or bfloat16.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
        engine: local, or ray: several processes, on this machine or on a cluster (needs the extra ray).
        actors: with ray, how many processes run the LLM; one a GPU, or one a machine, by default.
        gpus_per_actor: with ray, GPUs of each; a part of one puts several on a GPU, 0 uses the CPU.
        address: with ray, a cluster that runs: auto or host:port; a Ray of this machine's own by default.
    """
    check_engine(engine, actors=actors, gpus_per_actor=gpus_per_actor, address=address)
    wanted = tuple(views) if views else None
    if engine == "ray":
        from penchant.cluster.encoding import encode_with_ray

        done = encode_with_ray(
            data, model=model, views=wanted, columns=columns, on_bad=on_bad, split=split, limit=limit, cache=cache,
            dtype=dtype, max_length=max_length, token_budget=token_budget, actors=actors,
            gpus_per_actor=gpus_per_actor, address=address,
        )  # fmt: skip
        tell(done.cost, done.folder)
        return
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit)
    backbone = Backbone.load(model, dtype=dtype, max_length=max_length)
    recipe = backbone.recipe(wanted or backbone.default_views())
    backbone.cut(max(recipe.layers))
    store = open_store(cache, recipe)
    tell(fill(backbone, recipe, pairs, store, token_budget=token_budget)[1], store.folder)


def tell(cost: Cost, folder: Path) -> None:
    print(
        f"{cost.encoded_sequences:,} sequences encoded, {cost.cached_sequences:,} were cached or repeats;"
        f" {cost.unique_tokens:,} tokens in {cost.encode_seconds:.0f} s"
        f" ({cost.tokens_per_second:,.0f} tokens/s); {cost.truncated:,} cut at the start"
    )
    print(folder)
