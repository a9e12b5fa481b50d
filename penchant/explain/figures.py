"""What each feature of a score does: over all pairs, and in one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from penchant.explain.reading import REST, Reading
from penchant.latents import LatentPairs

Array = NDArray[Any]
CHUNK = 128
"""Pairs whose contributions are held at once."""
LISTED = 10
"""Features listed for one pair."""
SHOWN = (("most clearly right", 2), ("closest call", 1), ("most clearly wrong", 3))
"""Pairs broken down where none is asked for, at most."""


class Figures(NamedTuple):
    """Over n pairs, [f] each; NaN where a figure does not exist."""

    strength: Array
    """Mean |contribution to the margin|, the chosen response's score minus the rejected one's."""
    mean: Array
    """Mean contribution to the margin: above 0 where the feature helps the chosen response on the whole."""
    right: Array
    """Of the pairs to whose margin it contributes, the share where it sides with the chosen response."""
    weight: Array
    """Score a unit of activation: the slope of contributions over activations, exact for a linear score."""
    chosen: Array
    """Share of the chosen responses in whose view the SAE latent is active."""
    rejected: Array
    """The same of the rejected ones."""


def measure(reading: Reading, latents: LatentPairs, show_progress: bool = False) -> Figures:
    """The figures of every feature; of the contributions [n, f] a chunk is held at a time."""
    f, n = len(reading.parts.features_), len(latents)
    size, total, differs, wins, chosen, rejected = np.zeros((6, f))
    moments = np.zeros((4, f))
    for start in tqdm(range(0, n, CHUNK), desc="features", unit="chunk", disable=not show_progress, leave=False):
        part = slice(start, start + CHUNK)
        both = np.concatenate([latents.chosen[part], latents.rejected[part]])
        given, seen = reading.parts.contributions(both), reading.parts.activations(both).astype(np.float64)
        difference = np.subtract(*np.split(given, 2))
        size += np.abs(difference).sum(0)
        total += difference.sum(0)
        differs += (difference != 0).sum(0)
        wins += (difference > 0).sum(0)
        fires = np.split(reading.codes(both) > 0, 2)
        chosen, rejected = chosen + fires[0].sum(0), rejected + fires[1].sum(0)
        moments += [seen.sum(0), given.sum(0), (seen * seen).sum(0), (seen * given).sum(0)]
    a, c, aa, ac = moments / (2 * n)
    spread = aa - a * a
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(spread > 1e-12 * aa, (ac - a * c) / spread, np.nan)
        return Figures(size / n, total / n, wins / differs, weight, chosen / n, rejected / n)


def strongest(reading: Reading, found: Figures) -> list[int]:
    """The features that contribute to any margin, strongest first, without REST."""
    order = np.argsort(-found.strength, kind="stable")
    order = order[(found.strength[order] > 0) & (reading.parts.features_[order] != REST)]
    return [int(i) for i in order]


def feature_facts(reading: Reading, found: Figures, index: int) -> dict[str, Any]:
    """One feature's figures for JSON, None where one does not exist; `share` is of all features' strengths."""
    numbers = {name: _number(values[index]) for name, values in found._asdict().items()}
    return {**_named(reading, index), **numbers, "share": share(found, index)}


def pick(margin: Array) -> dict[int, str]:
    """Rows of a handful of telling pairs by their margins [n], each with the reason why it is shown."""
    order = np.argsort(-margin, kind="stable")
    orders = (order[margin[order] > 0], np.argsort(np.abs(margin), kind="stable"), order[::-1][margin[order[::-1]] < 0])
    rows: dict[int, str] = {}
    for (why, most), candidates in zip(SHOWN, orders, strict=True):
        rows |= {row: why for row in candidates[:most].tolist() if row not in rows}
    return rows


def break_down(
    reading: Reading, found: Figures, latents: LatentPairs, row: int, scores: tuple[Array, Array]
) -> dict[str, Any]:
    """The score of both responses of one pair as a sum of parts, for JSON.

    On each side base + features + others + rest + left_over = score. The LISTED features with the largest differences
    stand alone, largest first; `rest` is what the SAE does not describe (linear heads), `left_over` rounding or, where
    the score is not additive, the error of the approximation.
    """
    parts = reading.parts
    both = np.stack([latents.chosen[row], latents.rejected[row]])
    given, seen = parts.contributions(both), parts.activations(both)
    rest = parts.features_ == REST
    difference = np.where(rest, 0.0, given[0] - given[1])
    order = np.argsort(-np.abs(difference), kind="stable")[:LISTED]
    listed = order[difference[order] != 0]
    others = ~rest
    others[listed] = False
    score = [float(side[row]) for side in scores]
    sums = given.sum(1)
    return {
        "row": row,
        "score": _sides(score),
        "base": parts.base_,
        "features": [
            {
                **_named(reading, i),
                "weight": _number(found.weight[i]),
                "activation": _sides(seen[:, i]),
                **_sides(given[:, i]),
            }
            for i in listed
        ],
        "others": {"features": int((given[:, others] != 0).any(0).sum()), **_sides(given[:, others].sum(1))},
        "rest": _sides(given[:, rest].sum(1)) if rest.any() else None,
        "left_over": _sides([score[side] - parts.base_ - sums[side] for side in (0, 1)]),
    }


def share(found: Figures, index: Any) -> float:
    """The share of the features at `index` in the strengths of all."""
    total = found.strength.sum()
    return float(found.strength[index].sum() / total) if total else 0.0


def _named(reading: Reading, index: int) -> dict[str, Any]:
    return {"feature": int(reading.parts.features_[index]), "view": reading.parts.feature_views_[index]}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sides(values: Any) -> dict[str, float]:
    chosen, rejected = map(float, values)
    return {"chosen": chosen, "rejected": rejected, "difference": chosen - rejected}
