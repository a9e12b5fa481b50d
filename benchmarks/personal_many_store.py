"""Very many people on disk: `Users` against a safetensors file a person. Costs alone; the vectors are simulated.

A process of its own, which loads no torch, so that its memory is the store's. `personal_many.py` starts it:

    python benchmarks/personal_many_store.py FOLDER PEOPLE FILES        prints the figures as one line of JSON
    python benchmarks/personal_many_store.py --reader FOLDER PEOPLE SECONDS   what it starts itself, to read meanwhile

Ids are hashes, so that neighbours in time are none in the file. Wall seconds; medians and, where named, percentiles.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from penchant.personal.users import Users

MODEL, NAMED = "personal_many", "0123abcd"
LATENT, K, PAIRS = 32, 40, 8
CHUNK = 10_000
"""People in one `put_many`."""
LOOKUPS = 3000
Vectors = dict[str, NDArray[Any]]


def name_of(number: int) -> str:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).hexdigest()


def some_vectors(count: int = 64) -> list[Vectors]:
    """In the sizes and types that `known.py` keeps of a person with a z of 32 and 40 directions of taste."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        latent, taste, certainty = (rng.normal(size=size) for size in (LATENT, K, K * (K + 1) // 2))
        found.append(
            {
                "latent": latent.astype(np.float16),
                f"taste.{NAMED}": taste.astype(np.float32),
                f"certainty.{NAMED}": certainty.astype(np.float16),
            }
        )
    return found


def rows(first: int, count: int) -> Iterator[tuple[str, Vectors, int]]:
    known = some_vectors()
    return ((name_of(i), known[i % len(known)], PAIRS) for i in range(first, first + count))


def milliseconds(act: Callable[[Any], object], arguments: Sequence[Any]) -> dict[str, float]:
    """What each call took."""
    took = []
    for argument in arguments:
        start = time.perf_counter()
        act(argument)
        took.append(1e3 * (time.perf_counter() - start))
    middle, most = np.percentile(took, [50, 99])
    return {"p50": float(middle), "p99": float(most), "calls": len(took)}


def peak_mib() -> float:
    """Of this process alone; getrusage counts what its parent held before it was another program."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def filled(users: Users, people: int) -> dict[str, Any]:
    """What writing everybody took, and what memory after a tenth of them and at the end."""
    seconds, peaks = [], []
    cpu = time.process_time()
    for first in range(0, people, CHUNK):
        start = time.perf_counter()
        users.put_many(rows(first, min(CHUNK, people - first)))
        seconds.append(time.perf_counter() - start)
        peaks.append(peak_mib())
    low, middle, high = np.percentile(seconds, [10, 50, 90])
    return {
        "put_per_second": people / sum(seconds),
        "chunk_seconds": {"p10": float(low), "p50": float(middle), "p90": float(high), "people": min(CHUNK, people)},
        "put_cpu_seconds": time.process_time() - cpu,
        "peak_mib_at_a_tenth": peaks[max(0, len(peaks) // 10 - 1)],
        "peak_mib_at_the_end": peaks[-1],
    }


def asked(users: Users, people: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    some = [name_of(int(i)) for i in rng.integers(people, size=LOOKUPS)]

    def anew(user_id: str) -> None:
        with Users(users.path) as again:
            again.known(user_id)

    vectors = some_vectors(1)[0]
    return {
        "lookup": milliseconds(users.known, some),
        "lookup_warm": milliseconds(users.known, some),
        "lookup_on_opening": milliseconds(anew, some[:100]),
        "unknown": milliseconds(users.get, [f"nobody {i}" for i in range(1000)]),
        "get_many_100": milliseconds(users.get_many, [some[i : i + 100] for i in range(0, 2000, 100)]),
        "ids_100_by_prefix": milliseconds(lambda prefix: users.ids(prefix, 100), [name[:3] for name in some[:200]]),
        "count": milliseconds(lambda _: len(users), range(3)),
        "update_one": milliseconds(lambda name: users.put(name, vectors, 2 * PAIRS), some[:200]),
    }


def forgotten(users: Users, people: int) -> dict[str, Any]:
    """People from the end of those that were put; the longest time that another's write waits is that of one call."""
    last = iter(range(people - 1, 0, -1))
    return {
        "forget_1": milliseconds(lambda _: users.forget(name_of(next(last))), range(5)),
        "forget_100": milliseconds(lambda _: users.forget(*(name_of(next(last)) for _ in range(100))), range(3)),
    }


def beside_a_writer(users: Users, people: int, seconds: float) -> dict[str, Any]:
    """Another process looks people up while this one writes people in chunks; its figures with ours."""
    command = [sys.executable, __file__, "--reader", str(users.path.parent), str(people), str(seconds)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    written, first = 0, people
    while reader.poll() is None:
        written += users.put_many(rows(first + written, 1000))
    assert reader.stdout
    users.forget(*(name_of(i) for i in range(first, first + min(written, 100))))
    return {**json.loads(reader.stdout.readline()), "written_meanwhile": written}


def read(folder: Path, people: int, seconds: float) -> None:
    """The other process: look up, until the time is over."""
    known, rng = some_vectors(), np.random.default_rng(2)
    sums = {vectors["latent"].tobytes() for vectors in known}
    took, broken, end = [], 0, time.monotonic() + seconds
    with Users(folder / "users.db") as users:
        while time.monotonic() < end:
            name = name_of(int(rng.integers(people // 2)))  # the others may be forgotten
            start = time.perf_counter()
            person = users.known(name)
            took.append(1e3 * (time.perf_counter() - start))
            broken += person.vectors["latent"].tobytes() not in sums
    middle, most = np.percentile(took, [50, 99])
    print(json.dumps({"p50": middle, "p99": most, "longest": max(took), "calls": len(took), "broken": broken}))


def moved(folder: Path, people: int) -> dict[str, float]:
    """Seconds of an export of people and of their import."""
    (folder / "part").mkdir()
    start = time.perf_counter()
    with Users(folder / "part" / "users.db", MODEL) as part:
        part.put_many(rows(0, people))
        put, start = time.perf_counter() - start, time.perf_counter()
        part.export(folder / "part" / "people.jsonl.gz")
        took, start = time.perf_counter() - start, time.perf_counter()
    with Users(folder / "part" / "again.db", MODEL) as again:
        start = time.perf_counter()
        again.import_from(folder / "part" / "people.jsonl.gz")
        back = time.perf_counter() - start
    size = (folder / "part" / "people.jsonl.gz").stat().st_size
    shutil.rmtree(folder / "part")
    return {
        "people": people,
        "put_many": put,
        "export": took,
        "import_from": back,
        "export_bytes_a_person": size / people,
    }


def few(folder: Path) -> int:
    """Bytes of a file of three people."""
    with Users(folder / "few.db", MODEL) as users:
        users.put_many(rows(0, 3))
    return (folder / "few.db").stat().st_size


def as_files(folder: Path, people: int) -> dict[str, Any]:
    """What many would do: a safetensors file a person, in 256 folders of two levels, nothing synced.

    No versions, no checksums, no transaction, no search by prefix; a deleted file's bytes stay on the disk.
    """
    known, rng = some_vectors(), np.random.default_rng(1)

    def place(number: int) -> Path:
        name = name_of(number)
        return folder / "files" / name[0] / name[1] / f"{name}.safetensors"

    start, cpu = time.perf_counter(), time.process_time()
    for i in range(people):
        path = place(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(known[i % len(known)], path)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    some = [place(int(i)) for i in rng.integers(people, size=LOOKUPS)]
    blocks = sum(512 * path.lstat().st_blocks for path in (folder / "files").rglob("*"))
    found = {
        "people": people,
        "put_per_second": people / took,
        "put_cpu_seconds": cpu,
        "lookup": milliseconds(load_file, some),
        "lookup_warm": milliseconds(load_file, some),
        "bytes_of_files": os.path.getsize(some[0]),
        "bytes_on_disk": blocks / people,
        "forget_100": milliseconds(lambda at: [place(i).unlink() for i in range(at, at + 100)], [0, 100, 200]),
    }
    start = time.perf_counter()
    shutil.rmtree(folder / "files")
    return {**found, "seconds_to_remove_all": time.perf_counter() - start}


def main() -> None:
    if sys.argv[1] == "--reader":
        read(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
        return
    folder, people, files = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with Users(folder / "users.db", MODEL) as users:
        found: dict[str, Any] = {"people": people, **filled(users, people)}
        found["bytes_per_user"] = users.bytes_per_user
        users.forget()  # empties the log, so that the file is all there is
        found["file_bytes_per_user"] = users.path.stat().st_size / people
        found |= asked(users, people)
        found["beside_a_writer"] = beside_a_writer(users, people, min(10.0, people / 5000))
        found |= forgotten(users, people)
        found["peak_mib"] = peak_mib()
    found["bytes_of_a_file_of_three"] = few(folder)
    found["moved"] = moved(folder, min(10_000, people))
    print(json.dumps({"users": found, "files": as_files(folder, files)}))


if __name__ == "__main__":
    main()
