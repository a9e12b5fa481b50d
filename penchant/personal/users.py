"""What is known of each person: a few vectors each, in one embedded SQLite file that threads and processes may share.

A read sees a whole version of a person or none, and waits for no writer. Each write is a new version, and the last few
are kept. Who is forgotten leaves no byte in the file or its log (`users_file` says how).
"""

from __future__ import annotations

import contextlib
import gzip
import heapq
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Generator, Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, NamedTuple, cast

from typing_extensions import Self

from penchant.errors import InputError, PenchantError, RecipeMismatch
from penchant.gunzip import gunzipped
from penchant.personal.records import Person, Vectors, checked_id, from_line, packed, to_line, unpacked
from penchant.personal.users_file import TABLES, UsersFile, pragma, table_of

KEPT_VERSIONS = 3
"""How many older versions of each person are kept."""


class Version(NamedTuple):
    version: int
    updated: float
    pairs: int


class Users:
    """The people of one population model. Threads may share an object, and a forked process may go on using it.

    Every method raises PenchantError if the file is damaged, its disk is full or another process writes for longer than
    `users_file.PATIENCE` seconds, and InputError for an id that is not a text of 1 to 512 characters without NUL.
    """

    def __init__(self, path: Path | str, model: str | None = None) -> None:
        """Open the file at `path`; where there is none, begin one for the model with the digest `model`.

        Raises RecipeMismatch if its people belong to another model; InputError if it is not there and no model is
        given, if it cannot be written, is not a file of people, or was made by a newer Penchant.
        """
        self._file = UsersFile(path, model)
        self.path = self._file.path
        self.model = self._file.model

    def get(self, user_id: str) -> Person | None:
        """The person, or None."""
        return self.get_many([user_id]).get(user_id)

    def known(self, user_id: str) -> Person:
        """The person; InputError if there is none."""
        if person := self.get(user_id):
            return person
        raise _nobody(user_id)

    def get_many(self, user_ids: Iterable[str]) -> dict[str, Person]:
        """Those of the people who are known, in the order asked for, all as of one moment."""
        wanted = [checked_id(user_id) for user_id in user_ids]
        with self._file.reading() as db:
            found = (self._find(db, user_id) for user_id in wanted)
            return {person.user_id: person for person in found if person}

    def put(self, user_id: str, vectors: Vectors, pairs: int, expected: int | None = None) -> int:
        """Write the next version of a person and return its number; durable on return.

        `pairs` counts all judged pairs behind the vectors. `expected` is the version that the vectors were made from, 0
        for a new person: InputError if it is another one by now. InputError, too, if the vectors are not finite arrays.
        """
        data = packed(user_id, vectors, pairs)
        with self._file.writing() as db:
            self._check_version(db, user_id, expected)
            return self._insert(db, user_id, data, pairs)

    def put_many(self, people: Iterable[tuple[str, Vectors, int] | tuple[str, Vectors, int, int]]) -> int:
        """Write the next version of many, from (user_id, vectors, pairs) or, with the version that is `expected` as in
        `put`, (user_id, vectors, pairs, expected); all or none; return how many.

        Other writers wait until the last one is drawn. Raises InputError with the number of the first bad row, from 0.
        """
        number = -1
        with self._file.writing() as db:
            for number, (user_id, vectors, pairs, *expected) in enumerate(people):
                try:
                    data = packed(user_id, vectors, pairs)
                    self._check_version(db, user_id, *expected)
                except InputError as error:
                    raise InputError(f"row {number}: {error}; nothing was written") from error
                self._insert(db, user_id, data, pairs)
        return number + 1

    def history(self, user_id: str) -> list[Version]:
        """The newest version and up to KEPT_VERSIONS older ones, newest first; InputError if nobody is called so."""
        table = table_of(checked_id(user_id))
        sql = f"SELECT version, updated, pairs FROM {table} WHERE user_id = ? ORDER BY version DESC"
        with self._file.reading() as db:
            versions = [Version(*row) for row in db.execute(sql, (user_id,))]
        if not versions:
            raise _nobody(user_id)
        return versions

    def restore(self, user_id: str, version: int) -> int:
        """Write what a kept version held as the next one and return its number; InputError if it is not kept."""
        kept = ", ".join(str(entry.version) for entry in self.history(user_id))
        with self._file.writing() as db:
            if old := self._find(db, user_id, version):
                return self._insert(db, user_id, packed(user_id, old.vectors, old.pairs), old.pairs)
        raise InputError(f"version {version} of {user_id!r} is not kept; give one of {kept}")

    def forget(self, *user_ids: str) -> int:
        """Remove people, older versions too, from every byte of the file and its log; return how many were known.

        The rows of ids, not vectors, are copied for it, a 16th of them for one person and all for many: give many at
        once. Raises PenchantError if a reader that began before, such as an `export`, holds the log for more
        than `users_file.PATIENCE` seconds: nobody reads those people any more then, but bytes of them stay in the log
        until it has ended and `forget` is called again, with or without ids, or every process has closed the file.
        """
        with self._file.writing() as db:
            gone = {user_id for user_id in map(checked_id, user_ids) if _version(db, user_id)}
            for user_id in gone:
                self._drop(db, user_id, 0)
            self._file.renew(db, {table_of(user_id) for user_id in gone})
        self._file.empty_log()
        return len(gone)

    def ids(self, prefix: str = "", limit: int | None = None, after: str | None = None) -> list[str]:
        """Ids in the order of their code points: those that begin with `prefix`, past `after`, at most `limit`."""
        if limit is not None and limit < 0:
            raise InputError(f"limit is {limit}; give 0 or more, or None for all")
        start = max(checked_id(text) if text else "" for text in (prefix, after))
        with self._file.reading() as db:
            found = takewhile(lambda user_id: user_id.startswith(prefix), _ids(db, start))
            return list(islice((user_id for user_id in found if user_id != after), limit))

    def __len__(self) -> int:
        with self._file.reading() as db:
            counts = (f"SELECT count(*) FROM (SELECT DISTINCT user_id FROM {table})" for table in TABLES)
            return sum(db.execute(count).fetchone()[0] for count in counts)

    def __contains__(self, user_id: str) -> bool:
        with self._file.reading() as db:
            return _version(db, checked_id(user_id)) > 0

    @property
    def bytes_per_user(self) -> float:
        """Bytes of the file in use for each person, indexes and older versions included; 0 without people."""
        with self._file.reading() as db:
            pages, free, size = (pragma(db, name) for name in ("page_count", "freelist_count", "page_size"))
            unused = db.execute("SELECT ifnull(sum(size), 0) FROM unused").fetchone()[0]
            people = len(self)
        return ((pages - free) * size - unused) / people if people else 0.0

    def export(self, path: Path | str) -> int:
        """Write everybody, as of one moment and in the order of `ids`, as lines of JSON; return how many.

        The path ends in .jsonl or .jsonl.gz; the file appears whole or not at all. Older versions are left out.
        """
        number = 0
        # Closed at once: an open cursor would hold the log for as long as somebody keeps an error of this method.
        with self._file.reading() as db, _new_file(Path(path)) as file, contextlib.closing(_ids(db)) as ids:
            for number, user_id in enumerate(ids, start=1):  # noqa: B007
                file.write(to_line(cast(Person, self._find(db, user_id))))
        return number

    def import_from(self, path: Path | str) -> int:
        """Add everybody from a file that `export` wrote, all or none; return how many.

        Who is new keeps the file's version; who is known gets the next one, or the file's if that is higher. Raises
        InputError with the number of the first bad line, from 1, RecipeMismatch if that line is of another model.
        """
        number = 0
        with self._file.writing() as db:
            try:
                with gunzipped(Path(path)) if str(path).endswith(".gz") else open(path, "rb") as file:
                    for number, line in enumerate(file, start=1):  # noqa: B007
                        person = from_line(line)
                        data = packed(person.user_id, person.vectors, person.pairs)
                        if person.model != self.model:
                            raise RecipeMismatch(f"{person.user_id!r} is of model {person.model}, not {self.model}")
                        self._insert(db, person.user_id, data, person.pairs, person.version, person.updated)
            except (InputError, RecipeMismatch) as error:
                raise type(error)(f"line {number} of {path}: {error}; nothing was imported") from error
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"{path} cannot be read past line {number} ({error}): nothing was imported, give a whole file"
                ) from error
        return number

    def close(self) -> None:
        """Close the file for all threads of this process."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, db: sqlite3.Connection, user_id: str, version: int | None = None) -> Person | None:
        """That version of a person, or the newest; PenchantError if its bytes are not those that were written."""
        row = db.execute(
            f"SELECT version, updated, pairs, crc, data FROM {table_of(user_id)} JOIN slots USING (slot) "
            "WHERE user_id = ? AND version = ifnull(?, version) ORDER BY version DESC LIMIT 1",
            (user_id, version),
        ).fetchone()
        if row is None:
            return None
        number, updated, pairs, crc, data = row
        if zlib.crc32(data) != crc:
            raise PenchantError(
                f"version {number} of {user_id!r} in {self.path} is damaged: restore an older one, or forget this "
                "person and fit anew"
            )
        return Person(user_id, unpacked(data), pairs, number, updated, self.model)

    def _insert(
        self,
        db: sqlite3.Connection,
        user_id: str,
        data: bytes,
        pairs: int,
        least: int = 1,
        updated: float | None = None,
    ) -> int:
        """Write the next version, not below `least`, beside KEPT_VERSIONS older ones, and return its number."""
        version = max(_version(db, user_id) + 1, least)
        if version > KEPT_VERSIONS + 1:
            self._drop(db, user_id, KEPT_VERSIONS)
        row = user_id, version, time.time() if updated is None else updated, int(pairs), zlib.crc32(data)
        slot = self._file.keep(db, data)
        db.execute(f"INSERT INTO {table_of(user_id)} VALUES (?, ?, ?, ?, ?, ?)", (*row, slot))
        return version

    def _check_version(self, db: sqlite3.Connection, user_id: str, expected: int | None = None) -> None:
        """InputError if a person is at another version than the expected one."""
        version = _version(db, user_id)
        if expected not in (None, version):
            self._file.check(db)
            raise InputError(
                f"{user_id!r} is at version {version}, not {expected}, for somebody else wrote meanwhile: begin again "
                "with what is known now"
            )

    def _drop(self, db: sqlite3.Connection, user_id: str, kept: int) -> None:
        """Remove all of a person's versions but the newest `kept`."""
        table = table_of(user_id)
        sql = f"SELECT version, slot FROM {table} WHERE user_id = ? ORDER BY version DESC LIMIT -1 OFFSET ?"
        for version, slot in db.execute(sql, (user_id, kept)).fetchall():
            self._file.wipe(db, slot)
            db.execute(f"DELETE FROM {table} WHERE user_id = ? AND version = ?", (user_id, version))


def _nobody(user_id: str) -> InputError:
    # Not who is known: a server passes this on to whoever asks.
    return InputError(f"nobody called {user_id!r} is known here; `penchant personal users SYSTEM` lists who is")


def _version(db: sqlite3.Connection, user_id: str) -> int:
    """The newest version of a person, 0 if there is none."""
    sql = f"SELECT ifnull(max(version), 0) FROM {table_of(user_id)} WHERE user_id = ?"
    return cast(int, db.execute(sql, (user_id,)).fetchone()[0])


def _ids(db: sqlite3.Connection, start: str = "") -> Generator[str, None, None]:
    """All ids from `start` on, sorted as Python sorts them: UTF-8 has the order of the code points."""
    sql = "SELECT DISTINCT user_id FROM {} WHERE user_id >= ? ORDER BY user_id"
    return (user_id for (user_id,) in heapq.merge(*(db.execute(sql.format(table), (start,)) for table in TABLES)))


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when the block has ended; PenchantError if it cannot be written."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path} cannot be the name of an export; give one that ends in .jsonl or .jsonl.gz")
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temp, "xb") as raw:
            if path.suffix == ".gz":
                # Level 1: digits hardly get smaller with more. No name or time: equal people give equal bytes.
                with gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
                    yield cast(IO[bytes], file)
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temp, path)
    except OSError as error:
        raise PenchantError(f"{path} cannot be written ({error.strerror}): give another path, or make room") from error
    finally:
        with contextlib.suppress(OSError):  # gone already if all went well
            temp.unlink()
