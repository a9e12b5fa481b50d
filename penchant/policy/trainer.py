"""Preference optimisation on transformers' Trainer: mixed precision, the order of the pairs and logging come from it.

Several processes (processes.py) all see the same batches, and each runs its share of every one. A pair counts alike
wherever it is run, so their losses and gradients are those of one process.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penchant.attention import attending, current_pack
from penchant.errors import InputError
from penchant.heads.base import pair_accuracy
from penchant.policy.batches import TokenPair
from penchant.policy.checkpoints import STATE, load_random, load_steps, save_random, save_steps
from penchant.policy.codes import PEOPLE, LatentCodes
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.people import code_likelihood
from penchant.policy.policy import Policy, PolicyOutput
from penchant.policy.watch import code_figures
from penchant.processes import asked_to_shard, is_main, share, whole, world
from penchant.sharding import is_sharded, shard, whole_state

Item = tuple[TokenPair, float, float, int, int]
"""A pair, the reference's log-probabilities of chosen and rejected, who judged it (-1: unknown), and its row."""
SAID = "said.safetensors"
"""Of a checkpoint: what each pair says for each code, for the posterior "people"."""


class AlignTrainer(transformers.Trainer):
    """Trains a policy on pairs.

    The loss of a step is loss(margins) + kl_weight KL[q || p]. g, the prior's share of the code weights, goes linearly
    from 0 at the first step to 1 at the last. Codes and LoRA may learn at different rates.

    Args:
        policy: what is trained.
        loss: DPO, IPO or SimPO.
        pairs: training pairs as ids.
        reference: the reference's log-probabilities of these pairs; ignored by a loss that needs none.
        arguments: transformers' own.
        kl_weight: the paper's lambda.
        code_rate, net_rate: learning rates of the codebook, and of prior and posterior.
        person: who judged each pair, int [n]; for the posterior "people".
    """

    def __init__(
        self,
        policy: Policy,
        loss: Loss,
        pairs: Sequence[TokenPair],
        reference: PairLogProbs | None,
        arguments: transformers.TrainingArguments,
        kl_weight: float = 0.05,
        code_rate: float = 0.03,
        net_rate: float = 3e-4,
        person: Sequence[int] | None = None,
    ) -> None:
        self.loss, self.kl_weight, self.code_rate, self.net_rate = loss, kl_weight, code_rate, net_rate
        known = (reference.chosen, reference.rejected) if reference else (torch.zeros(len(pairs)),) * 2
        judged = person if person is not None else [-1] * len(pairs)
        rows = range(len(pairs))
        items: list[Item] = list(zip(pairs, known[0].tolist(), known[1].tolist(), judged, rows, strict=True))
        self.said: Tensor | None = None
        """[n, K], log f of each pair when it was seen last; zeros before. A person's evidence is their sum."""
        if isinstance(policy.codes, LatentCodes) and policy.codes.posterior == PEOPLE:
            if person is None:
                raise InputError("the posterior 'people' needs to know who judged each pair.")
            self.said = torch.zeros(len(pairs), policy.codes.codes, device=policy.codes.evidence.device)
        self.window: dict[str, list[Any]] = defaultdict(list)
        self.last_log = time.perf_counter()
        self.first_step = self.stepped = 0
        """Where this session began, and how many steps it has made."""
        super().__init__(policy, arguments, train_dataset=items, data_collator=_collate)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs
        self.sharded = asked_to_shard()
        self.remove_callback(transformers.PrinterCallback)  # metrics.jsonl has the rows

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.sharded and not is_sharded(self.policy):
            if resume_from_checkpoint is not None:
                self._load_from_checkpoint(resume_from_checkpoint)
            shard(self.policy, self.policy.backbone.layers)
        transformers.set_seed(self.args.seed)  # the draws must not depend on what ran before
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Whole batches, the same in every process; each takes its share when it has them."""
        from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]

        loader: Any = torch.utils.data.DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            self.args.per_device_train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, use_seedable_sampler=True
        )

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return Sharded(model) if self.sharded and training else super()._wrap_model(model, training, dataloader)

    @property
    def last_step(self) -> int:
        """The step after which training is done."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        per_epoch = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
        return math.ceil(self.args.num_train_epochs * per_epoch)

    def take_over(self, checkpoint: Path) -> None:
        """The end of a run that was finished: its weights and its log."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = transformers.TrainerState.load_from_json(str(checkpoint / STATE))
        if is_main():
            write_history(self.state.log_history, checkpoint.parent.parent / "metrics.jsonl")

    @property
    def policy(self) -> Policy:
        found: Policy = self.accelerator.unwrap_model(self.model)
        return found

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch: a mean over its pairs."""
        step = self.state.global_step
        g = min(1.0, step / max(1, self.state.max_steps - 1))
        watch = (step + 1) % max(1, int(self.args.logging_steps)) == 0
        codes, rows, person = self.policy.codes, inputs["rows"], inputs["person"]
        b = len(rows)
        own = share(b)
        count = own.stop - own.start
        if not count:  # a process without a pair of its own runs one that counts for nothing
            own = slice(0, 1)
        # What a pair said itself, in an earlier epoch, must not explain its label.
        evidence = codes.evidence[person[own]] - self.said[rows[own]] if self.said is not None else None
        chosen, rejected = inputs["reference"][own].to(self.policy.backbone.device).T

        def referred(probs: PairLogProbs) -> PairLogProbs:
            return probs._replace(chosen=chosen, rejected=rejected)

        def likelihood(probs: PairLogProbs, z: Tensor) -> Tensor:
            return code_likelihood(self.loss, self.loss.margins(probs, referred(probs)), z, codes.codebook)

        output: PolicyOutput = model(
            inputs["pairs"][own],
            g=g,
            watch=watch,
            evidence=evidence,
            among=(own.start, b),
            likelihood=likelihood if self.said is not None else None,
        )
        reference = referred(output.log_probs)
        margins = self.loss.margins(output.log_probs, reference)
        # The mean over the processes, which is what becomes of gradients, is the mean over the batch.
        total = world() * count / b * (self.loss(margins).mean() + self.kl_weight * output.kl.mean())
        if self.said is not None and output.said is not None:
            found = whole(output.said[:count], b)
            codes.evidence.index_add_(0, person, found - self.said[rows])
            self.said[rows] = found
        self._note(output, reference, margins, g, count, b)
        self.stepped = step + 1 - self.first_step
        return (total, {"margins": margins}) if return_outputs else total

    @torch.no_grad()
    def _note(
        self, output: PolicyOutput, reference: PairLogProbs, margins: Tensor, g: float, count: int, b: int
    ) -> None:
        """Keep what the next log row says of the whole batch of b pairs, the first `count` of which here are ours."""
        found = {"margins": margins}
        if output.prior is not None and output.posterior is not None:
            found |= {"prior": output.prior, "posterior": output.posterior}
        found |= {f"watched_{name}": self.loss.margins(probs, reference) for name, probs in output.watched.items()}
        for name, part in found.items():
            self.window[name].append(whole(part[:count].detach().float(), b).cpu())
        self.window["g"].append(g)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add margins, accuracy and what the codes do; keep the row in metrics.jsonl."""
        window: dict[str, Any] = {
            name: torch.cat(v) if isinstance(v[0], Tensor) else v for name, v in self.window.items()
        }
        self.window.clear()
        if "margins" in window:
            logs |= {"margin": float(window["margins"].mean()), "accuracy": pair_accuracy(window["margins"].numpy())}
        if "prior" in window:
            figures = code_figures(window["prior"].numpy(), window["posterior"].numpy())
            logs |= {
                "g": float(np.mean(window["g"])),
                **{name: figures[name] for name in ("kl", "perplexity", "top_share")},
            }
        if "watched_prior" in window:
            by_prior, by_posterior = (
                pair_accuracy(window[f"watched_{name}"].numpy()) for name in ("prior", "posterior")
            )
            logs |= {"accuracy_prior": by_prior, "accuracy_posterior": by_posterior, "gap": by_posterior - by_prior}
        now = time.perf_counter()
        if "loss" in logs:
            logs |= {"seconds": now - self.last_log}
        self.last_log = now
        super().log(logs, start_time)
        if is_main():
            write_history(self.state.log_history, Path(str(self.args.output_dir)).parent / "metrics.jsonl")

    # ---- what is learned how fast ---------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with learning rates of their own for codebook and networks; no weight decay on them.

        The codebook's is large: each code gets but its share of the gradient, and there are few steps.
        """
        if self.optimizer is None:
            policy = self.policy
            latent = policy.codes if isinstance(policy.codes, nn.Module) else nn.Module()
            codes = list(latent.parameters(recurse=False))
            nets = [p for net in latent.children() for p in net.parameters()]
            known = {id(p) for p in (*codes, *nets)}
            others = [p for p in policy.parameters() if p.requires_grad and id(p) not in known]
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups = [
                {"params": others, "lr": rate, "weight_decay": decay},
                *(
                    {"params": [p for p in those if p.requires_grad], "lr": own, "weight_decay": 0.0}
                    for those, own in ((codes, self.code_rate), (nets, self.net_rate))
                ),
            ]
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]], betas=betas, eps=self.args.adam_epsilon
            )
        found: torch.optim.Optimizer = self.optimizer
        return found

    # ---- checkpoints: safetensors and JSON, by the main process -----------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.save_policy(Path(output_dir or str(self.args.output_dir)))
        if is_main() and self.said is not None:
            save_file({"said": self.said}, Path(output_dir or str(self.args.output_dir)) / SAID)

    def save_policy(self, folder: Path) -> None:
        """Write the policy, of which each process may hold a part; for all processes at once."""
        state = whole_state(self.policy, trained=self.policy.facts["lora"] is not None) if self.sharded else None
        if is_main():
            self.policy.save_pretrained(folder, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.first_step = int(Path(resume_from_checkpoint).name.split("-")[1])
        if not is_sharded(self.policy):  # else it was loaded before it was sharded
            self.policy.load_state(resume_from_checkpoint)
        if self.said is not None:
            self.said.copy_(load_file(Path(resume_from_checkpoint) / SAID)["said"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_steps(Path(output_dir), self.policy, self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_steps(Path(checkpoint), self.policy, self.optimizer, self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        if is_main():  # all processes draw the same
            save_random(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint))


class Sharded(nn.Module):
    """A sharded policy as the Trainer takes one that needs no more wrapping."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *args: Any, **kwargs: Any) -> PolicyOutput:
        output: PolicyOutput = self.policy(*args, **kwargs)
        return output

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it gradients are not put together yet: the batch goes on."""
        whole: Any = self.policy
        whole.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            whole.set_requires_gradient_sync(True)


def checkpointing() -> dict[str, Any]:
    """Arguments of gradient checkpointing: what is run again in the backward pass must attend to the same pack."""

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        pack = current_pack()
        return nullcontext(), attending(pack) if pack is not None else nullcontext()

    return {"use_reentrant": False, "context_fn": contexts}


def write_history(rows: list[dict[str, Any]], path: Path) -> None:
    """The log's rows so far, a JSON line each; a run that went on has those of before, and no others."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history(rows)), encoding="utf-8")


def history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of training, without figures that are not finite."""
    finite = [{k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)} for row in rows]
    return [row for row in finite if "learning_rate" in row]


def _collate(items: list[Item]) -> dict[str, Any]:
    pairs, chosen, rejected, person, rows = zip(*items, strict=True)
    return {
        "pairs": list(pairs),
        "reference": torch.tensor([chosen, rejected]).T,
        "person": torch.tensor(person),
        "rows": torch.tensor(rows),
    }
