"""Two processes that train together give what one gives: losses, policies and personal LLMs; FSDP as well as DDP.

The tolerances are those of float32: sums over two processes' parts round otherwise than sums over the whole. Adam
divides by the size of a gradient, so where one is all but zero its rounding moves a weight by as much as a step does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from penchant import processes
from penchant.checkpoint import read_tensors
from penchant.cli.main import main as penchant
from penchant.errors import InputError
from tests import launched

LOSS, FIGURE = 1e-6, 2e-5
"""Relative differences allowed, of losses and of what is logged beside them."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is compared, run in one process and in two, with sharded weights and with whole ones."""
    pytest.importorskip("accelerate", reason="several processes are started by accelerate")
    folder = tmp_path_factory.mktemp("launched")
    launched.prepare(folder)
    launch = ["--use_fsdp", "--fsdp_version=2", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    quiet = ["--mixed_precision=no", "--dynamo_backend=no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, *quiet, "-m", "tests.launched", "two"]
    here = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parents[1])}
    said = folder / "said.txt"
    with said.open("w") as file:
        two = subprocess.Popen(
            [*command, str(folder)],
            env={**os.environ, **here},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    threads, place = torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)
    try:
        launched.main("one", folder)
        two.wait(timeout=600)
    finally:
        torch.set_num_threads(threads)
        os.chdir(place)
        logging.disable(logging.NOTSET)
        with contextlib.suppress(ProcessLookupError):  # else a launch that waits for ever would be waited for
            os.killpg(two.pid, signal.SIGKILL)
        two.wait()
    assert two.returncode == 0, said.read_text(errors="replace")[-5000:]
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (folder / "metrics.jsonl").open()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name} {name}": value
        for path in folder.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float) -> None:
    assert found.keys() == wanted.keys()
    assert wanted
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    ("kind", "name"), [*(("two", name) for name in launched.RUNS), ("parts", "people"), ("parts", "micro")]
)
def test_a_policy_is_trained_as_by_one_process(work: Path, kind: str, name: str) -> None:
    one, other = work / "one" / name, work / kind / name
    assert len(rows(one)) == len(rows(other)) == (12 if name == "people" else 6)
    for ours, theirs in zip(rows(other), rows(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS)
        assert ours == pytest.approx(theirs, rel=FIGURE, abs=1e-7)
    assert_close(tensors(other / "policy"), tensors(one / "policy"), atol=1e-5)


@pytest.mark.parametrize("kind", ["two", "parts"])
def test_resumed_by_two_equals_uninterrupted_bit_for_bit(work: Path, kind: str) -> None:
    whole, again = work / kind / launched.RESUMED, work / kind / "resumed"
    assert rows(again) == rows(whole)
    wanted = tensors(whole / "policy")
    assert all(torch.equal(value, wanted[name]) for name, value in tensors(again / "policy").items())


def test_one_process_goes_on_with_what_two_began(work: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(work / "one" / "cache")
    (tmp_path / launched.RESUMED).symlink_to(work / "parts" / launched.RESUMED)
    launched.train_on(work, tmp_path / launched.RESUMED)
    for ours, theirs in zip(rows(tmp_path / "resumed"), rows(work / "one" / launched.RESUMED), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS)


@pytest.mark.parametrize("kind", ["two", "parts"])
def test_the_command_line_agrees_on_a_folder_and_evaluates_once(work: Path, kind: str) -> None:
    (one,), (other,) = ((work / each / "align" / "runs").iterdir() for each in ("one", kind))
    assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()}
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (other, one))
    for row, wanted in zip(ours["history"], theirs["history"], strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=LOSS)
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["policy"] == theirs["policy"]
    assert ours["examples"] == theirs["examples"]


@pytest.mark.parametrize(("name", "file"), [("start", "beginning"), ("published", "training")])
def test_a_personal_llm_is_pretrained_as_by_one_process(work: Path, name: str, file: str) -> None:
    one, two = (work / kind / name for kind in ("one", "two"))
    assert (one / "answers.jsonl").read_text().count('"texts"') == 1
    ours, theirs = (launched_log(folder / f"{file}.safetensors") for folder in (two, one))
    assert len(ours) == len(theirs) > 1
    for row, wanted in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=LOSS)
    assert_close(tensors(two), tensors(one), atol=1e-4)
    facts = [json.loads((folder / "config.json").read_text()) for folder in (two, one)]
    for part in ("reach", "figures"):
        for figure in ("bend",) if part == "reach" else ("nats_per_token", "plain", "prior"):
            assert facts[0][part][figure] == pytest.approx(facts[1][part][figure], rel=1e-3)


def launched_log(path: Path) -> list[dict[str, float]]:
    log: list[dict[str, float]] = read_tensors(path)[1]["log"]
    return log


def test_batches_of_answers_are_shared_out_and_kept_once(work: Path) -> None:
    one, two = (work / kind / "sample" for kind in ("one", "two"))
    assert (two / "said.json").read_text() == (one / "said.json").read_text()
    batches = [sorted(json.loads(line)["batch"] for line in (folder / "answers.jsonl").open()) for folder in (two, one)]
    assert batches[0] == batches[1]
    assert len(set(batches[0])) == 5


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8])
def test_shares_are_all_there_is_in_order(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts: list[list[int]] = []
    for place in range(3):
        monkeypatch.setenv("RANK", str(place))
        parts.append(list(range(n))[processes.share(n)])
    assert [each for part in parts for each in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_processes_cannot_share_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched.prepare(tmp_path)
    words = ["align", str(tmp_path / "pairs.jsonl"), f"--out={tmp_path / 'run'}", f"--model={tmp_path / 'llm'}"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert penchant(words) == 2
    assert "batch_size is 8, the pairs of all 3 processes; give a multiple of 3" in capsys.readouterr().err
    assert penchant([*words, "--batch_size=6", "--micro_batch=2"]) == 2
    assert "micro_batch is 2" in capsys.readouterr().err
    assert penchant(["train", str(tmp_path / "pairs.jsonl")]) == 2
    assert "for one process" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert penchant([*words, "--batch_size=6"]) == 2
    assert "bf16" in capsys.readouterr().err


def test_only_fsdps_second_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for version, wanted in (("1", None), ("2", True)):
        processes._fsdp_version.cache_clear()
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", version)
        if wanted is None:
            with pytest.raises(InputError, match="fsdp_version: 2"):
                processes.asked_to_shard()
        else:
            assert processes.asked_to_shard()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not processes.asked_to_shard()
    processes._fsdp_version.cache_clear()
