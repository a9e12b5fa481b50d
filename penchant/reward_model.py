"""A reward model: a recipe that turns text into latents, and a head that scores them."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import HfApi, snapshot_download
from numpy.typing import NDArray

from penchant import backbone as backbones
from penchant.backbone import Backbone
from penchant.chat import Text
from penchant.encode import TOKEN_BUDGET, LatentStore, MemoryStore, encode_pairs, encode_texts
from penchant.errors import InputError, RecipeMismatch
from penchant.evaluate import fit_temperature
from penchant.heads import AutoHead, CodedHead, Head, PCAHead, SAELinearHead, load_head
from penchant.heads.base import check_memory
from penchant.hub import named, pinned
from penchant.latents import Array, LatentPairs, Recipe
from penchant.model_card import model_card
from penchant.pairs import load_pairs
from penchant.responses import load_responses
from penchant.saved import read_json
from penchant.spooled import Spool
from penchant.store_views import open_store
from penchant.synthesis import Synthesizer
from penchant.synthesis.augmented import Augmented
from penchant.synthesis.training import check_synthesis, check_unlabelled, train_head
from penchant.writing import check_seal, saving

FILE = "reward_model.json"
FILES = (FILE, "config.json", "model.safetensors")
"""What is fetched of a reward model on the hub."""
CURE = "save the model again."


class RewardModel:
    """Scores a response to a prompt; higher is better, and only scores for the same prompt compare.

    Attributes:
        recipe: how text becomes a latent; only the views the head uses.
        head: the fitted head.
        temperature: P(a better than b) = sigmoid((score a - score b) / temperature), fitted on out-of-fold pairs.
        facts: what training saw and cost, for reports and the model card.
        augmented: the head and the synthesizer it was fitted with, if there was one; neither saved nor needed to score.
    """

    def __init__(
        self,
        recipe: Recipe,
        head: Head,
        temperature: float = 1.0,
        facts: dict[str, Any] | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        self.recipe, self.head, self.temperature = recipe, head, temperature
        self.facts = facts or {}
        self.augmented: Augmented | None = None
        self._backbone = backbone
        if backbone is not None:
            self._check(backbone)

    @classmethod
    def train(
        cls,
        pairs: Dataset | str | Path | list[dict[str, Any]],
        *,
        model: str | Backbone = backbones.DEFAULT,
        head: Head | None = None,
        views: Sequence[str] | None = None,
        cache: str | Path | None = None,
        dtype: str = "auto",
        max_length: int = 2048,
        token_budget: int = TOKEN_BUDGET,
        synthesis: str | Synthesizer | None = None,
        factor: int = 8,
        unlabelled: str | Path | list[dict[str, Any]] | None = None,
        memory_gb: float | None = None,
        show_progress: bool = True,
    ) -> RewardModel:
        """Encode the pairs (each text once, ever: latents are cached) and fit a head.

        Args:
            pairs: from `load_pairs`, or what `load_pairs` accepts.
            model: backbone, or its hub id, folder or GGUF file.
            head: an unfitted head; by default `AutoHead`, which picks views and strength by cross-validation.
            views: "LAYER:POOLING" latents to encode; by default three layers, each with both poolings.
            cache: folder of the latents' cache; by default $PENCHANT_CACHE or ~/.cache/penchant.
            dtype, max_length: how the backbone is loaded, unless `model` is one already.
            token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
            synthesis, factor: as in `fit`.
            unlabelled: responses that nobody judged, rows {"prompt", "response"} or a JSON lines file of them, for the
                synthesizer and for heads that learn from them (auto, context).
            memory_gb: gigabytes of latents in memory at most, by default an eighth of the machine's; pairs that take
                more are read from files beside the cache, which the linear, mlp and auto heads can do.

        Raises:
            InputError: pairs, views, backbone or unlabelled are not usable; the sentence names the row.
        """
        check_synthesis(synthesis, factor, head)
        others = None
        if unlabelled is not None:
            check_unlabelled(synthesis, head)
            others = load_responses(unlabelled)
        data = pairs if isinstance(pairs, Dataset) else load_pairs(pairs)
        head = head or AutoHead()
        backbone = model if isinstance(model, Backbone) else Backbone.load(model, dtype=dtype, max_length=max_length)
        chosen_views = tuple(views) if views else head.default_views(backbone)
        recipe, spool = backbone.recipe(chosen_views), Spool.beside(cache, memory_gb)
        head.check_encoding(backbone, recipe, len(data))
        check_memory(head, recipe, len(data), spool.limit)
        store = open_store(cache, recipe)
        latents = encode_pairs(
            backbone,
            data,
            chosen_views,
            store,
            token_budget=token_budget,
            show_progress=show_progress,
            label="encode training pairs",
            spool=spool,
        )
        plain = None
        if others is not None:
            label = "encode unlabelled responses" if show_progress else None
            plain = encode_texts(backbone, *others, chosen_views, store, token_budget=token_budget, label=label)
        return cls.fit(latents, head, backbone, synthesis=synthesis, factor=factor, unlabelled=plain)

    @classmethod
    def fit(
        cls,
        latents: LatentPairs,
        head: Head | None = None,
        backbone: Backbone | None = None,
        *,
        synthesis: str | Synthesizer | None = None,
        factor: int = 8,
        unlabelled: Array | None = None,
    ) -> RewardModel:
        """Fit a head on latents that are there already.

        Args:
            latents: n pairs of latents [n, d].
            head: an unfitted head; by default `AutoHead`.
            backbone: the LLM they came from, kept for scoring.
            synthesis: "lens", "pca", "noise", "gaussian" or "cross" adds synthetic pairs of that kind, a `Synthesizer`
                its own, and "auto" those that clearly lower the loss of held-out real pairs, if any; none by default.
            factor: pairs for each real one, itself included.
            unlabelled: latents [m, d] of responses that nobody judged.

        Raises:
            InputError: the pairs cannot be learned from, or an argument is out of range.
        """
        start = time.perf_counter()
        found = train_head(head, latents, synthesis, factor, unlabelled)
        temperature = fit_temperature(found.margins) if found.margins is not None else 1.0
        facts: dict[str, Any] = {"cost": {**latents.meta, "fit_seconds": time.perf_counter() - start}}
        facts["head"] = found.head_facts()
        if latents.mapped:
            facts["memory"] = memory_facts(latents, found.chosen_on)
        if found.facts:
            facts["synthesis"] = found.facts
        if backbone is not None:
            facts["backbone"] = backbone_facts(backbone)
        rm = cls(latents.select(found.views).recipe, found.head, temperature, facts, backbone)
        rm.augmented = found.augmented
        return rm

    @property
    def backbone(self) -> Backbone:
        """The frozen LLM, loaded when first needed and cut above the highest layer the head uses; one of the hub at the
        recipe's commit."""
        if self._backbone is None:
            recipe = self.recipe
            revision = pinned(recipe.revision)
            found = Backbone.load(recipe.model, dtype=recipe.dtype, revision=revision, max_length=recipe.max_length)
            self._check(found)
            found.cut(max(self.recipe.layers))
            self._backbone = found
        return self._backbone

    def _check(self, backbone: Backbone) -> None:
        here = backbone.recipe(self.recipe.views)
        if different := self.recipe.differences(here):
            told = "; ".join(
                f"{name} {getattr(self.recipe, name)} there, {getattr(here, name)} here" for name in different
            )
            raise RecipeMismatch(f"this reward model was trained with another backbone or chat format: {told}.")

    def score(
        self,
        prompts: Text | Sequence[Text],
        responses: Text | Sequence[Text],
        *,
        store: LatentStore | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> NDArray[np.float32]:
        """Float32 scores [n] of response i to prompt i; one prompt may stand for all.

        A prompt or response is a string or a list of messages. Raises InputError for counts that do not match.
        """
        answers = _as_list(responses)
        asked = _as_list(prompts)
        if len(asked) == 1:
            asked = asked * len(answers)
        if len(asked) != len(answers):
            raise InputError(f"{len(asked)} prompts for {len(answers)} responses; give one prompt a response, or one.")
        check_texts(answers)
        if not answers:
            return np.zeros(0, np.float32)
        store = store if store is not None else MemoryStore()
        latents = encode_texts(self.backbone, asked, answers, self.recipe.views, store, token_budget=token_budget)
        return self.head.score(latents)

    def compare(
        self, prompts: Text | Sequence[Text], first: Text | Sequence[Text], second: Text | Sequence[Text]
    ) -> NDArray[np.float32]:
        """Float32 [n]: the calibrated probability that `first` is the better response."""
        left, right = _as_list(first), _as_list(second)
        if len(left) != len(right):
            raise InputError(f"{len(left)} first responses for {len(right)} second ones; give as many of each.")
        asked = _as_list(prompts)
        asked = asked * len(left) if len(asked) == 1 else asked
        if len(asked) != len(left):
            raise InputError(f"{len(asked)} prompts for {len(left)} comparisons; give one prompt for each, or one.")
        return self.probability(self.score([*asked, *asked], [*left, *right]))

    def probability(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [n], calibrated, from the scores [2 n] of n first responses and then of n second ones."""
        first, second = np.split(scores.astype(np.float64), 2)
        return np.asarray(0.5 * (1 + np.tanh((first - second) / self.temperature / 2)), np.float32)

    def score_latents(self, latents: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
        """Scores [n] of latents [n, recipe.dim]; RecipeMismatch if they were not made as this model's were."""
        if self.recipe.differences(recipe):
            raise RecipeMismatch(f"the latents were made as {recipe}, this reward model needs {self.recipe}.")
        return self.head.score(latents[:, recipe.columns(self.recipe.views)])

    def steer(self, feature: int, factor: float) -> RewardModel:
        """This model with the weight of one SAE feature, `factor` times what was learned; `self` stays as it is.

        Responses in which the feature is silent keep their score bit for bit, and the temperature stays. The factor
        replaces an earlier one of that feature, and 1 undoes it; `head.steering_` lists them, and is saved.

        Raises InputError for a head other than "sae", a feature without a weight, or a factor that is not finite.
        """
        if not isinstance(self.head, SAELinearHead):
            raise InputError(f"a {self.head.name} head has no features to steer; train with --head sae --sae FOLDER")
        head = self.head.steer(feature, factor)
        facts = {**self.facts, "steering": {str(latent): factor for latent, factor in head.steering_.items()}}
        return RewardModel(self.recipe, head, self.temperature, facts, self._backbone)

    def adapt(
        self,
        pairs: LatentPairs | Dataset | str | Path | list[dict[str, Any]],
        *,
        store: LatentStore | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> RewardModel:
        """This model with the taste of one person or subset, from 5 to 50 pairs of theirs; `self` stays as it is.

        The pairs are latents or what `train` takes. The temperature stays: with the head's default weighting, margins
        of adapted heads were measured to need no other. Figures of the pooled model are left out of the facts, as they
        are not those of the adapted one; judge that on other pairs of the same person (`heads.pca.adaptation_split`).

        Raises InputError for a head other than "pca" or "coded", or pairs that nothing can be learned from,
        RecipeMismatch for latents made another way.
        """
        if not isinstance(self.head, PCAHead | CodedHead):
            raise InputError(f"a {self.head.name} head cannot adapt to a few pairs; train with --head pca or coded")
        if not isinstance(pairs, LatentPairs):
            data = pairs if isinstance(pairs, Dataset) else load_pairs(pairs)
            pairs = encode_pairs(
                self.backbone, data, self.recipe.views, store, token_budget=token_budget, show_progress=False
            )
        elif self.recipe.differences(pairs.recipe):
            raise RecipeMismatch(f"the latents were made as {pairs.recipe}, this reward model needs {self.recipe}.")
        head = self.head.adapt(pairs.select(self.recipe.views))
        facts: dict[str, Any] = {"adapted": len(pairs)}
        facts |= {name: self.facts[name] for name in ("backbone", "head") if name in self.facts}
        if "head" in facts:
            facts["head"] = {**facts["head"], "cv_accuracy": None}
        return RewardModel(self.recipe, head, self.temperature, facts, self._backbone)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the head, the recipe, the temperature and a model card into `folder`; no LLM weights, no pickle.

        Raises PenchantError where the disk refuses; what the folder held before is whole then, or refused.
        """
        with saving(folder) as path:
            self.head.save_pretrained(path)
            saved = {"recipe": self.recipe.to_dict(), "temperature": self.temperature, "facts": self.facts}
            (path / FILE).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
            (path / "README.md").write_text(model_card(self.recipe, self.facts), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, backbone: Backbone | None = None
    ) -> RewardModel:
        """Load what `save_pretrained` wrote, from a folder or a hub id; scores are equal bit for bit.

        `revision` is a hub model's branch, tag or commit, which may also stand in its name, "org/name@REVISION".
        `backbone` serves a model whose LLM lies elsewhere now; it must be the same LLM. Raises RecipeMismatch if the
        backbone is another than the model was trained with, InputError if there is no reward model.
        """
        plain, asked = named(str(name), revision)
        path = Path(plain)
        if not path.exists() and plain.count("/") == 1 and not plain.startswith((".", "/", "~")):
            try:
                path = Path(snapshot_download(plain, revision=asked, allow_patterns=list(FILES)))
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"there is no folder {str(name)!r}, and the hub gives none: {reason}") from error
        if not (path / FILE).is_file():
            raise InputError(f"there is no reward model in {str(name)!r}: {FILE} is missing; give the folder it is in.")
        check_seal(path, "save the model again")
        saved = read_json(path / FILE, CURE)
        try:
            recipe = Recipe.from_dict(saved["recipe"])
            facts, temperature = saved["facts"], float(saved["temperature"])
            if not isinstance(facts, dict) or not 0 < temperature < math.inf:
                raise ValueError("facts are no object, or the temperature is no number above 0")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path / FILE} is damaged ({error}); {CURE}") from error
        head = load_head(path)
        return cls(recipe, head, temperature, facts, backbone)

    def export(self, folder: str | Path) -> Path:
        """Write a plain transformers classifier; see `penchant.export` for when that is exact, else InputError."""
        from penchant.export import export_sequence_classifier

        return export_sequence_classifier(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload to the hub (private unless told otherwise) and return the address of the commit."""
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload reward model"))


def memory_facts(latents: LatentPairs, chosen_on: int | None) -> dict[str, Any]:
    """Of pairs in files: how large they are, on how many of them views and kind of head were chosen, and a sentence."""
    says = f"The latents of {len(latents):,} training pairs, {latents.nbytes / 1e9:.3g} GB, were read from files."
    if chosen_on is not None:
        says += f" Views and kind of head were chosen on {chosen_on:,} of the pairs."
    return {"pairs": len(latents), "bytes": latents.nbytes, "chosen_on": chosen_on, "says": says}


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """What the report says of the LLM."""
    return {
        "name": backbone.name,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "dtype_reason": backbone.dtype_reason,
        "layers_run": backbone.layers_run,
        "parameters": backbone.parameters,
    }


def _as_list(texts: Text | Sequence[Text]) -> list[Text]:
    """One text or a list of them as a list; a list of messages is one text."""
    if isinstance(texts, str):
        return [texts]
    if texts and isinstance(texts[0], dict):
        return [texts]  # type: ignore[list-item]  # a list of dicts is one conversation
    return list(texts)  # type: ignore[arg-type]


def check_texts(responses: Sequence[Text]) -> None:
    """InputError for a response without a text."""
    for row, response in enumerate(responses):
        if not _has_text(response):
            raise InputError(f"response {row} is empty; leave it out or give it a text.")


def _has_text(text: Text) -> bool:
    return bool(text.strip()) if isinstance(text, str) else any(str(m.get("content") or "").strip() for m in text)
