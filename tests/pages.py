"""Runs a page of the documentation: its ```python and ```sh blocks in order, each against the ```text block behind it.

`python -m tests.pages docs/tutorials/lens.md` runs a page and writes what came out into it.

What counts as the same: the words in their order, however they are spaced. Every number stands for any number, as
figures differ between machines, and `...` for any text. Behind `<!-- text varies -->` any output will do: an LLM's
answers and what hangs on single tokens are others where numbers are rounded otherwise.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)
VARIES = "<!-- text varies -->\n"
NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?")


class Step(NamedTuple):
    """A block that runs, and what the page shows of its output."""

    language: str
    code: str
    shown: str | None
    """None where no ```text block follows."""
    span: tuple[int, int]
    """Where the shown text lies in the page."""
    varies: bool


def steps(page: str) -> list[Step]:
    """The blocks of a page that run."""
    found = []
    blocks = list(BLOCK.finditer(page))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "text":
            continue
        shown, span, varies = None, (0, 0), False
        if following is not None and following[1] == "text":
            shown, span = following[2], following.span(2)
            varies = page[: following.start()].endswith(VARIES)
        found.append(Step(block[1], block[2], shown, span, varies))
    return found


def same(shown: str, came: str) -> bool:
    """Whether the output is what the page shows; see the module for what may differ."""
    parts = [re.escape(bare(part)) for part in shown.split("...")]
    return re.fullmatch(".*?".join(parts), bare(came)) is not None


def bare(text: str) -> str:
    """The text with a sign in the place of each number, and without spaces."""
    return "".join(NUMBER.sub("#", text).split())


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[dict[str, str]]:
    """Work in `folder`, with this checkout's `penchant` first on the PATH and caches of its own."""
    before, here = dict(os.environ), Path.cwd()
    first = f"{Path(sys.executable).parent}{os.pathsep}{before.get('PATH', '')}"
    os.environ.update(PATH=first, PYTHONPATH=str(ROOT), PENCHANT_CACHE=str(folder / ".cache"), COLUMNS="100")
    os.chdir(folder)
    try:
        yield dict(os.environ)
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def run(step: Step, names: dict[str, Any], environment: dict[str, str]) -> str:
    """What a block prints; raises where it fails."""
    if step.language == "sh":
        done = subprocess.run(["bash", "-ec", step.code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{step.code}{done.stdout}{done.stderr}"
        return done.stdout
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(step.code, "<page>", "exec"), names)
    return out.getvalue()


def run_page(path: Path, folder: Path, write: bool = False) -> list[str]:
    """Run a page in an empty folder; says of each block whose output is not what is shown what came instead."""
    page = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    wrong, changed = [], []
    with inside(folder) as environment:
        for step in steps(page):
            start = sum(os.times()[:4])
            came = run(step, names, environment)
            if write:
                print(f"{sum(os.times()[:4]) - start:5.1f} CPU s  {step.code.splitlines()[0]}", flush=True)
            if step.shown is None:
                continue
            if write and "..." in step.shown and same(step.shown, came):
                print(came)  # what was left out by hand stays out
            elif write:
                changed.append((step.span, came.rstrip("\n") + "\n"))
            elif not (came.strip() if step.varies else same(step.shown, came)):
                wrong.append(f"{path.name} shows\n{step.shown}\nfor\n{step.code}\nwhich gave\n{came}")
    for (start_at, end), came in reversed(changed):
        page = page[:start_at] + came + page[end:]
    if changed:
        path.write_text(page, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as work:
            begun = time.perf_counter(), sum(os.times()[:4])
            run_page(Path(name).resolve(), Path(work), write=True)
            spent = sum(os.times()[:4]) - begun[1]
            print(f"{spent:5.1f} CPU s, {time.perf_counter() - begun[0]:.1f} s in all: {name}")
