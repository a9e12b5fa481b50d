"""Pairs with the people who judged them: whose they are, and what of each person's is held out."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from penchant.errors import InputError
from penchant.latents import Array
from penchant.pairs import prompt_groups
from penchant.personal.records import checked_id


def with_people(pairs: Dataset, user_id: str | None = None) -> Dataset:
    """The pairs, each with a user_id that can be one; all of them `user_id`'s where that is given.

    Raises InputError for a row of which it is not said who judged it, or that is somebody else's.
    """
    if user_id is not None:
        checked_id(user_id)
        given = pairs["user_id"] if "user_id" in pairs.column_names else []
        for row, who in enumerate(given):
            if who not in (None, user_id):
                raise InputError(
                    f"row {row} was judged by {who!r:.80}; leave out --user_id, or give one person's pairs"
                )
        kept = pairs.remove_columns("user_id") if given else pairs
        return kept.add_column("user_id", [user_id] * len(pairs))
    if "user_id" not in pairs.column_names:
        raise InputError(
            "the pairs have no column user_id, who judged each; map it with --columns, or give --user_id where all are "
            "one person's"
        )
    for row, who in enumerate(pairs["user_id"]):
        if who is None:
            raise InputError(f"row {row} has no user_id; name who judged it, or drop it")
        checked_id(who)
    return pairs


def rows_by_person(pairs: Dataset) -> dict[str, Array]:
    """The numbers of each person's pairs, people sorted."""
    names, owner = np.unique(np.array(pairs["user_id"], dtype=object).astype(str), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(names)))[:-1]
    return dict(zip(names.tolist(), np.split(order, ends), strict=True))


def hold_out(pairs: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(train, test): of each person's prompts a share is held out, at least one, and at least one is not.

    Nothing is held out of who judged one prompt only. People who judged the same prompts have the same ones held out,
    as all follow one random order of the prompts; where they judged different ones, a prompt that is held out of one
    person's may be among another's training pairs.

    Raises InputError for a share outside (0, 1), or where nobody judged two prompts.
    """
    if not 0 < share < 1:
        raise InputError(f"test_share is {share}; give a share between 0 and 1")
    groups = prompt_groups(pairs)
    prompts, prompt = np.unique(groups, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(prompts))[prompt]
    held_out = np.zeros(len(pairs), bool)
    for rows in rows_by_person(pairs).values():
        own = np.unique(rank[rows])
        kept = min(max(round(share * len(own)), 1), len(own) - 1)
        held_out[rows] = np.isin(rank[rows], own[:kept])
    if not held_out.any():
        raise InputError("nobody judged two different prompts, so none can be held out; give more pairs, or --test")
    return pairs.select(np.flatnonzero(~held_out)), pairs.select(np.flatnonzero(held_out))
