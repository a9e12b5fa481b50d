"""A small multilayer perceptron with the Bradley-Terry or a margin loss, stopped early on held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import gelu, logsigmoid, relu
from torch.special import ndtr
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, pair_accuracy, prompt_folds
from penchant.latents import LatentPairs
from penchant.mapped import read, row_blocks

Array = NDArray[Any]
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LOSSES = ("bradley-terry", "margin")


class MLPHead(Head, kind="mlp"):
    """score(x) = out . gelu(W z + b) with z = (x - center) / scale; loss mean_i l(score+ - score-).

    l(s) is -log sigmoid(s) for "bradley-terry" and max(0, margin - s) for "margin".
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
        loss: "bradley-terry" or "margin".
        margin: the score difference from which the margin loss is 0.

    Attributes:
        hidden_weight_ [hidden, d], hidden_bias_ [hidden], output_weight_ [hidden], center_ [d], scale_ [d]: float32.
        validation_accuracy_: held-out accuracy at the kept epoch, None with one prompt only.
        cv_margins_: score differences [m] of the held-out part at that epoch, or None; not saved.
        epochs_: the kept epoch, counted from 1.
    """

    tensors = ("hidden_weight_", "hidden_bias_", "output_weight_", "center_", "scale_")
    facts = ("validation_accuracy_", "epochs_")
    streams = True

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
        loss: str = "bradley-terry",
        margin: float = 1.0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.random_state = random_state
        self.loss = loss
        self.margin = margin

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 pairs, NaN or inf, only equal latents, or arguments out of range."""
        self.check_arguments()
        check_pairs(pairs)
        fold = prompt_folds(pairs.group, 5, self.random_state)
        held_out = fold == fold.max() if fold.max() > 0 else np.zeros(len(pairs), dtype=bool)
        train, rest = self._both_sides(pairs, ~held_out, held_out)
        weights, self.epochs_, margins = self._train(train, rest)
        self.keep(weights)
        self.cv_margins_ = margins.numpy() if held_out.any() else None
        self.validation_accuracy_ = pair_accuracy(margins.numpy()) if held_out.any() else None
        return self

    def fit_for(self, pairs: LatentPairs, epochs: int) -> Self:
        """Fit on all pairs for exactly this many epochs, with nothing held out."""
        self.check_arguments()
        check_pairs(pairs)
        training = self.training(*self._both_sides(pairs, np.ones(len(pairs), dtype=bool)))
        self.keep(next(islice(training, epochs - 1, None)))
        self.epochs_, self.cv_margins_, self.validation_accuracy_ = epochs, None, None
        return self

    def score(self, latents: Array) -> Array:
        self._check_fitted()
        x = torch.from_numpy(self._standardise(check_latents(latents, len(self.center_))))
        with torch.inference_mode():
            scores = _forward(x.double(), *self._weights())
        return scores.float().numpy()

    @property
    def parameters(self) -> int:
        return self.hidden_weight_.size + self.hidden_bias_.size + self.output_weight_.size

    def contributions(self, latents: Array) -> Array:
        """What each column adds to the score of the mean latent: float64 [n, d], row sums score(x) - score(center).

        Integrated gradients from the training mean, where z = 0. For one hidden layer the integral is known: a hidden
        unit with input u_h = W_h . z adds out_h (gelu(u_h + b_h) - gelu(b_h)), shared out as W_hj z_j / u_h.
        """
        self._check_fitted()
        z = torch.from_numpy(self._standardise(check_latents(latents, len(self.center_)))).double()
        weight, bias, output = self._weights()
        u = z @ weight.T
        near = u.abs() < 1e-6  # there the quotient is its limit, gelu's slope
        slope = ndtr(bias) + bias * torch.exp(-(bias**2) / 2) / (2 * torch.pi) ** 0.5
        quotient = torch.where(near, slope, (gelu(u + bias) - gelu(bias)) / torch.where(near, 1.0, u))
        shares: Array = (z * ((output * quotient) @ weight)).numpy()
        return shares

    def standardise_by(self, latents: Array) -> None:
        """Take center and scale from latents [n, d]."""
        deviation = latents.std(axis=0, dtype=np.float64)
        self.center_ = latents.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.scale_ = np.where(deviation > 0, deviation, 1.0).astype(np.float32)

    def sides(self, chosen: Array, rejected: Array) -> torch.Tensor:
        """Both sides of n pairs, standardised: [2, n, d]."""
        return torch.from_numpy(np.stack([self._standardise(chosen), self._standardise(rejected)]))

    def keep(self, weights: Weights) -> None:
        """Make them this head's own."""
        self.hidden_weight_, self.hidden_bias_, self.output_weight_ = (w.detach().numpy().copy() for w in weights)

    def _both_sides(self, pairs: LatentPairs, *parts: Array) -> list[Sides]:
        """Both sides of the pairs in each part, standardised by all of them."""
        if pairs.mapped:
            sides = FileSides(self, pairs)
            self.center_, self.scale_ = sides.moments()
            return [sides.part(part) for part in parts]
        self.standardise_by(np.concatenate([pairs.chosen, pairs.rejected]))
        both = self.sides(pairs.chosen, pairs.rejected)
        return [both[:, part] for part in parts]

    def _standardise(self, latents: Array) -> Array:
        return ((latents - self.center_) / self.scale_).astype(np.float32)

    def _weights(self) -> Weights:
        # Float64, so that a score does not depend on its batch.
        hidden, bias, output = (self.hidden_weight_, self.hidden_bias_, self.output_weight_)
        return torch.from_numpy(hidden).double(), torch.from_numpy(bias).double(), torch.from_numpy(output).double()

    def _train(self, train: Sides, held_out: Sides) -> tuple[Weights, int, torch.Tensor]:
        """Weights of the best epoch, that epoch, and the held-out score differences; inputs are [2, pairs, d]."""
        best_loss, best_epoch, best_margins = float("inf"), 0, torch.zeros(0)
        for epoch, weights in zip(range(1, self.epochs + 1), self.training(train), strict=False):
            margins = pair_margins(held_out, weights)
            held_out_loss = float(self.loss_of(margins).mean())
            if epoch == 1 or held_out_loss < best_loss or held_out.shape[1] == 0:
                snapshot = [w.detach().clone() for w in weights]
                best = (snapshot[0], snapshot[1], snapshot[2])
                best_loss, best_epoch, best_margins = held_out_loss, epoch, margins
            elif epoch - best_epoch >= self.patience:
                break
        return best, best_epoch, best_margins

    def training(self, train: Sides) -> Iterator[Weights]:
        """The weights after each epoch over standardised pairs [2, n, d], without end; each time the same tensors."""
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
        while True:
            for batch in torch.randperm(train.shape[1], generator=generator).split(self.batch_size):
                chosen, rejected = _forward(train[:, batch], *weights, self.dropout, generator)
                loss = self.loss_of(chosen - rejected).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            yield weights

    def loss_of(self, difference: torch.Tensor) -> torch.Tensor:
        """l(s) [n] of score differences [n]."""
        return -logsigmoid(difference) if self.loss == "bradley-terry" else relu(self.margin - difference)

    def check_arguments(self) -> None:
        for name in ("hidden", "batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; give at least 0 and less than 1")
        if self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}; give one of {', '.join(LOSSES)}")
        if not 0 < self.margin < float("inf"):
            raise InputError(f"margin is {self.margin}; give a finite number above 0")


class FileSides:
    """Both sides of pairs in files, standardised where they are read: a tensor [2, n, d] as far as `training` goes."""

    def __init__(self, head: MLPHead, pairs: LatentPairs) -> None:
        self.head, self.pairs = head, pairs

    @property
    def shape(self) -> tuple[int, int, int]:
        return 2, len(self.pairs), self.pairs.recipe.dim

    def __getitem__(self, index: tuple[slice, torch.Tensor]) -> torch.Tensor:
        """`sides[:, batch]`"""
        batch = self.pairs.take(index[1].numpy())
        return self.head.sides(read(batch.chosen), read(batch.rejected))

    def part(self, rows: Array) -> FileSides:
        return FileSides(self.head, self.pairs.take(rows))

    def moments(self) -> tuple[Array, Array]:
        """Center and scale [d], in `standardise_by`'s order of summing: chosen, then rejected, row by row."""
        n, d = 2 * len(self.pairs), self.pairs.recipe.dim
        mean, square = np.zeros(d), np.zeros(d)
        for block in self._latents():
            mean = np.add.reduce(np.concatenate([mean[None], block]), axis=0)
        mean /= n
        for block in self._latents():
            square = np.add.reduce(np.concatenate([square[None], np.square(block - mean)]), axis=0)
        deviation = np.sqrt(square / n)
        return mean.astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32)

    def _latents(self) -> Iterator[Array]:
        for side in (self.pairs.chosen, self.pairs.rejected):
            for rows in row_blocks(*self.shape[1:]):
                yield read(side[rows]).astype(np.float64)


Sides = torch.Tensor | FileSides


def pair_margins(pairs: Sides, weights: Weights) -> torch.Tensor:
    """Score differences [n] of standardised pairs [2, n, d]."""
    if isinstance(pairs, FileSides):
        blocks = row_blocks(*pairs.shape[1:])
        parts = [pair_margins(pairs[:, torch.arange(rows.start, rows.stop)], weights) for rows in blocks]
        return torch.cat([torch.zeros(0), *parts])
    with torch.no_grad():
        scores = _forward(pairs, *weights)
    return scores[0] - scores[1]


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
