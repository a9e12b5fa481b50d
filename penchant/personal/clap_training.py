"""Trains CLaP on several responses a prompt, in two stages, and resumes what was interrupted.

The processes of a launch each run their share of a step's prompts, and take the step that the sum of their gradients
says; what is drawn is drawn by all of them alike.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.checkpoint import load_run, read_run, save_run
from penchant.errors import InputError
from penchant.personal.adapter import LatentShift
from penchant.personal.clap import DRAWS, FIGURES, Clap, ClapTerms
from penchant.personal.groups import Group
from penchant.personal.start import Start
from penchant.processes import is_main, share, sum_gradients, sums

BEGIN_RATE = 5e-4
"""Learning rate of the encoder while it learns z of the start."""
TOKENS_AT_ONCE = 2048
"""Response tokens that are trained on at once, copies included; bounds memory."""


@dataclass(frozen=True)
class ClapSettings:
    """How CLaP is trained; `published` is the paper's way."""

    begin_epochs: int = 4
    """Passes over the responses in which the encoder learns z of `Start`; 0 starts as the paper does."""
    epochs: int = 0
    """Passes of CLaP's own training behind that. It makes responses likelier under their z, and z less of a handle:
    where the start is good, none serves people better."""
    prompts: int = 4
    """Prompts a step."""
    learning_rate: float = 1e-3
    """Of AdamW; it rises over the first twentieth of the steps and falls to 0 by cosine."""
    encoder_rate: float = 3e-4
    """The encoder's own."""
    first_stage: float = 0.0
    """Share of the steps with the gradient-only skip and without the contrastive term."""
    others: int = 0
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
        for name, least in (("prompts", 1), ("begin_epochs", 0), ("epochs", 0), ("others", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give {least} or more.")
        if not self.begin_epochs + self.epochs:
            raise InputError("epochs and begin_epochs are both 0; give 1 or more of one of them.")
        for name in ("learning_rate", "encoder_rate", "llm_learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.first_stage <= 1:
            raise InputError(f"first_stage is {self.first_stage}; give a share from 0 to 1.")
        if self.unfreeze and not self.epochs:
            raise InputError("unfreeze is for CLaP's own epochs, and epochs is 0; give 1 or more.")
        if self.unfreeze and self.first_stage == 1:
            raise InputError("unfreeze is for the second stage, and first_stage is 1; give a smaller share.")

    @classmethod
    def published(cls, **others: Any) -> ClapSettings:
        """z from nothing, by two stages, the second with the contrastive term."""
        own = {"begin_epochs": 0, "epochs": 1, "first_stage": 0.5, "others": 3, "encoder_rate": 1e-3, "prompts": 8}
        return cls(**{**own, **others})

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
    start: Start | None = None,
    *,
    save_seconds: float = 60.0,
    show_progress: bool = True,
) -> list[dict[str, float]]:
    """Train the encoder, the adapter and the skip, and the LLM's layers if asked to. Returns a row of figures a step.

    With a `start` the adapter begins at its axes, if it is a shift, and the encoder learns its z first.

    A run that was killed goes on from the checkpoint in `folder` and ends with the very weights of one that was not.
    InputError if that checkpoint is of other settings or texts, or the LLM is to be trained and is not float32.
    """
    runs: list[Run] = []
    if start is not None:
        if isinstance(clap.adapter, LatentShift):
            clap.adapter.begin(start.axes)
        runs.append(Beginning(clap, groups, settings, start.targets))
    settings.check_llm(clap.backbone.dtype)
    if settings.epochs:
        runs.append(Training(clap, groups, settings))
    for run in runs:
        path = Path(folder) / run.file if folder is not None else None
        if path is not None and path.is_file():
            run.resume(path)
        saved, done = time.monotonic(), len(run.log)
        with tqdm(
            total=run.steps, initial=done, unit="step", desc=run.name, disable=not show_progress, leave=False
        ) as bar:
            while len(run.log) < run.steps:
                bar.set_postfix_str(run.step())
                bar.update()
                if (
                    path is not None
                    and is_main()
                    and (len(run.log) == run.steps or time.monotonic() - saved > save_seconds)
                ):
                    run.save(path)
                    saved = time.monotonic()
        run.release()
    return runs[-1].log if settings.epochs else []


class Run:
    """Steps on a few prompts each; `train_clap` drives it. Nothing drops out: all run as they do when they are used.

    Attributes: `steps` of the whole run; `log`, a row for each step done; `adam`; `kept`, the modules whose weights a
    checkpoint must hold; `name` and `file`, of the bar and of the checkpoint.
    """

    name: str
    file: str

    def __init__(
        self, clap: Clap, groups: Sequence[Group], settings: ClapSettings, epochs: int, parts: list[dict[str, Any]]
    ) -> None:
        self.clap, self.groups, self.settings = clap.eval(), groups, settings
        self.per_epoch = math.ceil(len(groups) / settings.prompts)
        self.steps = epochs * self.per_epoch
        self.log: list[dict[str, float]] = []
        self.kept = nn.ModuleDict({"clap": clap})
        self.adam = torch.optim.AdamW(parts, weight_decay=0.01)

    def step(self) -> str:
        """One step on the next prompts, and what to say of it; all that is random follows from seed and number."""
        raise NotImplementedError

    def _batch(self) -> list[int]:
        """The numbers of a step's prompts."""
        epoch, place = divmod(len(self.log), self.per_epoch)
        seed, size = self.settings.seed * 1_000_003 + epoch, self.settings.prompts
        order = torch.randperm(len(self.groups), generator=torch.Generator().manual_seed(seed))
        return order[place * size : (place + 1) * size].tolist()

    def _descend(self, row: dict[str, float]) -> None:
        """Take the step that the gradients of all processes say, and log it."""
        number = len(self.log)
        sum_gradients([p for part in self.adam.param_groups for p in part["params"]])
        rise = min(1.0, (number + 1) / max(1.0, self.steps / 20))
        for part in self.adam.param_groups:
            part["lr"] = part["peak"] * rise * 0.5 * (1 + math.cos(math.pi * number / self.steps))
        trained = [p for part in self.adam.param_groups for p in part["params"]]  # those without gradients do not count
        norm = nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self.adam.step()
        self.adam.zero_grad()
        self.log.append({**row, "gradient": float(norm)})

    def release(self) -> None:
        """Let go of what only training needs."""
        self.adam.zero_grad()

    def save(self, path: Path) -> None:
        save_run(path, self.kept, self.adam, {"made_with": self._made_with(), "log": self.log})

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote; InputError if that was a run of other settings, texts or LLM."""
        tensors, facts = read_run(path, self._made_with())
        load_run(path, tensors, self.kept, self.adam)
        self.log = facts["log"]

    def _made_with(self) -> dict[str, Any]:
        texts = hashlib.blake2b(b"".join(item.key for group in self.groups for item in group), digest_size=16)
        backbone = self.clap.backbone
        llm = {"llm": backbone.revision, "dtype": str(backbone.dtype).removeprefix("torch.")}
        of_z = {"latent": self.clap.latent, "adapter": type(self.clap.adapter).__name__}
        return {**asdict(self.settings), **llm, "texts": texts.hexdigest(), **of_z}


class Beginning(Run):
    """The encoder learns z of `Start`: L = -log q(z | x, y), without a pass of the LLM."""

    name, file = "read z", "beginning.safetensors"

    def __init__(self, clap: Clap, groups: Sequence[Group], settings: ClapSettings, targets: Sequence[Tensor]) -> None:
        own = [p for p in clap.posterior.parameters() if p.requires_grad]
        super().__init__(clap, groups, settings, settings.begin_epochs, [{"params": own, "peak": BEGIN_RATE}])
        self.targets = targets

    def step(self) -> str:
        batch = self._batch()
        own = batch[share(len(batch))]
        found = 0.0
        if own:
            z = torch.cat([self.targets[i] for i in own]).to(self.clap.backbone.device)
            loss = -self.clap.read([item for i in own for item in self.groups[i]]).log_prob(z).mean()
            loss = loss * (len(z) / sum(len(self.groups[i]) for i in batch))  # the mean over all the responses
            loss.backward()
            found = float(loss.detach())
        (found,) = sums([found])
        self._descend({"loss": found})
        return f"{found:.2f} nats"


class Training(Run):
    """CLaP's two stages."""

    name, file = "CLaP", "training.safetensors"

    def __init__(self, clap: Clap, groups: Sequence[Group], settings: ClapSettings) -> None:
        settings.check_llm(clap.backbone.dtype)
        reader = [p for p in clap.posterior.parameters() if p.requires_grad]
        rest = [p for part in (clap.adapter, clap.skip) for p in part.parameters()]
        parts: list[dict[str, Any]] = [
            {"params": rest, "peak": settings.learning_rate},
            {"params": reader, "peak": settings.encoder_rate},
        ]
        self.layers = clap.backbone.layers  # the LLM's own
        if settings.unfreeze:
            parts.append({"params": list(self.layers.parameters()), "peak": settings.llm_learning_rate})
        super().__init__(clap, groups, settings, settings.epochs, parts)
        if settings.unfreeze:
            self.kept["llm"] = self.layers

    def step(self) -> str:
        number, settings = len(self.log), self.settings
        first = number / self.steps < settings.first_stage
        self.layers.requires_grad_(settings.unfreeze and not first)
        random = torch.Generator().manual_seed((settings.seed * 1_000_003 + 17) * 1_000_003 + number)
        batch = [self.groups[i] for i in self._batch()]
        few = 0 if first else min(settings.others, min(map(len, batch)) - 1)
        drawn = [self._draw(len(group), few, random) for group in batch][share(len(batch))]
        row = dict.fromkeys(FIGURES, 0.0)
        for groups in self._at_once(batch[share(len(batch))], 1 + few):
            terms, part = self._terms(groups, drawn[: len(groups)], first), len(groups) / len(batch)
            drawn = drawn[len(groups) :]
            (part * terms.loss).backward()
            row = {name: row[name] + part * figure for name, figure in terms.figures().items()}
        row = dict(zip(row, sums(row.values()), strict=True))
        nats = row.pop("reconstruction") / row.pop("tokens")
        self._descend({**row, "nats_per_token": nats})
        return f"{nats:.3f} nats a token, KL {row['kl']:.2f}"

    def _at_once(self, batch: Sequence[Group], copies: int) -> Iterator[list[Group]]:
        """Prompts that run together: as many as TOKENS_AT_ONCE response tokens hold, at least one."""
        part: list[Group] = []
        held = 0
        for group in batch:
            tokens = copies * sum(len(item.response) for item in group)
            if part and held + tokens > TOKENS_AT_ONCE:
                yield part
                part, held = [], 0
            part.append(group)
            held += tokens
        if part:
            yield part

    def _draw(self, n: int, few: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is random of a prompt's n responses: noise, and which `few` others each is told apart from."""
        return torch.randn(DRAWS, n, self.clap.latent, generator=random), _others(n, few, random)

    def _terms(self, groups: Sequence[Group], drawn: Sequence[tuple[Tensor, Tensor]], first: bool) -> ClapTerms:
        """The loss of some prompts' responses.

        What is drawn for a prompt does not depend on which prompts run together.
        """
        noise, others, start = [], [], 0
        for group, (own, apart) in zip(groups, drawn, strict=True):
            noise.append(own)
            others.append(start + apart)
            start += len(group)
        device = self.clap.backbone.device
        found: ClapTerms = self.clap(
            groups,
            torch.cat(noise, 1).to(device),
            torch.cat(others).to(device) if others[0].shape[1] else None,
            skip=first,
            standard_kl=self.settings.standard_kl,
        )
        return found

    def release(self) -> None:
        self.layers.requires_grad_(False)
        super().release()


def _others(n: int, count: int, random: torch.Generator) -> Tensor:
    """Int [n, count]: for each of n responses, `count` different ones that are not itself."""
    drawn = torch.rand(n, n, generator=random)
    drawn.fill_diagonal_(2.0)
    return drawn.argsort(1)[:, :count]
