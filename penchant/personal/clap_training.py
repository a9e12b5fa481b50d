"""Trains CLaP on several responses a prompt, in two stages, and resumes what was interrupted."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.checkpoint import load_run, read_facts, save_run
from penchant.errors import InputError
from penchant.personal.clap import DRAWS, Clap, ClapTerms
from penchant.personal.groups import Group

CHECKPOINT = "training.safetensors"


@dataclass(frozen=True)
class ClapSettings:
    """How CLaP is trained."""

    epochs: int = 1
    prompts: int = 8
    """Prompts a step."""
    learning_rate: float = 1e-3
    """Of AdamW; it rises over the first twentieth of the steps and falls to 0 by cosine."""
    first_stage: float = 0.5
    """Share of the steps with the gradient-only skip and without the contrastive term."""
    others: int = 3
    """Responses that each is told apart from in the second stage; 0 leaves the contrastive term out."""
    unfreeze: bool = False
    """Whether the LLM's layers are trained too in the second stage (the paper's main variant). Its input embeddings, by
    which the encoder reads as well, its last norm and its vocabulary's head stay as they are."""
    llm_learning_rate: float = 1e-5
    """Of the LLM's layers, with the same rise and fall."""
    standard_kl: bool = False
    clip: float = 1.0
    """Largest norm of a step's gradient, by all that trains."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("learning_rate", "llm_learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.first_stage <= 1:
            raise InputError(f"first_stage is {self.first_stage}; give a share from 0 to 1.")
        if self.unfreeze and self.first_stage == 1:
            raise InputError("unfreeze is for the second stage, and first_stage is 1; give a smaller share.")
        if self.others < 0:
            raise InputError(f"others is {self.others}; give 0 or more.")

    def check_llm(self, dtype: torch.dtype) -> None:
        """InputError for an LLM that is to be trained in a type in which its small steps are rounded away."""
        if self.unfreeze and dtype != torch.float32:
            raise InputError(
                f"unfreeze trains the LLM, which is loaded as {str(dtype).removeprefix('torch.')}; give dtype float32."
            )


def train_clap(
    clap: Clap,
    groups: Sequence[Group],
    settings: ClapSettings,
    folder: str | Path | None = None,
    *,
    save_seconds: float = 60.0,
    show_progress: bool = True,
) -> list[dict[str, float]]:
    """Train the encoder, the adapter and the skip, and the LLM's layers if asked to. Returns a row of figures a step.

    A run that was killed goes on from the checkpoint in `folder` and ends with the very weights of one that was not.
    InputError if that checkpoint is of other settings or texts, or the LLM is to be trained and is not float32.
    """
    run = Trainer(clap, groups, settings)
    path = Path(folder) / CHECKPOINT if folder is not None else None
    if path is not None and path.is_file():
        run.resume(path)
    saved, done = time.monotonic(), len(run.log)
    with tqdm(total=run.steps, initial=done, unit="step", desc="CLaP", disable=not show_progress, leave=False) as bar:
        while len(run.log) < run.steps:
            last = run.step()
            bar.set_postfix_str(f"{last['nats_per_token']:.3f} nats a token, KL {last['kl']:.2f}")
            bar.update()
            if path is not None and (len(run.log) == run.steps or time.monotonic() - saved > save_seconds):
                run.save(path)
                saved = time.monotonic()
    run.release()
    return run.log


class Trainer:
    """One run; `train_clap` drives it. Nothing drops out: encoder and LLM run as they do when they are used.

    Attributes: `steps` of the whole run; `log`, a row for each step done; `adam`; `kept`, the modules whose weights a
    checkpoint must hold.
    """

    def __init__(self, clap: Clap, groups: Sequence[Group], settings: ClapSettings) -> None:
        settings.check_llm(clap.backbone.dtype)
        self.clap, self.groups, self.settings = clap.eval(), groups, settings
        self.steps = settings.epochs * math.ceil(len(groups) / settings.prompts)
        self.log: list[dict[str, float]] = []
        self.layers = clap.backbone.layers  # the LLM's own
        own = [p for p in clap.parameters() if p.requires_grad]
        parts: list[dict[str, Any]] = [{"params": own, "peak": settings.learning_rate}]
        self.kept = nn.ModuleDict({"clap": clap})
        if settings.unfreeze:
            parts.append({"params": list(self.layers.parameters()), "peak": settings.llm_learning_rate})
            self.kept["llm"] = self.layers
        self.adam = torch.optim.AdamW(parts, weight_decay=0.01)

    def step(self) -> dict[str, float]:
        """One step on the next prompts; all that is random in it follows from the seed and its number."""
        number = len(self.log)
        first = number / self.steps < self.settings.first_stage
        random = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + 17) * 1_000_003 + number)
        self.layers.requires_grad_(self.settings.unfreeze and not first)
        self.adam.zero_grad()
        rows: list[dict[str, float]] = []
        batch = self._batch(number)
        for items in batch:
            terms = self._terms(items, first, random)
            (terms.loss / len(batch)).backward()
            rows.append(
                {
                    "loss": float(terms.loss.detach()),
                    "nats_per_token": float(terms.reconstruction.detach()) / terms.tokens,
                    "kl": float(terms.kl.detach()),
                    "contrastive": float(terms.contrastive.detach()),
                }
            )
        for part in self.adam.param_groups:
            part["lr"] = part["peak"] * self._rate(number)
        trained = [
            p for part in self.adam.param_groups for p in part["params"]
        ]  # those without a gradient do not count
        norm = nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self.adam.step()
        self.log.append(
            {**{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}, "gradient": float(norm)}
        )
        return self.log[-1]

    def _batch(self, number: int) -> list[Group]:
        """The prompts of a step."""
        epoch, place = divmod(number, self.steps // self.settings.epochs)
        seed, size = self.settings.seed * 1_000_003 + epoch, self.settings.prompts
        order = torch.randperm(len(self.groups), generator=torch.Generator().manual_seed(seed))
        return [self.groups[i] for i in order[place * size : (place + 1) * size].tolist()]

    def _terms(self, items: Group, first: bool, random: torch.Generator) -> ClapTerms:
        """The loss of one prompt's responses, in the first stage or in the second."""
        n, device = len(items), self.clap.backbone.device
        noise = torch.randn(DRAWS, n, self.clap.latent, generator=random).to(device)
        others = None
        if self.settings.others and not first:
            others = _others(n, min(self.settings.others, n - 1), random).to(device)
        found: ClapTerms = self.clap(items, noise, others, skip=first, standard_kl=self.settings.standard_kl)
        return found

    def _rate(self, number: int) -> float:
        """Of the learning rates, the share that a step has."""
        rise = min(1.0, (number + 1) / max(1.0, self.steps / 20))
        return rise * 0.5 * (1 + math.cos(math.pi * number / self.steps))

    def release(self) -> None:
        """Freeze the LLM again and let go of all gradients."""
        self.layers.requires_grad_(False)
        self.adam.zero_grad()

    def save(self, path: Path) -> None:
        save_run(path, self.kept, self.adam, {"made_with": self._made_with(), "log": self.log})

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote; InputError if that was a run of other settings, texts or LLM."""
        self.log = read_facts(path, self._made_with())["log"]
        load_run(path, self.kept, self.adam)

    def _made_with(self) -> dict[str, Any]:
        texts = hashlib.blake2b(b"".join(item.key for group in self.groups for item in group), digest_size=16)
        backbone = self.clap.backbone
        llm = {"llm": backbone.revision, "dtype": str(backbone.dtype).removeprefix("torch.")}
        return {**asdict(self.settings), **llm, "texts": texts.hexdigest(), "latent": self.clap.latent}


def _others(n: int, count: int, random: torch.Generator) -> Tensor:
    """Int [n, count]: for each of n responses, `count` different ones that are not itself."""
    drawn = torch.rand(n, n, generator=random)
    drawn.fill_diagonal_(2.0)
    return drawn.argsort(1)[:, :count]
