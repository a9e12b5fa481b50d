"""What a store promises on bad days: kills, damage, full disks and other processes never yield a wrong row."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import store as store_module
from penchant import store_shard
from penchant.errors import InputError, PenchantError
from penchant.store import Store
from penchant.store_admin import list_stores, prune, verify
from tests.store_batches import RECIPE, batch, same, shards

HERE = Path(__file__).parents[1]


def run(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Another Python process; its code sees `Store`, `RECIPE`, `batch`, `root` and `arguments`."""
    start = "import sys, numpy as np; from tests.store_batches import *; root, *arguments = sys.argv[1:]\n"
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True, **options)


def temps(store: Store) -> list[Path]:
    return list(store.folder.glob(".tmp-*"))


WRITER = """
store = Store(root, RECIPE)
print("ready", flush=True)
for seed in range(int(arguments[0])):
    keys, latents = batch(seed, 4000)
    if not store.has(keys).all():
        store.write(keys, latents)
        print(seed, flush=True)
    if seed % 5 == 4:
        store.compact(3_000_000)
"""


def test_killed_writer_loses_no_finished_batch_and_leaves_no_part(tmp_path: Path) -> None:
    """kill -9 at ten random moments of one resumed run of writing and merging; it ends as if never interrupted."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    done: set[int] = set()
    parts = [batch(i, 4000) for i in range(100)]
    caught = 0
    for _ in range(10):
        process = run(WRITER, tmp_path, len(parts))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        done |= {int(line) for line in process.stdout.read().split()}
        process.wait()
        caught += len(list(tmp_path.glob("*/.tmp-*")))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a part of a shard would be found bad
            store = Store(tmp_path, RECIPE)
        assert temps(store) == []
        for i, (keys, latents) in enumerate(parts):
            found = store.has(keys)
            assert found.all() or (i not in done and not found.any())
            if found.all():
                done.add(i)
                assert same(store.read(keys), latents)
    print("finished", len(done), "caught in the act", caught)
    assert done
    assert run(WRITER, tmp_path, len(done) + 5).wait() == 0
    store.refresh()
    rest = parts[: len(done) + 5]
    assert same(store.read(np.concatenate([k for k, _ in rest])), np.concatenate([v for _, v in rest]))


class Killed(BaseException):
    """Nothing may catch this."""


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """From the given call to the operating system on, no call does anything more; a write may get half way."""
    count = [0]

    def mortal(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step and name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            if count[0] >= step:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "write", "fsync", "replace", "unlink"):
        mortal(name)
    return lambda: count[0]


@pytest.mark.parametrize("act", ["write", "compact", "create"])
def test_death_at_every_single_step(tmp_path: Path, act: str) -> None:
    old = [batch(seed) for seed in range(5)]
    for step in range(1, 1000):
        root = tmp_path / str(step)
        if act != "create":
            store = Store(root, RECIPE)
            for part in old:
                store.write(*part)
        with pytest.MonkeyPatch.context() as patch:
            steps = die_at(patch, step)
            try:
                if act == "write":
                    store.write(*batch(99))
                elif act == "compact":
                    store.compact(2 * shards(store)[0].stat().st_size)  # two pairs
                else:
                    Store(root, RECIPE)
                finished = True
            except Killed:
                finished = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            after = Store(root, RECIPE)
        if act != "create":
            assert all(same(after.read(keys), latents) for keys, latents in old)
        assert not finished or act != "write" or after.has(batch(99)[0]).all()
        assert after.has(batch(99)[0]).sum() in (0, 5)
        if finished:
            break
        after.compact()
        assert len(shards(after)) == (act != "create")
    assert steps() == step - 1
    assert step > {"write": 8, "compact": 20, "create": 6}[act]


def test_a_write_is_durable_before_it_is_visible_and_both_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, RECIPE)
    log: list[str] = []

    def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
        log.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        real(fd)

    def replace(a: Any, b: Any, real: Callable[[Any, Any], None] = os.replace) -> None:
        log.append("name")
        real(a, b)

    def unlink(path: Any, real: Callable[[Any], None] = os.unlink) -> None:
        log.append("unlink")
        real(path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.write(*batch(0))
    assert log == ["file", "name", "folder"]
    store.write(*batch(1))
    monkeypatch.setattr(os, "unlink", unlink)
    log.clear()
    store.compact()
    assert [entry for i, entry in enumerate(log) if entry not in log[:i]] == ["file", "name", "folder", "unlink"]


def damaged_store(tmp_path: Path) -> tuple[Store, Path, bytes]:
    """Two shards of two rows, the path and content of the first batch's."""
    store = Store(tmp_path, RECIPE)
    store.write(*batch(0, 2))
    path = shards(store)[0]
    store.write(*batch(1, 2))
    return store, path, path.read_bytes()


def expect_bad(tmp_path: Path, path: Path, content: bytes) -> str:
    """The shard with this content is named, set aside and missing; the other is as before; a rewrite mends it."""
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name) as record:
        store = Store(tmp_path, RECIPE)
    assert len(record) == 1
    assert [bad.path for bad in store.bad_shards] == [path]
    assert not path.exists()
    assert path.with_name(path.name + ".bad").read_bytes() == content
    assert not store.has(batch(0, 2)[0]).any()
    with pytest.raises(InputError, match="2 of 2"):
        store.read(batch(0, 2)[0])
    assert same(store.read(batch(1, 2)[0]), batch(1, 2)[1])
    store.write(*batch(0, 2))
    assert same(store.read(batch(0, 2)[0]), batch(0, 2)[1])
    return str(record[0].message)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    _, path, content = damaged_store(tmp_path)
    rng = random.Random(0)
    for place in [*range(0, len(content), 3), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        assert "checksum" in expect_bad(tmp_path, path, bytes(flipped))


def test_a_shard_cut_anywhere_or_grown_is_found(tmp_path: Path) -> None:
    _, path, content = damaged_store(tmp_path)
    assert "empty" in expect_bad(tmp_path, path, b"")
    for size in range(1, len(content), 7):
        expect_bad(tmp_path, path, content[:size])
    expect_bad(tmp_path, path, content + b"\0")


def test_damage_under_an_open_store_is_found_before_the_next_read(tmp_path: Path) -> None:
    store, path, content = damaged_store(tmp_path)
    assert store.has(batch(0, 2)[0]).all()
    time.sleep(0.02)  # the file system's clock must tick for a change that keeps the size
    with open(path, "r+b") as file:
        file.seek(len(content) - 1)
        file.write(bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(InputError, match="2 of 2"):
        store.read(batch(0, 2)[0])
    assert same(store.read(batch(1, 2)[0]), batch(1, 2)[1])


def test_compaction_gives_rotten_bits_no_fresh_checksum(tmp_path: Path) -> None:
    store, path, content = damaged_store(tmp_path)
    before = path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk does it: no stamp changes
    with pytest.warns(UserWarning, match="checksum"):
        store.compact()
    assert not store.has(batch(0, 2)[0]).any()
    assert same(store.read(batch(1, 2)[0]), batch(1, 2)[1])


def test_a_copy_in_another_shard_stands_in_for_a_bad_one(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    keys, latents = batch(0, 6)
    store.write(keys[:4], latents[:4])
    path = shards(store)[0]
    store.write(keys[2:], latents[2:])
    path.write_bytes(b"gone")
    with pytest.warns(UserWarning, match=path.name):
        store.refresh()
    assert store.has(keys).tolist() == [False, False, True, True, True, True]
    assert same(store.read(keys[2:]), latents[2:])


def named_by_content(folder: Path, content: bytes) -> Path:
    store_shard.write_file(folder, [content])
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


def test_a_sound_file_that_is_no_shard_of_this_recipe_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    other = Store(tmp_path, type(RECIPE).from_dict({**RECIPE.to_dict(), "revision": "other"}))
    other.write(*batch(0))
    content = shards(other)[0].read_bytes()
    forged = content.replace(other.recipe.fingerprint.encode(), RECIPE.fingerprint.encode())
    wider = forged.replace(b"[5, 6]", b"[5, 5]")
    for text, reason in [
        (content, "another recipe"),
        (wider, "another size"),
        (forged[:-4], "another size"),
        (b"hello", "not a shard"),
        (b"hello, world", "not a shard"),
        ((2).to_bytes(8, "little") + b"[]", "not a shard"),
        ((2).to_bytes(8, "little") + b"{}", "not a shard"),
    ]:
        path = named_by_content(store.folder, text)
        with pytest.warns(UserWarning, match=f"{path.name}.*{reason}"):
            store.refresh()
    assert not store.has(batch(0)[0]).any()
    named_by_content(store.folder, forged)
    store.refresh()
    assert store.has(batch(0)[0]).all()


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    store.write(*batch(0))
    content = shards(store)[0].read_bytes()
    newer = named_by_content(store.folder, content.replace(b'"penchant_store": "1"', b'"penchant_store": "2"'))
    with pytest.raises(PenchantError, match="format 2"):
        Store(tmp_path, RECIPE)
    assert newer.exists()


def test_a_bad_shard_that_cannot_be_renamed_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, content = damaged_store(tmp_path)
    path.write_bytes(content[:-1])

    def refuse(a: Any, b: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match="ignored") as record:
        store = Store(tmp_path, RECIPE)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        store.refresh()
    assert store.has(np.concatenate([batch(0, 2)[0], batch(1, 2)[0]])).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("number", "sound"), [(errno.EIO, False), (errno.EMFILE, True), (errno.ENOMEM, True)])
def test_only_a_disk_that_cannot_read_makes_a_shard_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sound: bool
) -> None:
    _, path, _ = damaged_store(tmp_path)

    def refuse(file: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_shard, "_digest", refuse)
    if sound:
        with pytest.raises(OSError, match=os.strerror(number)):
            Store(tmp_path, RECIPE)
    else:
        with pytest.warns(UserWarning, match="the disk cannot read it"):
            Store(tmp_path, RECIPE)
    assert path.exists() == sound


def test_a_listing_that_a_merge_slipped_past_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can miss the source, gone when its turn came, and the merged shard, named where the listing had passed."""
    Store(tmp_path, RECIPE).write(*batch(0))
    listings = [iter([])]
    real = store_module.list_shards
    monkeypatch.setattr(store_module, "list_shards", lambda folder: listings.pop() if listings else real(folder))
    assert Store(tmp_path, RECIPE).has(batch(0)[0]).all()


def test_set_aside_shards_are_counted_and_pruned(tmp_path: Path) -> None:
    store, path, content = damaged_store(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="set aside"):
        store.refresh()
    assert list_stores(tmp_path)[0].rows == 2
    assert list_stores(tmp_path)[0].bytes == sum(p.stat().st_size for p in store.folder.iterdir())
    assert verify(tmp_path) == []
    prune(tmp_path, everything=True)
    assert not store.folder.exists()


def fill_until_full(store: Store) -> list[int]:
    """Writes batches of 24 KB until the store refuses; the ones that it took."""
    done: list[int] = []

    def fill() -> None:
        for seed in range(100):
            store.write(*batch(seed, 600))
            done.append(seed)

    with pytest.raises(PenchantError, match="is full") as caught:
        fill()
    assert str(store.folder) in str(caught.value)
    assert f"needs {shards(store)[0].stat().st_size:,} bytes" in str(caught.value)
    assert "everything written before is kept" in str(caught.value)
    assert len(done) > 3
    assert temps(store) == []
    assert len(shards(store)) == len(done)
    for reader in (store, Store(store.folder.parent, RECIPE)):
        assert not reader.has(batch(len(done), 600)[0]).any()
        assert all(same(reader.read(batch(seed, 600)[0]), batch(seed, 600)[1]) for seed in done)
    return done


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root; the simulated full disk is tested all the same")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_was_written(small_disk: Path) -> None:
    store = Store(small_disk, RECIPE)
    done = fill_until_full(store)
    with pytest.raises(PenchantError, match="full"):
        store.compact()
    assert temps(store) == []
    assert all(store.has(batch(seed, 600)[0]).all() for seed in done)
    shards(store)[0].unlink()  # room again
    store.write(*batch(done[-1] + 1, 600))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_simulated_full_disk_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store(tmp_path, RECIPE)
    room, real = [200_000], os.write

    def write(fd: int, data: Any) -> int:
        part = bytes(data)[: min(len(data), 1000, room[0])]  # the system may take less than it is given
        if not part:
            raise OSError(number, os.strerror(number))
        room[0] -= len(part)
        return real(fd, part)

    monkeypatch.setattr(os, "write", write)
    done = fill_until_full(store)
    room[0] = 10**6
    store.write(*batch(done[-1] + 1, 600))
    assert verify(tmp_path) == []


def test_another_failure_of_the_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, RECIPE)
    store.write(*batch(0))

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PenchantError, match=r"cannot be written \(Input/output error"):
        store.write(*batch(1))
    assert temps(store) == []
    assert Store(tmp_path, RECIPE).has(np.concatenate([batch(0)[0], batch(1)[0]])).sum() == 5


def test_a_merge_that_may_delete_nothing_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, RECIPE)
    for seed in range(3):
        store.write(*batch(seed))

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(PenchantError, match=r"cannot be written \(Permission denied"):
            store.compact()
    for reader in (store, Store(tmp_path, RECIPE)):
        reader.refresh()
        assert all(same(reader.read(batch(seed)[0]), batch(seed)[1]) for seed in range(3))
    store.compact()
    assert len(shards(store)) == 1


def test_temporary_files_of_the_dead_are_removed_and_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE)
    here = store_shard._here()
    dead = run("", store.folder)
    dead.wait()
    elsewhere = "0" * 8 if here != "0" * 8 else "1" * 8
    names = {
        f".tmp-{here}-{dead.pid}-00": False,
        f".tmp-{here}-{os.getpid()}-00": True,
        f".tmp-{elsewhere}-{dead.pid}-00": True,
        ".tmp-odd": True,
        f".tmp-{elsewhere}-{os.getpid()}-01": False,  # old
        f".tmp-{here}-{os.getpid()}-01": False,  # old
    }
    for name in names:
        (store.folder / name).write_text("x")
        age = 25 * 3600 if name.endswith("01") else 23 * 3600
        os.utime(store.folder / name, (time.time() - age,) * 2)
    Store(tmp_path, RECIPE)
    assert {name: (store.folder / name).exists() for name in names} == names


def test_folders_of_the_dead_go_too_and_what_safetensors_left_in_its_day(tmp_path: Path) -> None:
    dead = run("", tmp_path)
    dead.wait()
    mine = store_shard.temp_in(tmp_path)
    killed = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    for folder in (mine, killed):
        folder.mkdir()
        (folder / "part").write_text("x")
    for name, age in (("old", 25), ("new", 23)):
        (tmp_path / f".tmp{name}").write_text("x")
        os.utime(tmp_path / f".tmp{name}", (time.time() - age * 3600,) * 2)
    store_shard.remove_dead_temps(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, ".tmpnew"}


SHARED = """
rng = np.random.default_rng(int(arguments[0]))
keys, latents = batch(7, 400)
store = Store(root, RECIPE)
print("ready", flush=True)
for turn in range(120):
    pick = rng.integers(0, 400, 12)
    store.write(keys[pick], latents[pick])
    assert same(store.read(keys[pick]), latents[pick])
    if turn % 4 == int(arguments[0]):
        store.compact(int(rng.choice([4_000, 20_000, 1 << 20])))
assert store.bad_shards == []
"""


def test_two_writers_that_also_compact_and_a_reader_at_once(tmp_path: Path) -> None:
    """The reader never sees a wrong row, and a row that it has seen never goes missing again."""
    keys, latents = batch(7, 400)
    store = Store(tmp_path, RECIPE)
    writers = [run(SHARED, tmp_path, number) for number in range(2)]
    seen = np.zeros(400, bool)
    looks = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.poll() is None for writer in writers) or not looks:
            assert same(store.read(keys[seen]), latents[seen])
            store.refresh()
            found = store.has(keys)
            assert found[seen].all()
            seen = found
            looks += seen.any() and not seen.all()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert looks > 10
    written = np.unique([np.random.default_rng(n).integers(0, 400, 12) for n in range(2)])
    fresh = Store(tmp_path, RECIPE)
    assert fresh.has(keys[written]).all()
    fresh.compact()
    assert len(shards(fresh)) == 1
    assert same(store.read(keys[seen]), latents[seen])
    assert temps(fresh) == []
    assert verify(tmp_path) == []


def test_equal_batches_of_two_processes_are_one_shard(tmp_path: Path) -> None:
    code = "Store(root, RECIPE).write(*batch(3, 50))"
    assert [process.wait() for process in [run(code, tmp_path) for _ in range(2)]] == [0, 0]
    assert len(shards(Store(tmp_path, RECIPE))) == 1
