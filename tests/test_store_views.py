"""A narrower recipe reads what a wider one kept, and nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penchant.errors import InputError
from penchant.latents import Recipe
from penchant.store import Store
from penchant.store_views import ViewStore, open_store

WIDE = Recipe("m", "r", ("1:last", "1:mean", "2:last"), 3, "t", 64, "float32")
NARROW = replace(WIDE, views=("2:last", "1:last"))


def batch(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (5, 16), np.uint8), rng.normal(size=(5, dim)).astype(np.float32)


def test_reads_the_right_columns_of_a_wider_store_in_the_order_asked(tmp_path: Path) -> None:
    keys, latents = batch(0, WIDE.dim)
    Store(tmp_path, WIDE).write(keys, latents)
    store = open_store(tmp_path, NARROW)
    assert store.has(keys).all()
    np.testing.assert_array_equal(store.read(keys[::-1]), latents[::-1][:, [6, 7, 8, 0, 1, 2]])


def test_mixes_its_own_rows_with_borrowed_ones(tmp_path: Path) -> None:
    keys, latents = batch(0, WIDE.dim)
    Store(tmp_path, WIDE).write(keys, latents)
    store = open_store(tmp_path, NARROW)
    mine, own = batch(1, NARROW.dim)
    store.write(mine, own)
    store.refresh()
    both = store.read(np.stack([mine[2], keys[1], mine[0]]))
    np.testing.assert_array_equal(both, np.stack([own[2], latents[1, [6, 7, 8, 0, 1, 2]], own[0]]))
    assert not Store(tmp_path, WIDE).has(mine).any()


@pytest.mark.parametrize(
    "change", [{"revision": "other"}, {"dtype": "bfloat16"}, {"max_length": 32}, {"template": "u"}]
)
def test_never_borrows_from_another_recipe(tmp_path: Path, change: dict[str, object]) -> None:
    keys, latents = batch(0, WIDE.dim)
    Store(tmp_path, replace(WIDE, **change)).write(keys, latents)
    store = open_store(tmp_path, NARROW)
    assert not isinstance(store, ViewStore)
    assert not store.has(keys).any()


def test_a_narrower_store_is_no_help_to_a_wider_one(tmp_path: Path) -> None:
    keys, latents = batch(0, NARROW.dim)
    Store(tmp_path, NARROW).write(keys, latents)
    assert not open_store(tmp_path, WIDE).has(keys).any()


def test_a_missing_key_is_an_error(tmp_path: Path) -> None:
    keys, latents = batch(0, WIDE.dim)
    Store(tmp_path, WIDE).write(keys, latents)
    with pytest.raises(InputError, match="not in"):
        open_store(tmp_path, NARROW).read(batch(9, 1)[0])
