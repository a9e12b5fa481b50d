"""Ray Data's engine gives the local engine's latents, scores and sentences, whatever dies on the way."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penchant.backbone import Backbone
from penchant.cli.main import main
from penchant.encode import Cost, chat_pairs, fill, plan
from penchant.errors import InputError
from penchant.pair_files import open_source
from penchant.pairs import load_pairs
from penchant.responses import REMEDY, check_row, score_rows
from penchant.reward_model import RewardModel
from penchant.store import Store
from tests.tiny_llm import save_tiny_llm, tiny_pairs

ray = pytest.importorskip("ray", reason="the ray engine needs the extra ray")
pytest.importorskip("ray.data", reason="the ray engine needs the extra ray")

from penchant.cluster import connect, parts  # noqa: E402
from penchant.cluster.connect import connected  # noqa: E402
from penchant.cluster.encoding import DONE, Encoder, encode_with_ray  # noqa: E402
from penchant.cluster.parts import parts_of  # noqa: E402
from penchant.cluster.planning import Job, plan_chunk, unpacked  # noqa: E402
from penchant.cluster.reading import check_pairs  # noqa: E402
from penchant.cluster.scoring import Scorer  # noqa: E402
from penchant.cluster.streaming import quiet, stream  # noqa: E402

VIEWS = ("2:mean", "3:last")
BUDGET = 256


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    save_tiny_llm(folder / "llm")
    return folder


@pytest.fixture(scope="module")
def llm(work: Path) -> Backbone:
    return Backbone.load(str(work / "llm"), dtype="float32")


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """One local Ray for all tests of the module: starting it takes longer than most of them."""
    with connected(None, 2, None):
        yield


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same_as_local(cache: Path, local: Path, llm: Backbone, pairs: datasets.Dataset) -> bool:
    """Whether both caches hold the same bits for the pairs; the local engine fills its own first."""
    recipe = llm.recipe(VIEWS)
    mine, theirs = Store(local, recipe), Store(cache, recipe)
    keys, _ = fill(llm, recipe, pairs, mine, token_budget=BUDGET, show_progress=False)
    return all(np.array_equal(mine.read(k).view(np.uint32), theirs.read(k).view(np.uint32)) for k in keys.values())


def below(pid: int) -> dict[int, str]:
    """Processes that descend from one, with their command lines."""
    parent, command = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    found, new = {}, {pid}
    while new:
        new = {child for child, its in parent.items() if its in new}
        found |= {child: command[child] for child in new if child in command}
    return found


def encoders(pid: int) -> list[int]:
    """The actors among them."""
    return [child for child, line in below(pid).items() if "Encoder" in line]


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread meanwhile; what it raises is raised."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield
        future.result()


def wait_for(reached: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def shards(cache: Path) -> int:
    return len(list(cache.glob("*/*.safetensors")))


@pytest.mark.usefixtures("one_ray")
def test_files_of_all_kinds_whatever_dies(work: Path, tmp_path: Path, llm: Backbone, caplog: Any) -> None:
    """A run is interrupted, the next one killed with its driver, and the last one loses an actor; it ends equal."""
    rows = [{"question": row.pop("prompt"), **row} for row in tiny_pairs(620)]
    rows[30] = {"question": "What?", "chosen": "Yes.", "rejected": "Yes."}
    rows[110] = {"question": "What?", "chosen": " ", "rejected": "Yes."}
    as_messages = [{**row, "chosen": [{"role": "assistant", "content": row["chosen"]}]} for row in rows[550:]]
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "a.jsonl", rows[:100])
    (folder / "b.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows[100:550]))
    )
    (folder / "c.json").write_text(json.dumps(as_messages))
    reading: dict[str, Any] = {"columns": {"question": "prompt"}, "on_bad": "skip", "limit": 610}
    local = load_pairs(folder, **reading, skipped_file=tmp_path / "local.jsonl")
    (told,) = (message.replace("local.jsonl", "ray.jsonl") for message in caplog.messages if "skipped" in message)

    cache = tmp_path / "ray"
    command = [
        "encode", str(folder), "--model", str(work / "llm"), "--dtype", "float32", "--views", "[2:mean,3:last]",
        "--columns", "{question: prompt}", "--on_bad", "skip", "--limit", "610", "--token_budget", str(BUDGET),
        "--cache", str(cache), "--engine", "ray", "--actors", "1",
    ]  # fmt: skip

    with subprocess.Popen([sys.executable, "-m", "penchant", *command], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: shards(cache) >= 3 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    kept = shards(cache)
    assert kept >= 3

    with subprocess.Popen([sys.executable, "-m", "penchant", *command], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: shards(cache) >= kept + 3 or process.poll() is not None)
        children = below(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert any("raylet" in line for line in children.values())
    # Ray's two agents notice a killed raylet by themselves, within about a minute.
    left = [pid for pid, line in children.items() if "Agent" not in line]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 60)

    killed: list[int] = []

    def kill() -> None:
        known = set(cache.glob("*/*.safetensors"))
        wait_for(lambda: len(set(cache.glob("*/*.safetensors")) - known) >= 4)
        killed.extend(encoders(os.getpid()))
        os.kill(killed[0], signal.SIGKILL)

    with beside(kill):
        done = encode_with_ray(
            str(folder), model=str(work / "llm"), views=VIEWS, dtype="float32", cache=cache, token_budget=BUDGET,
            skipped_file=tmp_path / "ray.jsonl", actors=2, show_progress=False, **reading,
        )  # fmt: skip
    assert len(killed) == 2, "two actors were at work"
    assert 0 < done.cost.encoded_sequences < 2 * len(local)
    assert done.pairs == len(local) == 608
    assert told in caplog.messages
    assert (tmp_path / "ray.jsonl").read_text() == (tmp_path / "local.jsonl").read_text()
    assert same_as_local(cache, tmp_path / "local", llm, local)


@pytest.mark.usefixtures("one_ray")
def test_row_groups_and_train_afterwards(
    work: Path, tmp_path: Path, llm: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Chunks that begin in one part of a file and end in the next."""
    monkeypatch.setattr(parts, "ROWS", 40)
    monkeypatch.setattr("penchant.encode.CHUNK", 33)
    data = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(tiny_pairs(100)), data, row_group_size=15)
    assert [part.span for part in parts_of(str(data), "train")[1]] == [range(0, 3), range(3, 6), range(6, 7)]
    arguments = [str(data), "--model", str(work / "llm"), "--dtype", "float32", "--views", "[2:mean,3:last]"]
    arguments += ["--cache", str(tmp_path / "ray")]
    assert main(["encode", *arguments, "--engine", "ray", "--actors", "1", "--token_budget", str(BUDGET)]) == 0
    told = capsys.readouterr().out
    assert "200 sequences encoded, 0 were cached" in told
    store = Store(tmp_path / "local", llm.recipe(VIEWS))
    _, cost = fill(llm, store.recipe, load_pairs(data), store, token_budget=BUDGET, show_progress=False)
    assert f"; {cost.unique_tokens:,} tokens in" in told, "other chunks would run some prompts more or less often"
    assert same_as_local(tmp_path / "ray", tmp_path / "local", llm, load_pairs(data))
    rest = ["--head", "linear", "--curve", "false", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments, *rest]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["cost"]["unique_tokens"] == 0


def test_parts_hold_the_rows_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their numbers, files and lines, for every kind of source."""
    monkeypatch.setattr(parts, "ROWS", 30)
    rows = tiny_pairs(100)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "groups.parquet", row_group_size=7)
    write_lines(tmp_path / "lines.jsonl", rows)
    for name, count in (("saved", 4), ("groups.parquet", 3), ("lines.jsonl", 1)):
        _, found = parts_of(str(tmp_path / name), "train")
        assert len(found) == count
        assert [row for part in found for row in part.rows()] == list(open_source(tmp_path / name, "train").rows())


WRONG: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a bad row, and more of them in the next file": ([{"prompt": 1}, {}], {}),
    "columns that are not there": ([], {"columns": {"win": "chosen"}}),
    "a column twice": ([], {"columns": {"chosen": "rejected"}}),
    "columns and a bad row": ([{}], {"columns": {"win": "chosen"}}),
    "a bad row within the limit": ([{"chosen": "a"}], {"limit": 41}),
}


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", WRONG)
def test_bad_rows_are_refused_word_for_word(name: str, tmp_path: Path) -> None:
    bad, arguments = WRONG[name]
    rows = tiny_pairs(60)
    files = [write_lines(tmp_path / "a.jsonl", [*rows[:40], *bad]), write_lines(tmp_path / "b.jsonl", [*bad, *rows])]
    with pytest.raises(InputError) as local:
        load_pairs(list(map(str, files)), **arguments)
    with pytest.raises(InputError) as theirs:
        check(files, **arguments)
    assert str(theirs.value) == str(local.value)


@pytest.mark.usefixtures("one_ray")
def test_a_column_that_only_an_earlier_file_has(tmp_path: Path) -> None:
    rows = [{"win" if name == "chosen" else name: text for name, text in row.items()} for row in tiny_pairs(5)]
    files = [write_lines(tmp_path / "a.jsonl", rows), write_lines(tmp_path / "b.jsonl", [{"prompt": "Hi"}])]
    with pytest.raises(InputError, match='column "chosen" is missing') as local:
        load_pairs(list(map(str, files)), columns={"win": "chosen"})
    with pytest.raises(InputError) as theirs:
        check(files, columns={"win": "chosen"})
    assert str(theirs.value) == str(local.value)


def check(files: list[Path], columns: Any = None, limit: int | None = None) -> Any:
    name, found = parts_of(files, "train")
    return check_pairs(name, found, columns or {}, skip=False, limit=limit, list_to=open(os.devnull, "w"))


@pytest.mark.usefixtures("one_ray")
def test_what_is_wrong_with_a_file_counts_only_within_the_limit(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a.jsonl", tiny_pairs(20))
    torn = tmp_path / "b.jsonl.gz"
    torn.write_bytes(gzip.compress(good.read_bytes())[:-20])
    bad = write_lines(tmp_path / "c.jsonl", [*tiny_pairs(5), {}])
    with pytest.raises(InputError) as local:
        load_pairs([str(good), str(torn)])
    with pytest.raises(InputError) as theirs:
        check([good, torn])
    assert str(theirs.value) == str(local.value)
    assert check([good, torn], limit=20).rows == [20]
    assert check([good, bad], limit=25).pairs == [20, 5]


@pytest.mark.usefixtures("one_ray")
def test_plans_are_the_local_engines(work: Path, tmp_path: Path, llm: Backbone) -> None:
    """Batch for batch, tree for tree, and without what is stored; what is wrong with a pair comes out as a row."""
    recipe, rows = llm.recipe(VIEWS), tiny_pairs(50)
    rows[20] |= {"chosen": "Well, that is the same.", "rejected": "That is the same."}
    job = Job(str(work / "llm"), recipe, llm.packed, str(tmp_path), os.getcwd(), BUDGET, ray.put(llm.chat))
    columns = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
    chunk = pa.table({**columns, "row": range(7, 57), "error": pa.nulls(50, pa.string())})
    tokens = chat_pairs(llm.chat, *columns.values())
    for stored in (0, 30):
        store = Store(tmp_path, recipe)
        fill(llm, recipe, load_pairs(rows).select(range(stored)), store, token_budget=BUDGET, show_progress=False)
        cost = Cost()
        expected = plan(tokens, store, BUDGET, llm.packed, cost)
        planned = plan_chunk(chunk, job).to_pylist()
        for row, batch in zip(planned, expected, strict=True):
            found = unpacked(row)
            assert np.array_equal(found.keys, batch.keys)
            assert (found.tokens, len(found.trees)) == (batch.tokens, len(batch.trees))
        asked = [cost.sequences, cost.cached_sequences, cost.encoded_sequences, cost.tokens, cost.truncated]
        assert planned[0]["cost"] == asked
    short = Job(**{**vars(job), "chat": ray.put(type(llm.chat)(llm.chat.tokenizer, 8))})
    (row,) = plan_chunk(chunk, short).to_pylist()
    with pytest.raises(InputError) as local:
        chat_pairs(type(llm.chat)(llm.chat.tokenizer, 8), *columns.values(), 7)
    assert row["error"] == f"InputError|{local.value}"
    passed = Encoder(job, 1)(plan_chunk(chunk, short))
    assert passed.schema == DONE
    rows_of = stream(ray.data.from_arrow(passed))
    with quiet(), pytest.raises(InputError, match=r"row 27: .* become the same 8 tokens"), rows_of as found_rows:
        list(found_rows)


@pytest.mark.usefixtures("one_ray")
def test_scores_are_the_local_engines(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, in order, and again from a cache; a bad line comes after the batches before it."""
    monkeypatch.setattr("penchant.cli.score.BATCH", 30)
    rm = RewardModel.train(
        tiny_pairs(60), model=str(work / "llm"), dtype="float32", cache=tmp_path / "train", show_progress=False
    )
    rm.save_pretrained(tmp_path / "model")
    rows = [{"id": i, "prompt": row["prompt"], "response": [row["chosen"], "Ünïcode ☺"]} for i, row in
            enumerate(tiny_pairs(140))]  # fmt: skip
    data = write_lines(tmp_path / "rows.jsonl", rows)
    command = ["score", str(tmp_path / "model"), str(data), "--out"]
    assert main([*command, str(tmp_path / "local.jsonl")]) == 0
    cached = ["--cache", str(tmp_path / "cache"), "--engine", "ray", "--actors", "2"]
    assert main([*command, str(tmp_path / "ray.jsonl"), *cached]) == 0
    expected = (tmp_path / "local.jsonl").read_bytes()
    assert (tmp_path / "ray.jsonl").read_bytes() == expected
    store = Store(tmp_path / "cache", rm.recipe.stored)

    def no_llm(*_: Any) -> Any:
        raise AssertionError("everything is stored")

    monkeypatch.setattr("penchant.encode.batch_latents", no_llm)
    again = [json.loads(line) for line in data.read_text().splitlines()]
    for first in range(0, len(again), 30):
        score_rows(rm, again[first : first + 30], "prompt", "response", store, 1024)
    assert [row["score"] for row in again] == [json.loads(line)["score"] for line in expected.splitlines()]

    scorer = Scorer(str(tmp_path / "model"), "prompt", "response", None, 1024, 1, os.getcwd())
    lines = pa.table({"number": [7, 40], "line": [json.dumps(rows[7]).encode(), b'{"id": 1}']})
    with pytest.raises(InputError) as local:
        check_row(40, {"id": 1}, "prompt", "response", REMEDY)
    assert scorer(lines).to_pylist() == [{"text": "", "rows": 0, "error": f"InputError|{local.value}"}]


def test_addresses_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ANSWER_SECONDS", 1)
    with pytest.raises(InputError, match="neither auto nor host:port"):
        connect._join("nowhere")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(InputError, match="there is no Ray cluster at address"):
            connect._join(address)
    with pytest.raises(InputError, match="nothing answers at"):
        connect._join(address)


@pytest.mark.usefixtures("one_ray")
def test_a_ray_of_our_own_is_for_this_machine_and_asks_for_a_token() -> None:
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    folders = [Path(f"/proc/{pid}/fd") for pid in (os.getpid(), *below(os.getpid()))]
    ours = {str(folder / fd) for folder in folders for fd in _listed(folder)}
    inodes = {_link(path)[len("socket:[") : -1] for path in ours if _link(path).startswith("socket:[")}
    ports = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    listening = [row[1].rpartition(":")[0] for row in ports if row[3] == "0A" and row[9] in inodes]
    assert len(listening) > 3
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    ask = f"from ray._raylet import GcsClient; GcsClient({ray.get_runtime_context().gcs_address!r})"
    asked = subprocess.run([sys.executable, "-c", ask], env=stranger, capture_output=True, text=True, timeout=120)
    assert asked.returncode != 0
    assert "InvalidAuthToken" in asked.stderr


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # its process has ended
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.mark.usefixtures("one_ray")
def test_room_for_actors() -> None:
    for actors, gpus, told in ((0, None, "at least 1"), (3, None, "2 more to feed them"), (1, 1.0, "more than the 0")):
        with pytest.raises(InputError, match=told), connected(None, actors, gpus):
            pass
    with pytest.raises(InputError, match="runs in this process already"), connected("auto", None, None):
        pass


def test_options_of_ray_need_ray(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    data = str(write_lines(tmp_path / "pairs.jsonl", tiny_pairs(4)))
    for option in (["--actors", "2"], ["--address", "auto"], ["--gpus_per_actor", "0.5"]):
        assert main(["encode", data, *option]) == main(["score", "model", data, *option]) == 2
        assert capsys.readouterr().err.count(f"penchant: {option[0]} belongs to the ray engine; add --engine ray.") == 2
    for name in [name for name in sys.modules if name.split(".")[0] == "ray" or name.startswith("penchant.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["encode", data, "--engine", "ray"]) == 2
    assert "run: pip install 'penchant[ray]'" in capsys.readouterr().err
