"""A small multilayer perceptron with the Bradley-Terry loss, stopped early on held-out prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import gelu, logsigmoid
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, pair_accuracy, prompt_folds
from penchant.latents import LatentPairs

Array = NDArray[Any]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class MLPHead(Head, kind="mlp"):
    """score(x) = out . gelu(W z + b) with z = (x - center) / scale; loss mean_i -log sigmoid(score+ - score-).

    One part in five of the prompts is held out; training stops when its loss has not fallen for `patience` epochs and
    the best epoch's weights are kept. With one prompt only nothing can be held out and all `epochs` are run.
    Same seed, same machine, same result; torch's global random state is neither read nor changed.

    Args:
        hidden: width of the hidden layer.
        dropout: share of inputs and of hidden units silenced in training.
        weight_decay: AdamW's decoupled decay of W and out.
        learning_rate: AdamW's.
        batch_size: pairs a step.
        epochs: most passes over the pairs.
        patience: epochs without a lower held-out loss before stopping.
        random_state: held-out prompts, initial weights, order and dropout.

    Attributes:
        hidden_weight_ [hidden, d], hidden_bias_ [hidden], output_weight_ [hidden], center_ [d], scale_ [d]: float32.
        validation_accuracy_: held-out accuracy at the kept epoch, None with one prompt only.
        cv_margins_: score differences [m] of the held-out part at that epoch, or None; not saved.
        epochs_: the kept epoch, counted from 1.
    """

    tensors = ("hidden_weight_", "hidden_bias_", "output_weight_", "center_", "scale_")
    facts = ("validation_accuracy_", "epochs_")

    hidden_weight_: Array
    hidden_bias_: Array
    output_weight_: Array
    center_: Array
    scale_: Array
    cv_margins_: Array | None
    validation_accuracy_: float | None
    epochs_: int

    def __init__(
        self,
        hidden: int = 64,
        dropout: float = 0.2,
        weight_decay: float = 0.1,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 60,
        patience: int = 8,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, or arguments out of range."""
        self.check_arguments()
        check_pairs(pairs)
        both = np.concatenate([pairs.chosen, pairs.rejected]).astype(np.float64)
        deviation = both.std(axis=0)
        self.center_ = both.mean(axis=0).astype(np.float32)
        self.scale_ = np.where(deviation > 0, deviation, 1.0).astype(np.float32)

        fold = prompt_folds(pairs.group, 5, self.random_state)
        held_out = fold == fold.max() if fold.max() > 0 else np.zeros(len(pairs), dtype=bool)
        sides = torch.from_numpy(np.stack([self._standardise(pairs.chosen), self._standardise(pairs.rejected)]))
        weights, self.epochs_, margins = self._train(sides[:, ~held_out], sides[:, held_out])
        self.hidden_weight_, self.hidden_bias_, self.output_weight_ = (w.numpy() for w in weights)
        self.cv_margins_ = margins.numpy() if held_out.any() else None
        self.validation_accuracy_ = pair_accuracy(margins.numpy()) if held_out.any() else None
        return self

    def score(self, latents: Array) -> Array:
        self._check_fitted()
        x = torch.from_numpy(self._standardise(check_latents(latents, len(self.center_))))
        # Float64, so that a score does not depend on its batch.
        weight, bias, output = (
            torch.from_numpy(w).double() for w in (self.hidden_weight_, self.hidden_bias_, self.output_weight_)
        )
        with torch.inference_mode():
            scores = _forward(x.double(), weight, bias, output)
        return scores.float().numpy()

    @property
    def parameters(self) -> int:
        return self.hidden_weight_.size + self.hidden_bias_.size + self.output_weight_.size

    def _standardise(self, latents: Array) -> Array:
        return ((latents - self.center_) / self.scale_).astype(np.float32)

    def _train(self, train: torch.Tensor, held_out: torch.Tensor) -> tuple[Weights, int, torch.Tensor]:
        """Weights of the best epoch, that epoch, and the held-out score differences; inputs are [2, pairs, d]."""
        generator = torch.Generator().manual_seed(self.random_state)
        d = train.shape[2]
        weights = (
            torch.randn(self.hidden, d, generator=generator) / d**0.5,
            torch.zeros(self.hidden),
            torch.zeros(self.hidden),  # the first scores are 0, so that the held-out loss starts at log 2
        )
        for w in weights:
            w.requires_grad_()
        decayed = {"params": [weights[0], weights[2]], "weight_decay": self.weight_decay}
        optimiser = torch.optim.AdamW(
            [decayed, {"params": [weights[1]], "weight_decay": 0.0}], lr=self.learning_rate, fused=True
        )
        best, best_loss, best_epoch, best_margins = weights, float("inf"), 0, torch.zeros(0)
        for epoch in range(1, self.epochs + 1):
            for batch in torch.randperm(train.shape[1], generator=generator).split(self.batch_size):
                chosen, rejected = _forward(train[:, batch], *weights, self.dropout, generator)
                loss = -logsigmoid(chosen - rejected).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                chosen, rejected = _forward(held_out, *weights)
                held_out_loss = float(-logsigmoid(chosen - rejected).mean())
            if held_out_loss < best_loss or held_out.shape[1] == 0:
                snapshot = [w.detach().clone() for w in weights]
                best = (snapshot[0], snapshot[1], snapshot[2])
                best_loss, best_epoch, best_margins = held_out_loss, epoch, chosen - rejected
            elif epoch - best_epoch >= self.patience:
                break
        return best, best_epoch, best_margins

    def check_arguments(self) -> None:
        for name in ("hidden", "batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; give at least 0 and less than 1")


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    output: torch.Tensor,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Scores [...] of standardised latents x [..., d]."""
    hidden = gelu(_drop(x, dropout, generator) @ weight.T + bias)
    return _drop(hidden, dropout, generator) @ output


def _drop(x: torch.Tensor, share: float, generator: torch.Generator | None) -> torch.Tensor:
    if share == 0:
        return x
    return x * (torch.rand(x.shape, generator=generator) >= share) / (1 - share)
