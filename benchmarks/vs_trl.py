"""Penchant against TRL's RewardTrainer: the same LLM, the same training pairs, the same held-out pairs, this machine.

Contestants, each in a process of its own so that its peak memory is its own:
  penchant  RewardModel.train: frozen LLM, every text encoded once, AutoHead
  lora      RewardTrainer, LoRA of rank 16 on all linear layers, learning rate 2e-4
  full      RewardTrainer, all weights, learning rate 2e-5
All start from one folder of float32 weights (the embedded SmolLM2-135M-Instruct, dequantised) and run in the number
type the chip is fast in. TRL gets one epoch in its own random order, 8 pairs a step, without gradient checkpointing
(slower), and runs pair by pair inside a step: on a CPU the padding of larger batches (2.27 tokens run for 1 at 8 pairs)
costs more than larger matrix products save.

Seconds go from the pairs to a trained reward model, loading the LLM included and imports not; scoring the held-out
pairs is timed apart. Tokens a second count each prompt with each of its responses, padding not, for all alike. A
speedup compares seconds a training pair, since --quick stops TRL before the last pair.

A contestant that is done is kept in --work and not run again, unless its settings, seed or code have changed.

    python benchmarks/vs_trl.py --quick
    python benchmarks/vs_trl.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import data_file, finish

# Nothing heavy is imported up here: a child's peak memory is at least that of the process that started it.

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("penchant", "lora", "full")
LEARNING_RATE = {"lora": 2e-4, "full": 2e-5}
BATCH = 8
"""Pairs an optimiser step."""
PAD = "<|endoftext|>"
"""Not the end-of-turn token, which a classifier that looks for the last token before the padding would skip."""
COSTS = ("seconds", "cpu_seconds", "test_seconds", "tokens_per_second", "peak_mb")
Row = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 pairs, 60 test pairs, 3 steps of TRL: does it run?")
    parser.add_argument("--methods", default=",".join(METHODS), help="which of penchant,lora,full")
    parser.add_argument("--pairs", type=int, default=1000, help="training pairs")
    parser.add_argument("--test-pairs", type=int, help="held-out pairs; by default all harmless ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--micro-batch", type=int, default=1, help="pairs TRL runs at once (a step is 8): at 1, no padding"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant; by default all cores")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "vs_trl", help="where finished contestants are kept"
    )
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # the settings of one, when this file starts itself
    args = parser.parse_args()
    if args.contestant:
        contestant(json.loads(args.contestant))
        return
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"--methods knows {', '.join(METHODS)}, not {', '.join(sorted(unknown))}")

    train_file, test_file = data_file("hh/train"), data_file("hh/test")
    pairs, test_pairs = (60, 60) if args.quick else (args.pairs, args.test_pairs)
    train, test = read_pairs(train_file, pairs), read_pairs(test_file, test_pairs)
    print(f"train on {told(train)}; test on {told(test)}", file=sys.stderr)
    args.work.mkdir(parents=True, exist_ok=True)
    common = {"train": str(train_file), "pairs": pairs, "test": str(test_file)}
    common |= {"test_pairs": test_pairs, "work": str(args.work.resolve()), "max_steps": 3 if args.quick else -1}
    common |= {"micro_batch": args.micro_batch, "threads": args.threads}
    results: dict[str, list[Result]] = {
        method: [run({**common, "method": method, "seed": seed}, args.work) for seed in args.seeds]
        for method in methods
    }
    summary, table = compare(results, test)
    print("\n".join(table))
    details = {"train": told(train), "test": told(test), "threads": args.threads}
    finish("vs_trl", summary, full=not args.quick, details=details, seeds=args.seeds)


def read_pairs(path: Path, count: int | None) -> list[Row]:
    """The first `count` harmless pairs (all if None), filled up with the first helpful ones where they are too few."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    harmless = [row for row in rows if row["source"] == "harmless"]
    if count is None:
        return harmless
    return (harmless + [row for row in rows if row["source"] == "helpful"])[:count]


def told(rows: list[Row]) -> str:
    """For example "1000 harmless pairs" or "1040 harmless and 160 helpful pairs"."""
    harmless = sum(row["source"] == "harmless" for row in rows)
    return (
        f"{harmless} harmless pairs"
        if harmless == len(rows)
        else f"{harmless} harmless and {len(rows) - harmless} helpful pairs"
    )


# ---- running the contestants ----------------------------------------------------------------------------------------


def run(settings: dict[str, Any], work: Path) -> Result:
    """One contestant's result, from `work` if it is there with equal settings, otherwise from a process of its own."""
    identity = {**settings, "code": code_digest(settings["method"])}
    file = work / f"{settings['method']}-seed{settings['seed']}.json"
    if file.is_file():
        kept: Result = json.loads(file.read_text())
        if kept["settings"] == identity:
            print(f"{file.stem}: kept from an earlier run", file=sys.stderr)
            return kept
    if (load := os.getloadavg()[0]) > (os.cpu_count() or 1) + 0.5:
        # Threads that wait for one another at every small operation lose far more than their share of the cores.
        print(f"{file.stem}: the load average is {load:.1f}; seconds count only on a quiet machine", file=sys.stderr)
    plain_weights(work)
    command = [sys.executable, str(Path(__file__).resolve()), "--contestant", json.dumps(identity)]
    threads = {"OMP_NUM_THREADS": str(settings["threads"]), "MKL_NUM_THREADS": str(settings["threads"])}
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **threads})
    result: Result = json.loads(file.read_text())
    return result


def code_digest(method: str) -> str:
    """Changes with the code whose speed and accuracy are measured: Penchant's own, or TRL's version."""
    if method != "penchant":
        return f"trl {version('trl')}, peft {version('peft')}, learning rate {LEARNING_RATE[method]}"
    sources = sorted((ROOT / "penchant").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def plain_weights(work: Path) -> None:
    """Write the embedded LLM into `work`/llm as float32 safetensors, once, in a process of its own."""
    if (work / "llm").is_dir():
        return
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--contestant",
        json.dumps({"method": "weights", "work": str(work)}),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)


def contestant(settings: dict[str, Any]) -> None:
    """What the child process does: train, score the held-out pairs, write the result."""
    work = Path(settings["work"])
    if settings["method"] == "weights":
        dequantise(work / "llm")
        return
    train = read_pairs(Path(settings["train"]), settings["pairs"])
    test = read_pairs(Path(settings["test"]), settings["test_pairs"])
    load = os.getloadavg()[0]
    play = play_penchant if settings["method"] == "penchant" else play_trl
    result = {**play(settings, work / "llm", train, test), "load_average": load, "settings": settings}
    result["tokens_per_second"] = result["tokens"] / result["seconds"]
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )
    file = work / f"{settings['method']}-seed{settings['seed']}.json"
    file.with_suffix(".part").write_text(json.dumps(result))
    file.with_suffix(".part").replace(file)


@contextmanager
def stopwatch(result: Result, prefix: str = "") -> Iterator[None]:
    """Put wall and CPU seconds of the block, all threads together, into `result`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    result[f"{prefix}seconds"] = time.perf_counter() - wall
    result[f"{prefix}cpu_seconds"] = time.process_time() - cpu


def dequantise(folder: Path) -> None:
    """Save the embedded GGUF model as a plain causal LM that everything loads: config, safetensors, tokenizer."""
    import torch
    import transformers

    from penchant.backbone import DEFAULT, _locate

    path, files = _locate(DEFAULT)
    gguf = files[0].name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, gguf_file=gguf, dtype=torch.float32, quantization_config=transformers.GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):  # it is plain now; `save_pretrained` goes by this attribute
        del model.config.quantization_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, gguf_file=gguf)
    tokenizer.pad_token = PAD
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    part = folder.with_suffix(".part")
    tokenizer.save_pretrained(part)
    model.save_pretrained(part)
    part.rename(folder)


def play_penchant(settings: dict[str, Any], llm: Path, train: list[Row], test: list[Row]) -> Result:
    import tempfile

    from penchant.heads import AutoHead
    from penchant.pairs import load_pairs
    from penchant.reward_model import RewardModel

    result: Result = {}
    with tempfile.TemporaryDirectory(dir=settings["work"]) as cache:  # empty: nothing has been encoded before
        with stopwatch(result):
            model = RewardModel.train(
                load_pairs(train), model=str(llm), head=AutoHead(random_state=settings["seed"]), cache=cache
            )
        with stopwatch(result, "test_"):
            prompts = [row["prompt"] for row in test]
            scores = model.score(prompts + prompts, [row["chosen"] for row in test] + [row["rejected"] for row in test])
    cost = model.facts["cost"]
    result |= {"trained_pairs": len(train), "tokens": cost["tokens"], "tokens_run": cost["unique_tokens"]}
    result |= {"dtype": model.recipe.dtype, "head": model.facts["head"]}
    return result | {"chosen": scores[: len(test)].tolist(), "rejected": scores[len(test) :].tolist()}


def play_trl(settings: dict[str, Any], llm: Path, train: list[Row], test: list[Row]) -> Result:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]

    from penchant.backbone import choose_dtype

    method, result = settings["method"], Result()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = choose_dtype("auto", device)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    config = RewardConfig(
        output_dir=str(Path(settings["work"]) / "trl"),
        num_train_epochs=1,
        max_steps=settings["max_steps"],
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=BATCH // settings["micro_batch"],
        learning_rate=LEARNING_RATE[method],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=2048,  # as Penchant's; TRL drops longer pairs, and there are none
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=False,
        seed=settings["seed"],
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    with stopwatch(result):
        columns = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in train]
        trainer = RewardTrainer(
            model=str(llm),
            args=config,
            train_dataset=Dataset.from_list(columns),
            processing_class=AutoTokenizer.from_pretrained(llm),
            peft_config=lora if method == "lora" else None,
        )
        trainer.train()
    kept: Any = trainer.train_dataset
    assert len(kept) == len(train), "TRL dropped pairs"
    with stopwatch(result, "test_"):
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in test]
        scores = trl_scores(trainer.model, trainer.processing_class, texts, dtype)
    logged = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
    result |= {"trained_pairs": min(trainer.state.global_step * BATCH, len(train)), "tokens": logged[-1]["num_tokens"]}
    result |= {
        "dtype": str(dtype).removeprefix("torch."),
        "losses": [entry["loss"] for entry in logged if "loss" in entry],
    }
    return result | {"chosen": scores[: len(test)], "rejected": scores[len(test) :]}


def trl_scores(
    model: Any, tokenizer: Any, texts: list[list[dict[str, str]]], dtype: Any, budget: int = 4096
) -> list[float]:
    """Rewards of whole conversations, in batches of equal lengths of at most `budget` tokens.

    The head runs in float32: in bf16, close rewards would tie.
    """
    import torch

    classifier = getattr(model, "get_base_model", lambda: model)().eval()  # below PEFT's wrapper, adapters in place
    device = next(classifier.parameters()).device
    ids = [torch.tensor(tokenizer.apply_chat_template(text, return_dict=True)["input_ids"]) for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores = [0.0] * len(ids)
    while order:
        size = max(1, budget // len(ids[order[-1]]))
        rows, order = order[-size:], order[:-size]
        batch = torch.nn.utils.rnn.pad_sequence(
            [ids[i] for i in rows], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        lengths = torch.tensor([len(ids[i]) for i in rows])
        mask = torch.arange(batch.shape[1]) < lengths[:, None]
        with torch.inference_mode():
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                states = classifier.model(batch.to(device), attention_mask=mask.long().to(device)).last_hidden_state
            last = states[torch.arange(len(rows)), lengths - 1].float()
            for i, score in zip(rows, classifier.score(last).flatten().tolist(), strict=True):
                scores[i] = score
    return scores


# ---- comparing them -------------------------------------------------------------------------------------------------


def compare(results: dict[str, list[Result]], test: list[Row]) -> tuple[dict[str, Any], list[str]]:
    """The line of JSON and the table. With several seeds, a pair's correctness is their mean and costs are medians."""
    import numpy as np

    from penchant.evaluate import accuracy_interval, correctness, paired_difference
    from penchant.pairs import load_pairs, prompt_groups

    groups = prompt_groups(load_pairs(test))
    correct = {m: np.mean([correctness(r["chosen"], r["rejected"]) for r in runs], 0) for m, runs in results.items()}
    summary: dict[str, Any] = {"pairs": None, "test_pairs": len(test)}
    table = ["method     accuracy [95% interval]   ties  pairs  train s   CPU s   tok/s  test s  peak MB"]
    for method in METHODS:
        names = ("acc", "acc_ci_low", "acc_ci_high", "ties", "trained_pairs", *COSTS)
        summary |= {f"{method}_{name}": None for name in names}
        if method not in results:
            continue
        runs = results[method]
        interval = accuracy_interval(correct[method], groups)
        ties = sum(a == b for r in runs for a, b in zip(r["chosen"], r["rejected"], strict=True)) / len(runs)
        costs = [float(np.median([r[name] for r in runs])) for name in COSTS]
        figures = (interval.value, interval.low, interval.high, ties, runs[0]["trained_pairs"], *costs)
        summary |= {f"{method}_{name}": figure for name, figure in zip(names, figures, strict=True)}
        summary["pairs"] = runs[0]["settings"]["pairs"]
        seconds, cpu, test_seconds, speed, peak = costs
        table.append(
            f"{method:10} {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] {ties:10.1f}"
            f" {runs[0]['trained_pairs']:6d} {seconds:8.1f} {cpu:7.1f} {speed:7.0f} {test_seconds:7.1f} {peak:8.0f}"
        )
    for method in ("lora", "full"):
        keys = (f"delta_vs_{method}", f"delta_vs_{method}_ci_low", f"delta_vs_{method}_ci_high")
        summary |= dict.fromkeys((*keys, f"speedup_vs_{method}", f"cpu_speedup_vs_{method}"))
        if "penchant" not in results or method not in results:
            continue
        difference = paired_difference(correct["penchant"], correct[method], groups)
        summary |= dict(zip(keys, difference[:3], strict=True))
        for kind in ("", "cpu_"):
            theirs, ours = (summary[f"{m}_{kind}seconds"] / summary[f"{m}_trained_pairs"] for m in (method, "penchant"))
            summary[f"{kind}speedup_vs_{method}"] = theirs / ours
        table.append(
            f"Penchant - {method}: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}];"
            f" a pair costs {method} {summary[f'speedup_vs_{method}']:.1f} times the seconds"
        )
    return summary, table


if __name__ == "__main__":
    main()
