"""Trains CLaP on several responses a prompt, resumes what was interrupted, and says whether z is used at all."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from penchant.chat import Text, Tokens
from penchant.checkpoint import load_run, read_facts, save_run
from penchant.errors import InputError
from penchant.personal.clap import DRAWS, Clap
from penchant.personal.clap_losses import contrastive_accuracy
from penchant.personal.encoder import Gaussian

Group = list[Tokens]
"""One prompt with each of its responses, all different."""
CHECKPOINT = "training.safetensors"
ACTIVE = 0.01
"""A unit of z is active where the variance of its posterior means exceeds this (Burda et al.)."""


@dataclass(frozen=True)
class ClapSettings:
    """How CLaP is trained."""

    epochs: int = 1
    prompts: int = 8
    """Prompts a step."""
    learning_rate: float = 1e-3
    """Of AdamW; it rises over the first twentieth of the steps and falls to 0 by cosine."""
    first_stage: float = 0.5
    """Share of the steps with the gradient-only skip and without the contrastive term."""
    others: int = 3
    """Responses that each is told apart from in the second stage; 0 leaves the contrastive term out."""
    standard_kl: bool = False
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.first_stage <= 1:
            raise InputError(f"first_stage is {self.first_stage}; give a share from 0 to 1.")
        if self.others < 0:
            raise InputError(f"others is {self.others}; give 0 or more.")


def groups_of(clap: Clap, prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> list[Group]:
    """Prompts with their different responses as ids, no prompt with fewer than two; InputError where none is left."""
    chat = clap.backbone.chat
    found = []
    for row, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
        texts = [text for text in dict.fromkeys(answers) if text.strip()]
        items = chat.encode([prompt] * len(texts), texts, [row] * len(texts))
        unique = list({item.key: item for item in items}.values())
        if len(unique) > 1:
            found.append(unique)
    if not found:
        raise InputError("no prompt has two different responses; sample more answers, or at a higher temperature.")
    return found


def train_clap(
    clap: Clap,
    groups: Sequence[Group],
    settings: ClapSettings,
    folder: str | Path | None = None,
    *,
    save_seconds: float = 60.0,
    show_progress: bool = True,
) -> list[dict[str, float]]:
    """Train the encoder, the adapter and the skip; the LLM stays as it is. Returns a row of figures a step.

    A run that was killed goes on from the checkpoint in `folder` and ends with the very weights of one that was not.
    InputError if that checkpoint is of other settings or texts.
    """
    trained = [p for p in clap.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.01)
    steps = settings.epochs * math.ceil(len(groups) / settings.prompts)
    digest = hashlib.blake2b(b"".join(item.key for group in groups for item in group), digest_size=16).hexdigest()
    made_with = {**asdict(settings), "texts": digest, "llm": clap.backbone.revision, "latent": clap.latent}
    path = Path(folder) / CHECKPOINT if folder is not None else None
    log: list[dict[str, float]] = []
    if path is not None and path.is_file():
        log = read_facts(path, made_with)["log"]
        load_run(path, clap, adam)
    saved = time.monotonic()
    with tqdm(total=steps, initial=len(log), unit="step", desc="CLaP", disable=not show_progress, leave=False) as bar:
        for step in range(len(log), steps):
            log.append(_step(clap, adam, trained, groups, settings, step, steps))
            last = log[-1]
            bar.set_postfix_str(f"{last['nats_per_token']:.3f} nats a token, KL {last['kl']:.2f}")
            bar.update()
            if path is not None and (step + 1 == steps or time.monotonic() - saved > save_seconds):
                save_run(path, clap, adam, {"made_with": made_with, "log": log})
                saved = time.monotonic()
    return log


def _step(
    clap: Clap,
    adam: torch.optim.Optimizer,
    trained: Sequence[Tensor],
    groups: Sequence[Group],
    settings: ClapSettings,
    step: int,
    steps: int,
) -> dict[str, float]:
    """One step on the next prompts; all that is random in it follows from the seed and its number."""
    per_epoch = steps // settings.epochs
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
    random = torch.Generator().manual_seed((settings.seed * 1_000_003 + 17) * 1_000_003 + step)
    share = step / steps
    rate = min(1.0, (step + 1) / max(1.0, steps / 20)) * 0.5 * (1 + math.cos(math.pi * share))
    for part in adam.param_groups:
        part["lr"] = settings.learning_rate * rate
    first = share < settings.first_stage
    adam.zero_grad()
    rows: list[dict[str, float]] = []
    batch = order[place * settings.prompts : (place + 1) * settings.prompts].tolist()
    for number in batch:
        items = groups[number]
        n = len(items)
        noise = torch.randn(DRAWS, n, clap.latent, generator=random).to(clap.backbone.device)
        others = None
        if settings.others and not first:
            others = _others(n, min(settings.others, n - 1), random).to(clap.backbone.device)
        terms = clap(items, noise, others, skip=first, standard_kl=settings.standard_kl)
        (terms.loss / len(batch)).backward()
        rows.append(
            {
                "loss": float(terms.loss.detach()),
                "nats_per_token": float(terms.reconstruction.detach()) / terms.tokens,
                "kl": float(terms.kl.detach()),
                "contrastive": float(terms.contrastive.detach()),
            }
        )
    norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip)
    adam.step()
    return {**{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}, "gradient": float(norm)}


def _others(n: int, count: int, random: torch.Generator) -> Tensor:
    """Int [n, count]: for each of n responses, `count` different ones that are not itself."""
    drawn = torch.rand(n, n, generator=random)
    drawn.fill_diagonal_(2.0)
    return drawn.argsort(1)[:, :count]


@torch.no_grad()
def evaluate_clap(clap: Clap, groups: Sequence[Group], seed: int = 0) -> dict[str, float]:
    """Figures on prompts that were not trained on.

    nats_per_token: of responses under their own posterior's mean; `plain` under the LLM without z, `prior` under a z
    drawn from N(0, I). active_units: see ACTIVE. mutual_information: of z and the response, in nats, by minibatches of
    all responses here (it cannot exceed the logarithm of their number). contrastive_accuracy: share of responses that
    are likelier under their own z than under that of any other response to the prompt.
    """
    random = torch.Generator().manual_seed(seed)
    device = clap.backbone.device
    tokens, own, prior, plain, right = 0, 0.0, 0.0, 0.0, 0.0
    read: list[Gaussian] = []
    for items in groups:
        q = clap.read(items)
        n = len(items)
        table = clap.log_probs([item for item in items for _ in range(n)], q.mean.repeat(n, 1)).view(n, n)
        mine = table.diagonal()
        away = table[~torch.eye(n, dtype=torch.bool, device=device)].view(n, n - 1)
        right += float(contrastive_accuracy(torch.cat([mine[:, None], away], 1))) * n
        own -= float(mine.sum())
        prior -= float(clap.log_probs(items, torch.randn(n, clap.latent, generator=random).to(device)).sum())
        plain -= float(clap.log_probs(items, None).sum())
        tokens += sum(len(item.response) - (not len(item.prompt)) for item in items)
        read.append(q)
    q = Gaussian(*(torch.cat(parts) for parts in zip(*read, strict=True)))
    count = len(q.mean)
    z = q.draw(torch.randn(count, clap.latent, generator=random).to(device))
    of_each = q.log_prob(z[:, None])  # [z, posterior]
    information = (of_each.diagonal() - of_each.logsumexp(1) + math.log(count)).mean()
    return {
        "nats_per_token": own / tokens,
        "plain": plain / tokens,
        "prior": prior / tokens,
        "active_units": float((q.mean.var(0) > ACTIVE).sum()),
        "mutual_information": float(information),
        "contrastive_accuracy": right / count,
        "responses": float(count),
    }
