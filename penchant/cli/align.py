"""`penchant align`: pairs -> policy, with DPO, IPO or SimPO, with latent codes or without."""

from __future__ import annotations

from typing import Any, Literal

from penchant.backbone import DEFAULT
from penchant.pairs import load_pairs, split_by_prompt
from penchant.policy.align import align_run
from penchant.policy.settings import Settings
from penchant.processes import is_main
from penchant.report_align import write_align_report
from penchant.runs import Run


def align(
    data: str,
    *,
    out: str | None = None,
    test: str | None = None,
    test_share: float = 0.1,
    model: str = DEFAULT,
    loss: Literal["dpo", "ipo", "simpo"] = "dpo",
    beta: float | None = None,
    gamma: float | None = None,
    label_smoothing: float = 0.0,
    codes: int = 64,
    posterior: Literal["concat", "difference", "both", "people"] = "concat",
    temperature: float = 1.0,
    kl_weight: float = 0.05,
    lora: int = 16,
    top_layers: int | None = None,
    epochs: float = 1.0,
    steps: int = -1,
    batch_size: int = 8,
    micro_batch: int | None = None,
    learning_rate: float | None = None,
    code_rate: float = 0.03,
    net_rate: float = 3e-4,
    warmup: float = 0.1,
    save_steps: int = 50,
    log_steps: int | None = None,
    gradient_checkpointing: bool = False,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    dtype: str = "auto",
    max_length: int = 1024,
    seed: int = 0,
) -> None:
    """Align an LLM with preference pairs by DPO, IPO or SimPO, with latent codes for conflicting preferences (LPC).

    The same command again, with the same --out, goes on from the last checkpoint there, bit for bit. Under `accelerate
    launch` several GPUs share each batch.

    Args:
        data: hub id, file (.jsonl, .json, .csv, .parquet, .gz) or folder with preference pairs.
        out: folder of the run: policy, checkpoints, metrics.jsonl, report.html; runs/TIME-align by default.
        test: pairs to evaluate on; by default a share of the prompts of `data` is held out.
        test_share: that share.
        model: LLM: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
        loss: dpo, ipo or simpo.
        beta: of the loss; 0.1 for dpo and ipo, 2 for simpo by default.
        gamma: simpo's target margin; 0.5 by default.
        label_smoothing: share of pairs taken to be labelled the wrong way round (dpo).
        codes: size of the codebook; 0 is the plain loss.
        posterior: what it sees: the two responses (concat, difference, both), or what else the same person judged
            (people; needs a column user_id).
        temperature: of the draws of codes; towards 0 a draw is a single code.
        kl_weight: weight of KL[posterior || prior] in the loss.
        lora: rank of the adapters; 0 trains the weights themselves, in float32.
        top_layers: train only this many of the topmost layers; those below are run once and their states kept.
        epochs: passes over the pairs.
        steps: stop after this many optimiser steps; -1 leaves it to the epochs.
        batch_size: pairs an optimiser step, of all GPUs together.
        micro_batch: pairs run at once, by all GPUs together, a divisor of batch_size; less memory.
        learning_rate: by default 1e-3 with adapters, 1e-5 without.
        code_rate: learning rate of the codebook.
        net_rate: learning rate of the prior and the posterior.
        warmup: share of the steps in which the learning rate rises.
        save_steps: optimiser steps between checkpoints; 0 writes none.
        log_steps: optimiser steps a row of metrics.jsonl stands for; by default 10, or more in a long run.
        gradient_checkpointing: run layers again in the backward pass; less memory, more time.
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the reference's log-probabilities; $PENCHANT_CACHE or ~/.cache/penchant by default.
        dtype: of the frozen LLM under the adapters: auto, float32 or bfloat16; all weights are trained in float32.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        seed: of the split, the order of the pairs, the weights and the draws.
    """
    config = dict(locals())
    settings = Settings(
        loss=loss,
        beta=beta,
        gamma=gamma,
        label_smoothing=label_smoothing,
        codes=codes,
        posterior=posterior,
        temperature=temperature,
        kl_weight=kl_weight,
        lora=lora,
        top_layers=top_layers,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        code_rate=code_rate,
        net_rate=net_rate,
        warmup=warmup,
        save_steps=save_steps,
        log_steps=log_steps,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    run = Run(out, "align", config)
    if is_main():
        print(f"run: {run.folder}", flush=True)
    skipped = run.folder / "skipped.jsonl" if on_bad == "skip" and is_main() else None
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
    if test is None:
        pairs, held_out = split_by_prompt(pairs, test_share, seed)
    else:
        held_out = load_pairs(test, split="test", columns=columns, on_bad=on_bad)
    names = (data, test or f"{test_share:.0%} of the prompts, held out")
    _, metrics = align_run(
        pairs, held_out, names, settings, run.folder, model=model, dtype=dtype, max_length=max_length, cache=cache
    )
    if not is_main():
        return
    report = run.finish({"title": f"Policy from {data}", **metrics}, write_align_report)
    print(summary(metrics))
    print(f"policy: {run.folder / 'policy'}\nreport: {report}")


def summary(metrics: dict[str, Any]) -> str:
    """Accuracy beside the baselines, what the codes do, and what it cost, in a few lines."""
    overall, codes, cost = metrics["accuracy"]["overall"], metrics.get("codes"), metrics["cost"]
    figures = {"policy": overall, **metrics["baselines"]}
    if codes:
        told = "told who judged" if metrics["policy"].get("people") else "its posterior told the label"
        figures[f"policy, {told}"] = codes["accuracy_posterior"]
    width = max(map(len, figures))
    lines = [f"implicit reward right on {overall['n']:,} held-out pairs (95% interval over prompts)"]
    lines += [
        f"  {name:<{width}}  {f['value']:.1%}  ({f['low']:.1%} to {f['high']:.1%})" for name, f in figures.items()
    ]
    if codes:
        lines.append(
            f"codes: KL {codes['kl']:.3f} nats, {codes['perplexity']:.1f} of {len(codes['usage'])} in use,"
            f" {codes['top_share']:.0%} of pairs on one"
        )
        lines += [f"warning: {sentence}" for sentence in codes["warnings"]]
    lines.append(
        f"trained {metrics['policy']['trainable']:,} numbers in {cost['train_seconds']:.0f} s"
        f" ({cost['steps']} steps of {cost['step_seconds']:.2f} s), reference in {cost['reference_seconds']:.0f} s"
    )
    return "\n".join(lines)
