"""Gzip files that are read piece by piece, and given up where they unpack to far more than any text does."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, cast

from penchant.errors import InputError

SANE, RATIO = 256 << 20, 200
"""Bytes that any file may unpack to; beyond, RATIO times its own size. Text packs to a tenth; gzip can 1,032."""


class _Counted(io.RawIOBase):
    """What a gzip file unpacks to, as long as that is sane; no more than a piece of it is held."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, 0
        self.most = max(SANE, RATIO * path.stat().st_size)
        self.file = gzip.open(path, "rb")  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        size = self.file.readinto(cast(bytearray, buffer))
        self.found += size
        if self.found > self.most:
            raise InputError(
                f"{self.path} unpacks to more than {RATIO} times its size, as no text does; if it is meant, unpack it"
                " first"
            )
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def gunzipped(path: Path) -> IO[bytes]:
    """A gzip file's content. Reading raises InputError where it is no sane text, and what `gzip` raises."""
    return cast(IO[bytes], io.BufferedReader(_Counted(path), 1 << 16))
