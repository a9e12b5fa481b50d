"""The SAE of `benchmarks/sparse.py`: trained on the training parts of the data, judged on held-out prompts, and timed.

Texts: the training pairs of hh, ultrafeedback, science (novelty and feasibility), qa_feedback and convarg, about 2.4
million distinct tokens as the embedded LLM reads them; states of its middle layer, 15 of 30. One block of prompts in
nineteen is held out. (ultrafeedback's training texts are among those that `sparse.py` draws test pairs from: the SAE
has seen them, without labels.) The states are kept in the work folder, so that only the first run needs the LLM.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import data_file
from datasets import Dataset
from torch import Tensor

from penchant.backbone import Backbone, load_whole
from penchant.pairs import load_pairs
from penchant.sae import SparseAutoencoder
from penchant.sae.activations import TokenBlocks
from penchant.sae.formats import load_sae, save_sae
from penchant.sae.metrics import loss_recovered, quality
from penchant.sae.training import Trainer, TrainingConfig, train_sae

LAYER = 15
TEXTS = (
    "hh/train",
    "ultrafeedback/train",
    "science/novelty.train",
    "science/feasibility.train",
    "qa_feedback/dev",
    "convarg/train",
)
CONFIG = TrainingConfig(epochs=2)
LOSS_SEQUENCES = 60
SPEED_STEPS = 12
WARM_UP = 3


class AllButLast:
    """The blocks that are trained on."""

    def __init__(self, blocks: TokenBlocks) -> None:
        self.blocks, self.digest = blocks, blocks.digest

    def __len__(self) -> int:
        return len(self.blocks) - 1

    def block(self, number: int) -> Tensor:
        return self.blocks.block(number)


def texts() -> Dataset:
    return load_pairs([data_file(name) for name in TEXTS])


def trained(work: Path, backbone: Backbone) -> SparseAutoencoder:
    """The SAE in the work folder, trained first if there is none; `facts` says how good it is."""
    folder = work / "sae"
    if not (folder / "cfg.json").is_file():
        blocks = TokenBlocks(backbone, texts(), LAYER, keep=work / "states")
        facts: dict[str, Any] = {"layer": LAYER, "model": backbone.name, "revision": backbone.revision}
        sae, progress = train_sae(AllButLast(blocks), CONFIG, work / "run", **facts)
        sae.facts = {"tokens": progress.tokens // CONFIG.epochs, "epochs": CONFIG.epochs, "seconds": progress.seconds}
        sae.facts |= {"log": progress.log, **judged(sae, blocks)}
        save_sae(sae, folder)
    return load_sae(folder)


def a_block(work: Path, backbone: Backbone) -> Tensor:
    """States [t, d] of the first block."""
    return TokenBlocks(backbone, texts(), LAYER, keep=work / "states").block(0)


def judged(sae: SparseAutoencoder, blocks: TokenBlocks) -> dict[str, Any]:
    """Quality on the held-out block, and the LLM's loss on its first sequences."""
    held_out = blocks.block(len(blocks) - 1)
    whole, backbone = load_whole()
    few = blocks.tokens(len(blocks) - 1)[:LOSS_SEQUENCES]
    loss = loss_recovered(whole, backbone, sae, few, held_out.float().mean(0))
    return {"quality": quality(sae, [held_out]).to_dict(), "loss": loss.to_dict()}


def speed(states: Tensor) -> dict[str, float]:
    """States a second in training, ours and sae-lens' TopK SAE: same states, shapes, k and batch.

    sae-lens runs with dense and with sparse activations, each with torch's default and with its fused Adam; the
    ratio is to the fastest of those that run. All take turns, so that they see the same machine; medians. Both
    train in fp32; the search for the largest pre-activations is a bf16 product here where the chip has bf16, and fp32
    in sae-lens. What sae-lens' trainer does beyond the step (clipping, counting what fires) is left out, which
    favours it.
    """
    config = replace(CONFIG, dead_after=10**9)
    d, batch = states.shape[1], config.batch
    batches = [states[i * batch : (i + 1) * batch].float() for i in range(min(8, len(states) // batch))]
    trainer = Trainer.start(config, states[: 4 * batch])
    rivals: dict[str, Callable[[Tensor], Any]] = {"ours": lambda x: trainer.step(x, 0.5)}
    for sparse, fused in ((False, False), (False, True), (True, False), (True, True)):
        name = f"sae_lens_{'sparse' if sparse else 'dense'}{'_fused' if fused else ''}"
        try:
            step = sae_lens_step(d, trainer.sae.config.d_sae, config, trainer.sae.config.scale, sparse, fused)
            step(batches[0])
            rivals[name] = step
        except ImportError:
            print("sae-lens is not installed; its time is not measured")
            break
        except NotImplementedError as error:  # its sparse activations lack a kernel on some devices
            print(f"{name} does not run here: {str(error).splitlines()[0][:120]}")
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(WARM_UP + SPEED_STEPS):
        for name, step in rivals.items():
            began = time.perf_counter()
            step(batches[number % len(batches)])
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    median = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    figures = {f"sae_{name}_tokens_per_second": batch / value for name, value in median.items()}
    if len(median) > 1:
        figures["sae_speed_ratio"] = min(v for name, v in median.items() if name != "ours") / median["ours"]
    return figures


def sae_lens_step(
    d: int, m: int, config: TrainingConfig, scale: float, sparse: bool, fused: bool
) -> Callable[[Tensor], None]:
    """One step of sae-lens' TopK SAE with its defaults: forward, backward, Adam."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput

    shape: dict[str, Any] = {"d_in": d, "d_sae": m, "k": config.k, "use_sparse_activations": sparse}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shape, device="cpu", dtype="float32"))
    adam = torch.optim.Adam(sae.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)

    def step(x: Tensor) -> None:
        made = sae.training_forward_pass(
            TrainStepInput(x * scale, {}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
        )
        adam.zero_grad()
        made.loss.backward()
        adam.step()

    return step
