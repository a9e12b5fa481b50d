"""Who judged what, what is held out, and whether knowing people pays, on a system whose tastes are known."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset

from penchant.errors import InputError
from penchant.pairs import prompt_groups
from penchant.personal.judging import compare_answers, judge
from penchant.personal.people_map import people_map
from penchant.personal.people_pairs import hold_out, rows_by_person, with_people
from penchant.personal.watch import latent_warnings, people_warnings

FIGURES = {"nats_per_token": 1.2, "prior": 1.28, "active_units": 5.0}


def pairs(people: dict[str, int], first: int = 0) -> Dataset:
    """So many prompts for each, from number `first` on; long answers are chosen by who has a capital letter."""
    rows = []
    for name, count in people.items():
        for number in range(first, first + count):
            texts = ("long answer", "short") if name.isupper() else ("short", "long answer")
            rows.append({"prompt": f"p{number}", "chosen": texts[0], "rejected": texts[1], "user_id": name})
    return Dataset.from_list(rows)


TEXTS = {"A": "much longer than usual", "b": "much longer than usual", "C": "", "D": "the usual"}


class Known:
    """A system that knows that capital letters like length; its population likes nothing, and z is given."""

    rewards: Any = True

    def __init__(self, z: dict[str | None, list[float]] | None = None) -> None:
        self.at = z or {}

    def score(self, prompts: Any, responses: list[str], user_id: str | None = None) -> Any:
        assert len(prompts) == len(responses)
        likes = 0 if user_id is None else (1 if user_id.isupper() else -1)
        return np.array([likes * len(text) for text in responses], np.float32)

    def generate(self, prompts: list[str], user_id: str | None = None, **_: Any) -> list[list[str]]:
        return [["the usual"] if user_id is None else [TEXTS[user_id]] for _ in prompts]

    def mean_z(self, prompts: list[str], user_ids: list[str | None]) -> torch.Tensor:
        return torch.tensor([self.at[user_id] for user_id in user_ids])


def known(z: dict[str | None, list[float]] | None = None) -> Any:
    return cast(Any, Known(z))


def test_own_and_pooled_are_compared_pair_by_pair() -> None:
    data = pairs({"A": 6, "b": 3})
    longer = np.array([len(row["chosen"]) - len(row["rejected"]) for row in data])
    found = judge(
        data,
        {
            "taste_own": np.ones(9),
            "taste_pooled": np.zeros(9),  # knows nothing: ties
            "latent_own": -longer,
            "latent_pooled": longer,
        },
    )
    value = {name: figure["value"] for name, figure in found["accuracy"].items()}
    assert value == pytest.approx(
        {"taste_own": 1, "taste_pooled": 0.5, "latent_own": 3 / 9, "latent_pooled": 6 / 9, "longer": 6 / 9}
    )
    assert found["gain"]["taste"]["value"] == pytest.approx(0.5)
    assert found["gain"]["latent"]["value"] == pytest.approx(-3 / 9)
    assert found["gain"]["latent"]["low"] < -0.9  # it is one person's against the other's
    a, b = found["people"]
    assert (a["user_id"], a["held_out"], a["longer"], a["taste_own"], a["latent_own"]) == ("A", 6, 1, 1, 0)
    assert (b["user_id"], b["held_out"], b["longer"], b["taste_pooled"], b["latent_own"]) == ("b", 3, 0, 0.5, 1)
    assert a["gain"]["value"] == 0.5
    assert found["accuracy"]["taste_own"]["low"] < 0.7  # all right on 6 prompts is not certain
    alone = judge(data, {"latent_own": -longer, "latent_pooled": longer})
    assert list(alone["accuracy"]) == ["latent_own", "latent_pooled", "longer"]
    assert alone["people"][0]["gain"]["value"] == -1


def test_answers_win_by_their_own_persons_taste() -> None:
    found = compare_answers(known(), ["p", "q"], ["A", "b", "C", "D"])
    won = {one["user_id"]: (one["value"], one["changed"]) for one in found["win_rates"]["people"]}
    assert won == {"A": (1, 2), "b": (0, 2), "C": (0, 2), "D": (0.5, 0)}
    assert found["win_rates"]["overall"]["value"] == pytest.approx(1.5 / 4)
    assert found["examples"][1]["prompt"] == "q"
    assert found["examples"][1]["people"][0] == {"user_id": "A", "text": "much longer than usual"}


def test_a_map_keeps_distances_in_the_plane_of_people() -> None:
    z: dict[str | None, list[float]] = {None: [1.0, 1, 1], "a": [3.0, 1, 1], "b": [1.0, 2, 1], "c": [-3.0, 1, 1]}
    turned = people_map(known({name: [-v for v in at] for name, at in z.items()}), ["p", "q"], ["a", "b", "c"])
    found = people_map(known(z), ["p", "q"], ["a", "b", "c"])
    assert turned["people"] == found["people"]  # signs are chosen
    at = {one["user_id"]: np.array([one["x"], one["y"]]) for one in found["people"]}
    assert [np.linalg.norm(at[name]) for name in "abc"] == pytest.approx([2, 1, 4], abs=1e-5)  # from the population
    assert np.linalg.norm(at["a"] - at["b"]) == pytest.approx(5**0.5, abs=1e-5)
    assert sum(found["explained"]) == pytest.approx(1)
    assert found["explained"][0] > 0.9
    assert max(one["x"] for one in found["people"]) == pytest.approx(4, abs=0.1)  # the largest is positive
    alone = people_map(known(z), ["p"], ["a"])
    assert alone["people"] == [{"user_id": "a", "x": pytest.approx(2), "y": pytest.approx(0, abs=1e-6)}]
    same = people_map(known({None: [1.0], "a": [1.0]}), ["p"], ["a"])
    assert same["people"][0]["x"] == same["explained"][0] == 0


def test_a_share_of_each_persons_prompts_is_held_out() -> None:
    data = pairs({"A": 10, "b": 10, "C": 2, "D": 1})
    data = data.select([*range(len(data)), 0, 1])  # two pairs of A's on the same prompts
    train, test = hold_out(data, 0.2)
    for name, prompts in (("A", 2), ("b", 2), ("C", 1)):
        seen, unseen = ({row["prompt"] for row in part if row["user_id"] == name} for part in (train, test))
        assert len(unseen) == prompts
        assert not seen & unseen
    assert "D" not in test["user_id"]
    same = [{row["prompt"] for row in test if row["user_id"] == name} for name in "Ab"]
    assert same[0] == same[1]  # who judged the same prompts has the same ones held out
    assert len(train) + len(test) == len(data)
    other = {row["prompt"] for row in hold_out(data, 0.2, seed=3)[1] if row["user_id"] == "A"}
    assert other != same[0]
    assert len(np.unique(prompt_groups(hold_out(data, 0.99)[0].select(range(1))))) == 1
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="test_share"):
            hold_out(data, share)
    with pytest.raises(InputError, match="nobody judged two different prompts"):
        hold_out(pairs({"A": 1, "b": 1}), 0.5)


def test_pairs_say_whose_they_are() -> None:
    data = pairs({"A": 2, "b": 1})
    assert with_people(data) is data
    assert {name: rows.tolist() for name, rows in rows_by_person(data).items()} == {"A": [0, 1], "b": [2]}
    nobody = data.remove_columns("user_id")
    assert with_people(nobody, "eve")["user_id"][:] == ["eve"] * 3
    assert with_people(data.select([0, 1]), "A")["user_id"][:] == ["A"] * 2
    for some, name, says in (
        (data, "A", "row 2 was judged by 'b'"),
        (nobody, None, "no column user_id"),
        (nobody, "", "cannot be a user id"),
        (Dataset.from_list([*data, {**data[0], "user_id": None}]), None, "row 3 has no user_id"),
        (Dataset.from_list([{**data[0], "user_id": "x\0"}]), None, "cannot be a user id"),
    ):
        with pytest.raises(InputError, match=says):
            with_people(some, name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"active_units": 0.0}, "z is not used"),
        ({"prior": 1.2}, "z is hardly used"),
        ({"plain": 1.1}, None),  # z is for people, not for likelihood
    ],
)
def test_it_is_said_where_z_is_not_used(change: dict[str, float], says: str | None) -> None:
    found = latent_warnings({**FIGURES, **change})
    assert len(found) == (says is not None)
    assert says is None or found[0].startswith(says)


def test_it_is_said_where_knowing_people_does_not_pay() -> None:
    def said(low: float, high: float, pairs: int = 9, before: tuple[str, ...] = (), gone: int = 0) -> list[str]:
        people = [{"user_id": f"u{i}", "pairs": pairs} for i in range(7)]
        gain = {"taste": {"value": (low + high) / 2, "low": low, "high": high}}
        return people_warnings({"gain": gain, "people": people, "system": {"z": FIGURES}}, before, gone)

    assert said(0.01, 0.05) == []
    assert said(-0.01, 0.05)[0].startswith(
        "No gain from knowing who judged is shown: people's own taste is +2.0 points"
    )
    assert said(-0.05, -0.01)[0].startswith("Knowing who judged does harm")
    (few,) = said(0.01, 0.05, pairs=4)
    assert few == "Fewer than 5 pairs were given by 7 of 7 people: u0, u1, u2, u3, u4 and 2 more."
    (again,) = said(0.01, 0.05, before=("u1",))
    assert again.startswith("Known before, and fitted on from there: u1.")
    assert said(0.01, 0.05, gone=3)[0].startswith("Rewards were fitted anew: the tastes of 3 people")
