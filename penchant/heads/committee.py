"""A bootstrap committee of any head: its score is the members' mean, its spread says how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from typing_extensions import Self

from penchant.errors import InputError
from penchant.heads.base import Head, check_pairs, head_of, pair_accuracy, score_rows
from penchant.latents import LatentPairs, Recipe

if TYPE_CHECKING:
    from penchant.backbone import Backbone

Array = NDArray[Any]


class CommitteeHead(Head, kind="committee"):
    """score(x) = mean_b score_b(x) / scale_b over `members` copies of a head, each fitted on a bootstrap of prompts.

    Member b draws as many prompts as there are, with replacement, and takes all pairs of each: pairs of one prompt are
    not independent. It has its own seed, random_state + b. scale_b is the root mean square of the member's margins
    over all training pairs, drawn or not, so that no member outvotes another by its units; a typical margin is 1.

    The members' standard deviation estimates how much the score would vary with other training prompts. It does not
    know what the head can never learn, so it says nothing of errors that all members share.

    Args:
        head: unfitted; copies are fitted.
        members: how many, at least 2.
        random_state: of the bootstrap.

    Attributes:
        members_: the fitted heads.
        scales_: their scales.
        cv_margins_: float64 [m]: margins by those members that did not draw the pair's prompt, of the pairs that have
            such members; None where none has. Fewer members than in `score`, so rather too noisy than too sure.
        cv_accuracy_: their accuracy, or None.
    """

    tensors = ("members_",)
    facts = ("scales_", "cv_accuracy_")

    members_: list[Head]
    scales_: list[float]
    cv_accuracy_: float | None
    cv_margins_: Array | None

    def __init__(self, head: Head, members: int = 8, random_state: int = 0) -> None:
        self.head = head
        self.members = members
        self.random_state = random_state
        self.takes_unlabelled, self.streams = head.takes_unlabelled, head.streams

    def fit(self, pairs: LatentPairs, unlabelled: Array | None = None) -> Self:
        """Learn from n pairs; `unlabelled` latents [m, d] serve every member that takes them.

        Raises InputError for pairs of one prompt only, and what the head raises.
        """
        self.check_arguments()
        check_pairs(pairs)
        if len(np.unique(pairs.group)) < 2:
            raise InputError("a committee needs pairs of at least 2 prompts, got 1; give more or fit the head alone")
        rng = np.random.default_rng(self.random_state)
        others = () if unlabelled is None or not self.takes_unlabelled else (unlabelled,)
        self.members_, self.scales_ = [], []
        margins, judges = np.zeros(len(pairs)), np.zeros(len(pairs), int)
        for b in range(self.members):
            member, rows = self._fresh(b), bootstrap(pairs.group, rng)
            learn: Any = member.fit
            learn(pairs.take(np.sort(rows) if pairs.mapped else rows), *others)  # files are read in their order
            own = score_rows(member, pairs.chosen).astype(np.float64) - score_rows(member, pairs.rejected)
            size = float(np.sqrt(np.square(own).mean()))
            self.members_.append(member)
            self.scales_.append(size if size > 0 else 1.0)
            unseen = ~np.isin(pairs.group, pairs.group[rows])
            margins += np.where(unseen, own / self.scales_[-1], 0.0)
            judges += unseen
        found = judges > 0
        self.cv_margins_ = margins[found] / judges[found] if found.any() else None
        self.cv_accuracy_ = None if self.cv_margins_ is None else pair_accuracy(self.cv_margins_)
        return self

    def score(self, latents: Array) -> Array:
        mean: Array = self._scores(latents).mean(axis=0)
        return mean.astype(np.float32)

    def margins(self, chosen: Array, rejected: Array) -> Array:
        """Float64 [n]: the members' mean score difference of latents [n, d]."""
        mean: Array = (self._scores(chosen) - self._scores(rejected)).mean(axis=0)
        return mean

    def spread(self, chosen: Array, rejected: Array) -> Array:
        """Float64 [n]: the standard deviation over the members of the score difference of latents [n, d]."""
        deviation: Array = (self._scores(chosen) - self._scores(rejected)).std(axis=0, ddof=1)
        return deviation

    @property
    def parameters(self) -> int:
        return sum(member.parameters for member in self.members_)

    def default_views(self, backbone: Backbone) -> tuple[str, ...]:
        return self.head.default_views(backbone)

    def check_encoding(self, backbone: Backbone, recipe: Recipe, pairs: int) -> None:
        self.head.check_encoding(backbone, recipe, pairs)

    def check_arguments(self) -> None:
        if self.members < 2:
            raise InputError(f"members is {self.members}; give at least 2")
        self.head.check_arguments()

    def _fresh(self, b: int) -> Head:
        member: Any = clone(self.head)
        if hasattr(member, "random_state"):
            member.random_state += b
        fresh: Head = member
        return fresh

    def _scores(self, latents: Array) -> Array:
        """Float64 [members, n], on their common scale."""
        self._check_fitted()
        pairs = zip(self.members_, self.scales_, strict=True)
        return np.stack([member.score(latents).astype(np.float64) / scale for member, scale in pairs])

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The members' tensors are named MEMBER.NAME."""
        self._check_fitted()
        states = [member.state() for member in self.members_]
        learned = {name: getattr(self, name) for name in self.facts} | {"members_": [config for config, _ in states]}
        config = {"head": self.name, "members": self.members, "random_state": self.random_state, "learned": learned}
        return config, {f"{b}.{name}": value for b, (_, own) in enumerate(states) for name, value in own.items()}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Array]) -> Self:
        learned = config["learned"]
        members = []
        for b, inner in enumerate(learned["members_"]):
            own = {name.removeprefix(f"{b}."): value for name, value in tensors.items() if name.startswith(f"{b}.")}
            members.append(head_of(inner, own))
        plain: Any = clone(members[0])  # whose seed is that of the head given
        head = cls(plain, config["members"], config["random_state"])
        head.members_, head.scales_, head.cv_accuracy_ = members, learned["scales_"], learned["cv_accuracy_"]
        return head


def bootstrap(group: Array, rng: np.random.Generator) -> Array:
    """Indices [m] of the pairs of as many prompts as there are in group [n], drawn with replacement; m <= n.

    At least two different prompts are drawn, as a head that cross-validates needs them. Copies of a pair share their
    group, so they never stand on both sides of a member's own cross-validation.
    """
    prompts, member = np.unique(group, return_inverse=True)
    pairs_of = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    while True:
        drawn = rng.integers(len(prompts), size=len(prompts))
        # Cut where prompts of many pairs were drawn often, as heads may have a limit that n keeps.
        rows = np.concatenate([pairs_of[prompt] for prompt in drawn])[: len(group)]
        if (member[rows] != member[rows[0]]).any():
            return rows
