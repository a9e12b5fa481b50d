"""A large store is hashed once a day, not once a process; what has another stamp or an old note is hashed again."""

from __future__ import annotations

import os
import time
import warnings
from io import FileIO
from pathlib import Path

import pytest

from penchant import store_checked, store_shard
from penchant.store import Store
from penchant.store_admin import prune, verify
from penchant.store_checked import CHECKED_FILE
from tests.store_batches import RECIPE, batch, same, shards

hash_of = store_shard._digest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files hashed since, and a store of 3 shards counts as large."""
    names: list[str] = []

    def noted(file: FileIO) -> str:
        names.append(Path(str(file.name)).name)
        return hash_of(file)

    monkeypatch.setattr(store_shard, "_digest", noted)
    monkeypatch.setattr(store_checked, "WORTH_NOTING", 100)
    return names


@pytest.fixture
def written(tmp_path: Path, hashed: list[str]) -> list[str]:
    store = Store(tmp_path, RECIPE)
    for seed in range(3):
        store.write(*batch(seed))
    Store(tmp_path, RECIPE)
    names = [path.name for path in shards(store)]
    assert sorted(hashed) == names
    hashed.clear()
    return names


def test_what_was_hashed_is_not_hashed_again(tmp_path: Path, hashed: list[str], written: list[str]) -> None:
    store = Store(tmp_path, RECIPE)
    assert hashed == []
    keys, latents = batch(1)
    assert same(store.read(keys), latents)
    store.write(*batch(7))
    Store(tmp_path, RECIPE)
    assert len(hashed) == 1
    assert hashed[0] not in written
    assert verify(tmp_path) == []
    assert len(hashed) == 5  # whoever asks to verify has all of it hashed


def test_damage_is_found_all_the_same(tmp_path: Path, hashed: list[str], written: list[str]) -> None:
    path = next(tmp_path.glob(f"*/{written[0]}"))
    bits = bytearray(path.read_bytes())
    bits[-1] ^= 1
    path.write_bytes(bits)
    with pytest.warns(UserWarning, match="checksum differs"):
        store = Store(tmp_path, RECIPE)
    assert hashed == [written[0]]
    assert sum(store.has(batch(seed)[0]).all() for seed in range(3)) == 2


def test_what_rots_in_silence_is_found_a_day_later(
    tmp_path: Path, hashed: list[str], written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(tmp_path.glob(f"*/{written[0]}"))
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = time.time()
    monkeypatch.setattr(store_checked.time, "time", lambda: now + 25 * 3600)
    with pytest.warns(UserWarning, match="checksum differs"):
        Store(tmp_path, RECIPE)
    assert sorted(hashed) == written


def test_a_clock_that_goes_back_trusts_nothing(
    tmp_path: Path, hashed: list[str], written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(store_checked.time, "time", lambda: now - 3600)
    Store(tmp_path, RECIPE)
    assert sorted(hashed) == written


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b'{"a": [1, 2, 3, "x"]}', b"\xff\xfe"])
def test_a_damaged_note_costs_only_time(tmp_path: Path, hashed: list[str], written: list[str], content: bytes) -> None:
    note = next(tmp_path.glob(f"*/{CHECKED_FILE}"))
    note.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = Store(tmp_path, RECIPE)
    assert sorted(hashed) == written
    assert store.has(batch(0)[0]).all()


def test_small_stores_are_hashed_each_time_and_the_note_goes_with_its_store(
    tmp_path: Path, hashed: list[str], written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(tmp_path, everything=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(store_checked, "WORTH_NOTING", 1 << 30)
    Store(tmp_path, RECIPE).write(*batch(0))
    for _ in range(2):
        Store(tmp_path, RECIPE)
    assert len(hashed) == 2
    assert not list(tmp_path.glob(f"*/{CHECKED_FILE}"))
