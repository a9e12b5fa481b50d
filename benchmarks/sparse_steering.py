"""Steering: one feature of a reward model on hh's harmless pairs turned up, and whose scores move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from penchant.heads import SAELinearHead
from penchant.latents import LatentPairs
from penchant.report_html import page, percent, section
from penchant.report_plots import Line, lines
from penchant.sae import SparseAutoencoder

VIEWS = ("15:last", "15:mean")
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
LEAST = 0.02
MOST = 0.5
"""Shares of the training states in which the feature must fire."""


def measure(sae: SparseAutoencoder, train: LatentPairs, test: LatentPairs) -> dict[str, Any]:
    """Mean absolute shift of the test pairs' margins by factor, where the feature fires on a side and elsewhere.

    The feature is the one to which the harmless training pairs are most sensitive (SARM's measure), among those with a
    weight for the chosen side that fire in 2% to 50% of the training states.
    """
    seen, part = train.select(VIEWS), test.select(VIEWS)
    head = SAELinearHead(sae).fit(seen)
    share = np.mean([(head.activations(side) > 0).mean(axis=0) for side in (seen.chosen, seen.rejected)], axis=0)
    fair = (share >= LEAST) & (share <= MOST) & (head.weight_ > 0)
    feature = int(head.features_[np.where(fair, head.feature_scores(seen), -np.inf).argmax()])
    own = head.features_ == feature
    fires = (head.activations(part.chosen)[:, own].any(axis=1)) | (head.activations(part.rejected)[:, own].any(axis=1))

    def margins(which: SAELinearHead) -> Any:
        return which.score(part.chosen) - which.score(part.rejected)

    plain, moved, still = margins(head), [], []
    for factor in FACTORS:
        shift = np.abs(margins(head.steer(feature, factor)) - plain)
        moved.append(float(shift[fires].mean()))
        still.append(float(shift[~fires].max()))
    return {
        "feature": feature,
        "share_of_pairs_firing": float(fires.mean()),
        "factors": list(FACTORS),
        "shift_where_it_fires": moved,
        "largest_shift_elsewhere": still,
        "pairs": len(part),
    }


def plot(found: dict[str, Any], file: Path) -> None:
    """The shifts by factor, as a page of its own."""
    picture = lines(
        [
            Line("pairs where it fires (mean)", found["factors"], found["shift_where_it_fires"]),
            Line("all other pairs (largest)", found["factors"], found["largest_shift_elsewhere"], style="other"),
        ],
        "factor on the feature's weight",
        "shift of the margin",
        y_format=lambda value: f"{value:.2g}",
    )
    says = (
        f"Feature {found['feature']} of a linear head on SAE activations, trained on hh's harmless pairs. It fires on "
        f"a side of {percent(found['share_of_pairs_firing'])} of {found['pairs']:,} test pairs; the margins of all "
        "others stay as they are, to the last bit."
    )
    body = section("steering", "Steering one feature of a reward model", says, picture).html
    file.write_text(page("Steering one feature", f"<main>{body}</main>"), encoding="utf-8")
