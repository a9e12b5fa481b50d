"""`make lock`: requirements.lock, every package that `make install` installs, with the hashes of its files.

uv (any recent one, on the PATH or beside this Python) finds the versions for all Pythons and platforms at once, and
keeps those that the lock has already; `make lock UPGRADE=name` takes the newest of that package. What torch's public
build for Linux needs of CUDA goes into requirements-cuda.lock. Its CPU build needs none of it; that one, which the
public index does not list, stands in requirements-cpu.lock, by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, CUDA_LOCK = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
CUDA = re.compile(r"(nvidia|cuda)-|triton==")
EVERYWHERE = re.compile(
    r"(^| and )(python_full_version < '3\.14'|\(sys_platform == 'darwin' or sys_platform == 'linux'\))"
)
"""Where uv was told to look (pyproject.toml, tool.uv), which every line repeats."""
ABOUT = {
    LOCK: "Every package of `make install`, with its files' hashes, for CPython 3.10 to 3.13 on Linux and macOS.",
    CUDA_LOCK: "What torch's public build for Linux needs beside requirements.lock; its CPU build needs none of it.",
}


def main() -> None:
    entries = split(compiled(sys.argv[1:]))
    for file in (LOCK, CUDA_LOCK):
        kept = [entry for entry in entries if bool(CUDA.match(entry)) == (file == CUDA_LOCK)]
        file.write_text(f"# {ABOUT[file]}\n# Written by `make lock` (scripts/lock.py); do not edit.\n{''.join(kept)}")
        print(f"{file.name}: {len(kept)} packages")


def compiled(upgrade: list[str]) -> str:
    """What uv makes of pyproject.toml, the present lock's versions kept but for the packages to upgrade."""
    beside = Path(sysconfig.get_path("scripts"), "uv")
    known = "".join(file.read_text() for file in (LOCK, CUDA_LOCK) if file.exists())
    whole = ROOT / "requirements.all"
    whole.write_text(known)
    try:
        command = [str(beside) if beside.exists() else "uv", "pip", "compile", "--quiet", "pyproject.toml"]
        command += ["--extra", "dev", "--group", "install", "--universal", "--python-version", "3.10"]
        command += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "-o", whole.name]
        subprocess.run([*command, *(f"--upgrade-package={name}" for name in upgrade)], cwd=ROOT, check=True)
        return whole.read_text()
    finally:
        whole.unlink()


def split(text: str) -> list[str]:
    """One package each: its pin, its marker and its hashes, a line a hash."""
    entries = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)[1:]
    for number, entry in enumerate(entries):
        first, rest = entry.split("\n", 1)
        pin, _, marker = first.removesuffix(" \\").partition(" ; ")
        marker = EVERYWHERE.sub("", marker).removeprefix(" and ")
        entries[number] = f"{pin}{f' ; {marker}' if marker else ''} \\\n{rest}"
    return entries


if __name__ == "__main__":
    main()
