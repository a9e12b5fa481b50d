"""What a store promises on good days: the rows asked for, bit for bit, however they were written and merged."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from penchant.errors import InputError, PenchantError, RecipeMismatch
from penchant.latents import Recipe
from penchant.store import Store, default_root
from penchant.store_admin import list_stores, prune, verify
from tests.store_batches import RECIPE, batch, same, shards


def test_read_gives_the_rows_asked_for_in_the_order_asked_for(tmp_path: Path) -> None:
    parts = [batch(seed) for seed in range(7)]
    store = Store(tmp_path, RECIPE)
    for keys, latents in parts:
        store.write(keys, latents)
    keys, latents = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.random.default_rng(0).integers(0, len(keys), 200)  # with repeats
    for reader in (store, Store(tmp_path, RECIPE)):
        assert reader.has(keys).all()
        assert same(reader.read(keys[order]), latents[order])
        assert reader.read(keys[:0]).shape == (0, RECIPE.dim)
    absent = batch(99)[0]
    absent[0, :15], absent[1, 1:] = keys[3, :15], keys[3, 1:]  # one byte differs, at either end
    absent[:2, [15, 0]] = keys[3, [15, 0]] ^ 1
    assert not store.has(absent).any()
    mixed = np.concatenate([keys[:2], absent])
    assert store.has(mixed).tolist() == [True, True] + [False] * 5
    with pytest.raises(InputError, match=r"5 of 7 latents .* key 2 "):
        store.read(mixed)


def test_keys_may_hold_zero_bytes_at_either_end(tmp_path: Path) -> None:
    keys = np.zeros((4, 16), np.uint8)
    keys[1, 15] = keys[2, 0] = keys[3, 7] = 1
    latents = batch(0, 4)[1]
    store = Store(tmp_path, RECIPE)
    store.write(keys[1:], latents[1:])
    assert store.has(keys).tolist() == [False, True, True, True]
    store.write(keys[:1], latents[:1])
    assert same(store.read(keys), latents)


def test_an_empty_store_and_an_empty_batch(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    keys, latents = batch(0)
    assert not store.has(keys).any()
    assert store.has(keys[:0]).shape == (0,)
    store.write(keys[:0], latents[:0])
    store.compact()
    assert shards(store) == []
    with pytest.raises(InputError):
        store.read(keys)


@pytest.mark.parametrize(
    ("keys", "latents"),
    [
        (np.zeros((2, 15), np.uint8), np.zeros((2, 6), np.float32)),
        (np.zeros((2, 16), np.int64), np.zeros((2, 6), np.float32)),
        (np.zeros((2, 16), np.uint8), np.zeros((2, 6), np.float64)),
        (np.zeros((2, 16), np.uint8), np.zeros((2, 5), np.float32)),
        (np.zeros((2, 16), np.uint8), np.zeros((3, 6), np.float32)),
    ],
)
def test_wrong_shapes_and_types_are_refused(tmp_path: Path, keys: Any, latents: Any) -> None:
    store = Store(tmp_path, RECIPE)
    with pytest.raises(InputError):
        store.write(keys, latents)
    assert shards(store) == []


def test_strided_arrays_are_written_as_they_read(tmp_path: Path) -> None:
    keys, latents = batch(0, 20)
    store = Store(tmp_path, RECIPE)
    store.write(keys[::-2], latents[::-2])
    assert same(store.read(keys[1::2]), latents[1::2])


def test_a_shard_is_a_safetensors_file_named_by_content_alone(tmp_path: Path) -> None:
    keys, latents = batch(0)
    one, two = Store(tmp_path / "one", RECIPE), Store(tmp_path / "two", RECIPE)
    for store in (one, two, two):
        store.write(keys, latents)
    assert [p.name for p in shards(one)] == [p.name for p in shards(two)]
    tensors = load_file(shards(one)[0])
    assert tensors["keys"].tobytes() == keys.tobytes()
    assert same(tensors["latents"], latents)


@pytest.mark.parametrize("seed", range(15))
def test_reading_depends_only_on_the_set_of_rows_written(tmp_path: Path, seed: int) -> None:
    """Two stores on one folder write clashing rows, merge and refresh at random; a plain dict is the model."""
    rng = np.random.default_rng(seed)
    all_keys = batch(seed, 30)[0]
    rows = batch(seed + 1000, 90)[1].reshape(30, 3, RECIPE.dim)  # three versions of each key's latent
    rows[:, 1] = rows[:, 0]
    rows[:, 1, -1] = -rows[:, 0, -1]  # that agree up to the last number
    model: dict[int, list[int]] = {}
    stores = [Store(tmp_path, RECIPE), Store(tmp_path, RECIPE)]

    def check(store: Store) -> None:
        assert store.has(all_keys).tolist() == [i in model for i in range(30)]
        known = rng.permutation(sorted(model)).astype(int)
        expected = np.array([model[i] for i in known], np.uint32).reshape(-1, RECIPE.dim)
        assert same(store.read(all_keys[known]).view(np.uint32), expected)

    for _ in range(25):
        store = stores[rng.integers(2)]
        action = rng.choice(["write", "write", "compact", "refresh", "reopen"])
        if action == "write":
            pick, version = rng.integers(0, 30, 8), rng.integers(0, 3, 8)
            store.write(all_keys[pick], rows[pick, version])
            for i, v in zip(pick.tolist(), version.tolist(), strict=True):
                bits = rows[i, v].view(np.uint32).tolist()
                model[i] = min(bits, model.get(i, bits))
        elif action == "compact":
            store.compact(int(rng.choice([1500, 3000, 1 << 20])))
            check(store)
        elif action == "refresh":
            store.refresh()
            check(store)
        else:
            check(Store(tmp_path, RECIPE))
    for store in stores:
        store.refresh()
        check(store)
    assert verify(tmp_path) == []


def test_compaction_makes_few_large_shards_and_keeps_every_bit(tmp_path: Path) -> None:
    parts = [batch(seed, rows=10) for seed in range(40)]
    keys, latents = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    stores = [Store(tmp_path / name, RECIPE) for name in ("forward", "backward")]
    for store, sequence in zip(stores, (parts, parts[::-1]), strict=True):
        for part in sequence:
            store.write(*part)
        other = Store(tmp_path / store.folder.parent.name, RECIPE)
        size = shards(store)[0].stat().st_size
        store.compact(max_bytes=10 * size)
        assert len(shards(store)) <= 5
        assert all(path.stat().st_size <= 10 * size for path in shards(store))
        for reader in (store, other, Store(tmp_path / store.folder.parent.name, RECIPE)):  # `other` was not told
            assert same(reader.read(keys), latents)
    assert [p.name for p in shards(stores[0])] == [p.name for p in shards(stores[1])]
    in_name_order = np.concatenate([load_file(path)["keys"] for path in shards(stores[0])])
    stores[0].compact(1 << 30)
    assert len(shards(stores[0])) == 1
    assert same(load_file(shards(stores[0])[0])["keys"], in_name_order)
    before = shards(stores[0])[0].read_bytes()
    stores[0].compact(1 << 30)
    assert shards(stores[0])[0].read_bytes() == before


def test_compacting_a_shard_with_parts_of_itself_keeps_it(tmp_path: Path) -> None:
    """As after a crash between writing the merged shard and removing its sources."""
    for seed in range(8):  # whichever of the names comes first
        store = Store(tmp_path / str(seed), RECIPE)
        keys, latents = batch(seed, 12)
        store.write(keys[:4], latents[:4])
        store.write(keys[4:], latents[4:])
        sources = {path: path.read_bytes() for path in shards(store)}
        store.compact()
        for path, content in sources.items():
            path.write_bytes(content)
            for reader in (Store(tmp_path / str(seed), RECIPE), store):
                reader.compact()
                assert len(shards(reader)) == 1
                assert same(reader.read(keys), latents)


def test_another_process_s_shards_show_after_refresh(tmp_path: Path) -> None:
    one, two = Store(tmp_path, RECIPE), Store(tmp_path, RECIPE)
    keys, latents = batch(0)
    one.write(keys, latents)
    assert not two.has(keys).any()
    two.refresh()
    assert same(two.read(keys), latents)


def test_reading_many_shards_keeps_no_file_open(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    for seed in range(50):
        store.write(*batch(seed))
    keys = np.concatenate([batch(seed)[0] for seed in range(50)])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    latents = store.read(keys)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(latents) == 250


def test_a_million_keys_are_small_and_quick(tmp_path: Path) -> None:
    recipe = replace(RECIPE, views=("1:last",), width=1)
    keys, latents = batch(0, 1_000_000, recipe)
    for part in np.array_split(np.arange(len(keys)), 20):
        Store(tmp_path, recipe).write(keys[part], latents[part])
    tracemalloc.start()
    store = Store(tmp_path, recipe)
    asked = np.concatenate([keys[:50_000], batch(1, 50_000, recipe)[0]])
    store.has(asked[:1])  # builds the index
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 60e6, "40 bytes a key: 16 in the shard, 24 in the index"
    start = time.perf_counter()
    found = store.has(asked)
    assert time.perf_counter() - start < 1
    assert found[:50_000].all()
    assert not found[50_000:].any()


def test_recipe_file(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    path = store.folder / "recipe.json"
    assert Recipe.from_dict(json.loads(path.read_text())) == RECIPE
    path.write_text(json.dumps({**RECIPE.to_dict(), "revision": "other"}))
    with pytest.raises(RecipeMismatch, match="another recipe"):
        Store(tmp_path, RECIPE)
    for damaged in ("", "{", "[]", '{"model": "tiny"}', "\x00" * 9, "null"):
        path.write_text(damaged)
        with pytest.raises(PenchantError, match=r"recipe\.json is missing or damaged"):
            Store(tmp_path, RECIPE)
    path.unlink()
    assert Store(tmp_path, RECIPE).recipe == RECIPE
    other = Store(tmp_path, replace(RECIPE, views=("2:mean", "1:last")))
    assert other.folder != store.folder


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PenchantError, match="cannot be made"):
        Store(tmp_path / "file", RECIPE)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("PENCHANT_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert default_root() == Path("/somewhere/.cache/penchant")


def three_stores(root: Path) -> list[Store]:
    """With 1, 2 and 3 shards of five rows, last used 30, 20 and 10 days ago."""
    stores = [Store(root, replace(RECIPE, revision=str(i))) for i in range(3)]
    for i, store in enumerate(stores):
        for seed in range(i + 1):
            store.write(*batch(seed))
        then = time.time() - (30 - 10 * i) * 86400
        os.utime(store.folder / "recipe.json", (then, then))
        os.utime(store.folder, (then, then))
    return stores


def test_list_stores(tmp_path: Path) -> None:
    assert list_stores(tmp_path / "nowhere") == []
    stores = three_stores(tmp_path)
    (tmp_path / "something else").mkdir()
    infos = list_stores(tmp_path)
    assert [info.recipe for info in infos] == [store.recipe for store in stores[::-1]]
    assert [info.rows for info in infos] == [15, 10, 5]
    assert infos[0].bytes == sum(path.stat().st_size for path in stores[2].folder.iterdir())
    assert [round((time.time() - info.last_used) / 86400) for info in infos] == [10, 20, 30]
    Store(tmp_path, stores[0].recipe)  # opening is using
    assert list_stores(tmp_path)[0].recipe == stores[0].recipe
    (stores[1].folder / "recipe.json").write_text("{")
    shards(stores[1])[0].write_bytes(b"\xff" * 20)
    damaged = next(info for info in list_stores(tmp_path) if info.path == stores[1].folder)
    assert (damaged.recipe, damaged.rows) == (None, 5)


def test_verify_names_file_and_reason_and_changes_nothing(tmp_path: Path) -> None:
    stores = three_stores(tmp_path)
    assert verify(tmp_path) == []
    flipped, emptied = shards(stores[2])[1], shards(stores[1])[0]
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    emptied.write_bytes(b"")
    (stores[0].folder / "recipe.json").write_text(json.dumps(RECIPE.to_dict()))
    before = sorted(tmp_path.rglob("*"))
    found = {bad.path: bad.reason for bad in verify(tmp_path)}
    assert found.keys() == {flipped, emptied, stores[0].folder / "recipe.json"}
    assert "checksum" in found[flipped]
    assert "empty" in found[emptied]
    assert "another recipe" in found[stores[0].folder / "recipe.json"]
    assert sorted(tmp_path.rglob("*")) == before


def test_prune_removes_what_was_named_and_nothing_else(tmp_path: Path) -> None:
    stores = three_stores(tmp_path / "root")
    (tmp_path / "root" / "notes.txt").write_text("mine")
    (tmp_path / "root" / ("a" * 32)).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.safetensors").write_text("mine")

    def left() -> list[bool]:
        return [store.folder.exists() for store in stores]

    root = tmp_path / "root"
    assert prune(root, older_than_days=40) == []
    assert prune(root, older_than_days=40, fingerprint=stores[1].folder.name) == []
    assert left() == [True, True, True]
    assert [info.recipe for info in prune(root, older_than_days=25)] == [stores[0].recipe]
    assert left() == [False, True, True]
    assert [info.recipe for info in prune(root, fingerprint=stores[2].folder.name)] == [stores[2].recipe]
    assert left() == [False, True, False]
    (stores[1].folder / "mine.txt").write_text("mine")
    assert len(prune(root, everything=True)) == 1
    assert [path.name for path in stores[1].folder.iterdir()] == ["mine.txt"]
    assert (root / "notes.txt").exists()
    assert (tmp_path / "elsewhere" / "x.safetensors").exists()


@pytest.mark.parametrize("bad", ["../x", "..", "", "/", "*", "a" * 31, "A" * 32, "../" + RECIPE.fingerprint])
def test_prune_refuses_a_fingerprint_that_is_none(tmp_path: Path, bad: str) -> None:
    for folder in (tmp_path / "x", tmp_path / "root"):
        Store(folder, RECIPE).write(*batch(0))
    with pytest.raises(InputError, match="fingerprint"):
        prune(tmp_path / "root", fingerprint=bad)
    assert Store(tmp_path / "root", RECIPE).has(batch(0)[0]).all()
    assert (tmp_path / "x" / RECIPE.fingerprint / "recipe.json").exists()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"everything": True, "older_than_days": 1},
        {"everything": True, "fingerprint": RECIPE.fingerprint},
        {"older_than_days": -1},
        {"older_than_days": float("nan")},
    ],
)
def test_prune_wants_to_be_told_what(tmp_path: Path, how: dict[str, Any]) -> None:
    store = Store(tmp_path, RECIPE)
    with pytest.raises(InputError):
        prune(tmp_path, **how)
    assert store.folder.exists()


def test_a_pruned_store_is_missing_its_latents_and_can_be_opened_again(tmp_path: Path) -> None:
    root = tmp_path / "trunk"  # the name that states of frozen layers have within a cache
    store = Store(root, RECIPE)
    keys, latents = batch(0)
    store.write(keys, latents)
    prune(root, everything=True)
    with pytest.raises(InputError, match="5 of 5"):
        store.read(keys)
    again = Store(root, RECIPE)
    again.write(keys, latents)
    assert same(again.read(keys), latents)
