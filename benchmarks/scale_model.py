"""What a run costs, from shapes alone (tokens, floating-point operations, bytes, hours), and how well that foretells.

One measured speed, of hh pairs at depth 20, is all the model takes from this machine; it then foretells other depths
and other data, and the bytes on disk. `python benchmarks/scale_model.py` measures and prints:

    operations_counted   operations that torch counts in a batch, over the model's
    time_foretold        foretold seconds over measured ones, for each depth and data set that was not used to calibrate
    bytes_foretold       foretold bytes of the latents' store over those on disk
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from common import data_file, table
from encode import product_rate, timed
from torch.utils.flop_counter import FlopCounterMode

from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import MemoryStore, batch_latents, encode, fill, tokenize_pairs
from penchant.packing import pack
from penchant.pairs import load_pairs
from penchant.store import Store

KEY_BYTES = 24
"""Of a sequence in a store's index in memory (see `store_index`); on disk it is 16."""
CALIBRATED = ("hh", 20)


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind: gated MLP, grouped key heads."""

    name: str
    layers: int
    width: int
    mlp: int
    heads: int
    key_heads: int
    head_width: int

    @classmethod
    def of(cls, backbone: Backbone) -> Shape:
        c = backbone.config
        head_width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return cls(
            backbone.name,
            c.num_hidden_layers,
            c.hidden_size,
            c.intermediate_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            head_width,
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in one layer's matrices: q and o, k and v, and the three of the MLP."""
        attention = 2 * self.width * self.head_width * (self.heads + self.key_heads)
        return attention + 3 * self.width * self.mlp

    @property
    def top(self) -> int:
        """The highest layer that the default views need."""
        return max(1, self.layers * 24 // 30)

    def operations(self, trees: Trees, depth: int) -> float:
        """2 a weight and token, and 4 a number of a head for each key that a token sees."""
        return depth * (2.0 * self.layer_weights * trees.tokens + 4.0 * self.heads * self.head_width * trees.seen)


SHAPES = (
    Shape("1B (Llama 3.2)", 16, 2048, 8192, 32, 8, 64),
    Shape("8B (Llama 3.1)", 32, 4096, 14336, 32, 8, 128),
    Shape("70B (Llama 3.1)", 80, 8192, 28672, 64, 8, 128),
)


class Trees(NamedTuple):
    """What shared prompts leave to compute."""

    tokens: float
    """Of prompts once and of responses."""
    seen: float
    """(token, key) pairs of causal attention, a response's tokens seeing its prompt too."""

    @classmethod
    def of(cls, tokens: Sequence[Tokens]) -> Trees:
        prompts = {item.prompt_key: len(item.prompt) for item in tokens}
        unique = {item.key: (len(item.prompt), len(item.response)) for item in tokens}
        seen = sum(p * (p + 1) / 2 for p in prompts.values()) + sum(r * p + r * (r + 1) / 2 for p, r in unique.values())
        return cls(sum(prompts.values()) + sum(r for _, r in unique.values()), seen)

    def times(self, factor: float) -> Trees:
        return Trees(self.tokens * factor, self.seen * factor)


def store_bytes(rows: float, dim: int) -> float:
    """A latent is float32 and its key 16 bytes; a shard's header is small beside its rows."""
    return rows * (4 * dim + 16)


def pass_bytes(pairs: float, dim: int) -> float:
    """What one reading of both sides of memory-mapped pairs takes."""
    return pairs * 2 * 4 * dim


def measured(pairs_of: dict[str, Any], depths: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds of encoding each data set to each depth, and what the model needs to foretell them."""
    backbone = Backbone.load()
    shape = Shape.of(backbone)
    tokens = {
        name: tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
        for name, pairs in pairs_of.items()
    }
    cases = [(name, depth) for name in tokens for depth in depths]
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    rates = []
    run(backbone, tokens["hh"][:20], 20)
    for _ in range(rounds):
        rates.append(product_rate(backbone.dtype))
        for name, depth in cases:
            seconds[name, depth].append(timed(lambda n=name, d=depth: run(backbone, tokens[n], d)))
    # Each round is calibrated by itself: the machine may be busier in another.
    rows = []
    for name, depth in cases:
        operations = shape.operations(Trees.of(tokens[name]), depth)
        known = shape.operations(Trees.of(tokens[CALIBRATED[0]]), CALIBRATED[1])
        of_round = zip(seconds[name, depth], seconds[CALIBRATED], strict=True)
        foretold = [operations / known * calibrated / own for own, calibrated in of_round]
        spent = median(seconds[name, depth])
        rows.append({"data": name, "depth": depth, "seconds": spent, "foretold": median(foretold)})
    known = shape.operations(Trees.of(tokens[CALIBRATED[0]]), CALIBRATED[1])
    fraction = median(known / s / rate for s, rate in zip(seconds[CALIBRATED], rates, strict=True))
    counted = [count_operations(backbone, tokens[name], depth) for name, depth in cases]
    model = [shape.operations(Trees.of(tokens[name]), depth) for name, depth in cases]
    per_pair = {name: Trees.of(each).times(2 / len(each))._asdict() for name, each in tokens.items()}
    return {
        "cases": [{**row, "counted": a / b} for row, a, b in zip(rows, counted, model, strict=True)],
        "product_gflops": median(rates) / 1e9,
        "fraction": fraction,
        "per_pair": per_pair,
        "bytes_foretold": bytes_foretold(backbone, pairs_of["hh"]),
    }


def run(backbone: Backbone, tokens: list[Tokens], depth: int) -> None:
    encode(backbone, backbone.recipe((f"{depth}:mean",)), tokens, MemoryStore())


def count_operations(backbone: Backbone, tokens: list[Tokens], depth: int) -> float:
    """As torch counts them in the matrix products that really run, padding included."""
    recipe = backbone.recipe((f"{depth}:mean",))
    with FlopCounterMode(display=False) as counter:
        for batch in pack({item.key: item for item in tokens}.values(), backbone.budget(), packed=backbone.packed):
            batch_latents(backbone, recipe, batch)
    return float(counter.get_total_flops())


def bytes_foretold(backbone: Backbone, pairs: Any) -> float:
    recipe = backbone.recipe(("4:mean", "4:last"))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, recipe)
        fill(backbone, recipe, pairs, store, show_progress=False)
        tokens = tokenize_pairs(backbone, pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])
        rows = len({item.key for item in tokens} | {item.prompt_key for item in tokens})
        on_disk = sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))
    return store_bytes(rows, recipe.dim) / on_disk


def check(count: int, depths: Sequence[int], rounds: int) -> dict[str, Any]:
    """`measured` on so many pairs of each data set, with what of it is a figure."""
    pairs_of = {name: load_pairs(data_file(file)).select(range(count)) for name, file in files()}
    found = measured(pairs_of, depths, rounds)
    unseen = [row for row in found["cases"] if (row["data"], row["depth"]) != CALIBRATED]
    worst = max(unseen, key=lambda row: abs(row["foretold"] - 1))["foretold"]
    found["figures"] = {"time_foretold_worst": round(worst, 3), "bytes_foretold": round(found["bytes_foretold"], 4)}
    return found


def files() -> Iterator[tuple[str, str]]:
    yield "hh", "hh/train"
    yield "ultrafeedback", "ultrafeedback/train"


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    head = ["data", "depth", "seconds", "foretold over measured", "operations counted over the model's"]
    return [
        head,
        *(
            [
                row["data"],
                str(row["depth"]),
                f"{row['seconds']:.2f}",
                "1 (calibrated)" if (row["data"], row["depth"]) == CALIBRATED else f"{row['foretold']:.2f}",
                f"{row['counted']:.3f}",
            ]
            for row in found["cases"]
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = check(options.pairs, (10, 20, 30), options.rounds)
    print(table(rows_of(found)))
    print(f"{found['fraction']:.2f} of a large product's {found['product_gflops']:,.0f} GFLOP/s")
    print(json.dumps(found["figures"]))


if __name__ == "__main__":
    main()
