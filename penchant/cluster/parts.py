"""Data cut into parts that can be read at once: a file, some row groups of a parquet file, or a span of a data set."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from penchant.errors import InputError
from penchant.pair_files import Row, check_dataset, check_files, dataset_rows, ending, file_rows, locate

ROWS = 50_000
"""Least rows of a part, where something smaller than a file can be read alone."""


class Part(NamedTuple):
    """Rows that follow each other, by names that mean the same on every machine."""

    source: str
    """A file; or, with a `split`, the folder or hub id of a data set."""
    split: str | None = None
    span: range | None = None
    """Row groups of the file, or rows of the data set; all of it by default."""

    def rows(self) -> Iterator[Row]:
        """The rows as `pair_files` gives them, numbered within their file or data set."""
        if self.split is None or self.span is None:
            return file_rows(Path(self.source), self.span)
        return dataset_rows(_dataset(self.source, self.split).select(self.span), self.span.start)


def parts_of(data: Any, split: str) -> tuple[str, list[Part]]:
    """What to call the data, and their parts in order; the InputErrors are those of `pair_files.open_source`."""
    files: list[Path] | datasets.Dataset
    if isinstance(data, str | os.PathLike):
        files = locate(data, split)
    elif isinstance(data, list) and data and all(isinstance(item, str | os.PathLike) for item in data):
        files = [Path(item) for item in data]
    else:
        raise InputError("the ray engine reads a hub id, a path or a list of paths; save rows in memory to a file.")
    if isinstance(files, list):
        return check_files(files), [part for file in files for part in _file_parts(file)]
    name, count = str(Path(data)), len(files)
    check_dataset(files, name)
    return name, [Part(str(data), split, range(a, min(a + ROWS, count))) for a in range(0, count, ROWS)]


def _file_parts(file: Path) -> Iterator[Part]:
    groups = _group_rows(file)
    if sum(groups) <= ROWS:
        yield Part(str(file))
        return
    first = rows = 0
    for group, size in enumerate(groups, 1):
        rows += size
        if rows >= ROWS or group == len(groups):
            yield Part(str(file), span=range(first, group))
            first, rows = group, 0


def _group_rows(file: Path) -> list[int]:
    """Rows of each row group; none where the file has no groups, or cannot be read, which its reading will say."""
    if ending(file) != ".parquet":
        return []
    try:
        about = pq.ParquetFile(file).metadata
    except (OSError, pa.ArrowException):
        return []
    return [about.row_group(group).num_rows for group in range(about.num_row_groups)]


@functools.cache
def _dataset(source: str, split: str) -> datasets.Dataset:
    """Memory-mapped, and opened once a process."""
    found = locate(source, split)
    assert isinstance(found, datasets.Dataset)
    return found
