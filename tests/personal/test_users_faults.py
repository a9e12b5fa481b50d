"""What the people's file promises on bad days: kills, other processes, damage, and bytes that must be gone."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penchant.errors import InputError, PenchantError
from penchant.personal import users_file
from penchant.personal.users import Users
from penchant.personal.users_file import SCHEMA, TABLES, table_of

HERE = Path(__file__).parents[2]
MARK = 0x7E57_B175
"""Stands in the upper half of each number of a marked vector, the person's number in the lower half."""


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users(tmp_path / "users.db", "model-1") as opened:
        yield opened


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process; its code sees `users`, `same` and `arguments`."""
    start = (
        "import sys, time; from tests.personal.test_users_faults import *; path, *arguments = sys.argv[1:]\n"
        "users = Users(path, 'model-1')\n"
    )
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def same(value: int, size: int = 300) -> dict[str, NDArray[Any]]:
    """Vectors in which every number is `value`: a mix of two versions shows."""
    return {"u": np.full(size, value, np.float32), "w": np.full((2, size), value, np.int32)}


def marked(number: int, size: int = 60) -> dict[str, NDArray[Any]]:
    return {"v": np.full(size, (MARK << 32) + number, np.uint64)}


def on_disk(path: Path) -> bytes:
    """Every byte of the database's files."""
    return b"".join(part.read_bytes() for part in sorted(path.parent.glob(f"{path.name}*")))


def traces(path: Path) -> tuple[set[int], set[int]]:
    """The numbers of people whose id, and of those whose marked vector, is somewhere on disk."""
    raw = on_disk(path)
    ids = {int(found[1]) for found in re.finditer(rb"person-(\d{6})", raw)}
    at = (found.start() for found in re.finditer(re.escape(MARK.to_bytes(4, "little")), raw))
    numbers = {int.from_bytes(raw[i - 4 : i], "little") for i in at}
    return ids, {number for number in numbers if 0 < number < 10**6}  # else it is the head of an overflow page


def everybody(path: Path) -> set[int]:
    ids, vectors = traces(path)
    return ids | vectors


def neighbours(count: int) -> list[int]:
    """Numbers of people who share one table."""
    return [i for i in range(1, 70 * count) if table_of(f"person-{i:06d}") == TABLES[7]][:count]


def test_who_is_forgotten_leaves_no_byte(users: Users) -> None:
    """Rows of one table, of many sizes, come and go in random order: SQLite moves them, and leaves copies behind.

    With `secure_delete` alone, ids of 4 and a vector of 1 of these 500 people stay on disk (SQLite 3.40.1).
    """
    rng = random.Random(0)
    names: dict[str, int] = {}
    for i in itertools.count(1):
        name = f"person-{i:06d}" + "x" * rng.randrange(30)
        if table_of(name) == TABLES[7]:
            names[name] = i
        if len(names) == 1500:
            break
    people = list(names)
    for count in (*(rng.randrange(1500) for _ in range(5)), 1500):
        rng.shuffle(people)
        users.put_many((name, marked(names[name], rng.randrange(10, 80)), 1) for name in people[:count])
    assert everybody(users.path) == set(names.values())
    rng.shuffle(people)
    gone, rest = people[:500], people[500:]
    for name in gone[:5]:  # one by one, with writes in between
        assert users.forget(name) == 1
        assert names[name] not in everybody(users.path)
        users.put(rest[0], marked(names[rest[0]]), 1)
    assert users.forget(*gone) == 495
    left = {names[name] for name in rest}
    assert traces(users.path) == (left, left)
    found = users.get_many(people)
    assert set(found) == set(rest)
    assert all(set(person.vectors["v"].tolist()) == {(MARK << 32) + names[name]} for name, person in found.items())
    assert len(users.history(rest[0])) == 4
    assert sqlite3.connect(users.path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_contradicts_itself_is_not_taken_for_another_writer(tmp_path: Path) -> None:
    """A block of zeros anywhere: who then seems to be at another version is not told to begin again."""
    path, people = tmp_path / "users.db", [f"person-{i:06d}" for i in range(1, 31)]
    with Users(path, "model-1") as users:
        users.put_many((name, marked(i), 1) for i, name in enumerate(people))
    whole, told = path.read_bytes(), []
    for start in range(4096, len(whole), 512):
        if not any(whole[start : start + 512]):
            continue
        path.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
        try:
            with Users(path) as users:
                for i, name in enumerate(people):
                    users.put(name, marked(i), 2, expected=1)
        except PenchantError as error:
            told.append(str(error))
        for log in tmp_path.glob("users.db-*"):
            log.unlink()
    assert told
    assert all(str(path) in each and "put an export or a copy in its place" in each for each in told)


def test_vectors_stay_where_they_were_written_whatever_becomes_of_others(users: Users) -> None:
    """A slot that SQLite moved would leave a copy that no forgetting finds."""

    def places() -> dict[int, list[int]]:
        raw, found = on_disk(users.path), dict[int, list[int]]()
        for i in range(1, 301):
            pattern = ((MARK << 32) + i).to_bytes(8, "little") * 10
            found[i] = [at.start() for at in re.finditer(re.escape(pattern), raw)]
        return found

    rng = random.Random(1)
    users.put_many((f"person-{i:06d}", marked(i, rng.randrange(10, 300)), 1) for i in range(1, 301))
    users.forget()
    before = places()
    for round_ in range(4):
        gone = rng.sample(range(1, 201), 60)
        users.forget(*(f"person-{i:06d}" for i in gone))
        users.put_many((f"new-{round_}-{i}", marked(400 + i, rng.randrange(10, 300)), 1) for i in range(60))
    users.forget()
    after = places()
    assert {i: after[i] for i in range(201, 301)} == {i: before[i] for i in range(201, 301)}


def test_large_vectors_and_old_versions_leave_no_byte_either(users: Users) -> None:
    """30 kB a person: the vectors lie on overflow pages."""
    for _ in range(5):
        users.put_many((f"person-{i:06d}", marked(i, 4000), 1) for i in range(1, 20))
    users.restore("person-000003", 3)
    assert users.forget(*(f"person-{i:06d}" for i in range(1, 10))) == 9
    assert traces(users.path) == (set(range(10, 20)), set(range(10, 20)))
    users.put("person-000003", marked(77), 1)
    assert users.known("person-000003").version == 1
    assert len(users.history("person-000003")) == 1


def test_a_forgotten_id_is_not_there_in_any_encoding_of_the_file(users: Users) -> None:
    for user_id in ("Zoë Müller", "'; DROP TABLE people_00; --", "x" * 512):
        users.put(user_id, marked(5), 1)
        assert user_id.encode() in on_disk(users.path)
        assert users.forget(user_id, user_id) == 1
        assert user_id.encode()[:8] not in on_disk(users.path)
        assert user_id.encode("utf-16-le")[:16] not in on_disk(users.path)
        assert users.forget(user_id) == 0
    assert traces(users.path) == (set(), set())


def test_a_reader_that_holds_the_log_is_reported_and_forgetting_can_be_finished(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.put_many((f"person-{i:06d}", marked(i), 1) for i in range(1, 6))
    users.forget()  # the log is empty now, and what follows goes into it
    users.put("person-000003", marked(3), 1)
    reader = sqlite3.connect(users.path, isolation_level=None)
    reader.execute("BEGIN")
    seen = reader.execute(f"SELECT count(*) FROM {table_of('person-000003')}").fetchone()
    monkeypatch.setattr(users_file, "PATIENCE", 3.0)
    with ThreadPoolExecutor(2) as pool:
        start = time.monotonic()
        forgetting = pool.submit(users.forget, "person-000003")
        time.sleep(0.3)
        users.put("person-000001", marked(1), 9)  # others write meanwhile
        assert users.get("person-000003") is None  # and read it no more
        assert time.monotonic() - start < 2.5
        with pytest.raises(PenchantError, match=r"deleted from .*reader .* still holds the log.*call forget again"):
            forgetting.result()
    assert 3 in everybody(users.path)
    assert reader.execute(f"SELECT count(*) FROM {table_of('person-000003')}").fetchone() == seen
    reader.close()
    assert users.forget("person-000003") == 0
    assert traces(users.path) == ({1, 2, 4, 5}, {1, 2, 4, 5})
    assert users.known("person-000001").pairs == 9


def test_a_short_reader_is_waited_for(users: Users) -> None:
    users.put("person-000003", marked(3), 1)
    reader = sqlite3.connect(users.path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM meta").fetchone()
    threading.Timer(0.5, reader.close).start()
    assert users.forget("person-000003") == 1
    assert traces(users.path) == (set(), set())


def test_forgetting_while_many_read_and_write(users: Users) -> None:
    """Tables are dropped and renamed under the feet of others, who must not notice."""
    numbers = neighbours(30)
    users.put_many((f"person-{i:06d}", same(i), 1) for i in numbers)
    stop = threading.Event()

    def look(seed: int) -> int:
        rng, count = random.Random(seed), 0
        while not stop.is_set():
            i = rng.choice(numbers[10:])
            person = users.known(f"person-{i:06d}")
            assert person.vectors["u"][0] == i
            users.put(person.user_id, person.vectors, person.pairs + 1)
            assert len(users.ids("person")) >= 20
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        looking = [pool.submit(look, seed) for seed in range(3)]
        try:
            for i in numbers[:10]:
                assert users.forget(f"person-{i:06d}") == 1
                assert i not in traces(users.path)[0]
        finally:
            stop.set()
        counts = [one.result() for one in looking]
    assert all(counts)
    assert sum(person.pairs - 1 for person in users.get_many(users.ids()).values()) <= sum(counts)


WRITER = """
print("ready", flush=True)
sys.stdin.readline()
for value in range(2, 150):
    if value % 3:
        users.put("ann", same(value), value)
    else:
        users.put_many((name, same(value), value) for name in ("ann", "bob"))
"""


def test_every_read_is_a_whole_version(users: Users) -> None:
    """Another process writes while threads read; all of a version's numbers are equal, and never lower than before."""
    users.put_many((name, same(1), 1) for name in ("ann", "bob"))
    writer = run(WRITER, users.path)
    assert line(writer) == "ready"
    assert writer.stdin
    writer.stdin.write("\n")
    writer.stdin.flush()

    def look(_: int) -> set[int]:
        seen, last = set(), 0
        while last < 149:
            found = users.get_many(["ann", "bob"])
            for person in found.values():
                assert {float(x) for vector in person.vectors.values() for x in vector.flat} == {float(person.pairs)}
            ann, bob = found["ann"].pairs, found["bob"].pairs
            assert bob == max(1, ann // 3 * 3)  # both as of one moment
            assert ann >= last
            last = ann
            seen.add(ann)
            if writer.poll() is not None and last < 149:
                last = users.known("ann").pairs
                assert last == 149
        return seen

    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(look, range(3)))
    assert writer.wait() == 0
    assert min(len(one) for one in seen) > 3, "the readers never met the writer"


def test_a_long_write_holds_up_no_reader(users: Users, tmp_path: Path) -> None:
    users.put("ann", same(1), 1)
    begun, go_on = threading.Event(), threading.Event()

    def rows() -> Iterator[tuple[str, dict[str, NDArray[Any]], int]]:
        for value in range(2, 300):
            yield "ann", same(value), value
            if value == 200:
                begun.set()
                assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(users.put_many, rows())
        assert begun.wait(60)
        start = time.monotonic()
        with Users(users.path, "model-1") as other:
            for reader in (users, other):
                assert reader.known("ann").version == 1
                assert len(reader) == len(reader.ids()) == 1
                assert reader.export(tmp_path / "people.jsonl") == 1
        assert time.monotonic() - start < 10
        go_on.set()
        assert writing.result() == 298
    assert users.known("ann").version == 299


def test_a_writer_that_waits_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_file, "PATIENCE", 0.2)
    with Users(tmp_path / "users.db", "model-1") as users:
        other = sqlite3.connect(users.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(PenchantError, match=r"is locked.*another process is writing to it") as caught:
            users.put("ann", same(1), 1)
        assert not isinstance(caught.value, InputError)
        other.close()
        users.put("ann", same(1), 1)


def test_no_update_is_lost(users: Users) -> None:
    """Four threads and a process each add one to a number 25 times."""
    users.put("ann", {"n": np.zeros(1)}, 0)
    code = "print('ready', flush=True); sys.stdin.readline(); print(add(users, 25))"
    process = run(code, users.path)
    assert line(process) == "ready"
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    with ThreadPoolExecutor(4) as pool:
        refused = sum(pool.map(lambda _: add(users, 25), range(4)))
    assert process.wait() == 0
    person = users.known("ann")
    assert person.vectors["n"].tolist() == [125]
    assert (person.pairs, person.version) == (125, 126)
    assert refused, "the threads never met"


def add(users: Users, times: int) -> int:
    """Add one so many times; how often that had to be done again."""
    again = 0
    while times:
        person = users.known("ann")
        more = {"n": person.vectors["n"] + 1}
        try:
            users.put("ann", more, person.pairs + 1, expected=person.version)
            times -= 1
        except InputError:
            again += 1
    return again


KILLED = """
def rows():
    for i in range(int(arguments[0])):
        yield f"p{i:05d}", same(7, 1000), 7
    print("there", flush=True)
    time.sleep(60)
users.put_many(rows())
"""


@pytest.mark.parametrize("count", [1, 300, 3000])
def test_a_killed_put_many_leaves_the_old_state(users: Users, count: int) -> None:
    """kill -9 when 12 MB, more than SQLite holds in memory, are in the log already."""
    users.put_many((f"p{i:05d}", same(1, 1000), 1) for i in range(50))
    users.close()
    before = users.path.read_bytes()
    writer = run(KILLED, users.path, count)
    assert line(writer) == "there"
    if count == 3000:
        assert Path(f"{users.path}-wal").stat().st_size > 1e7
    writer.kill()
    writer.wait()
    with Users(users.path) as again:
        assert len(again) == 50
        for person in again.get_many(again.ids()).values():
            assert (person.version, person.pairs) == (1, 1)
            assert person.vectors["u"].tolist() == [1] * 1000
        assert again.put("p00000", same(2), 2) == 2
        assert again.forget("p00001") == 1
        assert b"p00600" not in on_disk(users.path)  # nor anything that the dead one left in the log
    assert len(before) > 50 * 12_000


def test_a_process_killed_while_forgetting_has_forgotten_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    numbers = neighbours(300)
    with Users(path, "model-1") as users:
        users.put_many((f"person-{i:06d}", marked(i), 1) for i in numbers)
    code = "print('ready', flush=True)\nfor user_id in users.ids(): users.forget(user_id); print(user_id, flush=True)"
    process = run(code, path)
    assert line(process) == "ready"
    for _ in range(5):
        line(process)
    process.kill()
    process.wait()
    with Users(path) as users:
        left = users.ids()
        assert 0 < len(left) <= 295
        assert all(len(users.history(user_id)) == 1 for user_id in left)
        users.forget()
        ids, vectors = traces(path)
        assert ids == vectors == {int(user_id[7:]) for user_id in left}


def test_many_processes_may_begin_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "users.db"
    code = f"users.put(arguments[0], same(1), 1); print(len(TABLES) == {len(TABLES)}, flush=True)"
    processes = [run(code, path, f"p{i}") for i in range(4)]
    assert [line(process) for process in processes] == ["True"] * 4
    assert [process.wait() for process in processes] == [0] * 4
    with Users(path) as users:
        assert users.ids() == ["p0", "p1", "p2", "p3"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_and_writes_with_connections_of_its_own(users: Users) -> None:
    users.put("ann", same(1), 1)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            assert users.known("ann").version == 1
            users.put("ann", same(2), 2)
            assert {process for process, _ in users._file._connections} == {os.getppid(), os.getpid()}
            users.close()
            assert {process for process, _ in users._file._connections} == {os.getppid()}
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert users.known("ann").version == 2
    users.put("ann", same(3), 3)
    with Users(users.path) as other:
        assert other.known("ann").version == 3


def test_threads_that_come_and_go_leave_few_connections(users: Users) -> None:
    users.put("ann", same(1), 1)
    for _ in range(30):
        thread = threading.Thread(target=users.known, args=("ann",))
        thread.start()
        thread.join()
    assert len(users._file._connections) < 10


def test_a_closed_file_says_so(users: Users) -> None:
    users.put("ann", same(1), 1)
    users.close()
    users.close()
    for call in (lambda: users.get("ann"), lambda: users.put("ann", same(2), 1), lambda: len(users), users.forget):
        with pytest.raises(InputError, match="was closed; open it again"):
            call()
    assert not list(users.path.parent.glob("users.db-*"))  # the log went into the file


def test_damaged_vectors_are_told_and_an_older_version_can_be_restored(users: Users) -> None:
    for value in (1, 2):
        users.put("ann", {"u": np.full(50, value, np.int64)}, value)
    users.put_many((name, same(1), 1) for name in ("bob", *(f"p{i:03d}" for i in range(300))))
    users.close()
    raw = bytearray(users.path.read_bytes())
    at = raw.index(np.full(50, 2, np.int64).tobytes())
    raw[at + 80] ^= 1
    users.path.write_bytes(raw)
    with Users(users.path) as again:
        for ask in (again.known, lambda name: again.get_many(["bob", name]), lambda name: again.restore(name, 2)):
            with pytest.raises(PenchantError, match=r"version 2 of 'ann' in .* is damaged: restore an older one"):
                ask("ann")
        with pytest.raises(PenchantError, match="version 2 of 'ann'") as caught:
            again.export(users.path.with_name("people.jsonl"))
        assert again.forget("bob") == 1  # a half-done export is no reader any more, though its error is kept
        assert caught.value.__traceback__
        assert not list(users.path.parent.glob("*people.jsonl*"))
        assert again.restore("ann", 1) == 3
        assert again.known("ann").vectors["u"].tolist() == [1] * 50


def test_files_that_are_no_people_are_refused_in_a_sentence(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database " * 1000)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE people_00 (x)")
    newer = tmp_path / "newer.db"
    Users(newer, "model-1").close()
    with contextlib.closing(sqlite3.connect(newer)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    older = tmp_path / "older.db"
    Users(older, "model-1").close()
    with contextlib.closing(sqlite3.connect(older)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA - 1}")
    empty = tmp_path / "empty.db"
    empty.touch()
    for path, says in (
        (tmp_path, "is not a file; give"),
        (text, r"cannot be used \(file is not a database\): give another path"),
        (other, "is a database of another program; give another path"),
        (newer, "was made by a newer Penchant; install"),
        (older, "was made by an older Penchant; export with that one, then import"),
        (Path("/proc/users.db"), r"cannot be made \(No such file or directory\): give"),
        (
            Path("/proc/version/users.db"),
            r"cannot be made \(Not a directory\): give|cannot be made \(File exists\): give",
        ),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InputError, match=says) as caught:
            Users(path, "model-1")
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
        assert not path.is_file() or path.read_bytes() == before
    for path, says in ((empty, "is empty; give the model"), (tmp_path / "none.db", "is not a file; give a file")):
        with pytest.raises(InputError, match=says):
            Users(path)
    assert not (tmp_path / "none.db").exists()
    Users(empty, "model-1").close()


def test_a_damaged_file_is_refused_in_a_sentence(users: Users) -> None:
    users.put_many((f"p{i:03d}", same(i), 1) for i in range(2000))
    users.close()
    whole = users.path.read_bytes()
    shortened, scrambled, headless = whole[: len(whole) // 3], bytearray(whole), b"\0" * 100 + whole[100:]
    for page in range(16384, len(whole), 16384):
        scrambled[page : page + 64] = bytes(range(64))

    def use() -> None:
        with Users(users.path) as again:
            again.get_many(again.ids())
            again.put_many((f"p{i:03d}", same(i), 1) for i in range(2000))

    for damaged in (shortened, bytes(scrambled), headless):
        users.path.write_bytes(damaged)
        with pytest.raises(PenchantError, match=r"cannot be used \(.*\): (put an export|give another)") as caught:
            use()
        assert "\n" not in str(caught.value)


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root may write anywhere; for as long as this lasts the process is somebody who may not."""
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)
        os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
    else:
        yield


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="no users of this kind here")
def test_what_is_read_only_is_refused_in_a_sentence() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    path = folder / "users.db"
    Users(path, "model-1").close()
    try:
        for locked, mode in ((path, 0o444), (folder, 0o555)):
            before = locked.stat().st_mode
            locked.chmod(mode)
            with as_nobody(folder), pytest.raises(InputError, match=r"cannot be used \(it is read-only\)") as caught:
                Users(path, "model-1")
            assert str(caught.value).startswith(str(path))
            locked.chmod(before)
        folder.chmod(0o555)
        with as_nobody(folder), pytest.raises(InputError, match=r"cannot be made \(Permission denied\)"):
            Users(folder / "new.db", "model-1")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_the_log_shrinks_after_a_large_write(users: Users) -> None:
    users.put_many((f"p{i:04d}", same(i, 2000), 1) for i in range(1000))
    log = Path(f"{users.path}-wal")
    assert log.stat().st_size > 2.2e7
    for value in range(3):
        users.put("ann", same(value), 1)
    assert log.stat().st_size < 1.8e7


def test_a_full_disk_is_told_and_nothing_is_written(users: Users) -> None:
    users.put("ann", same(1), 1)
    pages = users._file._connection().execute("PRAGMA page_count").fetchone()[0]
    users._file._connection().execute(f"PRAGMA max_page_count = {pages + 3}")  # SQLite says then that the disk is full
    with pytest.raises(PenchantError, match=r"cannot be used \(database or disk is full\): make room") as caught:
        users.put_many((f"p{i}", same(i), 1) for i in range(500))
    assert not isinstance(caught.value, InputError)
    assert users.ids() == ["ann"]
    assert users.put("ann", same(2), 1) == 2
