"""Benchmarks of reward models, for the scores of any head: their authors' figures with intervals, beside text length.

Intervals hold 95% of resamplings of the prompts of each subset; both rows of a question of Ties are drawn together.
A subset with one prompt has nothing to resample, and what rests on it has no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from penchant.errors import InputError
from penchant.evaluate.accuracy import DRAWS, LEVEL, group_sums, prompt_weights
from penchant.evaluate.benchmark_figures import AVERAGE, Figure, Parts, figures, parts_of
from penchant.evaluate.benchmark_rows import Benchmark, Item
from penchant.latents import Array
from penchant.pairs import to_text

SAME = 1e-9
"""Draws that differ by less are equal, but for the rounding of their sums."""


class Ends(NamedTuple):
    """A figure with its 95% interval, None where there are too few prompts for one."""

    value: float
    low: float | None
    high: float | None


def evaluate_benchmark(
    benchmark: Benchmark, items: Sequence[Item], scores: Array, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """What metrics.json says of a benchmark, ready for JSON.

    - name, rows, prompts; ties: rows in which a chosen and a rejected response score the same
    - overall: the name of the figure that sums it up
    - figures: {name: {value, low, high, n, longer, over_longer}}, n in rows; the last two are {value, low, high} of
      choosing the longer text, and of the difference to that; low and high are None where a subset that the figure
      rests on has fewer than 2 prompts

    Args:
        items: rows from `read_items`.
        scores: [m], one for each response of each row, a row's chosen ones first.

    Raises InputError for scores that are not finite or not one a response.
    """
    own = by_row(items, scores)
    longer = by_row(items, [len(to_text(text)) for item in items for text in item.responses])
    rows: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        rows.setdefault(item.subset, []).append(i)
    groups = {name: np.array([items[i].group for i in some]) for name, some in rows.items()}
    sizes = {name: len(some) for name, some in rows.items()}

    def measured(of: list[Array]) -> tuple[dict[str, Figure], dict[str, Figure], dict[str, int]]:
        """The figures, those of each draw, and the prompts of each subset that say something about all its parts."""
        parts = {
            name: parts_of(benchmark, [items[i] for i in some], [of[i] for i in some]) for name, some in rows.items()
        }
        means = {name: {part: float(np.nanmean(v)) for part, v in each.items()} for name, each in parts.items()}
        drawn = {name: drawn_means(parts[name], groups[name], draws, seed + k) for k, name in enumerate(rows)}
        prompts = {
            name: min(len(np.unique(groups[name][np.isfinite(v)])) for v in each.values())
            for name, each in parts.items()
        }
        return figures(benchmark, means, sizes), figures(benchmark, drawn, sizes), prompts

    (value, spread, prompts), (simple, simple_spread, _) = measured(own), measured(longer)
    found = {}
    for name, figure in value.items():
        fewest = min(prompts[subset] for subset in figure.subsets)
        difference = figure.value - simple[name].value, spread[name].value - simple_spread[name].value
        found[name] = {
            **interval(figure.value, spread[name].value, fewest)._asdict(),
            "n": sum(sizes[subset] for subset in figure.subsets),
            "longer": interval(simple[name].value, simple_spread[name].value, fewest)._asdict(),
            "over_longer": interval(*difference, fewest, least=-1.0)._asdict(),
        }
    return {
        "name": benchmark,
        "rows": len(items),
        "prompts": sum(len(np.unique(some)) for some in groups.values()),
        "ties": sum(tied(item, one) for item, one in zip(items, own, strict=True)),
        "overall": AVERAGE,
        "figures": found,
    }


def by_row(items: Sequence[Item], scores: Any) -> list[Array]:
    """The scores of each row, in float64."""
    sizes = [len(item.responses) for item in items]
    flat = np.asarray(scores, np.float64)
    if flat.shape != (sum(sizes),):
        raise InputError(f"there are scores of shape {flat.shape} for {sum(sizes)} responses; give one each")
    if not np.isfinite(flat).all():
        at = int(np.flatnonzero(~np.isfinite(flat))[0])
        row = items[int(np.searchsorted(np.cumsum(sizes), at, side="right"))].row
        raise InputError(f"a score of row {row} is {flat[at]}; scores must be finite numbers")
    return np.split(flat, np.cumsum(sizes)[:-1])


def drawn_means(parts: Parts, groups: Array, draws: int, seed: int) -> dict[str, Array]:
    """The means [draws] of all parts of a subset when its prompts, numbered by `groups`, are drawn with replacement.

    NaN where no drawn prompt says anything about a part.
    """
    values = np.stack(list(parts.values()))
    sums, _ = group_sums(np.nan_to_num(values), groups)
    counts, _ = group_sums(np.isfinite(values), groups)
    with np.errstate(invalid="ignore"):
        means = [(w @ sums.T) / (w @ counts.T) for w in prompt_weights(sums.shape[-1], draws, seed)]
    return dict(zip(parts, np.concatenate(means).T, strict=True))


def interval(value: float, drawn: Array, prompts: int, least: float = 0.0) -> Ends:
    """The interval of a figure between `least` and 1 that rests on subsets of `prompts` prompts or more.

    Where all draws are equal, resampling has nothing to vary and would claim certainty. At 95%, a share of up to
    1 - 0.025^(1 / prompts) of all prompts may then differ from those seen (the exact binomial bound for none of them),
    and say anything in the range.
    """
    if prompts < 2:
        return Ends(float(value), None, None)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high - low < SAME:
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / prompts)
        low, high = min(low, value - unseen * (value - least)), max(high, value + unseen * (1 - value))
    return Ends(float(value), float(low), float(high))


def tied(item: Item, scores: Array) -> bool:
    """Whether some chosen response scores exactly what some rejected one does."""
    k = len(item.chosen)
    return bool(np.isin(scores[:k], scores[k:]).any())
