"""A map of people: each one's z, averaged over some prompts, in the two directions in which people differ most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penchant.chat import Text
from penchant.personal.people import People

MAPPED = 1000
"""People on a map, at most."""
PROMPTS = 32
"""Prompts that z is averaged over, at most."""


def people_map(system: People, prompts: Sequence[Text], people: Sequence[str]) -> dict[str, Any]:
    """The first MAPPED of the people, and the population, in two dimensions.

    {people [{user_id, x, y}], explained [2] (the share of the spread that x and y hold), prompts}. The population is
    at (0, 0). The prior of z has deviation 1 in every direction, so x and y are in its deviations; signs are chosen so
    that the largest coordinate is positive.
    """
    asked = prompts[:PROMPTS]
    z = system.mean_z(asked, [None, *people[:MAPPED]]).double().numpy()
    _, sizes, axes = np.linalg.svd(z - z.mean(0), full_matrices=False)
    places = np.zeros((len(z), 2))
    flat = (z - z[0]) @ axes[:2].T
    places[:, : flat.shape[1]] = flat * np.where(flat.max(0) >= -flat.min(0), 1.0, -1.0)
    spread = np.zeros(2)
    spread[: len(sizes[:2])] = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-12)
    return {
        "people": [
            {"user_id": name, "x": x, "y": y} for name, (x, y) in zip(people, places[1:].tolist(), strict=False)
        ],
        "explained": spread.tolist(),
        "prompts": len(asked),
    }
