"""What a step of preference optimisation costs: with codes, without, and in TRL, on the same batches.

Each contestant is a process of its own, and its memory is what it grows by above the loaded model (Linux only). They
take turns, so that a machine that slows down slows all of them. All train LoRA of rank 16 on every layer in the chip's
fast number type, without rows of a log. Penchant knows the reference beforehand; TRL, as it comes, runs it at each
step, and chosen and rejected as rows of one padded batch. TRL with the reference known beforehand runs as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 4
"""Pairs a step."""
CONTESTANTS = ("plain", "codes", "people", "top", "trl", "trl_known")
"""Penchant without codes; with 64; with 64 and the posterior "people"; with 64, only the top two layers trained; TRL's
DPOTrainer; the same with the reference known."""


def cost(rounds: int, steps: int, work: Path, contestants: Sequence[str] = CONTESTANTS) -> dict[str, Any]:
    """Seconds a step (medians over rounds x steps, the first step of a process left out) and MiB that each grows by."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    grown: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name in contestants:
            out = subprocess.run(
                [sys.executable, __file__, name, str(steps), str(work)], check=True, capture_output=True, text=True
            ).stdout
            found = json.loads(out.splitlines()[-1])
            seconds[name].append(found["seconds"])
            grown[name] = max(grown.get(name, 0.0), found["grown_mb"])
            losses[name] = found["losses"]
            print(f"  round {turn}: {name} {found['seconds']:.2f} s a step", file=sys.stderr, flush=True)
    each = {name: np.array(values) for name, values in seconds.items()}
    ratio = lambda a, b: float(np.median(each[a] / each[b]))  # noqa: E731
    return {
        "step_seconds": {name: float(np.median(values)) for name, values in each.items()},
        "grown_mb": grown,
        "overhead_ratio": ratio("codes", "plain"),
        "overhead_memory": grown["codes"] / grown["plain"],
        "speed_vs_trl": ratio("trl", "codes"),
        "overhead_people": ratio("people", "plain"),
        **({"speed_vs_trl_known": ratio("trl_known", "codes")} if "trl_known" in each else {}),
        "speed_vs_trl_top_layers": ratio("trl", "top"),
        "first_losses": {name: values[:2] for name, values in losses.items()},
    }


def contestant(name: str, steps: int, work: Path) -> None:
    import lpc_data

    from penchant.backbone import DEFAULT, load_whole
    from penchant.policy.align import make_trainer
    from penchant.policy.batches import token_pairs
    from penchant.policy.build import make_policy, make_trunk
    from penchant.policy.people import people_of
    from penchant.policy.policy import Policy
    from penchant.policy.reference import reference_log_probs
    from penchant.policy.settings import Settings

    pairs = lpc_data.draw("hh", 0).train.select(range(BATCH * steps))
    llm, backbone = load_whole(DEFAULT, "auto", None, 1024)
    tokens = token_pairs(backbone, pairs)
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("trl"):
            trainer = trl_trainer(llm, backbone, pairs, tokens, steps, folder)
            if name == "trl_known":
                trainer.precompute_ref_logps, trainer._precompute_model_hash = True, "the embedded LLM"
                trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", BATCH)
        else:
            settings = Settings(
                codes=0 if name == "plain" else 64,
                posterior="people" if name == "people" else "concat",
                top_layers=2 if name == "top" else None,
                steps=steps,
                batch_size=BATCH,
            )
            trunk = make_trunk(backbone, settings, tokens, work)
            reference, _ = reference_log_probs(Policy(llm, backbone, trunk=trunk), tokens, work)
            names, person = people_of(lpc_data.by_people(pairs, "hh"))
            policy = make_policy(llm, backbone, settings, trunk, people=names)
            loss = settings.make_loss()
            trainer = make_trainer(
                policy, loss, tokens, reference, settings, Path(folder), person=person, show_progress=False
            )
            trainer.args.logging_steps = 10**6  # no row of the log, whose figures need passes of their own
        trainer.args.train_sampling_strategy = "sequential"
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
        before = memory("VmRSS")
        stamps: list[float] = []
        trainer.add_callback(_clock(stamps))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(
        json.dumps(
            {"seconds": float(np.median(np.diff(stamps))), "grown_mb": memory("VmHWM") - before, "losses": losses}
        )
    )


def memory(field: str) -> float:
    """MiB of this process, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def trl_trainer(llm: Any, backbone: Any, pairs: Any, tokens: Any, steps: int, folder: str, full: Any = None) -> Any:
    """TRL's trainer on these very ids, with LoRA; or of all weights with `full` as the reference model."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=2e-4,
        logging_steps=1,
        use_cpu=backbone.device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_length=None,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(pairs))
    trainer = DPOTrainer(
        llm,
        full,
        args=arguments,
        train_dataset=text,
        processing_class=backbone.chat.tokenizer,
        peft_config=lora if full is None else None,
    )
    ids = [(c.prompt.tolist(), c.response.tolist(), r.response.tolist()) for c, r in tokens]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer.train_dataset = Dataset.from_dict(dict(zip(names, map(list, zip(*ids, strict=True)), strict=True)))
    return trainer


def _clock(stamps: list[float]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    return Clock()


if __name__ == "__main__":
    contestant(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
