"""Pairs -> policy: the reference once, then preference optimisation, then how often it is right on held-out pairs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import get_last_checkpoint

from penchant.backbone import DEFAULT, Backbone, load_whole
from penchant.errors import InputError
from penchant.evaluate import accuracy, accuracy_interval, baselines, correctness
from penchant.pairs import describe, prompt_groups
from penchant.policy.batches import TokenPair, token_pairs
from penchant.policy.codes import LatentCodes
from penchant.policy.losses import Loss, PairLogProbs, make_loss
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.trainer import AlignTrainer, checkpointing
from penchant.policy.trunk import Trunk
from penchant.policy.watch import code_figures, warnings
from penchant.store import default_root

LOG_ROWS = 40
"""Rows of metrics.jsonl that a run aims at."""


@dataclass(frozen=True)
class Settings:
    """How a policy is trained. See `penchant align --help`."""

    loss: Literal["dpo", "ipo", "simpo"] = "dpo"
    beta: float | None = None
    gamma: float | None = None
    label_smoothing: float = 0.0
    codes: int = 64
    posterior: Literal["concat", "difference", "both"] = "concat"
    temperature: float = 1.0
    code_scale: float = 0.02
    code_rate: float = 1.0
    kl_weight: float = 0.05
    lora: int = 16
    top_layers: int | None = None
    epochs: float = 1.0
    steps: int = -1
    batch_size: int = 8
    micro_batch: int | None = None
    learning_rate: float = 2e-4
    warmup: float = 0.1
    save_steps: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        make_loss(self.loss, self.beta, self.label_smoothing, self.gamma)
        if self.codes < 0:
            raise InputError(f"codes is {self.codes}; give 0 for a policy without codes, or how many.")
        for name, least in (("lora", 0), ("batch_size", 1), ("save_steps", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}.")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise InputError(f"micro_batch is {self.micro_batch}; give a divisor of batch_size, {self.batch_size}.")
        for name in ("epochs", "learning_rate", "code_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.kl_weight < float("inf"):
            raise InputError(f"kl_weight is {self.kl_weight}; give a finite number of 0 or more.")

    def make_loss(self) -> Loss:
        return make_loss(self.loss, self.beta, self.label_smoothing, self.gamma)

    def make_codes(self, width: int) -> LatentCodes | None:
        if not self.codes:
            return None
        return LatentCodes(width, self.codes, self.posterior, self.temperature, self.code_scale)


def align_run(
    train: Dataset,
    test: Dataset,
    names: tuple[str, str],
    settings: Settings,
    folder: str | Path,
    *,
    model: str = DEFAULT,
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int = 1024,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> tuple[Policy, dict[str, Any]]:
    """Train a policy on some pairs, test it on others; returns it and what metrics.json says.

    `folder` gets checkpoints/, from which a run that was killed goes on bit for bit, metrics.jsonl and policy/.
    """
    llm, backbone = load_whole(model, dtype, revision, max_length)
    pairs, held_out = token_pairs(backbone, train), token_pairs(backbone, test)
    label = "reference" if show_progress else None
    trunk = make_trunk(backbone, settings, [*pairs, *held_out], cache)
    policy = Policy(llm, backbone, trunk=trunk)
    reference, seconds = reference_log_probs(policy, [*pairs, *held_out], cache, label=label)
    of_pairs, of_held_out = (
        PairLogProbs(*(part[rows] for part in reference)) for rows in (slice(len(pairs)), slice(len(pairs), None))
    )
    loss = settings.make_loss()
    policy = make_policy(llm, backbone, settings, trunk, asked=(model, revision))
    start = time.perf_counter()
    trainer = train_policy(policy, loss, pairs, of_pairs, settings, Path(folder), show_progress=show_progress)
    spent = time.perf_counter() - start
    policy.eval()
    policy.save_pretrained(Path(folder) / "policy")
    metrics = evaluate_policy(policy, loss, test, held_out, of_held_out, train=train, seed=settings.seed)
    steps = max(1, trainer.state.global_step)
    metrics |= {
        "data": {"train": {"name": names[0], **describe(train)}, "test": {"name": names[1], **describe(test)}},
        "policy": {**policy.facts, "dtype_reason": backbone.dtype_reason, **_sizes(policy)},
        "history": [row for row in trainer.state.log_history if "loss" in row],
        "seed": settings.seed,
        "cost": {
            "reference_seconds": seconds,
            "train_seconds": spent,
            "step_seconds": spent / steps,
            "steps": steps,
            "tokens": sum(len(c) + len(r.response) for c, r in pairs),
            "truncated": sum(item.cut > 0 for pair in pairs for item in pair),
        },
    }
    return policy, metrics


def make_trunk(
    backbone: Backbone, settings: Settings, pairs: list[TokenPair], cache: str | Path | None
) -> Trunk | None:
    """Where only the top layers are trained: the states of those below, for all `pairs` that will ever be read."""
    if settings.top_layers is None:
        return None
    if not 0 < settings.top_layers < backbone.depth:
        raise InputError(
            f"top_layers is {settings.top_layers}; this LLM has {backbone.depth} layers, give 1 to {backbone.depth - 1}."
        )
    return Trunk(backbone, backbone.depth - settings.top_layers, pairs, Path(cache or default_root()) / "trunk")


def make_policy(
    llm: transformers.PreTrainedModel,
    backbone: Backbone,
    settings: Settings,
    trunk: Trunk | None = None,
    *,
    asked: tuple[str, str | None] = (DEFAULT, None),
    latent: Any = None,
) -> Policy:
    """A policy ready to be trained: LoRA or all weights, and fresh codes, or `latent` in their place.

    `asked` are the LLM's name and revision as they were asked for; they are saved with the policy.
    """
    transformers.set_seed(settings.seed)
    model: Any = llm
    model.requires_grad_(False)
    first = trunk.first if trunk is not None else 0
    lora = None
    if settings.lora:
        lora = {"rank": settings.lora, "alpha": 2 * settings.lora, "layers": list(range(first, backbone.depth))}
        model = add_lora(model, backbone, lora)
    elif first:
        backbone.layers[first:].requires_grad_(True)
    else:
        model.float().requires_grad_(True)
    codes = latent if latent is not None else settings.make_codes(backbone.width)
    config = {
        "penchant": _version(),
        "base": asked[0],
        "asked_revision": asked[1],
        "revision": backbone.revision,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max_length": backbone.chat.max_length,
        "lora": lora,
        "top_layers": settings.top_layers,
        "loss": settings.loss,
        **asdict(settings.make_loss()),  # type: ignore[call-overload]
        "codes": settings.codes,
        "kl_weight": settings.kl_weight,
        "latent": {name: getattr(codes, name) for name in ("codes", "posterior", "temperature")}
        if isinstance(codes, LatentCodes)
        else None,
    }
    device = backbone.device
    policy = Policy(model, backbone, codes.to(device) if isinstance(codes, nn.Module) else codes, config, trunk)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing())
        model.enable_input_require_grads()
    return policy


def add_lora(model: nn.Module, backbone: Backbone, lora: dict[str, Any]) -> nn.Module:
    """LoRA of all linear layers in some decoder layers; it starts as the model itself."""
    from peft import LoraConfig, get_peft_model

    chosen = {id(module) for layer in lora["layers"] for module in backbone.layers[layer].modules()}
    names = [name for name, m in model.named_modules() if id(m) in chosen and isinstance(m, (nn.Linear, Conv1D))]
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=names, task_type="CAUSAL_LM")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def train_policy(
    policy: Policy,
    loss: Loss,
    pairs: list[TokenPair],
    reference: PairLogProbs | None,
    settings: Settings,
    folder: Path,
    *,
    person: Sequence[int] | None = None,
    show_progress: bool = True,
) -> AlignTrainer:
    """Train; goes on from the last checkpoint in `folder`, if there is one."""
    trainer = make_trainer(policy, loss, pairs, reference, settings, folder, person=person, show_progress=show_progress)
    checkpoints = folder / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None)
    return trainer


def make_trainer(
    policy: Policy,
    loss: Loss,
    pairs: list[TokenPair],
    reference: PairLogProbs | None,
    settings: Settings,
    folder: Path,
    *,
    person: Sequence[int] | None = None,
    show_progress: bool = True,
) -> AlignTrainer:
    """A trainer with these settings; `person` as in `AlignTrainer`."""
    micro = settings.micro_batch or settings.batch_size
    steps = settings.steps if settings.steps > 0 else -(-len(pairs) // settings.batch_size) * settings.epochs
    every = max(1, int(steps) // LOG_ROWS)
    device = policy.backbone.device
    full = settings.lora == 0 and settings.top_layers is None
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(settings.warmup * steps),
        logging_steps=every,
        logging_first_step=False,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=-(-settings.save_steps // every) * every if settings.save_steps else 500,
        save_total_limit=2,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        bf16=full and policy.facts["dtype"] == "bfloat16",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=not show_progress,
        log_level="error",
    )
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    policy.train()
    return AlignTrainer(policy, loss, pairs, reference, arguments, settings.kl_weight, settings.code_rate, person)


def evaluate_policy(
    policy: Policy,
    loss: Loss,
    test: Dataset,
    held_out: list[TokenPair],
    reference: PairLogProbs | None,
    *,
    train: Dataset | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How often the policy's implicit reward is right, z being the prior's expectation, beside simple baselines."""
    shifts = {"prior": policy.expected}
    if isinstance(policy.codes, LatentCodes):
        shifts["posterior"] = policy.by_posterior
    states, found = policy.score(held_out, shifts)
    groups = prompt_groups(test)
    source = np.array(test["source"], dtype=object) if "source" in test.column_names else None
    margins = {name: loss.margins(probs, reference).numpy().astype(np.float64) for name, probs in found.items()}
    right = {name: correctness(margin, np.zeros_like(margin)) for name, margin in margins.items()}
    simple = {name: interval._asdict() for name, interval in baselines(train, test, seed=seed)[0].items()}
    if reference is not None:
        mean = (reference.chosen / reference.chosen_tokens, reference.rejected / reference.rejected_tokens)
        simple["reference log-probability a token"] = accuracy_interval(
            correctness(*(part.numpy() for part in mean)), groups, seed=seed
        )._asdict()
    metrics: dict[str, Any] = {
        "accuracy": accuracy(margins["prior"], np.zeros(len(groups)), groups, source, seed=seed),
        "baselines": simple,
    }
    if isinstance(policy.codes, LatentCodes):
        with torch.inference_mode():
            device = policy.backbone.device
            prior = policy.codes.prior_logits(states.prompt.to(device)).softmax(-1)
            posterior = policy.codes.posterior_logits(states.chosen.to(device), states.rejected.to(device)).softmax(-1)
        figures = code_figures(prior, posterior)
        by = {name: accuracy_interval(each, groups, seed=seed)._asdict() for name, each in right.items()}
        gap = by["posterior"]["value"] - by["prior"]["value"]
        metrics["codes"] = {
            **figures,
            "accuracy_prior": by["prior"],
            "accuracy_posterior": by["posterior"],
            "gap": gap,
            "warnings": warnings(figures, by["prior"]["value"], by["posterior"]["value"]),
        }
    return metrics


def _sizes(policy: Policy) -> dict[str, int]:
    return {
        "trainable": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }


def _version() -> str:
    try:
        return version("penchant")
    except PackageNotFoundError:
        return "unknown"
