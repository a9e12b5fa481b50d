"""Pairs -> policy: the reference once, then preference optimisation, then how often it is right on held-out pairs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from penchant.backbone import DEFAULT, load_whole
from penchant.errors import InputError
from penchant.hub import named
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
from penchant.processes import asked_to_shard, is_main, told, world
from penchant.processes import start as start_processes
from penchant.sharding import is_sharded, unsharded
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

    Under `accelerate launch` all processes train. The main one alone writes and evaluates; in the others the metrics
    are empty, and with FSDP the policy is left in parts.
    """
    model, revision = named(model, revision)
    check_installed(settings)
    check_shares(settings)
    show_progress = show_progress and is_main()
    asked_to_shard()
    start_processes()
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
    before = generate(policy, prompts, max_new_tokens=room) if is_main() else []
    policy = make_policy(llm, backbone, settings, trunk, asked=(model, revision), people=people)
    start = time.perf_counter()
    trainer = train_policy(
        policy, loss, pairs, of_pairs, settings, Path(folder), person=person, show_progress=show_progress
    )
    spent = time.perf_counter() - start
    policy.eval()
    sizes, stepped, state = _sizes(policy), trainer.stepped, trainer.state
    if not all(bool(unsharded(torch.isfinite(p).all())) for p in policy.parameters() if p.requires_grad):
        raise InputError(
            "training diverged: weights are no longer finite; give a lower --learning_rate, and a new --out."
        )
    trainer.save_policy(Path(folder) / "policy")
    del trainer  # and its moments
    if not is_main():
        return policy, {}
    if is_sharded(policy):  # the others have gone home, so what is left takes an LLM of its own
        policy = Policy.from_pretrained(Path(folder) / "policy", dtype=policy.facts["dtype"])
    metrics = evaluate_policy(policy, loss, test, held_out, of_held_out, train=train, seed=settings.seed)
    metrics["examples"] = examples(policy, prompts, before, metrics, room)
    metrics |= {
        "data": {"train": {"name": names[0], **describe(train)}, "test": {"name": names[1], **describe(test)}},
        "policy": {**policy.facts, "dtype_reason": backbone.dtype_reason, **sizes},
        "history": history(state.log_history),
        "seed": settings.seed,
        "cost": {
            "reference_seconds": seconds,
            "train_seconds": spent,
            "step_seconds": spent / max(1, stepped),
            "steps": state.global_step,
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
    made_with = identity(policy, settings, pairs, person)
    with alone(folder / "checkpoints") if is_main() else nullcontext(), writing(folder):
        found = told(str(last_checkpoint(folder / "checkpoints", made_with) or "") if is_main() else None)
        last = Path(found) if found else None
        if last is not None and json.loads((last / STATE).read_text("utf-8"))["global_step"] >= trainer.last_step:
            trainer.take_over(last)  # it was finished
        else:
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    return trainer


def check_shares(settings: Settings) -> None:
    """InputError for pairs run at once that the processes of a launch cannot share evenly, and for fp16."""
    micro = settings.micro_batch or settings.batch_size
    if micro % world():
        name = "micro_batch" if settings.micro_batch else "batch_size"
        raise InputError(f"{name} is {micro}, the pairs of all {world()} processes; give a multiple of {world()}.")
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise InputError("a policy is trained in float32 or with bf16; launch with --mixed_precision no, or bf16.")


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
        ddp_find_unused_parameters=False,
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
