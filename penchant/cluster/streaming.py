"""How rows come out of Ray Data, and how a sentence for the user gets out of its workers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ray.data import DataContext, Dataset

from penchant import errors
from penchant.errors import InputError, PenchantError

BLOCK_BYTES = 8 << 20
"""Most bytes of a block, so that work begins before much is read."""


@contextmanager
def quiet() -> Iterator[None]:
    """Data sets made within it give their rows in order, in small blocks, and tell only the log files about it."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")  # few rows for many actors is no news
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_options.preserve_order = True
        with DataContext.current(context):
            yield


@contextmanager
def stream(rows: Dataset) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows, as they are made; leaving it ends what is still at work.

    Raises the PenchantError of a row's column "error" (see `told`). Errors of the user travel as rows, as Ray would
    take an exception for a fault of its own and log it, or try again.
    """
    blocks: Any = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with closing(blocks):
        yield _good(row for block in blocks for row in block.to_pylist())


def _good(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row.get("error"):
            kind, _, sentence = row["error"].partition("|")
            raise getattr(errors, kind)(sentence)
        yield row


def told(error: PenchantError) -> str:
    """An error as a cell of a row."""
    return f"{type(error).__name__}|{error}"


def work_in(folder: str) -> None:
    """Make relative paths mean on this worker what they mean to the user."""
    if os.getcwd() != folder:
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(
                f"{folder} is not on {os.uname().nodename} ({error.strerror}); Ray's machines need the same paths."
            ) from error
