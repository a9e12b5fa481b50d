"""API keys: shown once when made, kept as hashes in a JSON file, read anew when the file changes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from penchant.errors import InputError

PREFIX = "pk-"
SHA256 = re.compile(r"[0-9a-f]{64}")
BYTES = 32
"""Of randomness in a key: a plain hash of so much cannot be searched, so no slow one is needed."""


class Keys:
    """The keys in one file: {"keys": [{"name", "sha256", "made"}]}. A key added or revoked counts at once."""

    def __init__(self, path: str | Path, *, make: bool = False) -> None:
        """Read the file; with `make`, one that is not there yet has no keys. InputError for a file that is no such."""
        self.path = Path(path).expanduser()
        self._stamp: tuple[int, int, int] | None = None
        self._entries: list[dict[str, str]] = []
        if not self.path.is_file() and not make:
            raise InputError(f"there is no file of keys at {path}; make one: penchant keys add NAME --file {path}")
        self._read()

    def __len__(self) -> int:
        self._read()
        return len(self._entries)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None where it is nobody's. Takes as long for any wrong key."""
        self._read()
        digest = _digest(key)
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry["sha256"], digest):
                found = entry["name"]
        return found

    def names(self) -> list[tuple[str, str]]:
        """(name, when it was made) of each key."""
        self._read()
        return [(entry["name"], entry["made"]) for entry in self._entries]

    def add(self, name: str) -> str:
        """Make a key and return it; nobody can read it again. InputError for an empty or a taken name."""
        if not name.strip() or not name.isprintable():
            raise InputError(f"{name!r} is no name for a key; give a printable one.")
        with self._alone():
            if any(entry["name"] == name for entry in self._entries):
                raise InputError(f"there is a key named {name!r} already; revoke it first, or choose another name.")
            key = PREFIX + secrets.token_urlsafe(BYTES)
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._write([*self._entries, {"name": name, "sha256": _digest(key), "made": made}])
        return key

    def revoke(self, name: str) -> None:
        """Forget a key; InputError where there is none of that name."""
        with self._alone():
            left = [entry for entry in self._entries if entry["name"] != name]
            if len(left) == len(self._entries):
                known = ", ".join(entry["name"] for entry in left) or "none"
                raise InputError(f"there is no key named {name!r}; known are {known}.")
            self._write(left)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The newest keys, and no other writer until the block has ended, so that neither undoes what the other did."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise InputError(f"cannot write {self.path} ({error.strerror}); choose another --file.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            yield
        finally:
            os.close(lock)

    def _read(self) -> None:
        try:
            status = self.path.stat()
        except OSError:
            self._entries, self._stamp = [], None  # a file that went away revokes all
            return
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["keys"]
            self._entries = [_entry(entry) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._entries, self._stamp = [], None  # so that the file put back as it was is read again
            raise InputError(
                f"{self.path} is no file of keys ({error}); move it away first, then make one with penchant keys add."
            ) from error
        self._stamp = stamp

    def _write(self, entries: list[dict[str, str]]) -> None:
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"keys": entries}, file, indent=1)
            os.replace(partial, self.path)
        except OSError as error:
            raise InputError(f"cannot write {self.path} ({error.strerror}); choose another --file.") from error
        self._read()


def _entry(given: dict[str, object]) -> dict[str, str]:
    entry = {name: str(given[name]) for name in ("name", "sha256", "made")}
    if not SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"the sha256 of {entry['name']!r} is not 64 hex digits")
    return entry


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
