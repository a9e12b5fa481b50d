"""`penchant encode`: latents into the cache."""

from __future__ import annotations

from typing import Literal

from penchant.backbone import DEFAULT, Backbone
from penchant.encode import TOKEN_BUDGET, fill
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
        token_budget: tokens run at once; bounds memory.
    """
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit)
    backbone = Backbone.load(model, dtype=dtype, max_length=max_length)
    wanted = tuple(views) if views else backbone.default_views()
    recipe = backbone.recipe(wanted)
    backbone.cut(max(recipe.layers))
    store = open_store(cache, recipe)
    cost = fill(backbone, recipe, pairs, store, token_budget=token_budget)[1].to_dict()
    print(
        f"{cost['encoded_sequences']:,} sequences encoded, {cost['cached_sequences']:,} were cached or repeats;"
        f" {cost['unique_tokens']:,} tokens in {cost['encode_seconds']:.0f} s"
        f" ({cost['tokens_per_second']:,.0f} tokens/s); {cost['truncated']:,} cut at the start"
    )
    print(store.folder)
