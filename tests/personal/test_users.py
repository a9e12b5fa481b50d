"""What the people's file promises on good days: what was put comes back, in versions, sorted, and through export."""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penchant.errors import InputError, PenchantError, RecipeMismatch
from penchant.personal.records import DTYPES, LONGEST_ID, MOST
from penchant.personal.users import KEPT_VERSIONS, Users

ODD_IDS = [
    "a",
    "A",
    " ",
    "x" * LONGEST_ID,
    "'; DROP TABLE people_00; --",
    'ann" OR "1"="1',
    "%",
    "_",
    "Zoë",  # composed
    "Zoe\u0308",  # and not
    "用户",
    "😀" * 20,
    "\U0010ffff",
    "\uffff",
    "line\nbreak\t\\",
    "people_00",
    "NULL",
]


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users(tmp_path / "users.db", "model-1") as opened:
        yield opened


def some(seed: int, size: int = 6) -> dict[str, NDArray[Any]]:
    return {"taste": np.random.default_rng(seed).normal(size=size).astype(np.float32)}


def equal(one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]]) -> bool:
    """Names, shapes, dtypes and bits."""
    return one.keys() == two.keys() and all(
        (one[k].dtype, one[k].shape, one[k].tobytes()) == (two[k].dtype, two[k].shape, two[k].tobytes()) for k in one
    )


def all_dtypes() -> dict[str, NDArray[Any]]:
    """Numbers that a careless decimal would lose, in every dtype and several shapes."""
    rng = np.random.default_rng(0)
    vectors: dict[str, NDArray[Any]] = {"scalar": np.array(0.1, np.float32), "cube": rng.normal(size=(2, 3, 4))}
    for name in DTYPES:
        dtype = np.dtype(name)
        info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        vectors[name] = np.array([info.min, info.max, 0, 1, 3], dtype)
        if dtype.kind == "f":
            odd = [-0.0, info.tiny, info.smallest_subnormal, info.eps, np.pi, 1 / 3]
            vectors[name] = np.concatenate([vectors[name], np.array(odd, dtype), rng.normal(size=99).astype(dtype)])
    return vectors


def test_what_was_put_comes_back_bit_for_bit(users: Users, tmp_path: Path) -> None:
    before, vectors = time.time(), all_dtypes()
    assert users.get("ann") is None
    assert "ann" not in users
    assert users.put("ann", vectors, 7) == 1
    for reader in (users, Users(tmp_path / "users.db"), Users(str(tmp_path / "users.db"), "model-1")):
        person = reader.known("ann")
        assert equal(person.vectors, vectors)
        assert person[2:4] == (7, 1)
        assert before <= person.updated <= time.time()
        assert (person.user_id, person.model, reader.model) == ("ann", "model-1", "model-1")
        assert "ann" in reader
        assert len(reader) == 1
    person.vectors["float32"][0] = 3  # the caller's own
    assert equal(users.known("ann").vectors, vectors)


def test_views_and_the_other_byte_order_are_kept_by_value(users: Users) -> None:
    table = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    users.put("ann", {"strided": table[::2, ::-3], "turned": table.T, "big": table.astype(">f4")}, 1)
    got = users.known("ann").vectors
    assert np.array_equal(got["strided"], table[::2, ::-3])
    assert np.array_equal(got["turned"], table.T)
    assert np.array_equal(got["big"], table)


def test_any_text_may_be_an_id(users: Users) -> None:
    for seed, user_id in enumerate(ODD_IDS):
        users.put(user_id, some(seed), seed)
    assert len(users) == len(ODD_IDS)
    for seed, user_id in enumerate(ODD_IDS):
        assert equal(users.known(user_id).vectors, some(seed))
        assert users.ids(prefix=user_id)[0] == user_id
    assert users.ids() == sorted(ODD_IDS)
    assert users.forget(*ODD_IDS[::2]) == len(ODD_IDS[::2])
    assert users.ids() == sorted(ODD_IDS[1::2])


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * (LONGEST_ID + 1), "\ud800", None, 7, b"ann"])
def test_what_cannot_be_an_id_is_refused_by_every_method(users: Users, bad: Any) -> None:
    start = f"{bad!r}"[:30]
    calls = (
        users.get,
        users.known,
        users.history,
        users.forget,
        users.__contains__,
        lambda i: users.get_many(["a", i]),
    )
    for call in (*calls, lambda i: users.put(i, some(0), 1), lambda i: users.restore(i, 1)):
        with pytest.raises(InputError, match="cannot be a user id; give a text") as caught:
            call(bad)
        assert str(caught.value).startswith(start)
    with pytest.raises(InputError, match=r"row 1: .* cannot be a user id.*nothing was written"):
        users.put_many([("ann", some(0), 1), (bad, some(1), 1)])
    assert len(users) == 0


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ({}, "no vectors"),
        ([1.0], "no vectors"),
        ({"v": [1.0]}, "'v' of 'ann' is list"),
        ({"v": np.zeros(0)}, "float64 (0,)"),
        ({"v": np.zeros(2, complex)}, "complex128"),
        ({"v": np.zeros(2, bool)}, "bool"),
        ({"v": np.array(["a"])}, "<U1"),
        ({"v": np.array([None])}, "object"),
        ({"v": np.zeros(2, np.longdouble)}, "float128" if sys.platform == "linux" else "float"),
        ({"u": np.ones(2), "v": np.array([1, np.nan])}, "'v' of 'ann' has NaN"),
        ({"v": np.array([np.inf], np.float16)}, "'v' of 'ann' has NaN or inf"),
        ({7: np.ones(2)}, "called 7"),
        ({"__metadata__": np.ones(2)}, "called '__metadata__'"),
    ],
)
def test_unusable_vectors_are_refused(users: Users, vectors: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        users.put("ann", vectors, 1)
    assert says in str(caught.value)
    assert "ann" not in users


@pytest.mark.parametrize("pairs", [-1, 1.0, True, None, MOST + 1])
def test_pairs_are_a_count(users: Users, pairs: Any) -> None:
    with pytest.raises(InputError, match="pairs of 'ann' is"):
        users.put("ann", some(0), pairs)
    users.put("ann", some(0), np.int32(3))  # type: ignore[arg-type]
    assert users.known("ann").pairs == 3


def test_many_at_once(users: Users) -> None:
    assert users.put_many((f"p{i:04d}", some(i), i) for i in range(500)) == 500
    assert users.put_many([]) == 0
    wanted = ["p0499", "nobody", "p0007", "p0007"]
    found = users.get_many(wanted)
    assert list(found) == ["p0499", "p0007"]
    assert all(equal(person.vectors, some(person.pairs)) for person in found.values())
    with pytest.raises(InputError, match=r"row 1: vector 'v' of 'q' has NaN.*nothing was written"):
        users.put_many([("p0007", some(1), 1), ("q", {"v": np.array([np.nan])}, 1)])
    assert users.known("p0007").version == 1
    assert users.put_many([("p0007", some(1), 1), ("p0007", some(2), 2)]) == 2  # one after the other
    assert [entry.version for entry in users.history("p0007")] == [3, 2, 1]


def test_rows_for_put_many_may_read_the_file_but_not_write_it(users: Users) -> None:
    users.put_many((f"p{i}", some(i), i) for i in range(5))
    doubled = ((i, {"taste": 2 * users.known(i).vectors["taste"]}, len(users)) for i in users.ids())
    assert users.put_many(doubled) == 5
    assert equal(users.known("p3").vectors, {"taste": 2 * some(3)["taste"]})
    with pytest.raises(InputError, match="rows for put_many may only read"):
        users.put_many(("x", some(0), users.put("y", some(0), 1)) for _ in range(2))
    assert len(users) == 5


def test_who_is_not_known_is_named_and_nobody_else_is(users: Users) -> None:
    users.put_many((name, some(0), 1) for name in ("dan", "bea", "ann"))
    for ask in (users.known, users.history, lambda name: users.restore(name, 1)):
        with pytest.raises(
            InputError, match="nobody called 'x' is known here; `penchant personal users SYSTEM`"
        ) as caught:
            ask("x")
        assert not any(name in str(caught.value) for name in users.ids())


def test_the_last_versions_are_kept_and_can_be_restored(users: Users) -> None:
    for version in range(1, 8):
        assert users.put("ann", some(version), 10 * version) == version
        assert len(users.history("ann")) == min(version, KEPT_VERSIONS + 1)
    users.put("bob", some(99), 1)
    history = users.history("ann")
    assert [(entry.version, entry.pairs) for entry in history] == [(7, 70), (6, 60), (5, 50), (4, 40)]
    assert sorted(history, key=lambda entry: entry.updated) == history[::-1]
    with pytest.raises(InputError, match="version 3 of 'ann' is not kept; give one of 7, 6, 5, 4"):
        users.restore("ann", 3)
    assert users.restore("ann", 4) == 8
    person = users.known("ann")
    assert equal(person.vectors, some(4))
    assert (person.version, person.pairs) == (8, 40)
    assert person.updated >= history[0].updated
    assert [entry.version for entry in users.history("ann")] == [8, 7, 6, 5]
    assert len(users) == 2
    assert users.ids() == ["ann", "bob"]
    assert [entry.version for entry in users.history("bob")] == [1]


def test_a_write_that_expects_another_version_is_refused(users: Users) -> None:
    assert users.put("ann", some(0), 1, expected=0) == 1
    assert users.put("ann", some(1), 2, expected=1) == 2
    for wrong in (0, 1, 3):
        with pytest.raises(InputError, match=f"'ann' is at version 2, not {wrong}, for somebody else wrote"):
            users.put("ann", some(2), 3, expected=wrong)
    with pytest.raises(InputError, match="'bob' is at version 0, not 1"):
        users.put("bob", some(2), 3, expected=1)
    assert equal(users.known("ann").vectors, some(1))


def test_many_that_expect_versions_are_written_all_or_none(users: Users) -> None:
    assert users.put_many([("ann", some(0), 1, 0), ("bob", some(0), 1, 0), ("cid", some(0), 1)]) == 3
    rows = [("ann", some(1), 2, 1), ("bob", some(1), 2, 0), ("cid", some(1), 2)]
    with pytest.raises(InputError, match=r"row 1: 'bob' is at version 1, not 0, .* meanwhile.*; nothing was written"):
        users.put_many(rows)
    assert [users.known(name).version for name in ("ann", "bob", "cid")] == [1, 1, 1]
    users.forget("ann")
    with pytest.raises(InputError, match="row 0: 'ann' is at version 0, not 1"):  # not brought back
        users.put_many(rows)
    assert "ann" not in users


def test_ids_are_sorted_and_come_in_parts(users: Users) -> None:
    names = [f"{group}{i:03d}" for group in ("a", "ab", "b", "é", "😀") for i in range(60)]
    users.put_many((name, some(0, 1), 1) for name in names[::-1])
    assert users.ids() == sorted(names)
    for prefix in ("", "a", "ab", "b05", "é", "😀", "zz", "b059x"):
        mine = [name for name in sorted(names) if name.startswith(prefix)]
        assert users.ids(prefix) == mine
        assert users.ids(prefix, limit=7) == mine[:7]
        collected, last = [], None
        while part := users.ids(prefix, limit=7, after=last):
            collected += part
            last = part[-1]
        assert collected == mine
    assert users.ids(after="b058", prefix="b") == ["b059"]
    assert users.ids(after="b0585", limit=1) == ["b059"]  # one that is not there
    assert users.ids(after="a", prefix="b", limit=1) == ["b000"]  # before all of them
    assert users.ids(after="é", prefix="b") == []
    assert users.ids(limit=0) == []
    with pytest.raises(InputError, match="limit is -1"):
        users.ids(limit=-1)


def test_bytes_per_user_is_about_the_size_of_the_vectors(users: Users) -> None:
    assert users.bytes_per_user == 0
    users.put_many((f"p{i}", some(i, 600), 1) for i in range(3000))
    assert 2400 < users.bytes_per_user < 4200
    users.forget(*users.ids(limit=2900))
    assert 2400 < users.bytes_per_user < users.path.stat().st_size / 100 / 4  # what is free for others does not count
    size = users.path.stat().st_size
    users.put_many((f"q{i}", some(i, 600), 1) for i in range(2900))
    assert users.path.stat().st_size == size  # but is used
    assert 2400 < users.bytes_per_user < 4200


def test_a_file_of_few_people_is_small_and_updates_let_it_grow_no_further(users: Users) -> None:
    for _ in range(KEPT_VERSIONS + 1):
        users.put_many((f"p{i}", some(i, 600), 1) for i in range(3))
    users.forget()
    size = users.path.stat().st_size
    assert size < 400_000
    for _ in range(10):
        users.put_many((f"p{i}", some(i, 600), 1) for i in range(3))
    users.forget()
    assert users.path.stat().st_size == size


@pytest.mark.parametrize("name", ["people.jsonl", "people.jsonl.gz"])
def test_export_and_import_lose_nothing(users: Users, tmp_path: Path, name: str) -> None:
    for seed, user_id in enumerate(ODD_IDS):
        users.put(user_id, some(0), 1)
        users.put(user_id, {**all_dtypes(), **some(seed)}, seed)
    assert users.export(tmp_path / name) == len(ODD_IDS)
    with Users(tmp_path / "other.db", "model-1") as other:
        assert other.import_from(tmp_path / name) == len(ODD_IDS)
        for user_id in ODD_IDS:
            was, now = users.known(user_id), other.known(user_id)
            assert equal(was.vectors, now.vectors)
            assert was._replace(vectors={}) == now._replace(vectors={})
        other.export(tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert [line["user_id"] for line in lines] == sorted(ODD_IDS)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_import_is_the_next_version_of_who_is_known(users: Users, tmp_path: Path) -> None:
    for user_id, versions in (("ann", 5), ("bob", 1)):
        for version in range(versions):
            users.put(user_id, some(version), version)
    users.export(tmp_path / "people.jsonl")
    with Users(tmp_path / "other.db", "model-1") as other:
        for user_id in ("ann", "bob", "bob"):
            other.put(user_id, some(50), 50)
        other.import_from(tmp_path / "people.jsonl")
        assert [entry.version for entry in other.history("ann")] == [5, 1]
        assert [entry.version for entry in other.history("bob")] == [3, 2, 1]
        assert equal(other.known("ann").vectors, some(4))
        assert other.known("bob").updated == users.known("bob").updated
        other.restore("ann", 1)
        assert equal(other.known("ann").vectors, some(50))


def test_the_empty_file_is_exported_and_imported(users: Users, tmp_path: Path) -> None:
    assert users.export(tmp_path / "people.jsonl.gz") == 0
    assert users.import_from(tmp_path / "people.jsonl.gz") == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: "{", "Expecting"),
        (lambda row: "\ufeff", "line"),
        (lambda row: "", "Expecting value"),
        (lambda row: "[" * 100_000, "recursion"),
        (lambda row: json.dumps([row]), "needs exactly user_id"),
        (lambda row: json.dumps({**row, "more": 1}), "needs exactly user_id"),
        (lambda row: json.dumps({k: row[k] for k in row if k != "pairs"}), "needs exactly user_id"),
        (lambda row: json.dumps({**row, "user_id": ""}), "cannot be a user id"),
        (lambda row: json.dumps({**row, "user_id": "\ud800"}), "cannot be a user id"),
        (lambda row: json.dumps({**row, "version": 0}), "version"),
        (lambda row: json.dumps({**row, "version": True}), "version"),
        (lambda row: json.dumps({**row, "version": 2**70}), "version"),
        (lambda row: json.dumps({**row, "updated": "now"}), "updated"),
        (lambda row: json.dumps({**row, "updated": float("nan")}), "updated"),
        (lambda row: json.dumps({**row, "pairs": 1.5}), "pairs of 'b'"),
        (lambda row: json.dumps({**row, "vectors": {}}), "no vectors"),
        (lambda row: json.dumps({**row, "vectors": 3}), "no attribute"),
        (lambda row: vector(row, dtype="float8"), "dtype"),
        (lambda row: vector(row, dtype=["float32"]), "list"),
        (lambda row: vector(row, extra=1), "dtype"),
        (lambda row: vector(row, values=[]), "float32 (0,)"),
        (lambda row: vector(row, values=[1.0, float("nan")]), "NaN"),
        (lambda row: vector(row, values=[1e39]), "NaN or inf"),
        (lambda row: vector(row, values=[[1.0], [2.0, 3.0]]), "inhomogeneous"),
        (lambda row: vector(row, values=["1.0"]), "no numbers"),
        (lambda row: vector(row, values=[None]), "no numbers"),
        (lambda row: vector(row, values=[300], dtype="int8"), "int8"),
        (lambda row: vector(row, values=[1.5], dtype="int64"), "no int64"),
        (lambda row: vector(row, values=[-1], dtype="uint64"), "uint64"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(users: Users, tmp_path: Path, change: Any, says: str) -> None:
    users.put_many((name, some(0), 1) for name in "abc")
    path = tmp_path / "people.jsonl"
    users.export(path)
    lines = path.read_text().splitlines()
    lines[1] = change(json.loads(lines[1]))
    path.write_text("\n".join(lines) + "\n")
    with Users(tmp_path / "other.db", "model-1") as other:
        with pytest.raises(InputError) as caught:
            other.import_from(path)
        assert str(caught.value).startswith(f"line 2 of {path}: ")
        assert says in str(caught.value)
        assert "nothing was imported" in str(caught.value)
        assert len(other) == 0


def vector(row: dict[str, Any], **change: Any) -> str:
    return json.dumps({**row, "vectors": {"taste": {**row["vectors"]["taste"], **change}}})


def test_files_that_cannot_be_imported_or_exported(users: Users, tmp_path: Path) -> None:
    users.put_many((f"p{i}", some(i, 100), 1) for i in range(200))
    with pytest.raises(InputError, match=r"is not there|cannot be read past line 0 .*No such file"):
        users.import_from(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read past line 0"):
        users.import_from(tmp_path)
    whole = tmp_path / "people.jsonl.gz"
    users.export(whole)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole.read_bytes()[:-5000])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(gzip.decompress(whole.read_bytes()))
    with Users(tmp_path / "other.db", "model-1") as other:
        with pytest.raises(InputError, match=r"cannot be read past line \d\d+ .*nothing was imported"):
            other.import_from(cut)
        with pytest.raises(InputError, match=r"cannot be read past line 0 \(Not a gzipped file"):
            other.import_from(plain)
        assert len(other) == 0
    for name in ("people.json", "users.db", "/dev/null"):
        with pytest.raises(InputError, match=r"ends in \.jsonl or \.jsonl\.gz"):
            users.export(tmp_path / name)
    with pytest.raises(PenchantError, match="cannot be written"):
        users.export(tmp_path / "none" / "people.jsonl")
    with pytest.raises(PenchantError, match="cannot be written"):
        users.export("/proc/people.jsonl")
    assert len(users) == 200


def test_people_of_another_model_are_refused(users: Users, tmp_path: Path) -> None:
    users.put_many((name, some(0), 1) for name in "ab")
    with pytest.raises(RecipeMismatch, match="holds people of model model-1, who cannot be used with model model-2"):
        Users(users.path, "model-2")
    with pytest.raises(RecipeMismatch):
        Users(users.path, "")
    users.export(tmp_path / "people.jsonl")
    with Users(tmp_path / "other.db", "model-2") as other:
        with pytest.raises(RecipeMismatch, match=r"line 1 of .*: 'a' is of model model-1, not model-2; nothing"):
            other.import_from(tmp_path / "people.jsonl")
        assert len(other) == 0
