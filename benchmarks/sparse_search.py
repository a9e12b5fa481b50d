"""The search behind SparseHead's defaults, on held-out parts of TRAINING pairs; no test pair is looked at.

    python benchmarks/sparse_search.py --sets hh_harmless hh_helpful

For each set, 300 and 600 training pairs and 4 draws: fit on the first pairs of the draw, judge on the training pairs
that are left (other prompts). Needs the SAE that `sparse.py` keeps in --work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import sparse_data
from common import HERE, finish, table
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.evaluate import correctness
from penchant.evaluate.learning_curve import nested_order
from penchant.heads import Head, LinearHead, SAELinearHead, SparseHead
from penchant.sae.formats import load_sae

VIEWS = {"last": ("15:last",), "mean": ("15:mean",), "both": ("15:last", "15:mean")}
SETS = ("hh_harmless", "hh_helpful", "novelty", "feasibility")
"""Those whose test pairs are their own."""
SIZES = (300, 600)
SEEDS = 4


def candidates(sae: object) -> dict[str, tuple[Callable[[], Head], tuple[str, ...]]]:
    found: dict[str, tuple[Callable[[], Head], tuple[str, ...]]] = {
        "ridge 24:mean": (LinearHead, ("24:mean",)),
        "ridge 15 both": (LinearHead, VIEWS["both"]),
    }
    for views, k in product(VIEWS, (16, 64)):
        settings = {"k": k, "features": "projection", "inner": "linear"}
        for selection in ("frequency", "activation"):
            found[f"projection {selection} {k} {views}"] = (
                lambda s=selection, o=settings: SparseHead(sae, selection=s, **o),
                VIEWS[views],
            )
        found[f"activation {k} {views}"] = (
            lambda k=k: SparseHead(sae, k=k, selection="activation", features="activation"),
            VIEWS[views],
        )
        found[f"random {k} {views}"] = (lambda o=settings: SparseHead(sae, directions="random", **o), VIEWS[views])
    for views in VIEWS:
        found[f"all activations {views}"] = (lambda: SAELinearHead(sae), VIEWS[views])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--cache", help="folder of the latents' cache")
    parser.add_argument("--work", default=str(HERE.parent / "runs" / "sparse"), help="folder of the SAE")
    options = parser.parse_args()
    backbone, sae = Backbone.load(), load_sae(Path(options.work) / "sae")
    figures: dict[str, dict[str, float]] = {}
    for name in options.sets:
        files, _, source = sparse_data.SETS[name]
        pairs = sparse_data.encoded(backbone, files[0], options.cache, source)
        for size in SIZES:
            right: dict[str, list[NDArray[np.float64]]] = {}
            for seed in range(SEEDS):
                order = nested_order(pairs.group, seed)
                train, rest = pairs.take(order[:size]), pairs.take(order[size:])
                rest = rest.take(~np.isin(rest.group, train.group))
                for row, (make, views) in candidates(sae).items():
                    head = make()
                    head.fit(train.select(views))
                    part = rest.select(views)
                    right.setdefault(row, []).append(correctness(head.score(part.chosen), head.score(part.rejected)))
            figures[f"{name} {size}"] = {row: round(float(np.mean(np.concatenate(r))), 4) for row, r in right.items()}
            print(name, size, flush=True)
    cells = list(figures)
    rows = [["", *cells, "mean"]]
    for row in figures[cells[0]]:
        values = [figures[cell][row] for cell in cells]
        rows.append([row, *(f"{value:.3f}" for value in values), f"{np.mean(values):.3f}"])
    print(table(rows))
    finish("sparse_search", figures, full=True, seeds=range(SEEDS))


if __name__ == "__main__":
    main()
