"""How a policy is trained: every choice in one place, checked before any work."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from penchant.errors import InputError
from penchant.policy.codes import LatentCodes
from penchant.policy.losses import Loss, make_loss


@dataclass(frozen=True)
class Settings:
    """How a policy is trained. See `penchant align --help`."""

    loss: Literal["dpo", "ipo", "simpo"] = "dpo"
    beta: float | None = None
    gamma: float | None = None
    label_smoothing: float = 0.0
    codes: int = 64
    posterior: Literal["concat", "difference", "both", "people"] = "concat"
    temperature: float = 1.0
    code_scale: float = 0.1
    code_rate: float = 0.03
    net_rate: float = 3e-4
    kl_weight: float = 0.05
    lora: int = 16
    top_layers: int | None = None
    epochs: float = 1.0
    steps: int = -1
    batch_size: int = 8
    micro_batch: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    save_steps: int = 0
    log_steps: int | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        make_loss(self.loss, self.beta, self.label_smoothing, self.gamma)
        if self.codes < 0:
            raise InputError(f"codes is {self.codes}; give 0 for a policy without codes, or how many.")
        for name, least in (("lora", 0), ("batch_size", 1), ("save_steps", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}.")
        if self.log_steps is not None and self.log_steps < 1:
            raise InputError(f"log_steps is {self.log_steps}; give at least 1.")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise InputError(f"micro_batch is {self.micro_batch}; give a divisor of batch_size, {self.batch_size}.")
        if self.steps < 1 and self.steps != -1:
            raise InputError(f"steps is {self.steps}; give at least 1, or -1 to leave it to the epochs.")
        for name in ("epochs", "rate", "code_rate", "net_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                told = "learning_rate" if name == "rate" else name
                raise InputError(f"{told} is {getattr(self, name)}; give a finite number above 0.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; give a share from 0 to below 1.")
        if not 0 <= self.kl_weight < float("inf"):
            raise InputError(f"kl_weight is {self.kl_weight}; give a finite number of 0 or more.")

    @property
    def rate(self) -> float:
        """The learning rate: as given, or what suits adapters or all weights."""
        return self.learning_rate if self.learning_rate is not None else (1e-3 if self.lora else 1e-5)

    def make_loss(self) -> Loss:
        return make_loss(self.loss, self.beta, self.label_smoothing, self.gamma)

    def make_codes(self, width: int, people: int = 0) -> LatentCodes | None:
        if not self.codes:
            return None
        return LatentCodes(width, self.codes, self.posterior, self.temperature, self.code_scale, people)


def check_installed(settings: Settings) -> None:
    """Raise InputError, before any work, where a package that training needs is not there."""
    for package in ("accelerate", *(["peft"] if settings.lora else [])):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"training a policy needs the package {package}; run: pip install 'penchant[align]'")
