"""Everything together: one frozen LLM with CLaP's encoder and adapter, what all people share, and the people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penchant.backbone import DEFAULT, load_whole
from penchant.chat import Text
from penchant.errors import InputError, PenchantError
from penchant.generation import Generator
from penchant.hub import named
from penchant.personal.clap import AdapterKind, Clap
from penchant.personal.clap_figures import evaluate_clap, plain_log_probs
from penchant.personal.clap_training import ClapSettings, train_clap
from penchant.personal.encoder import LATENT
from penchant.personal.groups import Group, check_responses, groups_of
from penchant.personal.people import KEPT, People
from penchant.personal.reach import LIMIT, Reach
from penchant.personal.reading import save_z
from penchant.personal.saving import load_llm, load_weights, save_llm
from penchant.personal.start import principal_start
from penchant.processes import asked_to_shard, is_main, told, wait
from penchant.processes import start as start_processes
from penchant.saved import read_json, read_tensors
from penchant.writing import check_seal, save_tensors, seal, write_text

CONFIG, WEIGHTS = "config.json", "clap.safetensors"
NEEDED = "base", "asked_revision", "revision", "dtype", "max_length", "latent", "adapter", "reach", "digest"
"""What `load` takes from CONFIG."""
HELD_OUT, MOST_HELD_OUT = 0.1, 10
"""Share of the prompts on which CLaP is judged, at least one, and most of them: each response is read under the z of
all others to its prompt."""


class PersonalLLM(People):
    """One frozen LLM that speaks to each person in their taste, and scores by it.

    Attributes: those of `People`; `generator`; `reach`, how far z may go; `facts`, what config.json says; `folder`.
    """

    def __init__(
        self,
        clap: Clap,
        generator: Generator,
        facts: dict[str, Any],
        folder: Path,
    ) -> None:
        super().__init__(clap, folder, facts["digest"])
        self.generator, self.facts = generator, facts
        slope, bend, metric = (facts["reach"][name] for name in ("slope", "bend", "metric"))
        self.reach = Reach(torch.tensor(slope), bend, torch.tensor(metric))

    @classmethod
    def pretrain(
        cls,
        prompts: Sequence[Text],
        folder: str | Path,
        responses: Sequence[Sequence[str]] | None = None,
        *,
        model: str = DEFAULT,
        dtype: str = "auto",
        max_length: int = 2048,
        latent: int = LATENT,
        adapter: AdapterKind = "shift",
        answers: int = 8,
        max_new_tokens: int = 48,
        temperature: float = 1.0,
        settings: ClapSettings | None = None,
        cache: str | Path | None = None,
        seed: int = 0,
        show_progress: bool = True,
    ) -> PersonalLLM:
        """Train CLaP on several responses a prompt, the LLM's own or those given; a killed run goes on where it was.

        With `settings.unfreeze` the LLM is trained too, in float32, and lies in the folder then. Under `accelerate
        launch` the processes share the work, and the main one writes what is kept.

        Args:
            responses: two or more different texts for each prompt; None samples `answers` texts for each from the LLM.
            dtype: as in `Backbone.load`; "auto" is float32 where the LLM is trained.
            adapter: what z does to the LLM, "shift" or "positions" (the paper's).
            cache: folder of the latents' cache, for the start (`settings.begin_epochs`).

        Raises InputError for fewer than two prompts, responses that do not fit them, or where no prompt gets two
        different answers.
        """
        target = Path(folder)
        model, revision = named(model)
        if len(prompts) < 2:
            raise InputError(f"{len(prompts)} prompts are too few; give two or more, so that one can be held out.")
        if responses is not None:
            check_responses(prompts, responses)
        settings = settings or ClapSettings(seed=seed)
        if asked_to_shard():
            raise InputError(
                "pretrain cannot shard the LLM: prompts are read once and used through their cache, for which FSDP does"
                " not put a layer's weights together again; launch without FSDP."
            )
        start_processes()
        show_progress = show_progress and is_main()
        dtype = "float32" if settings.unfreeze and dtype == "auto" else dtype
        llm, backbone = load_whole(model, dtype, revision, max_length)
        settings.check_llm(backbone.dtype)
        torch.manual_seed(seed)
        clap = Clap(llm, backbone, latent, adapter)
        generator = Generator(llm, backbone, clap.adapter)
        target.mkdir(parents=True, exist_ok=True)
        texts, sampling = responses, None
        if texts is None:
            texts = generator.sample(
                prompts,
                answers=answers,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=1.0,
                seed=seed,
                file=target / "answers.jsonl",
                show_progress=show_progress,
                shared=True,
            )
            sampling = {**generator.cost.to_dict(), "answers_each": answers, "max_new_tokens": max_new_tokens}
        groups = groups_of(clap, prompts, texts, sampled=responses is None)
        train, held_out = _split(groups, seed)
        plain = plain_log_probs(clap, held_out) if is_main() else None
        start = principal_start(clap, train, cache, show_progress) if settings.begin_epochs else None
        log = train_clap(clap, train, settings, target, start, show_progress=show_progress)
        figures = told(evaluate_clap(clap, held_out, plain=plain) if is_main() else None)
        weights = _weights(clap)
        reach = Reach.of(clap.eval(), generator, prompts, train, seed, show_progress)
        facts = {
            "base": model,
            "asked_revision": revision,
            "revision": backbone.revision,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "max_length": max_length,
            "latent": latent,
            "adapter": adapter,
            "settings": asdict(settings),
            "sampling": sampling,
            "figures": figures,
            "reach": {"slope": reach.slope.tolist(), "bend": reach.bend, "metric": reach.metric.tolist()},
            "log": log,
            "digest": _digest(weights),
        }
        if not is_main():
            wait()
            return cls(clap, generator, facts, target)
        if settings.unfreeze:
            facts |= save_llm(llm, backbone, target)
        if start is not None and not settings.epochs:  # else z has moved
            items = [item for group in train for item in group]
            save_z(target / KEPT, items, torch.cat(start.targets), start.projection)
        save_tensors(target / WEIGHTS, weights)
        write_text(target / CONFIG, json.dumps(facts, indent=1) + "\n")
        seal(target, [name for name in (CONFIG, WEIGHTS, KEPT) if (target / name).is_file()])
        made = cls(clap, generator, facts, target)
        wait()
        return made

    @classmethod
    def load(cls, folder: str | Path) -> PersonalLLM:
        """The system that `pretrain` made.

        Raises InputError where there is none, or an older Penchant's, RecipeMismatch where its LLM is another.
        """
        target = Path(folder)
        facts = checked_facts(target)
        check_seal(target, "run pretrain again with the same settings and folder")
        weights = read_tensors(target / WEIGHTS, "pretrain anew.")
        llm, backbone = load_llm(facts, target)
        try:
            clap = Clap(llm, backbone, facts["latent"], facts["adapter"])
            load_weights(clap, weights, target / WEIGHTS)
            return cls(clap, Generator(llm, backbone, clap.adapter), facts, target)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, PenchantError):
                raise
            raise InputError(f"{target / CONFIG} is damaged ({error}); pretrain anew.") from error

    def generate(
        self,
        prompts: Sequence[Text],
        user_id: str | None = None,
        *,
        answers: int = 1,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        perplexity_limit: float = LIMIT,
        show_progress: bool = False,
    ) -> list[list[str]]:
        """`answers` texts for each prompt in the taste of a person, or of nobody in particular.

        z is that of `z`, held within `reach`: where the LLM's perplexity of the answers is expected to be at most
        `perplexity_limit` times that of its own. More is more of the person, and less like the LLM.
        """
        return self.generator.sample(
            prompts,
            answers=answers,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            z=self.reach.within(self.z(prompts, user_id), perplexity_limit),
            show_progress=show_progress,
        )


def checked_facts(folder: Path) -> dict[str, Any]:
    """CONFIG of a system; InputError where there is none, or something that loading takes is missing."""
    path = folder / CONFIG
    facts = read_json(path, "pretrain anew.") if path.is_file() else {}
    if not facts.keys() & {"base", "latent"}:
        raise InputError(f"{folder} holds no personal LLM; give the folder that `pretrain` wrote.")
    reach = facts["reach"] if isinstance(facts.get("reach"), dict) else {}
    lacking = [name for name in NEEDED if name not in facts]
    lacking += [f"reach.{name}" for name in ("slope", "bend", "metric") if name not in reach]
    if lacking:
        raise InputError(f"{path} lacks {', '.join(lacking)}, as an older Penchant wrote it; run pretrain again.")
    return facts


def _split(groups: list[Group], seed: int) -> tuple[list[Group], list[Group]]:
    """Groups to train on and groups to judge by."""
    order = np.random.default_rng(seed).permutation(len(groups))
    kept = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(groups))))
    return [groups[i] for i in order[kept:]] or groups, [groups[i] for i in order[:kept]]


def _weights(clap: Clap) -> dict[str, Tensor]:
    """What is kept of training: not the skip, and nothing of the LLM's own."""
    own = {name: value for name, value in clap.state_dict().items() if not name.startswith("skip.")}
    return {name: value.detach().cpu().contiguous() for name, value in own.items()}


def _digest(weights: dict[str, Tensor]) -> str:
    """Names the system that people's weights belong to."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()
