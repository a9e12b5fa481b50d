"""Twenty faults of a printed seed; `python -m tests.faults` has as many as one likes, and reproduces any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
SEED = int(os.environ.get("PENCHANT_FAULTS_SEED", "5"))
COUNT = 20
JOBS = ("store", "sae", "reward-model", "policy", "users", "serve")
"""Those that take a second; the nightly form has all."""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, stopped and killed as Linux does it")
def test_after_each_of_twenty_faults_the_bits_are_the_same_or_the_refusal_is_clear() -> None:
    command = [sys.executable, "-m", "tests.faults", "--count", str(COUNT), "--seed", str(SEED), "--jobs", *JOBS]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    print(done.stdout, done.stderr[-3000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["faults"], figures["failed"], done.returncode) == (COUNT, 0, 0)
    assert figures["equal"] + figures["refused"] == COUNT
    assert len(figures["by_job"]) >= 5
