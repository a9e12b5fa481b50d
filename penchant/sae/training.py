"""Trains a sparse autoencoder on blocks of states: reconstruction, AuxK against dead latents, unit decoder rows."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from penchant.checkpoint import load_run, read_run, save_run
from penchant.errors import InputError
from penchant.sae.activations import Blocks
from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder
from penchant.sae.losses import jump_relu_loss, sparse_loss

CHECKPOINT = "checkpoint.safetensors"
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class TrainingConfig:
    """How an SAE is trained; defaults suit runs of a few million states."""

    latents: int = 0
    """Number m of latents; 0 means 16 times the width (SARM)."""
    architecture: str = "topk"
    k: int = 32
    """Latents active in a state; for jumprelu what the penalty aims at."""
    epochs: int = 1
    """Passes over the blocks."""
    batch: int = 2048
    """States a step."""
    learning_rate: float = 2e-3
    """Of Adam, at its peak; it rises over the first twentieth of the run and falls to 0 over the last fifth."""
    aux_weight: float = 1 / 32
    """Weight of AuxK: the dead latents reconstruct what the others left over."""
    dead_after: int = 200_000
    """States for which a latent must have been silent to count as dead."""
    l0_weight: float = 10.0
    """Weight of jumprelu's penalty (L0 / k - 1)^2."""
    bandwidth: float = 1.0
    """Of jumprelu's straight-through estimate, in units of the normalised states."""
    normalize: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "epochs", "batch", "dead_after"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("learning_rate", "bandwidth"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0")
        for name in ("aux_weight", "l0_weight", "latents", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more")


@dataclass
class Progress:
    """Where a run is; with the tensors of a checkpoint it is all there is to know."""

    epoch: int = 0
    done: int = 0
    """Blocks of this epoch."""
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Spent in steps, the LLM's time not counted."""
    log: list[dict[str, float]] = field(default_factory=list)
    """Per block: tokens, loss (share of variance not explained), dead (latents)."""


class Trainer:
    """One run. `train_sae` drives it; the benchmark times `step` alone.

    The loss of a batch is its mean squared error over the variance of the first block, plus AuxK. Before each step the
    gradient's part along a decoder row is taken out, after it rows are scaled to length 1. Weights and Adam's state
    are fp32; a matrix product that only serves to find the largest pre-activations runs in bf16 where the chip has it.
    """

    def __init__(self, config: TrainingConfig, sae: SparseAutoencoder) -> None:
        self.config, self.sae = config, sae
        self.silent = torch.zeros(sae.config.d_sae, dtype=torch.long)
        self.adam = torch.optim.Adam(sae.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
        self.progress = Progress()
        self.source: dict[str, Any] = {}
        """What the run is of beside its settings: the blocks, and where in which LLM."""

    @classmethod
    def start(cls, config: TrainingConfig, first: Tensor, **facts: Any) -> Trainer:
        """A fresh SAE whose scale, bias and thresholds suit the first block [t, d]; `facts` go to its config."""
        d = first.shape[1]
        first = first.float()
        if not len(first) or not float(first.norm()) > 0:
            raise InputError("the first block holds no state other than 0 to learn from; give more and longer texts")
        mean_norm = float(first.norm(dim=1).mean())
        # A power of two, so that folding it into saved weights changes no bit.
        scale = 1.0 if config.normalize != "none" else 2.0 ** round(math.log2(math.sqrt(d) / mean_norm))
        described = SAEConfig(
            d_in=d,
            d_sae=config.latents or 16 * d,
            architecture=config.architecture,
            k=config.k,
            normalize=config.normalize,
            scale=scale,
            **facts,
        )
        sae = SparseAutoencoder.random(described, config.seed)
        states = sae.normalized(first).states
        with torch.no_grad():
            sae.b_dec.copy_(states.mean(0))
            if config.architecture == "jumprelu":
                pre = sae.pre_activations(states[: config.batch])
                sae.threshold.fill_(float(pre.flatten().topk(config.k * len(pre)).values[-1]))
        if config.architecture == "jumprelu":
            sae.threshold = torch.nn.Parameter(sae.threshold)
        return cls(config, sae)

    def step(self, states: Tensor, share: float) -> float:
        """One step on states [b, d] when `share` of the run is done; returns the share of variance not explained."""
        for group in self.adam.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (share + 1e-3) / 0.05, (1 - share) / 0.2)
        x = self.sae.normalized(states).states
        loss_of = jump_relu_loss if self.config.architecture == "jumprelu" else sparse_loss
        dead = self.silent >= self.config.dead_after
        found = loss_of(self.sae, x, dead, self.config)
        self.adam.zero_grad()
        found.loss.backward()
        weight = self.sae.W_dec
        with torch.no_grad():
            assert weight.grad is not None
            weight.grad.addcmul_(weight, (weight.grad * weight).sum(1, keepdim=True), value=-1)
            self.adam.step()
            weight.copy_(F.normalize(weight, dim=1))
            self.silent += len(x)
            self.silent[found.fired] = 0
            if found.threshold is not None:  # of this batch; the mean over batches serves single states
                self.sae.threshold.lerp_(
                    found.threshold.expand_as(self.sae.threshold), 0.01 if self.progress.steps else 1
                )
        self.progress.steps += 1
        return found.unexplained

    def block(self, states: Tensor, share: float, width: float) -> None:
        """The steps on one block [t, d]; the run's share done goes from `share` to `share + width`."""
        began, p = time.perf_counter(), self.progress
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + p.epoch) * 1_000_003 + p.done)
        batches = torch.randperm(len(states), generator=generator).tensor_split(
            max(1, round(len(states) / self.config.batch))
        )
        losses = [self.step(states[index], share + width * i / len(batches)) for i, index in enumerate(batches)]
        p.tokens += len(states)
        p.seconds += time.perf_counter() - began
        dead = int((self.silent >= self.config.dead_after).sum())
        p.log.append({"tokens": p.tokens, "loss": sum(losses) / len(losses), "dead": dead})
        p.done += 1

    def save(self, path: Path) -> None:
        """Everything a run needs to go on, in one file, replaced at once."""
        facts = {
            "made_with": asdict(self.config) | self.source,
            "sae": self.sae.config.to_dict(),
            "progress": asdict(self.progress),
        }
        save_run(path, self.sae, self.adam, facts, silent=self.silent)

    @classmethod
    def resume(cls, path: Path, config: TrainingConfig, source: dict[str, Any]) -> Trainer:
        """The run that `save` wrote. Raises InputError if it was one with other settings, or of other states."""
        tensors, facts = read_run(path, asdict(config) | source)
        sae = SparseAutoencoder(SAEConfig(**facts["sae"]), str(path))
        if config.architecture == "jumprelu":
            sae.threshold = torch.nn.Parameter(sae.threshold)
        trainer = cls(config, sae)
        trainer.silent = load_run(path, tensors, sae, trainer.adam)["silent"]
        trainer.progress, trainer.source = Progress(**facts["progress"]), source
        return trainer


def train_sae(
    blocks: Blocks,
    config: TrainingConfig,
    folder: str | Path | None = None,
    *,
    show_progress: bool = True,
    save_seconds: float = SAVE_SECONDS,
    **facts: Any,
) -> tuple[SparseAutoencoder, Progress]:
    """Train an SAE on all blocks; a run that was killed goes on from the checkpoint in `folder`, bit for bit.

    Args:
        blocks: states in blocks, such as `TokenBlocks`.
        config: the settings.
        folder: for the checkpoint, kept while the run lasts; none is written without it.
        save_seconds: at least so long between two checkpoints.
        facts: layer, model and revision, for the SAE's config.

    Raises:
        InputError: the checkpoint is of other settings or other states, or a state is not finite.
    """
    path = Path(folder) / CHECKPOINT if folder is not None else None
    source = {**facts, "blocks": blocks.digest}
    trainer = Trainer.resume(path, config, source) if path is not None and path.is_file() else None
    total, saved = config.epochs * len(blocks), time.monotonic()
    with tqdm(total=total, unit="block", desc="train SAE", disable=not show_progress, leave=False) as bar:
        if trainer is not None:
            bar.update(trainer.progress.epoch * len(blocks) + trainer.progress.done)
        while trainer is None or trainer.progress.epoch < config.epochs:
            epoch, done = (trainer.progress.epoch, trainer.progress.done) if trainer else (0, 0)
            order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(config.seed + 7919 * epoch))
            states = blocks.block(int(order[done]))
            if not bool(torch.isfinite(states).all()):
                raise InputError(f"block {int(order[done])} holds a state that is not finite; use dtype float32")
            if trainer is None:
                trainer = Trainer.start(config, states, **facts)
                trainer.source = source
            trainer.block(states, (epoch * len(blocks) + done) / total, 1 / total)
            p = trainer.progress
            if p.done == len(blocks):
                p.epoch, p.done = epoch + 1, 0
            last = p.log[-1]
            bar.set_postfix_str(f"variance explained {1 - last['loss']:.3f}, dead {last['dead']:,.0f}")
            bar.update()
            if path is not None and (time.monotonic() - saved > save_seconds or p.epoch == config.epochs):
                trainer.save(path)
                saved = time.monotonic()
    if config.architecture == "jumprelu":
        fixed = trainer.sae.threshold.detach().clone()
        del trainer.sae.threshold
        trainer.sae.register_buffer("threshold", fixed)
    return trainer.sae, trainer.progress
