"""`penchant sae`: train a sparse autoencoder on any text, and say how good one is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset

from penchant.backbone import DEFAULT, load_whole
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.pairs import load_pairs, split_by_prompt
from penchant.report_sae import sae_page, sae_summary
from penchant.runs import Run, peak_memory_mb, versions
from penchant.sae.activations import BLOCK_TOKENS, TokenBlocks, load_texts
from penchant.sae.autoencoder import SparseAutoencoder
from penchant.sae.formats import load_sae, save_sae
from penchant.sae.metrics import loss_recovered, quality
from penchant.sae.place import check_place
from penchant.sae.training import CHECKPOINT, SAVE_SECONDS, TrainingConfig, train_sae

MOST_BLOCKS = 4
"""Held-out blocks that the SAE is judged on, at most."""
LOSS_TOKENS = 20_000
"""Held-out tokens on which the LLM's loss is measured, about; each takes four forward passes."""


def train(
    data: str,
    *,
    out: str | None = None,
    model: str = DEFAULT,
    layer: int | None = None,
    text: str | None = None,
    columns: dict[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    held_out: float = 0.02,
    architecture: Literal["topk", "batchtopk", "jumprelu"] = "topk",
    latents: int = 0,
    k: int = 32,
    epochs: int = 1,
    batch: int = 2048,
    learning_rate: float = 2e-3,
    keep_states: str | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    token_budget: int = TOKEN_BUDGET,
    block_tokens: int = BLOCK_TOKENS,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on the LLM's hidden states of pairs or plain texts.

    Args:
        data: hub id, file (.jsonl, .json, .csv, .parquet, .gz) or folder with preference pairs, or with texts (--text).
        out: folder of the run: sae/ (SAELens format), metrics.json, config.yaml, report.html; runs/TIME-sae by default.
            A run that was stopped goes on when started again with the same --out.
        model: backbone: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
        layer: which hidden state, counted as in views; the middle layer by default.
        text: name of the column with plain texts; without it the data are pairs.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        held_out: share of the prompts (or texts) on which the SAE is judged.
        architecture: topk, batchtopk or jumprelu.
        latents: number of latents; 16 times the width by default.
        k: latents active in a state (jumprelu: aimed at).
        epochs: passes over the texts.
        batch: states a step.
        learning_rate: of Adam, at its peak.
        keep_states: folder for the states, so that further epochs and runs need no LLM (2 bytes a number in bf16).
        dtype: auto, float32 or bfloat16, of the backbone; the SAE is float32.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
        block_tokens: tokens shuffled at once; bounds memory.
        seed: of the split, the shuffle and the SAE's start.
    """
    run = Run(out, "sae", dict(locals()))
    config = TrainingConfig(
        latents=latents,
        architecture=architecture,
        k=k,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    texts = read(data, text, columns, split, limit)
    seen, unseen = hold_out(texts, held_out, seed)
    whole, backbone = load_whole(model, dtype, max_length=max_length)
    layer = layer if layer is not None else max(1, backbone.depth // 2)
    sizes: dict[str, Any] = {"block_tokens": block_tokens, "token_budget": token_budget, "seed": seed}
    blocks = TokenBlocks(backbone, seen, layer, keep=keep_states, **sizes)
    facts: dict[str, Any] = {"layer": layer, "model": backbone.name, "revision": backbone.revision}
    sae, progress = train_sae(blocks, config, run.folder, save_seconds=SAVE_SECONDS, **facts)
    metrics = measured(sae, whole, TokenBlocks(backbone, unseen, layer, **sizes))
    metrics |= {
        "created": run.created,
        "versions": versions(),
        "data": {"name": data, "rows": len(seen), "held_out_rows": len(unseen)},
        "training": {"tokens": progress.tokens, "steps": progress.steps, "seconds": progress.seconds},
        "log": progress.log,
        "cost": {"peak_memory_mb": peak_memory_mb()},
        "seed": seed,
    }
    sae.facts = {name: metrics[name] for name in ("quality", "loss", "data", "training", "created")}
    save_sae(sae, run.folder / "sae")
    write(run.folder, metrics)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    print(sae_summary(metrics))
    print(f"SAE:    {run.folder / 'sae'}\nreport: {run.folder / 'report.html'}")


def info(
    sae: str,
    *,
    data: str | None = None,
    out: str | None = None,
    model: str | None = None,
    text: str | None = None,
    columns: dict[str, str] | None = None,
    split: str = "train",
    limit: int = 200,
    revision: str | None = None,
    layer: int | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Say what an SAE is and, given data, how well it reconstructs the LLM's states there.

    Args:
        sae: folder, file or hub id with a path inside, in the format of SAELens, Gemma Scope, Llama Scope, sparsify or
            dictionary_learning.
        data: pairs, or texts (--text), to measure it on.
        out: folder for metrics.json and report.html.
        model: the LLM, where the SAE does not name it or it lies elsewhere.
        text: name of the column with plain texts; without it the data are pairs.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        revision: branch, tag or commit of a hub SAE.
        layer: the hidden state it reads, counted as in views, where its files do not say.
        dtype: auto, float32 or bfloat16, of the backbone.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
    """
    found = load_sae(sae, revision=revision, layer=layer, model=model)
    metrics: dict[str, Any] = {"sae": describe(found)}
    if data is not None:
        texts = read(data, text, columns, split, limit)
        name = model or found.config.model
        if name is None:
            raise InputError(f"{sae} does not say which LLM it belongs to; give --model")
        whole, backbone = load_whole(name, dtype, max_length=max_length)
        place = check_place(found, backbone)
        blocks = TokenBlocks(backbone, texts, place, token_budget=token_budget)
        metrics |= measured(found, whole, blocks)
        metrics["data"] = {"name": data, "held_out_rows": len(texts)}
    print(sae_summary(metrics))
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write(Path(out), metrics)
        print(f"report: {Path(out) / 'report.html'}")


def read(
    data: str, text: str | None, columns: dict[str, str] | None, split: str, limit: int | None
) -> Dataset | list[str]:
    if text is None:
        return load_pairs(data, split=split, columns=columns, limit=limit)
    if columns:
        raise InputError("--columns names the columns of pairs; with --text there is only that one")
    return load_texts(data, text, split, limit)


def hold_out(texts: Dataset | list[str], share: float, seed: int) -> tuple[Any, Any]:
    """(training, held-out), no prompt in both."""
    if isinstance(texts, Dataset):
        return split_by_prompt(texts, share, seed)
    if not 0 < share < 1 or len(texts) < 2:
        raise InputError(f"cannot hold out {share} of {len(texts)} texts; give a share between 0 and 1 and more texts")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    few = min(max(1, round(share * len(texts))), len(texts) - 1)
    return [texts[i] for i in order[few:]], [texts[i] for i in order[:few]]


def measured(sae: SparseAutoencoder, whole: Any, blocks: TokenBlocks) -> dict[str, Any]:
    """Quality on a few blocks, and the LLM's loss on the first of their sequences; no loss for the last layer."""
    few_blocks = min(len(blocks), MOST_BLOCKS)
    states = (blocks.block(i) for i in range(few_blocks))
    found: dict[str, Any] = {"sae": describe(sae), "quality": quality(sae, states).to_dict(), "loss": None}
    if blocks.layer < blocks.backbone.layers_run:
        few, tokens = [], 0
        for item in blocks.tokens(0):
            few.append(item)
            tokens += len(item)
            if tokens > LOSS_TOKENS:
                break
        mean = blocks.block(0).float().mean(0)
        found["loss"] = loss_recovered(whole, blocks.backbone, sae, few, mean).to_dict()
    return found


def describe(sae: SparseAutoencoder) -> dict[str, Any]:
    return {**sae.config.to_dict(), "source": sae.source}


def write(folder: Path, metrics: dict[str, Any]) -> None:
    text = json.dumps(metrics, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(sae_page(metrics), encoding="utf-8")


VERBS: dict[str, Callable[..., None]] = {"train": train, "info": info}
