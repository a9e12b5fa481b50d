"""What a reward model must beat: a coin, the longer text, and a logistic model that only sees words and length."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import MaxAbsScaler

from penchant.evaluate.accuracy import DRAWS, Interval, accuracy_interval, correctness
from penchant.heads.base import prompt_folds
from penchant.latents import Array
from penchant.pairs import prompt_groups, to_text

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C, the inverse strength of the ridge."""
FOLDS = 5
MOST_PAIRS = 50_000
"""Training pairs the n-gram model learns from at most, so that it takes seconds; beyond that a random sample."""


def texts(pairs: Dataset, column: str) -> list[str]:
    """A column as plain strings, message lists flattened."""
    return [to_text(value) for value in pairs[column]]


def lengths(pairs: Dataset, column: str) -> Array:
    """Int [n]: characters of each text in a column."""
    return np.array([len(text) for text in texts(pairs, column)], dtype=np.int64)


def longer_text(test: Dataset) -> Array:
    """Correctness [n] of always choosing the response with more characters."""
    return correctness(lengths(test, "chosen"), lengths(test, "rejected"))


class NgramLength:
    """Bradley-Terry on word 1- and 2-grams and length: P(chosen better) = sigmoid(w . (f(chosen) - f(rejected))).

    f is tf-idf over hashed n-grams of the response beside its length and log-length in characters. The ridge is
    chosen by cross-validation over the training prompts.
    """

    def __init__(self, random_state: int = 0) -> None:
        self.random_state = random_state
        self.counts = HashingVectorizer(
            n_features=2**17, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", norm=None, alternate_sign=False
        )
        self.tfidf = TfidfTransformer(sublinear_tf=True)
        self.scale = MaxAbsScaler()

    def fit(self, pairs: Dataset) -> NgramLength:
        """Learn from pairs [n] with `prompt`, `chosen` and `rejected`."""
        chosen, rejected = texts(pairs, "chosen"), texts(pairs, "rejected")
        self.tfidf.fit(self.counts.transform(chosen + rejected))
        self.scale.fit(self._lengths(chosen + rejected))
        x = csr_matrix(self._features(chosen) - self._features(rejected))
        groups = prompt_groups(pairs)
        folds = min(FOLDS, len(np.unique(groups)))
        # One prompt alone cannot be split, so it gets the strength in the middle.
        split = (
            GroupKFold(folds, shuffle=True, random_state=self.random_state).split(x, groups=groups) if folds > 1 else ()
        )
        parts = list(split)

        def held_out_accuracy(c: float) -> float:
            return float(np.mean(np.concatenate([x[b] @ self._solve(x[a], c) > 0 for a, b in parts])))

        self.strength_ = max(STRENGTHS, key=held_out_accuracy) if parts else 1.0
        self.weights_ = self._solve(x, self.strength_)
        return self

    def score(self, responses: list[str]) -> Array:
        """Scores [n] of responses."""
        scores: Array = self._features(responses) @ self.weights_
        return scores

    def _lengths(self, responses: list[str]) -> Array:
        n = np.array([len(text) for text in responses], dtype=np.float64)
        return np.stack([n, np.log1p(n)], axis=1)

    def _features(self, responses: list[str]) -> csr_matrix:
        words = self.tfidf.transform(self.counts.transform(responses))
        return csr_matrix(hstack([words, csr_matrix(self.scale.transform(self._lengths(responses)))]))

    def _solve(self, differences: csr_matrix, c: float) -> Array:
        """Weights [d] that minimise c * sum log(1 + exp(-w . x)) + |w|^2 / 2 over differences x [n, d]."""
        # scikit-learn wants two classes. A row of zeros in the second one adds a constant to the loss, so it is exact.
        x = vstack([differences, csr_matrix((1, differences.shape[1]))])
        y = np.append(np.ones(differences.shape[0]), -1)
        model = LogisticRegression(
            C=c, fit_intercept=False, solver="liblinear", tol=1e-3, random_state=self.random_state
        )
        weights: Array = model.fit(x, y).coef_[0]
        return weights


def baselines(
    train: Dataset | None, test: Dataset, draws: int = DRAWS, seed: int = 0
) -> tuple[dict[str, Interval], dict[str, Array]]:
    """Accuracy with its interval, and correctness [n] by pair, of each baseline on the test pairs.

    "n-gram + length" learns from the training pairs. Where they are not known it is cross-validated on the test pairs,
    with whole prompts held out: what so simple a model finds in these very pairs.
    """
    correct = {"chance": np.full(len(test), 0.5), "longer text": longer_text(test)}
    if train is not None:
        correct["n-gram + length"] = _ngram_correctness(train, test, seed)
    else:
        fold = prompt_folds(prompt_groups(test), FOLDS, seed)
        held_out = np.full(len(test), 0.5)
        for k in range(fold.max() + 1 if fold.max() > 0 else 0):
            inside, outside = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            held_out[inside] = _ngram_correctness(test.select(outside), test.select(inside), seed)
        correct["n-gram + length"] = held_out
    groups = prompt_groups(test)
    return {name: accuracy_interval(c, groups, draws, seed) for name, c in correct.items()}, correct


def _ngram_correctness(train: Dataset, test: Dataset, seed: int) -> Array:
    sample = train.shuffle(seed=seed).select(range(MOST_PAIRS)) if len(train) > MOST_PAIRS else train
    model = NgramLength(seed).fit(sample)
    return correctness(model.score(texts(test, "chosen")), model.score(texts(test, "rejected")))
