"""A few tastes in place of one: linear heads, weighted by codes that are inferred from what was asked."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_latents, check_pairs, prompt_folds
from penchant.heads.context import deviation_of, view_gain
from penchant.heads.evidence import Codes, Sides, fit_gate, log_evidence
from penchant.heads.linear import STRENGTHS, TOLERANCE, BradleyTerryLoss, Spectrum, pick_strength, solve
from penchant.latents import OF_PROMPT, PROMPT, LatentPairs, Recipe

if TYPE_CHECKING:
    from penchant.backbone import Backbone

Array = NDArray[Any]

MOST_PAIRS = 5000
"""The Gram matrix of all pairs is decomposed: memory grows with the square of their number, time with the cube."""
GATE_PAIRS = 2000
"""Pairs from which an unsupervised gate is learned, at most."""
COMPONENTS = 64
"""Principal coordinates that an unsupervised gate reads, at most."""
SOURCE_STRENGTH = 0.2
"""Ridge penalty of the gate that is told the sources, on standardised columns with mean |z|^2 = 1."""
SCORED_ROWS = 4096
"""Responses whose features are held at once."""


class CodedHead(Head, kind="coded"):
    """score(x) = sum_k pi_k(x) e_k . f(x): K tastes e_k (the codebook), weighted by a prior pi(x) over the codes.

    Where people judge by several standards (helpful or harmless, novel or feasible), one head learns their average.
    LPC's idea (arXiv 2505.04993) for reward heads: a code says which standard counts, and is inferred from what was
    asked. f(x) is the response's centered latent and its squashed form, as in ContextHead, on its means over tokens
    (on all its views where there are no means). pi is a softmax that is linear in the latent: in the views of the
    prompt, and in the response's too, as they have read the prompt.

    Without sources the gate is the one under which the preferences are most likely with all tastes integrated out
    (`evidence.fit_gate`). It reads the prompt's means, or these and the prompt's last token, or the response's last
    token: whichever makes them most likely. With `use_source` a pair's code is known in training, a logistic
    regression predicts it from the latents, and scoring needs no source. Either way the tastes e_k = w_0 + w_k, with
    sum_k w_k = 0, then minimise

        sum_i l(score(chosen_i) - score(rejected_i)) + strength / 2 (|w_0|^2 / shared + sum_k |w_k|^2 / own),

    l being the Bradley-Terry loss. The gate stays as it is, and a known code stands for pi. The variances `shared` and
    `own` come with the hidden gate; with sources they make the tastes independent. One code is a ridge head on f.
    Swapping chosen and rejected flips every taste's sign and leaves the gate as it is.

    Where the codes are people and a prompt does not say who asks, `adapt` infers a person's code from a few pairs.

    Needs latents with one view "LAYER:prompt" or more, beside views of the response.

    Args:
        codes: K; with use_source there are as many as sources.
        use_source: learn the codes from pairs.source.
        strengths: ridge penalties tried by cross-validation with whole prompts held out.
        folds: parts of the cross-validation.
        random_state: which prompts share a fold, and which pairs teach the gate where there are more than 2,000.

    Attributes:
        codebook_ [K, f], gate_ [d, K], gate_bias_ [K], center_ and scale_ [c] of the c columns that f reads (f = 2 c):
            float64.
        sources_: the sources' names in the order of the codes; empty without use_source.
        gate_views_: the views that the gate reads.
        strength_: the penalty used.
        cv_accuracy_, cv_margins_: as in LinearHead for one code; None for several, as the gate has seen all pairs.
    """

    tensors = ("codebook_", "gate_", "gate_bias_", "center_", "scale_")
    facts = ("strength_", "cv_accuracy_", "sources_", "gate_views_", "recipe_")

    codebook_: Array
    gate_: Array
    gate_bias_: Array
    center_: Array
    scale_: Array
    strength_: float
    cv_accuracy_: float | None
    cv_margins_: Array | None
    sources_: list[str]
    gate_views_: list[str]
    recipe_: dict[str, Any]

    def __init__(
        self,
        codes: int = 2,
        use_source: bool = False,
        strengths: tuple[float, ...] = STRENGTHS,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.codes = codes
        self.use_source = use_source
        self.strengths = strengths
        self.folds = folds
        self.random_state = random_state

    def fit(self, pairs: LatentPairs) -> Self:
        """Raises InputError for fewer than 2 or more than 5,000 pairs, latents without a prompt view or a response
        view, NaN or inf, arguments out of range, and, with use_source, sources that are missing or all the same.
        """
        self.check_arguments()
        recipe = pairs.recipe
        if not (recipe.prompt_views and recipe.response_views):
            raise InputError(_views_wanted(recipe))
        pairs = pairs.in_memory()
        check_pairs(pairs)
        if len(pairs) > MOST_PAIRS:
            raise InputError(_too_many(len(pairs)))
        self.recipe_ = recipe.to_dict()
        pool = np.concatenate([pairs.chosen, pairs.rejected])[:, self._taste_columns()]
        self.center_, self.scale_ = pool.mean(axis=0, dtype=np.float64), deviation_of(pool)
        chosen, rejected = self._features(pairs.chosen), self._features(pairs.rejected)
        gain = view_gain(chosen - rejected, recipe.width)
        sides = Sides.of(chosen * gain, rejected * gain)

        self.sources_, self.gate_views_ = [], []
        if self.use_source:
            codes = self._fit_source_gate(pairs)
        elif readable := [views for views in self._gate_candidates() if np.ptp(_middle(pairs, views), axis=0).any()]:
            codes = self._fit_hidden_gate(pairs, sides, readable)
        else:
            self.gate_, self.gate_bias_ = np.zeros((recipe.dim, 1)), np.zeros(1)
            codes = Codes(1.0, 0.0, *np.zeros((2, len(pairs), 1)))
        self.codebook_ = self._fit_codebook(sides, codes, pairs.group) * gain
        return self

    def score(self, latents: Array) -> Array:
        self._check_fitted()
        latents = check_latents(latents, len(self.gate_))
        scores = np.empty(len(latents), np.float32)
        for start in range(0, len(latents), SCORED_ROWS):
            block = latents[start : start + SCORED_ROWS]
            scores[start : start + SCORED_ROWS] = (self.prior(block) * self.tastes(block)).sum(axis=1)
        return scores

    def tastes(self, latents: Array) -> Array:
        """e_k . f(x) [n, K]: the scores of latents [n, d] in each taste alone."""
        self._check_fitted()
        tastes: Array = self._features(check_latents(latents, len(self.gate_))) @ self.codebook_.T
        return tastes

    def prior(self, latents: Array) -> Array:
        """pi [n, K]: how much each code counts for latents [n, d]; rows sum to one."""
        self._check_fitted()
        latents = check_latents(latents, len(self.gate_))
        prior: Array = softmax(latents @ self.gate_ + self.gate_bias_, axis=1)
        return prior

    def adapt(self, pairs: LatentPairs) -> Self:
        """A copy for the person who judged these n pairs: the codes that explain them, whatever is asked.

        p(k | pairs) is proportional to mean_i pi_k(x_i) times prod_i s(e_k . (f(chosen_i) - f(rejected_i))), s the
        logistic function: a posterior that has seen the pairs takes the prior's place. Judge it on other pairs.
        Raises InputError for no pairs, NaN or inf, RecipeMismatch for latents of another width.
        """
        self._check_fitted()
        if not len(pairs):
            raise InputError("there are no pairs to adapt to; give one or more")
        prior = np.log((self.prior(pairs.chosen) + self.prior(pairs.rejected)).mean(axis=0) / 2)
        margins = (self._features(pairs.chosen) - self._features(pairs.rejected)) @ self.codebook_.T
        head = copy.copy(self)
        head.gate_, head.gate_bias_ = np.zeros_like(self.gate_), prior - np.logaddexp(0, -margins).sum(axis=0)
        return head

    @property
    def parameters(self) -> int:
        return int(self.codebook_.size + np.count_nonzero(self.gate_) + self.gate_bias_.size)

    def _taste_columns(self) -> Array:
        recipe = Recipe.from_dict(self.recipe_)
        means = tuple(view for view in recipe.response_views if view.endswith(":mean"))
        return recipe.columns(means or recipe.response_views)

    def _features(self, latents: Array) -> Array:
        """f(x) [n, 2 c] before the views are scaled; the scale is folded into the codebook."""
        x = latents[:, self._taste_columns()] - self.center_
        return np.concatenate([x, np.tanh(x / self.scale_)], axis=1)

    def _fit_source_gate(self, pairs: LatentPairs) -> Codes:
        """The codes are the sources; the gate predicts them."""
        if pairs.source is None:
            raise InputError("use_source needs pairs with a source; add a source column, or leave use_source out")
        missing = [row for row, source in enumerate(pairs.source) if source is None or source == ""]
        if missing:
            raise InputError(f"pair {missing[0]} has no source; name it, drop the pair, or leave use_source out")
        names, code = np.unique(pairs.source.astype(str), return_inverse=True)
        if len(names) == 1:
            raise InputError(f"all pairs have the source {names[0]}; give pairs of two sources or more")
        self.sources_, self.gate_views_ = names.tolist(), list(pairs.recipe.views)
        middle = _middle(pairs, pairs.recipe.views)
        center, deviation = middle.mean(axis=0), deviation_of(middle) * np.sqrt(middle.shape[1])
        model = LogisticRegression(C=1 / SOURCE_STRENGTH, max_iter=1000).fit((middle - center) / deviation, code)
        # Two classes share one weight.
        weight, bias = model.coef_, model.intercept_
        if len(names) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.gate_ = weight.T / deviation[:, None]
        self.gate_bias_ = bias - center @ self.gate_
        spread = np.eye(len(names))[code] - 1 / len(names)
        return Codes(1 / len(names), 1.0, spread, spread)  # these variances make the codes' tastes independent

    def _gate_candidates(self) -> list[tuple[str, ...]]:
        """Views that a hidden gate may read."""
        recipe = Recipe.from_dict(self.recipe_)
        means = tuple(view for view in recipe.prompt_views if view.endswith(f":{PROMPT}"))
        last = tuple(view for view in recipe.views if view.endswith(":last"))
        wanted = dict.fromkeys([means, recipe.prompt_views, last])
        return [views for views in wanted if views and self.codes > 1]

    def _fit_hidden_gate(self, pairs: LatentPairs, sides: Sides, candidates: list[tuple[str, ...]]) -> Codes:
        """The gate, of those that read one candidate each, under which the preferences are most likely."""
        rows = np.arange(len(pairs))
        if len(rows) > GATE_PAIRS:
            rows = np.sort(np.random.default_rng(self.random_state).choice(rows, GATE_PAIRS, replace=False))
        some = np.ix_(rows, rows)
        gram = sides.gram()
        variance = np.trace(gram) / len(gram)
        best = -np.inf
        for views in candidates:
            columns, middle = pairs.recipe.columns(views), _middle(pairs, views)
            center, axes = _principal(middle)
            z = (middle[rows] - center) @ axes
            gate = fit_gate(gram[some], z, min(self.codes, z.shape[1] + 1))
            weight = np.zeros((pairs.recipe.dim, len(gate.bias)))
            weight[columns] = axes @ gate.weight
            bias = gate.bias - center @ weight[columns]
            spread = [softmax(side @ weight + bias, axis=1) - 1 / len(bias) for side in (pairs.chosen, pairs.rejected)]
            codes = Codes(gate.shared, gate.own, *spread)
            # A response is scored by the gate's view of that response, so this is what is compared.
            found = log_evidence(codes.gram(sides)[some] / variance) + gate.log_prior
            if found > best:
                best, kept = found, codes
                self.gate_, self.gate_bias_, self.gate_views_ = weight, bias, list(views)
        return kept

    def _fit_codebook(self, sides: Sides, codes: Codes, group: Array) -> Array:
        """Ridge Bradley-Terry on the pairs [K, f]."""
        gram = codes.gram(sides)
        size = np.trace(gram) / len(gram)
        spectrum = Spectrum.of_gram(gram / size)
        loss = BradleyTerryLoss(np.zeros((len(gram), 1)), 0.0)
        fold = prompt_folds(group, self.folds, self.random_state)
        self.strength_, self.cv_accuracy_, self.cv_margins_ = pick_strength(spectrum, loss, fold, self.strengths)
        if codes.chosen.shape[1] > 1:
            self.cv_accuracy_, self.cv_margins_ = None, None
        v = solve(spectrum, loss, np.ones((len(gram), 1)), np.array([self.strength_]), TOLERANCE)[:, 0]
        return codes.codebook(sides, spectrum.axes @ v / size)

    def default_views(self, backbone: Backbone) -> tuple[str, ...]:
        """The backbone's views of the response and, at no further cost, the prompt's at each of their layers."""
        recipe = backbone.recipe(backbone.default_views())
        return (*recipe.response_views, *(f"{layer}:{pooling}" for pooling in OF_PROMPT for layer in recipe.layers))

    def check_encoding(self, backbone: Backbone, recipe: Recipe, pairs: int) -> None:
        if not (recipe.prompt_views and recipe.response_views):
            raise InputError(_views_wanted(recipe))
        if pairs > MOST_PAIRS:
            raise InputError(_too_many(pairs))

    def check_arguments(self) -> None:
        if self.codes < 1 or self.folds < 2:
            raise InputError(f"codes is {self.codes} and folds is {self.folds}; give at least 1 code and 2 folds")
        if bad := [s for s in self.strengths if not 0 < s < np.inf]:
            raise InputError(f"strength is {bad[0]}; give a finite number above 0")


def _middle(pairs: LatentPairs, views: tuple[str, ...]) -> Array:
    """Halfway between the two responses [n, d]: what a pair's latents say of its code whoever won."""
    columns = pairs.recipe.columns(views)
    middle: Array = (pairs.chosen[:, columns].astype(np.float64) + pairs.rejected[:, columns]) / 2
    return middle


def _principal(rows: Array) -> tuple[Array, Array]:
    """Center [d] and axes [d, k]: the leading principal coordinates of the standardised rows, mean |z|^2 = 1."""
    center, deviation = rows.mean(axis=0), deviation_of(rows)
    spectrum = Spectrum.of((rows - center) / deviation)
    kept = slice(-1, -COMPONENTS - 1, -1)  # the spectrum ascends
    axes = spectrum.axes[:, kept] / deviation[:, None]
    return center, axes * np.sqrt(len(rows) / spectrum.values[kept].sum())


def _views_wanted(recipe: Recipe) -> str:
    given = ", ".join(recipe.views)
    return (
        f"the coded head needs a view of the prompt and one of the response, got {given};"
        f" add one such as {recipe.layers[-1]}:{PROMPT}"
    )


def _too_many(pairs: int) -> str:
    return f"the coded head takes at most {MOST_PAIRS} pairs, got {pairs}; use fewer or the linear head"
