"""Pairs -> policy: the reference once, then preference optimisation, then how often it is right on held-out pairs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from penchant.backbone import DEFAULT, load_whole
from penchant.errors import InputError
from penchant.pairs import describe, to_text
from penchant.policy.batches import TokenPair, token_pairs
from penchant.policy.build import make_policy, make_trunk
from penchant.policy.checkpoints import STATE, Sealing, identity, last_checkpoint
from penchant.policy.codes import PEOPLE
from penchant.policy.generate import generate
from penchant.policy.held_out import EXAMPLE_TOKENS, evaluate_policy, examples
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.people import people_of
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings, check_installed
from penchant.policy.trainer import AlignTrainer, history
from penchant.writing import alone, writing

LOG_ROWS = 40
"""Rows of metrics.jsonl that a run aims at,"""
LOG_STEPS = 10
"""and the fewest steps a row stands for, where there are as many: with codes a row takes two more passes."""
EXAMPLES = 3
"""Held-out prompts whose answers the report shows."""


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
    check_installed(settings)
    check_alone()
    if not settings.lora:
        if dtype == "bfloat16":
            raise InputError("all weights are trained in float32, as bf16 swallows small steps; leave out --dtype.")
        dtype = "float32"
    llm, backbone = load_whole(model, dtype, revision, max_length)
    people, person = people_of(train) if settings.codes and settings.posterior == PEOPLE else ([], None)
    pairs, held_out = token_pairs(backbone, train), token_pairs(backbone, test)
    label = "reference" if show_progress else None
    trunk = make_trunk(backbone, settings, [*pairs, *held_out], cache)
    policy = Policy(llm, backbone, trunk=trunk)
    loss = settings.make_loss()
    of_pairs = of_held_out = None
    seconds = 0.0
    if loss.needs_reference:
        reference, seconds = reference_log_probs(policy, [*pairs, *held_out], cache, label=label)
        of_pairs = PairLogProbs(*(part[: len(pairs)] for part in reference))
        of_held_out = PairLogProbs(*(part[len(pairs) :] for part in reference))
    prompts = [prompt for prompt in test["prompt"][: 4 * EXAMPLES] if to_text(prompt).strip()][:EXAMPLES]
    room = min(EXAMPLE_TOKENS, max_length // 2)
    before = generate(policy, prompts, max_new_tokens=room)
    policy = make_policy(llm, backbone, settings, trunk, asked=(model, revision), people=people)
    start = time.perf_counter()
    trainer = train_policy(
        policy, loss, pairs, of_pairs, settings, Path(folder), person=person, show_progress=show_progress
    )
    spent = time.perf_counter() - start
    policy.eval()
    if not all(bool(torch.isfinite(p).all()) for p in policy.parameters() if p.requires_grad):
        raise InputError(
            "training diverged: weights are no longer finite; give a lower --learning_rate, and a new --out."
        )
    policy.save_pretrained(Path(folder) / "policy")
    metrics = evaluate_policy(policy, loss, test, held_out, of_held_out, train=train, seed=settings.seed)
    metrics["examples"] = examples(policy, prompts, before, metrics, room)
    metrics |= {
        "data": {"train": {"name": names[0], **describe(train)}, "test": {"name": names[1], **describe(test)}},
        "policy": {**policy.facts, "dtype_reason": backbone.dtype_reason, **_sizes(policy)},
        "history": history(trainer.state.log_history),
        "seed": settings.seed,
        "cost": {
            "reference_seconds": seconds,
            "train_seconds": spent,
            "step_seconds": spent / max(1, trainer.stepped),
            "steps": trainer.state.global_step,
            "tokens": sum(len(c) + len(r.response) for c, r in pairs),
            "truncated": sum(item.cut > 0 for pair in pairs for item in pair),
        },
    }
    return policy, metrics


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
    """Train; goes on from the last checkpoint in `folder`, if there is one.

    Raises PenchantError where another process trains in the folder, or the disk refuses.
    """
    trainer = make_trainer(policy, loss, pairs, reference, settings, folder, person=person, show_progress=show_progress)
    with alone(folder / "checkpoints"), writing(folder):
        last = last_checkpoint(folder / "checkpoints", identity(policy, settings, pairs, person))
        if last is not None and json.loads((last / STATE).read_text("utf-8"))["global_step"] >= trainer.last_step:
            trainer.take_over(last)  # it was finished
        else:
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    return trainer


def check_alone() -> None:
    """One process on one device: the packed run of the LLM is not spread over several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("penchant align trains on one device; start it without torchrun or accelerate launch.")


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
    every = settings.log_steps or max(1, min(LOG_STEPS, int(steps)), int(steps) // LOG_ROWS)
    every = min(every, settings.save_steps or every)
    device = policy.backbone.device
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps,
        learning_rate=settings.rate,
        lr_scheduler_type="linear",
        warmup_steps=int(settings.warmup * steps),
        logging_steps=every,
        logging_first_step=False,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=-(-settings.save_steps // every) * every if settings.save_steps else 500,
        save_total_limit=2,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=not show_progress,
        log_level="error",
    )
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel: it would give every replica every pair
    policy.train()
    weights = (settings.kl_weight, settings.code_rate, settings.net_rate)
    trainer = AlignTrainer(policy, loss, pairs, reference, arguments, *weights, person)
    trainer.add_callback(Sealing())
    return trainer


def _sizes(policy: Policy) -> dict[str, int]:
    return {
        "trainable": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }
