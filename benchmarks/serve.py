"""What the server gains over answering one request after the other, on loopback, with the embedded LLM.

Two servers of the same HTTP stack serve the same reward model, trained on the demo's pairs: `penchant serve`, and a
plain loop, in which a request takes a lock and calls `RewardModel.score`. Clients keep one connection each and ask
again as soon as they are answered. Three kinds of load, of texts that were never asked for before:

    distinct   every request has a prompt of its own and one answer
    groups     eight answers to each prompt, each a request of its own, as verl's GRPO asks
    together   eight answers to each prompt in one request, as TRL and OpenRLHF ask

and `repeated`, the requests of `distinct` once more. Figures:

    throughput_ratio           requests/s of `distinct` with 32 clients, over the plain loop's
    throughput_ratio_groups    the same of `groups`; throughput_ratio_together, of `together`
    throughput_ratio_repeated  requests/s of `repeated` with 32 clients, over the plain loop's
    equal                      share of all scores that are `RewardModel.score`'s to the last bit
    memory_growth_mb           resident memory after 10,000 short requests less that after the first 2,000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from common import finish, table

CLIENTS = (1, 8, 32)
LOADS = ("distinct", "groups", "together")
GROUP = 8
GOAL = 3.0
DEMO = "penchant/data/demo.jsonl.gz"
Body = dict[str, Any]
Answered = tuple[float, list[float]]
"""Seconds that a request took, and its scores."""


def texts() -> tuple[list[str], list[str]]:
    """The demo's prompts and responses."""
    from penchant import load_pairs

    pairs = load_pairs(str(Path(__file__).parent.parent / DEMO))
    return list(dict.fromkeys(pairs["prompt"][:])), list(dict.fromkeys([*pairs["chosen"][:], *pairs["rejected"][:]]))


def requests_of(load: str, count: int, start: int, prompts: Sequence[str], answers: Sequence[str]) -> list[Body]:
    """`count` requests that no other `start` gives: each prompt is numbered."""
    made: list[Body] = []
    for number in range(start, start + count):
        group = number if load != "groups" else start + (number - start) // GROUP
        prompt = f"Question {load} {group}: {prompts[group % len(prompts)]}"
        own = [answers[(number * GROUP + i) % len(answers)] for i in range(GROUP if load == "together" else 1)]
        made.append({"prompt": prompt, "responses": own})
    return made


async def ask(host: str, port: int, bodies: Iterator[tuple[int, Body]], found: dict[int, Answered]) -> None:
    """One client: takes bodies as long as there are any."""
    reader, writer = await asyncio.open_connection(host, port)
    for number, body in bodies:
        data = json.dumps(body).encode()
        head = f"POST /score HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        start = time.perf_counter()
        writer.write(head.encode() + b"\r\n\r\n" + data)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        answer = json.loads(await reader.readexactly(length))
        if " 200 " not in f"{lines[0]} ":
            raise RuntimeError(f"{lines[0]}: {answer}")
        found[number] = (time.perf_counter() - start, answer["scores"])
    writer.close()


def drive(url: str, bodies: Sequence[Body], clients: int) -> tuple[float, list[Answered]]:
    """Seconds for all requests, and what each was answered."""
    host, port = url.removeprefix("http://").split(":")
    found: dict[int, Answered] = {}

    async def all_of_them() -> None:
        left = iter(enumerate(bodies))
        await asyncio.gather(*(ask(host, int(port), left, found) for _ in range(clients)))

    start = time.perf_counter()
    asyncio.run(all_of_them())
    return time.perf_counter() - start, [found[i] for i in range(len(bodies))]


@contextmanager
def started(command: list[str]) -> Iterator[tuple[str, int]]:
    """A server's address and process id, from the line in which it says that it listens."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("{") and "url" in (said := json.loads(line)):
                break
        else:
            raise RuntimeError(f"{command} ended before it listened")
        rest = process.stderr
        threading.Thread(target=lambda: [None for _ in rest], daemon=True).start()  # or its pipe would fill
        yield said["url"], process.pid
    finally:
        process.terminate()
        process.wait()


def plain_server(model: str) -> None:
    """The plain loop: the same HTTP stack, one request at a time."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool

    from penchant import RewardModel
    from penchant.serve.server import config_of, listen

    rm = RewardModel.from_pretrained(model)
    assert rm.backbone
    app, lock = FastAPI(), threading.Lock()

    def scores(body: Body) -> list[float]:
        with lock:
            return [float(score) for score in rm.score(body["prompt"], body["responses"])]

    @app.post("/score")
    async def score(body: Body) -> dict[str, list[float]]:
        return {"scores": await run_in_threadpool(scores, body)}

    sock = listen("127.0.0.1", 0)
    print(json.dumps({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"}), file=sys.stderr, flush=True)
    uvicorn.Server(config_of(app)).run([sock])


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(url: str, plan: dict[int, int], pool: tuple[list[str], list[str]]) -> tuple[dict[str, Any], list[Any]]:
    """Of one server, requests/s, p50 and p99 by load and clients; and (body, scores) of everything asked."""
    cells: dict[str, Any] = {}
    asked: list[tuple[Body, list[float]]] = []
    drive(url, requests_of("distinct", 8, 10**6, *pool), 4)  # the first requests pay for what is made on first use

    def cell(load: str, clients: int, bodies: list[Body]) -> None:
        seconds, answered = drive(url, bodies, clients)
        times = sorted(taken for taken, _ in answered)
        cells[f"{load} {clients}"] = {
            "requests_per_second": len(bodies) / seconds,
            "p50_ms": 1000 * median(times),
            "p99_ms": 1000 * times[min(len(times) - 1, round(0.99 * len(times)))],
        }
        asked.extend(zip(bodies, (scores for _, scores in answered), strict=True))

    for clients, count in plan.items():
        for load in LOADS:
            many = count if load != "together" else count // 4
            bodies = requests_of(load, many, clients * 10_000, *pool)
            cell(load, clients, bodies)
            if load == "distinct":
                cell("repeated", clients, bodies)
    return cells, asked


def equal_share(model: str, asked: list[tuple[Body, list[float]]]) -> float:
    """Share of scores that one call of `RewardModel.score` for each request gives, bit for bit."""
    from penchant import RewardModel

    rm = RewardModel.from_pretrained(model)
    same = [
        float(wanted) == got
        for body, scores in asked
        for wanted, got in zip(rm.score(body["prompt"], body["responses"]), scores, strict=True)
    ]
    return sum(same) / len(same)


def memory_growth(model: str, count: int, settled: int) -> dict[str, float]:
    """Resident memory in MB of a server with a small cache, over short requests with texts of their own."""
    with started(["-m", "penchant", "serve", model, "--port", "0", "--cache_mb", "8"]) as (url, pid):
        bodies = [{"prompt": f"Say {n}.", "responses": [f"It is {n}."]} for n in range(count)]
        drive(url, bodies[:settled], 32)
        before = memory_mb(pid)
        drive(url, bodies[settled:], 32)
        return {"requests": count, "settled": before, "end": memory_mb(pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, under 3 minutes")
    parser.add_argument("--plain", metavar="MODEL", help="be the plain server (the benchmark starts it itself)")
    options = parser.parse_args()
    if options.plain:
        plain_server(options.plain)
        return
    quick = options.quick
    plan = {1: 6, 8: 16, 32: 48} if quick else {1: 32, 8: 64, 32: 192}

    from penchant import RewardModel, load_pairs

    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "model"))
        demo = load_pairs(str(Path(__file__).parent.parent / DEMO)).select(range(40))
        RewardModel.train(demo, cache=Path(folder, "cache"), show_progress=False).save_pretrained(model)
        pool = texts()
        with started([__file__, "--plain", model]) as (url, _):
            plain, _ = measure(url, plan, pool)
        with started(["-m", "penchant", "serve", model, "--port", "0"]) as (url, _):
            ours, asked = measure(url, plan, pool)
        checked = asked[:: 8 if quick else 4]
        equal = equal_share(model, checked)
        memory = memory_growth(model, 800 if quick else 10_000, 300 if quick else 2_000)

    rows = [["load", "clients", "requests/s", "plain", "ratio", "p50 ms", "plain", "p99 ms", "plain"]]
    for name, cell in ours.items():
        load, clients = name.split()
        other = plain[name]
        rows.append(
            [load, clients]
            + [f"{cell['requests_per_second']:.1f}", f"{other['requests_per_second']:.1f}"]
            + [f"{cell['requests_per_second'] / other['requests_per_second']:.2f}"]
            + [f"{each[key]:.0f}" for key in ("p50_ms", "p99_ms") for each in (cell, other)]
        )
    print(table(rows))

    def ratio(load: str, clients: int = 32) -> float:
        name = f"{load} {clients}"
        return round(float(ours[name]["requests_per_second"] / plain[name]["requests_per_second"]), 3)

    figures = {
        "throughput_ratio": ratio("distinct"),
        "throughput_ratio_groups": ratio("groups"),
        "throughput_ratio_together": ratio("together"),
        "throughput_ratio_repeated": ratio("repeated"),
        "requests_per_second": round(ours["distinct 32"]["requests_per_second"], 2),
        "p99_ms": round(ours["distinct 32"]["p99_ms"], 1),
        "equal": equal,
        "memory_growth_mb": round(memory["end"] - memory["settled"], 1),
    }
    print(f"throughput_ratio {figures['throughput_ratio']} (goal {GOAL:g}); {len(checked)} requests' scores checked")
    finish("serve", figures, full=not quick, details={"plain": plain, "ours": ours, "memory": memory})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
