"""The SQLite file that holds people: its tables, a connection a thread, transactions, and how bytes leave it for good.

`secure_delete` alone does not remove a row: where SQLite moves rows from page to page, copies can stay behind in the
unused middle of a page; and VACUUM holds up all writers, for 3 s a 100,000 people. Hence two ways:

- Vectors lie in slots, rows that are added at the end of one table, where SQLite moves none, and never deleted. One
  that is no longer needed is overwritten by as many zeros, in place, and waits for the next vectors of that size.
- Ids move, being sorted. An id names one of BUCKETS tables, small ones without the vectors. To rid one of what was
  deleted, its rows are copied to a fresh one, for the pages of a dropped table are zeroed whole.

Then the log is emptied. Blocks that the disk, snapshots or backups keep are beyond reach.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from penchant.errors import InputError, PenchantError, RecipeMismatch

BUCKETS = 16
SCHEMA = 2
"""Goes up with every change of the tables, of BUCKETS too."""
APPLICATION = 0x50_6E_55_73
"""Says in SQLite's header whose file it is."""
PATIENCE = 30.0
"""Seconds to wait for another writer, or for readers that hold the log."""
TABLES = [f"people_{bucket:02d}" for bucket in range(BUCKETS)]
TABLE = """CREATE TABLE {} (user_id TEXT NOT NULL, version INTEGER NOT NULL, updated REAL NOT NULL,
    pairs INTEGER NOT NULL, crc INTEGER NOT NULL, slot INTEGER NOT NULL,
    PRIMARY KEY (user_id, version)) WITHOUT ROWID"""
OTHERS = (
    "CREATE TABLE slots (slot INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE unused (size INTEGER NOT NULL, slot INTEGER NOT NULL, PRIMARY KEY (size, slot)) WITHOUT ROWID",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value)",
)
# Temporary files would hold people as well, and a power cut must not undo what was deleted. A `put_many` makes the log
# as large as all that it writes; the limit, 16 MB, makes it shrink again.
SETTINGS = "secure_delete = ON", "temp_store = MEMORY", "synchronous = FULL", "journal_size_limit = 16777216"
CURES = {
    "locked": "another process is writing to it, try again later",
    "readonly": "give a file and a folder that can be written",
    "unable to open": "give a file in a folder that is there and can be written",
    "full": "make room on its disk",
    "disk I/O error": "make room, or check its permissions and disk, then do the same again",
    "not a database": "give another path",
}
"""What to do about an error of SQLite that contains these words."""


def table_of(user_id: str) -> str:
    return TABLES[zlib.crc32(user_id.encode()) % BUCKETS]


class UsersFile:
    """One file, open in any number of threads; a forked process may go on using it, with connections of its own."""

    def __init__(self, path: Path | str, model: str | None) -> None:
        """Open the file, or begin it for the model with the digest `model`; raises as `Users` does."""
        self.path = Path(path).expanduser()
        self._closed = False
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}  # by process and thread
        try:
            if model and not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            if not self.path.is_file():
                raise InputError(f"{self.path} is not a file; give a file of people, or a model to begin a new one for")
            if not (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)):
                raise InputError(f"{self.path} cannot be used (it is read-only): {CURES['readonly']}")
            with self._plainly(InputError):
                self.model = self._begin(model)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made ({error.strerror}): {CURES['unable to open']}") from error
        except BaseException:
            self.close()
            raise

    def _begin(self, model: str | None) -> str:
        """The model of the file's people, after the first opening has made the tables."""
        db = self._connection()
        if pragma(db, "schema_version") == 0:
            if not model:
                raise InputError(f"{self.path} is empty; give the model to begin it for")
            pragma(db, "page_size = 16384")
            pragma(db, "journal_mode = WAL")
            with self.writing():
                if pragma(db, "schema_version") == 0:  # else another process was faster
                    for statement in (*map(TABLE.format, TABLES), *OTHERS):
                        db.execute(statement)
                    db.execute("INSERT INTO meta VALUES ('model', ?)", (model,))
                    pragma(db, f"application_id = {APPLICATION}")
                    pragma(db, f"user_version = {SCHEMA}")
        if pragma(db, "application_id") != APPLICATION:
            raise InputError(f"{self.path} is a database of another program; give another path")
        if pragma(db, "user_version") > SCHEMA:
            raise InputError(f"{self.path} was made by a newer Penchant; install that one, or give another path")
        if pragma(db, "user_version") < SCHEMA:
            raise InputError(f"{self.path} was made by an older Penchant; export with that one, then import")
        row = db.execute("SELECT value FROM meta WHERE name = 'model'").fetchone()
        if row is None:
            raise sqlite3.DatabaseError("it does not say whose people it holds")
        kept: str = row[0]
        if model not in (None, kept):
            raise RecipeMismatch(
                f"{self.path} holds people of model {kept}, who cannot be used with model {model}: give their model, "
                "or fit them anew into another file"
            )
        return kept

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database as of one moment, for as long as the block lasts."""
        db = self._connection()
        with self._plainly():
            if db.in_transaction:  # a read by the rows of this thread's own writing
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                _undo(db)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that the block writes or, if it raises, nothing."""
        db = self._connection()
        if db.in_transaction:
            raise InputError(f"{self.path} is being written by this thread; rows for put_many may only read from it")
        with self._plainly():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                _undo(db)

    def check(self, db: sqlite3.Connection) -> None:
        """PenchantError if the tables contradict themselves: reads the whole file, so only where something is odd."""
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found.replace("\n", " "))

    def keep(self, db: sqlite3.Connection, data: bytes) -> int:
        """The slot that these bytes lie in from now on."""
        found = db.execute("SELECT slot FROM unused WHERE size = ? LIMIT 1", (len(data),)).fetchone()
        if found is None:
            return cast(int, db.execute("INSERT INTO slots (data) VALUES (?)", (data,)).lastrowid)
        db.execute("DELETE FROM unused WHERE size = ? AND slot = ?", (len(data), *found))
        db.execute("UPDATE slots SET data = ? WHERE slot = ?", (data, *found))
        return cast(int, found[0])

    def wipe(self, db: sqlite3.Connection, slot: int) -> None:
        """Overwrite a slot, to be used again. SQLite writes a row of equal size where the old one is."""
        db.execute("UPDATE slots SET data = zeroblob(length(data)) WHERE slot = ?", (slot,))
        db.execute("INSERT INTO unused SELECT length(data), slot FROM slots WHERE slot = ?", (slot,))

    def renew(self, db: sqlite3.Connection, tables: Iterable[str]) -> None:
        """Move the rows of these tables to fresh pages and zero the old ones, as part of a transaction."""
        for table in tables:
            db.execute(TABLE.format("fresh"))
            db.execute(f"INSERT INTO fresh SELECT * FROM {table}")
            db.execute(f"DROP TABLE {table}")
            db.execute(f"ALTER TABLE fresh RENAME TO {table}")

    def empty_log(self) -> None:
        """Write the log back and cut it to no bytes; PenchantError if a reader still needs it after PATIENCE seconds.

        Others may write while this waits.
        """
        db, end = self._connection(), time.monotonic() + PATIENCE
        with self._plainly():
            pragma(db, "busy_timeout = 50")  # SQLite locks writers out while it waits for readers itself
            try:
                while pragma(db, "wal_checkpoint(TRUNCATE)"):
                    if time.monotonic() > end:
                        raise PenchantError(
                            f"deleted from {self.path}, but a reader that began before still holds the log with the "
                            "deleted bytes: call forget again when it has ended"
                        )
                    time.sleep(0.05)
            finally:
                pragma(db, f"busy_timeout = {int(PATIENCE * 1000)}")

    def close(self) -> None:
        """Close the connections of all threads of this process."""
        self._closed = True
        for process, thread in list(self._connections):
            if process == os.getpid():  # one that came through a fork is its parent's
                self._connections.pop((process, thread)).close()

    def _connection(self) -> sqlite3.Connection:
        """This thread's own, so that one thread's writing does not hold up another's reading."""
        if self._closed:
            raise InputError(f"{self.path} was closed; open it again")
        key = os.getpid(), threading.get_ident()
        if key not in self._connections:
            db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",  # one that was moved away is not begun again
                uri=True,
                timeout=PATIENCE,
                isolation_level=None,
                check_same_thread=False,  # any thread may close it, and a new one can have the number of a dead one
                cached_statements=8 * BUCKETS,
            )
            self._connections[key] = db
            for setting in SETTINGS:
                pragma(db, setting)
        return self._connections[key]

    @contextlib.contextmanager
    def _plainly(self, kind: type[PenchantError] = PenchantError) -> Iterator[None]:
        """Errors of SQLite as sentences."""
        try:
            yield
        except sqlite3.Error as error:
            cure = next(
                (CURES[words] for words in CURES if words in str(error)), "put an export or a copy in its place"
            )
            raise kind(f"{self.path} cannot be used ({error}): {cure}") from error


def _undo(db: sqlite3.Connection) -> None:
    if db.in_transaction:  # it is over already after COMMIT, or a full disk
        db.execute("ROLLBACK")


def pragma(db: sqlite3.Connection, text: str) -> int:
    """The first number that SQLite answers, 0 if none."""
    row = db.execute(f"PRAGMA {text}").fetchone()
    return row[0] if row else 0
