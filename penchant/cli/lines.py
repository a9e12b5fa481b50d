"""JSON lines in, the same lines with something more out, a batch at a time, as `score` and `personal` do it."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from penchant.errors import InputError
from penchant.responses import Lines, dump_lines, parse_line, read_lines
from penchant.writing import lock, writing


def check_data(data: str, purpose: str) -> None:
    """InputError unless `data` is a file, or "-" for standard input."""
    if data != "-" and not Path(data).is_file():
        raise InputError(f"there is no file {data!r} to {purpose}.")


def over_lines(
    data: str,
    out: str | None,
    label: str,
    check: Callable[[int, dict[str, Any]], dict[str, Any]],
    work: Callable[[Lines], None],
    batch: int,
) -> None:
    """Read JSON lines, let `work` change `batch` rows at a time, and write each batch when it is done.

    Args:
        data: JSON lines file, or "-" for standard input.
        out: file to write; standard output, without a progress bar, by default.
        label: what the progress bar says.
        check: (the line's number from 0, its row) -> the row, or InputError.
    """

    def batches() -> Iterator[tuple[str, int]]:
        lines = read_lines(data)
        while rows := [check(*parse_line(number, line)) for number, line in islice(lines, batch)]:
            work(rows)
            yield dump_lines(rows), len(rows)

    write_batches(data, out, label, batches())


def write_batches(data: str, out: str | None, label: str, batches: Iterable[tuple[str, int]]) -> None:
    """Write batches, (JSON lines, how many), as they are made of `data`; `out` and `label` as in `over_lines`."""
    with ExitStack() as stack:
        stack.enter_context(writing(out or "standard output"))  # the last of it is written when it is closed
        target = stack.enter_context(_writable(Path(out), data)) if out else sys.stdout
        bar = stack.enter_context(tqdm(desc=label, unit="row", disable=out is None))
        for text, rows in batches:
            target.write(text)
            target.flush()
            bar.update(rows)


def _writable(out: Path, data: str) -> TextIO:
    if out.exists() and data != "-" and out.samefile(data):
        raise InputError(f"{data!r} cannot be read and overwritten at once; choose another --out.")
    try:
        file = out.open("a", encoding="utf-8")
        if stat.S_ISREG(out.stat().st_mode):  # else a pipe or a terminal
            lock(file)
            file.truncate(0)
    except BlockingIOError as error:
        raise InputError(
            f"another process is writing {out}; wait until it has ended, or choose another --out."
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out.") from error
    return file
