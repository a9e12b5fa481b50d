"""The search for `lens_best`, on held-out parts of the TRAINING pairs: what was tried against the ridge head.

    python benchmarks/lens_search.py [--draws 6] [--cache FOLDER]

For each draw the training pairs of a set are split by whole prompts: 40% are held out, n are seeds, the rest are
unlabelled. Every row is a kernel between pairs, fitted by ridge Bradley-Terry with cross-validated strength; the figure
is its accuracy minus that of the ridge head on the same three layers' means, in points, with the standard error over
draws. No test pair is read.

    layer_24        layer 24's mean alone
    cov^a           features of layer 24 times the unlabelled differences' covariance to the power a / 2 (a < 0
                    penalises directions that vary much, as noise with that covariance does: infinite LENS)
    squashed        tanh of the standardised latent beside the latent itself
    prompt_k, b     times 1 + z.z', z the prompt's first k principal coordinates, whitened with exponent b
    response        the same with the mean of the pair's own responses in place of the prompt
    low_rank        prompt_32 refitted with the one direction of context that its weights vary most along
    combined        squashed and prompt_64, b = 1/2: what ContextHead does
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from common import data_file, finish, table
from numpy.typing import NDArray

from penchant.backbone import Backbone
from penchant.encode import encode_pairs
from penchant.evaluate.learning_curve import nested_order
from penchant.heads.base import pair_accuracy, prompt_folds
from penchant.heads.linear import STRENGTHS, BradleyTerryLoss, Spectrum, pick_strength, solve
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.store_views import open_store

Array = NDArray[Any]
SETS = ("hh/train", "science/novelty.train", "science/feasibility.train")
SIZES = (100, 300, 1000)
MEANS = ("15:mean", "20:mean", "24:mean")
HELD_OUT = 0.4
DRAWS = 6


def kernel_margins(train: Array, across: Array, group: Array) -> Array:
    """Score differences of held-out pairs from kernels [n, n] among the seeds and [m, n] across."""
    size = np.trace(train) / len(train)
    spectrum = Spectrum.of_gram(train / size)
    loss = BradleyTerryLoss(np.zeros((len(group), 1)), 0.0)
    best = pick_strength(spectrum, loss, prompt_folds(group, 5, 0), STRENGTHS)[0]
    v = solve(spectrum, loss, np.ones((len(group), 1)), np.array([best]), 1e-6)[:, 0]
    found: Array = across / size @ (spectrum.axes @ v)
    return found


class Draw:
    """One split of a training set; rows of all arrays are seeds, then held-out pairs."""

    def __init__(self, pairs: LatentPairs, size: int, seed: int) -> None:
        order = nested_order(pairs.group, 1000 + seed)
        cut = len(order) - int(HELD_OUT * len(order))
        held_out = order[cut:]
        rest = order[:cut][~np.isin(pairs.group[order[:cut]], pairs.group[held_out])]
        self.n, self.pool = size, pairs.take(rest)
        self.pairs = pairs.take(np.concatenate([rest[:size], held_out]))
        self.group = self.pairs.group[:size]

    def view(self, side: str, view: str, pool: bool = False) -> Array:
        source = self.pool if pool else self.pairs
        return getattr(source, side)[:, source.recipe.columns((view,))].astype(np.float64)

    def differences(self, squashed: bool = False, views: tuple[str, ...] = MEANS) -> Array:
        """Features of the pairs, each view at unit mean square."""
        parts = []
        for view in views:
            chosen, rejected = self.view("chosen", view), self.view("rejected", view)
            forms = [chosen - rejected]
            if squashed:
                pool = np.concatenate([self.view(side, view, pool=True) for side in ("chosen", "rejected")])
                mean, deviation = pool.mean(0), pool.std(0)
                forms.append(np.tanh((chosen - mean) / deviation) - np.tanh((rejected - mean) / deviation))
            parts += [form / np.sqrt(np.square(form[: self.n]).sum(1).mean()) for form in forms]
        return np.concatenate(parts, axis=1)

    def context(self, k: int, exponent: float, responses: bool = False) -> Array:
        """Principal coordinates z of the prompt (or of the responses' mean), mean |z|^2 = 1."""
        view = "24:mean"

        def rows(pool: bool) -> Array:
            if not responses:
                return self.view("prompt", view, pool)
            return (self.view("chosen", view, pool) + self.view("rejected", view, pool)) / 2

        pool = rows(True)
        mean, deviation = pool.mean(0), pool.std(0)
        _, size, axes = np.linalg.svd((pool - mean) / deviation, full_matrices=False)
        turn = axes[:k].T / size[:k] ** exponent
        total = np.sqrt(np.square((pool - mean) / deviation @ turn).sum(1).mean())
        found: Array = (rows(False) - mean) / deviation @ turn / total
        return found

    def accuracy(self, features: Array, context: Array | None = None) -> float:
        gate = 1.0 if context is None else 1 + context @ context[: self.n].T
        kernel = features @ features[: self.n].T * gate
        return pair_accuracy(kernel_margins(kernel[: self.n], kernel[self.n :], self.group))


def covariance_features(draw: Draw, power: float) -> Array:
    view = "24:mean"
    unlabelled = draw.view("chosen", view, pool=True) - draw.view("rejected", view, pool=True)
    values, vectors = np.linalg.eigh(unlabelled.T @ unlabelled / len(unlabelled))
    turn = vectors * (np.maximum(values, 1e-12) / values[-1]) ** (power / 2)
    found: Array = (draw.view("chosen", view) - draw.view("rejected", view)) @ turn
    return found


def low_rank(draw: Draw) -> float:
    """prompt_32's weights [f, 32] lie mostly along one direction of context: keep that one alone."""
    features, z = draw.differences(squashed=True), draw.context(32, 1.0)
    kernel = features @ features[: draw.n].T * (1 + z @ z[: draw.n].T)
    margins = kernel_margins(kernel[: draw.n], kernel[: draw.n], draw.group)
    alpha = np.linalg.lstsq(kernel[: draw.n], margins, rcond=1e-9)[0]
    weights = (features[: draw.n] * alpha[:, None]).T @ z[: draw.n]
    direction = np.linalg.svd(weights, full_matrices=False)[2][0]
    one = z @ direction[:, None]
    return draw.accuracy(features, one / np.sqrt(np.square(one).mean()))


TRIED: dict[str, Callable[[Draw], float]] = {
    "ridge": lambda d: d.accuracy(d.differences()),
    "layer_24": lambda d: d.accuracy(d.differences(views=("24:mean",))),
    "cov^-0.5": lambda d: d.accuracy(covariance_features(d, -0.5)),
    "cov^0.5": lambda d: d.accuracy(covariance_features(d, 0.5)),
    "cov^1": lambda d: d.accuracy(covariance_features(d, 1.0)),
    "squashed": lambda d: d.accuracy(d.differences(squashed=True)),
    "prompt_8, b=1": lambda d: d.accuracy(d.differences(), d.context(8, 1.0)),
    "prompt_32, b=1": lambda d: d.accuracy(d.differences(), d.context(32, 1.0)),
    "prompt_64, b=1/2": lambda d: d.accuracy(d.differences(), d.context(64, 0.5)),
    "response": lambda d: d.accuracy(d.differences(), d.context(64, 0.5, responses=True)),
    "low_rank": low_rank,
    "combined": lambda d: d.accuracy(d.differences(squashed=True), d.context(64, 0.5)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"fewer than {DRAWS} are not recorded")
    parser.add_argument("--cache", help="folder of the latents' cache")
    options = parser.parse_args()
    if options.draws < 2:
        parser.error("a standard error takes 2 draws or more")
    backbone = Backbone.load()
    views = backbone.default_views()
    rows, figures = [["", *TRIED]], {}
    for name in SETS:
        store = open_store(options.cache, backbone.recipe(views))
        pairs = encode_pairs(backbone, load_pairs(data_file(name)), views, store, label=f"encode {name}")
        for size in SIZES:
            draws = [Draw(pairs, size, seed) for seed in range(options.draws)]
            found = {method: np.array([accuracy(draw) for draw in draws]) for method, accuracy in TRIED.items()}
            ridge = found.pop("ridge")
            cells = {
                m: (100 * (a - ridge).mean(), 100 * (a - ridge).std(ddof=1) / len(a) ** 0.5) for m, a in found.items()
            }
            rows.append([f"{name} {size}", f"{ridge.mean():.3f}", *(f"{a:+.1f} ± {b:.1f}" for a, b in cells.values())])
            figures[f"{name} {size}"] = {m: [round(a, 2), round(b, 2)] for m, (a, b) in cells.items()}
            print(f"{rows[-1]}", flush=True)
    print(table(rows))
    finish("lens_search", figures, full=options.draws >= DRAWS, seeds=range(options.draws))


if __name__ == "__main__":
    main()
