"""Where preference pairs come from: hub ids, files, folders and rows in memory, each read as one stream of rows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from penchant.errors import InputError
from penchant.gunzip import gunzipped
from penchant.pair_checks import BadRow, plain
from penchant.saved import read_json, within

BATCH = 1000
LONGEST = 64 << 20
"""Bytes of a row in text at most, so that none fills the memory: a conversation has a thousandth of it."""
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")
"""org/name, its configuration behind a colon, and its revision behind an @."""
COMMA = re.compile(r"\s*,?\s*")
CLOSED = re.compile(r"\s*[,\]]")
SPLITS = ("train", "validation", "valid", "val", "dev", "eval", "test")


class Row(NamedTuple):
    """One row as it was found."""

    number: int
    """From 0, in its own file."""
    value: Any
    """The row, or the `BadRow` that says why it could not be read."""
    file: str = ""
    line: int | None = None
    """From 1, where a row is a line."""

    @property
    def place(self) -> str:
        return f"row {self.number}{self.file and f' of {self.file}'}{f' (line {self.line})' if self.line else ''}"


class Source(NamedTuple):
    """Rows that can be read more than once, and a digest that differs whenever they do."""

    name: str
    digest: str
    rows: Callable[[], Iterator[Row]]


def open_source(source: Any, split: str) -> Source:
    """Tell hub ids, paths, lists of paths and rows in memory apart; raises `InputError` if it is none of them."""
    if isinstance(source, datasets.Dataset):
        return dataset_source(source, "the dataset")
    if isinstance(source, str | os.PathLike):
        found = locate(source, split)
        return files_source(found) if isinstance(found, list) else dataset_source(found, str(Path(source)))
    if not isinstance(source, list):
        wanted = "a hub id, a path, a list of paths, a list of rows or a datasets.Dataset"
        raise InputError(f"pairs cannot be read from a {type(source).__name__}; give {wanted}")
    if not source:
        raise InputError("the list of pairs is empty; give at least one row")
    if all(isinstance(item, str | os.PathLike) for item in source):
        return files_source([Path(item) for item in source])
    digest = hashlib.sha256()
    for row in source:
        digest.update(row_bytes(row))
    return Source("the list", digest.hexdigest(), lambda: (Row(i, row) for i, row in enumerate(source)))


def locate(source: str | os.PathLike[str], split: str) -> list[Path] | datasets.Dataset:
    """The files that a path names, or the data set that a folder or a hub id is."""
    path = Path(source)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return saved_dataset(path, split)
    hub = HUB_ID.fullmatch(str(source))
    if not path.exists() and hub and not ending(path):
        return hub_dataset(hub[1], hub[2], split, hub[3])
    return folder_files(path, split) if path.is_dir() else [path]


def files_source(files: list[Path]) -> Source:
    name, digest = check_files(files), hashlib.sha256()
    for file in files:
        # The content, not its date: a file rewritten within the same second must not give the old rows.
        digest.update(f"{file}\n{file_digest(file)}\n".encode())
    return Source(name, digest.hexdigest(), lambda: (row for file in files for row in file_rows(file)))


def check_files(files: list[Path]) -> str:
    """What to call the files; InputError for one that is not there or has an ending that is not supported."""
    for file in files:
        if not file.exists():
            raise InputError(f"{file} is not there; give a file, a folder or a hub id like org/name")
        if not ending(file):
            raise InputError(f"{file} has an ending that is not supported; the endings are {', '.join(READERS)}")
    return str(files[0]) if len(files) == 1 else f"{len(files)} files"


def folder_files(folder: Path, split: str) -> list[Path]:
    """The data files below `folder` whose path names the split, or all of them if no path names any split."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name[0] != "." and ending(f))
    if not files:
        raise InputError(f"folder {folder} has no file that ends in {', '.join(READERS)}; give another folder")
    words = {f: set(re.split(r"[^a-z0-9]+", str(f.relative_to(folder)).lower())) for f in files}
    named = [f for f in files if split.lower() in words[f]]
    if not named and any(words[f] & set(SPLITS) for f in files):
        names = ", ".join(str(f.relative_to(folder)) for f in files[:10])
        raise InputError(f'folder {folder} has no file for the split "{split}"; choose one of {names}')
    return named or files


def dataset_source(dataset: datasets.Dataset, name: str) -> Source:
    check_dataset(dataset, name)
    return Source(name, dataset._fingerprint, lambda: dataset_rows(dataset))


def check_dataset(dataset: datasets.Dataset, name: str) -> None:
    """InputError for a data set without rows."""
    if len(dataset) == 0:
        raise InputError(f"{name} has no rows; give another split or file")


def dataset_rows(dataset: datasets.Dataset, first: int = 0) -> Iterator[Row]:
    """All rows, numbered from `first`."""
    tables = dataset.with_format("arrow").iter(batch_size=BATCH)
    values = (value for table in tables for value in table.to_pylist())
    return (Row(i, value) for i, value in enumerate(values, first))


def hub_dataset(name: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f'cannot load split "{split}" of {name} from the hub: {one_line(error)}') from error


def saved_dataset(folder: Path, split: str) -> datasets.Dataset:
    """What `save_to_disk` wrote; InputError for damage, or a file that lies elsewhere."""
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        if state.is_file():
            files = read_json(state, "save the data set again").get("_data_files")
            for file in files if isinstance(files, list) else ():
                within(state.parent, file.get("filename") if isinstance(file, dict) else file, state)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{folder} is no data set that can be read: {one_line(error)}; save it again") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise InputError(f'{folder} has no split "{split}"; choose one of {", ".join(loaded)}')
    return loaded[split]


def file_rows(path: Path, groups: range | None = None) -> Iterator[Row]:
    """All rows of a file, or those in some row groups of a parquet file.

    Damage that no single row can be blamed for is an `InputError`.
    """
    count, before = 0, path.stat()
    try:
        rows = READERS[ending(path)](path) if groups is None else parquet_rows(path, groups)
        for count, row in enumerate(rows, start=1):  # noqa: B007
            yield row
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException, PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}; replace the file") from error
    if not count and groups is None:
        raise InputError(f"{path} is empty; give a file with at least one row")
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path} changed while it was read; load it again when it is complete")


def json_lines(path: Path) -> Iterator[Row]:
    number = 0
    with open_bytes(path) as file:
        for line, text in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
            if len(text) == LONGEST:
                raise InputError(f"line {line} of {path} is longer than {LONGEST >> 20} MB; leave it out")
            if text.strip(b" \t\r\n\xef\xbb\xbf"):
                yield Row(number, parsed(text), str(path), line)
                number += 1


def parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(
            None, "is not valid UTF-8 text", f"byte {error.start} of the line is wrong, save the file as UTF-8"
        )
    except (ValueError, RecursionError) as error:
        return BadRow(None, "is not valid JSON", f"{one_line(error)}, write one JSON object a line")


def json_file(path: Path) -> Iterator[Row]:
    """A list of rows, read piece by piece; without its bracket the file is taken as JSON lines."""
    with open_bytes(path) as file:
        start = file.read(BATCH).lstrip(b" \t\r\n\xef\xbb\xbf")
    return json_list(path) if start.startswith(b"[") else json_lines(path)


def json_list(path: Path, chunk: int = 1 << 20) -> Iterator[Row]:
    """The items of a top-level list; a broken one ends the reading, as nothing says where the next begins."""
    decoder = json.JSONDecoder()
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape") as file:
        while (start := file.read(chunk)).isspace():
            pass
        text, at, number = start.lstrip()[1:], 0, 0
        while True:
            at = COMMA.match(text, at).end()  # type: ignore[union-attr]  # it matches anything
            if text.startswith("]", at):
                return
            problem = "the list does not go on with a comma or end with a bracket"
            try:
                value, end = decoder.raw_decode(text, at)
                # Only what follows shows that the value is whole: 12 may be the start of 123.
                whole = CLOSED.match(text, end)
            except (ValueError, RecursionError) as error:
                whole, problem = None, one_line(error)
            if whole:
                yield Row(number, value, str(path))
                number, at = number + 1, end
            elif len(text) - at > LONGEST:
                raise InputError(f"row {number} of {path} is longer than {LONGEST >> 20} MB; leave it out")
            elif piece := file.read(max(chunk, len(text) - at)):
                text, at = text[at:] + piece, 0
            else:
                raise InputError(
                    f"row {number} of {path} is not valid JSON: {problem}; mend it, the rest cannot be read"
                )


def csv_rows(path: Path) -> Iterator[Row]:
    """Every cell is text: CSV has no other type."""
    csv.field_size_limit(LONGEST)  # Python's own limit, 128 KiB, is less than a long conversation
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict, or an unclosed quote would swallow the rest of the file in silence
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(f"the header of {path} has the same name twice; rename one column")
        number = 0
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(
                    number, BadRow(None, "is not valid CSV", f"{one_line(error)}, mend its quotes"), str(path), line
                )
            else:
                if not cells:
                    continue
                value: Any = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    cure = f"it has {len(cells)} where the header has {len(header)}, quote cells that hold commas"
                    value = BadRow(None, "has a wrong number of cells", cure)
                yield Row(number, value, str(path), line)
            number += 1


def parquet_rows(path: Path, groups: range | None = None) -> Iterator[Row]:
    file = pq.ParquetFile(path)
    before = sum(file.metadata.row_group(group).num_rows for group in range(groups.start)) if groups else 0
    batches = file.iter_batches(batch_size=BATCH, row_groups=list(groups) if groups else None)
    for number, value in enumerate((value for batch in batches for value in batch.to_pylist()), before):
        yield Row(number, value, str(path))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_lines,
    ".jsonl.gz": json_lines,
    ".json": json_file,
    ".json.gz": json_file,
    ".csv": csv_rows,
    ".csv.gz": csv_rows,
    ".parquet": parquet_rows,
}


def ending(path: Path) -> str:
    """The supported ending of the path, or nothing."""
    return next((known for known in READERS if path.name.lower().endswith(known)), "")


def open_bytes(path: Path) -> IO[bytes]:
    return gunzipped(path) if path.suffix.lower() == ".gz" else path.open("rb")


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def row_bytes(row: Any) -> bytes:
    """A row in memory as bytes that tell it from any other."""
    try:
        return json.dumps(row, default=lambda value: repr(value) if plain(value) is value else plain(value)).encode()
    except (TypeError, ValueError):
        return repr(row).encode(errors="backslashreplace")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
