"""A taste a person: shared directions, a population that tastes come from, and each person's posterior in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, prompt_folds
from penchant.heads.pca import PCAHead, ridge_taste
from penchant.latents import LatentPairs

Array = NDArray[Any]

PRIORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Precisions of tastes around the population's mean, alike in all directions, that are tried."""
PSEUDO, ROUNDS = 15, 3
"""How many people that precision counts for beside those seen, and rounds of EM."""
FEW = 15
"""From how many pairs a person is guessed where priors are compared."""
MOST_PEOPLE = 300
"""People from whom the prior is learned, at most."""
MEMORY = 64 * 2**20
"""Bytes of arrays that people who are fitted together may take."""
STEPS, TOLERANCE = 50, 1e-8
"""Newton steps at most, and the largest entry of a step that ends them."""


class Taste(NamedTuple):
    """What is known of a person: a Gaussian over the weights of the k shared directions."""

    mean: Array
    """Float32 [k]."""
    precision: Array
    """Float32 [k (k + 1) / 2], the upper triangle of the inverse covariance, row by row."""
    pairs: int
    """How many pairs it came from."""


class TasteHead(Head, kind="tastes"):
    """score_u(x) = w_u . c(x): a weight for each of k shared directions, and weights w_u of every person u.

    Directions and the population's taste m are those of `PCAHead`, but every person counts alike, however many pairs
    are theirs. A person's taste comes from the population, and the person's pairs from the taste:

        w_u ~ N(m, S),  P(chosen over rejected) = sigmoid(w_u . (c(chosen) - c(rejected))).

    `fit` learns how far people are from each other and in what: S is shrunk towards I / prior (`spread`), and of
    several priors it takes the one under which preferences on held-out prompts are most likely, in the mean over
    people, each known by FEW pairs and by an S that has not seen them: as somebody new will be. (Marginal likelihood
    would take pairs that share a prompt for independent, and all of a person's pairs would ask for a tighter prior than
    few can bear: the directions in which people differ are not quite known.) Who is new starts from m, and is pulled
    from it as far as their pairs give reason to; nobody else's taste moves. What is known of a person is Laplace's
    approximation of the posterior, and more pairs go on from it, so old pairs are neither needed nor forgotten.

    `score` without a taste is m's. Swapping chosen and rejected flips every score.

    Args:
        components: k, the most directions.
        folds: parts of the cross-validation, every prompt whole in one.
        random_state: which prompts share a fold, which few pairs are looked at, and which people where there are more
            than 300.

    Attributes:
        components_: float64 [k, d], c_j(x) = components_[j] . x.
        mean_: float64 [k], m. precision_: float64 [k, k], the inverse of S. prior_: what S was shrunk towards.
        people_: how many people the pairs are from.
        strength_, cv_accuracy_, cv_margins_: of the population's taste, as in `PCAHead`.
    """

    tensors = ("components_", "mean_", "precision_")
    facts = ("prior_", "people_", "strength_", "cv_accuracy_")

    components_: Array
    mean_: Array
    precision_: Array
    prior_: float
    people_: int
    strength_: float
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(self, components: int = 40, folds: int = 5, random_state: int = 0) -> None:
        self.components = components
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Directions and population from the pairs of two people or more.

        Raises InputError for pairs without a user_id, only one person, NaN or inf, or arguments out of range.
        """
        pairs = pairs.in_memory()
        people = rows_of(pairs)
        if len(people) < 2:
            raise InputError("all pairs were judged by one person; a population needs the pairs of two people or more")
        weight = np.empty(len(pairs))
        for rows in people.values():
            weight[rows] = len(pairs) / len(people) / len(rows)
        head = PCAHead(self.components, folds=self.folds, random_state=self.random_state)
        pooled = head.fit_weighted(pairs, weight)
        self.components_, self.mean_, self.people_ = pooled.components_, pooled.pooled_, len(people)
        self.strength_ = pooled.strength_ or 1.0
        self.cv_accuracy_, self.cv_margins_ = pooled.cv_accuracy_, pooled.cv_margins_
        asked = list(people.values())
        if len(asked) > MOST_PEOPLE:
            drawn = np.random.default_rng(self.random_state).choice(len(asked), MOST_PEOPLE, replace=False)
            asked = [asked[i] for i in np.sort(drawn)]
        sides = self._sides(pairs)
        self.prior_ = self._pick_prior(sides, asked, prompt_folds(pairs.group, self.folds, self.random_state), weight)
        self.precision_ = inverse(spread([sides[own] for own in asked], self.mean_, self.prior_)[0])
        return self

    def _pick_prior(self, sides: Array, rows: list[Array], fold: Array, weight: Array) -> float:
        """The largest of PRIORS whose held-out loss is least; 1 where there is one prompt only."""
        rng = np.random.default_rng(self.random_state)
        loss = np.zeros(len(PRIORS))
        for part in range(int(fold.max()) + 1):
            seen, unseen = ([sides[own[(fold[own] == part) == held]] for own in rows] for held in (False, True))
            few = [own[rng.permutation(len(own))[:FEW]] for own in seen]
            rest = fold != part
            mean = ridge_taste(sides[rest], np.zeros(len(self.mean_)), self.strength_, weight[rest])
            for j, prior in enumerate(PRIORS):
                new = [Taste(mean, packed(each), 0) for each in inverse(spread(seen, mean, prior)[1])]
                for number, taste, _ in posteriors(few, new):
                    if len(unseen[number]):
                        loss[j] += np.logaddexp(0, -(unseen[number] @ taste)).mean()
        return 1.0 if fold.max() == 0 else PRIORS[len(PRIORS) - 1 - int(loss[::-1].argmin())]

    def fit_people(self, pairs: LatentPairs, known: Mapping[str, Taste] | None = None) -> dict[str, Taste]:
        """The taste of everybody who judged some of the pairs, all fitted side by side.

        People in `known` go on from what is known of them, others from the population. Raises InputError for pairs
        without a user_id, NaN or inf; RecipeMismatch for latents of another width.
        """
        self._check_fitted()
        people, sides, known = rows_of(pairs), self._sides(pairs), known or {}
        stranger = Taste(self.mean_, packed(self.precision_), 0)
        names = list(people)
        before = [known.get(name, stranger) for name in names]
        found: dict[str, Taste] = {}
        for number, mean, precision in posteriors([sides[rows] for rows in people.values()], before):
            pairs_seen = before[number].pairs + len(people[names[number]])
            found[names[number]] = Taste(mean.astype(np.float32), packed(precision).astype(np.float32), pairs_seen)
        return found

    def _sides(self, pairs: LatentPairs) -> Array:
        """c(chosen) - c(rejected), float64 [n, k]."""
        chosen, rejected = (check_latents(x, self.components_.shape[1]) for x in (pairs.chosen, pairs.rejected))
        sides: Array = (chosen.astype(np.float64) - rejected) @ self.components_.T
        return sides

    def score(self, latents: Array, taste: Taste | None = None) -> Array:
        """Float32 scores [n] of latents [n, d] by a person's taste; by the population's mean where none is given."""
        self._check_fitted()
        latents = check_latents(latents, self.components_.shape[1])
        weights = self.mean_ if taste is None else taste.mean.astype(np.float64)
        scores: Array = (latents.astype(np.float64) @ (weights @ self.components_)).astype(np.float32)
        return scores

    @property
    def parameters(self) -> int:
        return int(self.components_.shape[1])

    def check_arguments(self) -> None:
        PCAHead(self.components, folds=self.folds).check_arguments()


def rows_of(pairs: LatentPairs) -> dict[str, Array]:
    """The rows of each person's pairs, by user_id; InputError where it is not said who judged."""
    if pairs.user_id is None:
        raise InputError("the pairs have no user_id, who judged each; add that column, or map it with --columns")
    missing = [row for row, who in enumerate(pairs.user_id) if who is None or who == ""]
    if missing:
        raise InputError(f"pair {missing[0]} has no user_id; name who judged it, or drop it")
    names, member = np.unique(pairs.user_id.astype(str), return_inverse=True)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(member))[:-1])
    return dict(zip(names.tolist(), parts, strict=True))


def spread(sides: Sequence[Array], mean: Array, prior: float) -> tuple[Array, Array]:
    """How people's tastes lie about the mean [k]: the covariance [k, k], by EM from PSEUDO more people than there are,

        S = (PSEUDO I / prior + sum_u [C_u + (w_u - m)(w_u - m)']) / (PSEUDO + people),

    w_u and C_u a person's posterior mode and covariance under the S before; the first is I / prior. And the same
    without each person's own part [people, k, k], under which a person is as new.
    """
    k, people = len(mean), len(sides)
    start = np.eye(k) / prior
    whole, others = start, np.repeat(start[None], people, axis=0)
    modes, part = np.repeat(mean[None], people, axis=0), np.empty((people, k, k))
    for _ in range(ROUNDS):
        before = Taste(mean, packed(inverse(whole)), 0)
        for number, taste, precision in posteriors(sides, [before] * people, modes):
            modes[number], part[number] = taste, inverse(precision) + np.outer(taste - mean, taste - mean)
        total = PSEUDO * start + part.sum(axis=0)
        whole, others = total / (PSEUDO + people), (total - part) / (PSEUDO + people - 1)
    return whole, others


def inverse(matrix: Array) -> Array:
    """Of symmetric matrices [..., k, k], symmetric to the last bit."""
    found: Array = np.linalg.inv(matrix)
    return (found + found.swapaxes(-1, -2)) / 2


def posteriors(
    sides: Sequence[Array], priors: Sequence[Taste], start: Array | None = None
) -> Iterator[tuple[int, Array, Array]]:
    """Laplace's approximation of each person's taste, many people at once.

    `sides` are each person's differences c(chosen) - c(rejected) [n_u, k], `start` [people, k] is where the search
    begins, the prior's mean if None. Yields a person's number, the mode [k] of their posterior and its precision [k, k]
    there, not in the people's order. They are the same bit for bit whoever is beside them: sums over more rows of zeros
    round otherwise, so everybody is filled up by their own number alone, to the next power of two.
    """
    k = sides[0].shape[1]
    sizes = np.array([1 << (len(each) - 1).bit_length() if len(each) else 1 for each in sides])
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        most = max(1, MEMORY // int((size + 2 * k) * k * 8))
        for rows in np.split(alike, range(most, len(alike), most)):
            block = np.zeros((len(rows), size, k))
            for at, row in enumerate(rows):
                block[at, : len(sides[row])] = sides[row]
            mean = np.stack([priors[row].mean for row in rows]).astype(np.float64)
            precision = np.stack([unpacked(priors[row].precision, k) for row in rows])
            begin = None if start is None else start[rows]
            yield from zip(rows.tolist(), *newton(block, mean, precision, start=begin), strict=True)


def newton(
    block: Array, mean: Array, prior: Array, weight: Array | None = None, start: Array | None = None
) -> tuple[Array, Array]:
    """The taste [b, k] that minimises sum_i weight_i log(1 + exp(-block_i . w)) + (w - mean)' prior (w - mean) / 2, and
    the second derivative [b, k, k] there; block is [b, n, k], mean [b, k], prior [b, k, k], weight [b, n] or all 1; the
    search begins at start [b, k], or at the mean."""
    w = mean if start is None else start
    weight = np.ones(block.shape[:2]) if weight is None else weight

    def objective(w: Array) -> Array:
        away = w - mean
        pull = (away[:, None] @ prior @ away[:, :, None])[:, 0, 0] / 2
        value: Array = (weight * np.logaddexp(0, -(block @ w[:, :, None])[:, :, 0])).sum(axis=1) + pull
        return value

    def curvature(w: Array) -> tuple[Array, Array]:
        p = expit(-(block @ w[:, :, None]))  # probability of the other choice
        return weight[:, :, None] * p, (block * (weight[:, :, None] * p * (1 - p))).transpose(0, 2, 1) @ block + prior

    value = objective(w)
    for _ in range(STEPS):
        p, second = curvature(w)
        slope = prior @ (w - mean)[:, :, None] - block.transpose(0, 2, 1) @ p
        step = np.linalg.solve(second, slope)[:, :, 0]
        there = np.abs(step).max(axis=1, keepdims=True) < TOLERANCE
        if there.all():
            break
        length = np.where(there, 0.0, 1.0)  # who is there stays, so that a taste is the same bit for bit beside others
        for _ in range(20):  # halved wherever it would not descend
            tried = objective(w - length * step)
            worse = tried > value + 1e-12 * np.abs(value)
            if not worse.any():
                break
            length[worse] /= 2
        w, value = w - length * step, tried
    return w, curvature(w)[1]


def packed(precision: Array) -> Array:
    """The upper triangle [k (k + 1) / 2] of a symmetric matrix [k, k]."""
    upper: Array = precision[np.triu_indices(len(precision))]
    return upper


def unpacked(upper: Array, k: int) -> Array:
    """The symmetric matrix [k, k] that `packed` made small, float64."""
    matrix = np.zeros((k, k))
    matrix[np.triu_indices(k)] = upper
    return matrix + np.triu(matrix, 1).T
