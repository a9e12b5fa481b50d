"""What there is to browse in a model: its features, codes and people, read on the demo pairs that Penchant carries."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from penchant.encode import encode_pairs
from penchant.errors import InputError
from penchant.explain import explain
from penchant.explain.pair import code_names, codes_of_pair, features_of_pair
from penchant.explain.reading import Reading
from penchant.heads import CodedHead
from penchant.latents import LatentPairs
from penchant.pairs import load_pairs
from penchant.reward_model import RewardModel

DEMO = Path(str(files("penchant") / "data" / "demo.jsonl.gz"))
PAIRS = 60
"""Demo pairs that are read."""
SHOWN = 3
"""Pairs shown of a code or a person."""


class Browser:
    """One reward model to look into; everything here blocks, and what takes long is done once.

    Attributes: `rm`; `reading`, its score as a sum of features, None where its head has none; `names` of features by
    their numbers, known once `features` were read.
    """

    def __init__(self, rm: RewardModel) -> None:
        self.rm = rm
        self.reading: Reading | None = None
        self.names: dict[str, str] = {}
        with suppress(InputError):  # a head without features, or one whose SAE is not here
            self.reading = Reading(rm)

    @property
    def coded(self) -> CodedHead | None:
        """The head, where it has several codes."""
        head = self.rm.head
        return head if isinstance(head, CodedHead) and len(head.codebook_) > 1 else None

    @property
    def reads(self) -> str:
        """Which states the score is made from, in a sentence."""
        where = {"last": "at the answer’s last token", "mean": "averaged over the answer’s tokens"}
        where |= {"prompt": "averaged over the prompt’s tokens", "prompt_last": "at the prompt’s last token"}
        places: dict[str, list[str]] = {}
        for view in self.rm.recipe.views:
            layer, pooling = view.split(":")
            places.setdefault(where[pooling], []).append(layer)
        alike: dict[tuple[str, ...], list[str]] = {}
        for place, layers in places.items():
            alike.setdefault(tuple(layers), []).append(place)
        listed = [f"at {_layers(layers)}, {' and '.join(read)}" for layers, read in alike.items()]
        return f"The score is made from the LLM’s states {'; '.join(listed)}."

    def pair(self, prompt: str, first: str, second: str) -> dict[str, Any]:
        """Which features, or codes, speak for each of two answers; {} for a head that has neither."""
        if self.reading is not None:
            found = features_of_pair(self.rm, self.reading, prompt, first, second)
            for one in found["features"]:
                one["name"] = self.names.get(str(one["feature"])) or None
            return {"features": found}
        if self.coded is not None:
            return {"codes": codes_of_pair(self.rm, self.coded, prompt, first, second)}
        return {}

    @cached_property
    def pairs(self) -> Dataset:
        """The demo pairs that are read: spread evenly over all, one a prompt and person."""
        everything = load_pairs(DEMO)
        return everything.select(np.linspace(0, len(everything) - 1, PAIRS).round().astype(int))

    @cached_property
    def latents(self) -> LatentPairs:
        """Of the demo pairs."""
        return encode_pairs(self.rm.backbone, self.pairs, self.rm.recipe.views, show_progress=False)

    @cached_property
    def features(self) -> dict[str, Any]:
        """What `explain` says of the demo pairs, but for the single pairs. InputError for a head without features."""
        with TemporaryDirectory() as cache:
            found = explain(self.rm, self.pairs, cache=cache, show_progress=False)
        self.names = {number: latent["name"] for number, latent in found["latents"].items()}
        told = {name: found[name] for name in ("model", "features", "others", "rest", "latents", "tokens")}
        return told | {"pairs": len(self.pairs)}

    @cached_property
    def codes(self) -> list[dict[str, Any]]:
        """Of each code its name, its mean weight, how often its taste alone orders the pairs as all together do, and
        the prompts that call for it most with the answers it prefers."""
        assert self.coded is not None
        head, sides = self.coded, (self.latents.chosen, self.latents.rejected)
        weight = (head.prior(sides[0]) + head.prior(sides[1])) / 2
        tastes = head.tastes(sides[0]) - head.tastes(sides[1])
        together = head.score(sides[0]) > head.score(sides[1])
        found = []
        for k, name in enumerate(code_names(head)):
            called_for = self._first_prompts(np.argsort(-weight[:, k], kind="stable"))
            found.append(
                {
                    "name": name,
                    "weight": float(weight[:, k].mean()),
                    "agrees": float(((tastes[:, k] > 0) == together).mean()),
                    "pairs": [self._preferred(i, tastes[i, k]) | {"weight": float(weight[i, k])} for i in called_for],
                }
            )
        return found

    def person(self, rm: RewardModel) -> dict[str, Any]:
        """How one person's reward model orders the demo pairs beside everybody's, and where they differ most."""
        own, all_ = (model.probability(self._scores(model)).astype(np.float64) for model in (rm, self.rm))
        apart = self._first_prompts(np.argsort(-np.abs(own - all_), kind="stable"))
        return {
            "pairs": len(own),
            "agrees": int(((own > 0.5) == (all_ > 0.5)).sum()),
            "differ": [{**self._texts(i), "person": float(own[i]), "everybody": float(all_[i])} for i in apart],
        }

    def _scores(self, rm: RewardModel) -> NDArray[np.float32]:
        return np.concatenate([rm.head.score(side) for side in (self.latents.chosen, self.latents.rejected)])

    def _first_prompts(self, order: NDArray[np.int64]) -> list[int]:
        """The first rows of `order` with different prompts, SHOWN of them."""
        prompts = self.pairs["prompt"][:]
        rows: dict[str, int] = {}
        for i in order.tolist():
            rows.setdefault(prompts[i], i)
        return list(rows.values())[:SHOWN]

    def _texts(self, row: int) -> dict[str, str]:
        pair = self.pairs[row]
        return {"prompt": pair["prompt"], "first": pair["chosen"], "second": pair["rejected"]}

    def _preferred(self, row: int, margin: float) -> dict[str, str]:
        texts = self._texts(row)
        better, worse = ("first", "second") if margin > 0 else ("second", "first")
        return {"prompt": texts["prompt"], "better": texts[better], "worse": texts[worse]}


def _layers(numbers: tuple[str, ...]) -> str:
    """layer 15, layers 15 and 20, layers 15, 20 and 24"""
    *others, last = numbers
    return f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
