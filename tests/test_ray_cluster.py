"""Ray on two machines, both played by this one: joined by address and token, and one of them is lost amid the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penchant.backbone import Backbone
from penchant.pairs import load_pairs
from tests.tiny_llm import save_tiny_llm, tiny_pairs

pytest.importorskip("ray", reason="the ray engine needs the extra ray")

from tests.test_cluster import BUDGET, same_as_local, write_lines

MACHINES = """
from ray.cluster_utils import Cluster
machine = {"num_cpus": 3, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
second = cluster.add_node(**machine)
print(cluster.address, flush=True)
if input() == "lose one":
    cluster.remove_node(second, allow_graceful=False)
    print("lost", flush=True)
    input()
cluster.shutdown()
"""
"""A process whose standard input says what becomes of its cluster; a process, as Ray asks for tokens by process."""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


WAIT = 300


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", MACHINES]
    pipe, environment = subprocess.PIPE, {**os.environ, **TOKEN}
    with (
        (tmp_path / "machines").open("w") as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=environment) as process,
    ):
        try:
            yield process
            process.communicate("end\nend\n", timeout=WAIT)
        finally:
            process.kill()


def test_a_machine_of_a_cluster_is_lost(machines: subprocess.Popen[str], tmp_path: Path) -> None:
    save_tiny_llm(tmp_path / "llm")
    data, cache = write_lines(tmp_path / "pairs.jsonl", tiny_pairs(400)), tmp_path / "ray"
    assert machines.stdin
    assert machines.stdout
    address = machines.stdout.readline().strip()
    assert address, (tmp_path / "machines").read_text()
    command = [
        sys.executable, "-m", "penchant", "encode", str(data), "--model", str(tmp_path / "llm"), "--dtype", "float32",
        "--views", "[2:mean,3:last]", "--token_budget", str(BUDGET), "--cache", str(cache), "--engine", "ray",
        "--address", address, "--actors", "2",
    ]  # fmt: skip
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    refused = subprocess.run(command, env=without, capture_output=True, text=True, timeout=WAIT)
    assert refused.returncode == 2
    assert f"the Ray cluster at address {address} asks for a token: set RAY_AUTH_MODE=token" in refused.stderr

    with subprocess.Popen(command, env={**without, **TOKEN}, stdout=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + WAIT
            while len(list(cache.glob("*/*.safetensors"))) < 4:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            machines.stdin.write("lose one\n")
            machines.stdin.flush()
            assert machines.stdout.readline() == "lost\n"
            assert process.poll() is None, "it was at work when the machine was lost"
            told = process.communicate(timeout=WAIT)[0]
        finally:
            process.kill()
    assert process.returncode == 0
    assert "800 sequences encoded, 0 were cached" in told

    llm = Backbone.load(str(tmp_path / "llm"), dtype="float32")
    assert same_as_local(cache, tmp_path / "local", llm, load_pairs(data))
