"""Latents in files: picking equals numpy's, nothing is read whole by accident, and nothing stays on the disk."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import mapped
from penchant.encode import encode_pairs
from penchant.errors import InputError, PenchantError
from penchant.latents import LatentPairs, Recipe
from penchant.mapped import Mapped, memory_limit, read_blocks
from penchant.spooled import Spool
from penchant.store_views import open_store
from tests import tiny

WIDTH, VIEWS, N = 5, ("1:mean", "2:mean", "2:last"), 40


def make_pairs(n: int = N) -> LatentPairs:
    chosen, rejected = np.random.default_rng(0).normal(size=(2, n, WIDTH * len(VIEWS))).astype(np.float32)
    recipe = Recipe("model", "0", VIEWS, WIDTH, "none", 512, "float32")
    return LatentPairs(chosen, rejected, np.zeros_like(chosen), recipe, np.arange(n) // 3, margin=np.arange(n) / 7)


def memory_mapped(pairs: LatentPairs, folder: Path) -> LatentPairs:
    """The same pairs with `np.memmap` arrays, as a user may give them."""
    sides = {}
    for name in ("chosen", "rejected", "prompt"):
        file = np.memmap(folder / f"{name}.f32", np.float32, "w+", shape=getattr(pairs, name).shape)
        file[:] = getattr(pairs, name)
        file.flush()
        sides[name] = np.memmap(folder / f"{name}.f32", np.float32, "r", shape=file.shape)
    return replace(pairs, **sides)


def spooled(pairs: LatentPairs, folder: Path, block: int = 7) -> LatentPairs:
    parts = (pairs.take(slice(start, start + block)) for start in range(0, len(pairs), block))
    return Spool(folder, 1).write(parts, len(pairs), pairs.recipe)


def side(latents: Any) -> Mapped:
    assert isinstance(latents, Mapped)
    return latents


@pytest.mark.parametrize("make", [memory_mapped, spooled])
def test_what_is_picked_is_what_numpy_picks(make: Any, tmp_path: Path) -> None:
    pairs = make_pairs()
    files, rng = make(pairs, tmp_path), np.random.default_rng(1)
    mask = rng.random(N) < 0.4
    slices = [slice(3, 30), slice(None, None, 3), slice(0, 0)]
    indices: list[Any] = [*slices, mask, np.flatnonzero(mask), rng.integers(-N, N, 60), [0, N - 1]]
    for first in indices:
        once, there = files.take(first), pairs.take(first)
        for second in (slice(1, 9), rng.permutation(len(there))):
            for views in (VIEWS, VIEWS[2:0:-1], VIEWS[:1]):
                got, wanted = once.take(second).select(views), there.take(second).select(views)
                assert side(got.chosen).shape == wanted.chosen.shape
                assert np.array_equal(side(got.chosen).read(), wanted.chosen)
                assert np.array_equal(side(got.rejected).read(), wanted.rejected)
                assert np.array_equal(got.group, wanted.group)
                assert got.margin is not None
                assert np.array_equal(got.margin, wanted.margin)


@pytest.mark.parametrize("rows", [1, 3, 39, 100])
def test_blocks_of_any_size_are_the_whole_in_order(rows: int, tmp_path: Path, monkeypatch: Any) -> None:
    pairs = make_pairs()
    files = memory_mapped(pairs, tmp_path)
    monkeypatch.setattr(mapped, "BLOCK_BYTES", rows * WIDTH * len(VIEWS) * 4)
    blocks = list(read_blocks(files.chosen, files.rejected))
    assert max(len(chosen) for _, chosen, _ in blocks) <= rows
    assert len(blocks) == -(-N // rows)
    assert np.array_equal(np.concatenate([chosen for _, chosen, _ in blocks]), pairs.chosen)
    assert np.array_equal(np.concatenate([rejected for _, _, rejected in blocks]), pairs.rejected)
    assert all(len(chosen) == block.stop - block.start for block, chosen, _ in blocks)


def test_a_slice_of_a_memory_map_is_read_from_its_own_place(tmp_path: Path) -> None:
    pairs = make_pairs()
    whole = np.memmap(tmp_path / "all", np.float32, "w+", offset=12, shape=(2 * N + 3, WIDTH * len(VIEWS)))
    whole[:] = 7
    whole[3::2] = pairs.chosen
    files = replace(pairs, chosen=whole[3:][::2])
    assert np.array_equal(side(files.chosen).read(), pairs.chosen)
    assert np.array_equal(side(files.take(np.array([N - 1, 4, 4])).chosen).read(), pairs.chosen[[N - 1, 4, 4]])
    private = np.memmap(tmp_path / "all", np.float32, "c", offset=12, shape=whole.shape)
    private[0] = 1
    for plain in (private[:N], whole[:N].astype(np.float64), whole[N - 1 :: -1]):
        assert not replace(pairs, chosen=plain).mapped


def test_numpy_reads_them_up_to_the_limit_and_says_what_to_do_beyond(tmp_path: Path) -> None:
    pairs = make_pairs()
    files = memory_mapped(pairs, tmp_path)
    assert np.array_equal(np.asarray(files.chosen), pairs.chosen)
    assert np.array_equal(files.in_memory().rejected, pairs.rejected)
    small = spooled(pairs, tmp_path)  # with a limit of one byte
    with pytest.raises(InputError, match=r"40 pairs of latents take 2.4e-06 GB and 1e-09 GB are allowed.*linear, mlp"):
        np.asarray(small.chosen)
    with pytest.raises(InputError, match="or raise memory_gb"):
        small.in_memory()
    assert np.array_equal(small.loaded().chosen, pairs.chosen)
    assert np.isnan(small.loaded().prompt).all()
    with pytest.raises(InputError, match="prompts' own latents were not kept"):
        side(small.prompt).read()
    with pytest.raises(InputError, match="whole views only"):
        small.chosen[:, :3]
    os.truncate(tmp_path / "chosen.f32", 100)
    with pytest.raises(InputError, match="ends 2260 bytes too early"):
        side(files.chosen).read()


def test_the_limit_is_a_share_of_the_machine_or_what_was_given() -> None:
    assert 1e8 < memory_limit() < 0.126 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit(2.5) == 2_500_000_000
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="memory_gb is"):
            memory_limit(bad)


def test_a_file_has_no_name_and_ends_with_the_pairs(tmp_path: Path) -> None:
    """So nothing is left after a crash either."""

    def open_files() -> int:
        return sum("deleted" in os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here to see open files in")
    gc.collect()
    before = open_files()
    pairs = spooled(make_pairs(), tmp_path)
    assert os.listdir(tmp_path) == []
    part = pairs.take(slice(0, 5))
    del pairs
    assert open_files() == before + 2  # a part keeps them
    assert len(part.loaded()) == 5
    del part
    assert open_files() == before


def test_a_disk_without_room_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: Any) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 4799))
    with pytest.raises(
        PenchantError, match=r"take 4,800 bytes, more than may be in memory \(1\), and .* 4,799 bytes fr"
    ):
        Spool(tmp_path, 1).write(iter(lambda: pytest.fail("a block was made"), None), N, make_pairs().recipe)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 4800))
    assert len(spooled(make_pairs(), tmp_path)) == N


def test_a_disk_that_fills_on_the_way_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(PenchantError, match=r"cannot take the latents of 40 pairs, 4,800 bytes \(No space left"):
        spooled(make_pairs(), tmp_path)


@pytest.mark.parametrize("views", [("2:mean", "2:last"), ("2:prompt", "3:mean", "3:prompt_last")])
def test_encoding_into_files_gives_the_same_pairs(views: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    backbone, data = tiny.backbone(), tiny.pairs(30)
    store = open_store(tmp_path, backbone.recipe(views))
    plain = encode_pairs(backbone, data, views, store, show_progress=False)
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 11 * plain.recipe.dim * 4)
    enough = encode_pairs(backbone, data, views, store, show_progress=False, spool=Spool(tmp_path, plain.nbytes))
    assert not enough.mapped
    files = encode_pairs(backbone, data, views, store, show_progress=False, spool=Spool(tmp_path, plain.nbytes - 1))
    assert files.mapped
    assert files.recipe == plain.recipe
    assert files.meta.keys() == plain.meta.keys()
    assert np.array_equal(files.loaded().chosen, plain.chosen)
    assert np.array_equal(files.loaded().rejected, plain.rejected)
    assert np.array_equal(files.group, plain.group)
