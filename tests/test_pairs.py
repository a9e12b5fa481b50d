"""Preference pairs: every accepted form, every listed failure, and what holds for any input at all."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penchant.errors import InputError
from penchant.pair_files import json_list
from penchant.pairs import build, describe, load_pairs, prompt_groups, split_by_prompt, to_text

ROWS = [{"prompt": f"p{i % 7}", "chosen": f"good {i}", "rejected": f"bad {i}", "gold": i / 2} for i in range(30)]
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "hello"), ("assistant", "go away"))
)
HH = "\n\nHuman: hi\n\nAssistant: {}"


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "p", "chosen": "good", "rejected": "bad"} | changes


def write(path: Path, rows: list[Any]) -> Path:
    """The rows in the format that the ending asks for."""
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(plain)
    elif name.endswith(".csv"):
        pd.DataFrame(rows).to_csv(plain, index=False)
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        plain.write_text(json.dumps(rows, indent=1) if name.endswith(".json") else lines)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def message_of(source: Any, **arguments: Any) -> str:
    """The one sentence that loading fails with."""
    with pytest.raises(InputError) as caught:
        load_pairs(source, **arguments)
    text = str(caught.value)
    assert text.splitlines() == [text]
    return text


# ---- what is accepted


@pytest.mark.parametrize(
    "ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".JSONL"]
)
def test_every_format_gives_the_same_rows_in_order(tmp_path: Path, ending: str) -> None:
    pairs = load_pairs(write(tmp_path / f"pairs{ending}", ROWS))
    expected = [{**row, "gold": str(row["gold"])} for row in ROWS] if "csv" in ending else ROWS
    assert pairs.to_list() == expected
    assert pairs.cache_files, "the pairs must be memory-mapped"


def test_memory_lists_files_and_folders_agree(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", ROWS[:20]), write(tmp_path / "b.csv", ROWS[20:])
    dataset = datasets.Dataset.from_list(ROWS)
    names = ["prompt", "chosen", "rejected"]
    for source in (ROWS, dataset, [first, str(second)], tmp_path, str(tmp_path)):
        assert load_pairs(source).select_columns(names).to_list() == dataset.select_columns(names).to_list()
    # an index mapping on top of the stored table counts, a format does not
    picked = dataset.select([5, 3]).with_format("numpy")
    assert load_pairs(picked)["chosen"][:] == ["good 5", "good 3"]


def test_folder_takes_the_files_of_its_split_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", ROWS[:5])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[5:])
    assert len(load_pairs(tmp_path)) == 5
    assert len(load_pairs(tmp_path, split="test")) == 25
    assert "test-00000" in message_of(tmp_path, split="validation")


def test_save_to_disk_folder(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    assert load_pairs(tmp_path / "saved", split="test").to_list() == ROWS
    assert "test" in message_of(tmp_path / "saved")


def test_hub_id_with_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*given: Any, **named: Any) -> datasets.Dataset:
        asked.append((given, named))
        if given[0] == "org/gone":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/gone' doesn't exist\nand more")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_pairs("org/name:config", split="test").to_list() == ROWS
    assert load_pairs("org/name:config@v1.0", split="test").to_list() == ROWS
    revisions = [{"split": "test", "revision": revision} for revision in (None, "v1.0")]
    assert asked == [(("org/name", "config"), named) for named in revisions]
    assert "org/gone" in message_of("org/gone")


def test_columns_are_renamed_and_the_rest_is_kept() -> None:
    rows = [{"question": "q", "win": "w", "lose": "l", "tags": ["a"], "gold": 1, "mixed": 1}]
    rows += [{**rows[0], "gold": 2.5, "mixed": {"x": 1}}, {**rows[0], "gold": None, "tags": None, "mixed": "é"}]
    names = {"question": "prompt", "win": "chosen", "lose": "rejected"}
    pairs = load_pairs(rows, columns=names)
    assert pairs.column_names == ["prompt", "chosen", "rejected", "tags", "gold", "mixed"]
    assert pairs["gold"][:] == [1.0, 2.5, None]
    assert pairs["tags"][:] == [["a"], ["a"], None]
    assert pairs["mixed"][:] == ["1", '{"x": 1}', "é"]
    said = message_of(rows, columns={**names, "answer": "margin"})
    assert '"answer"' in said
    assert '"question", "win", "lose"' in said
    assert "second column" in message_of(rows, columns={**names, "gold": "prompt"})


def test_a_type_seen_late_holds_for_the_whole_column() -> None:
    rows = [pair(chosen=f"good {i}", n=2**60 + i, late=None) for i in range(1500)]
    rows += [pair(n=0.5, late=[1]), pair(n=None, late=[])]
    pairs = load_pairs(rows)
    assert pairs["n"][0] == 2.0**60
    assert pairs["n"][1500] == 0.5
    assert pairs["late"][1499:] == [None, [1], []]
    rows.append(pair(prompt=[USER]))
    pairs = load_pairs(rows)
    assert pairs["prompt"][0] == [{"role": "user", "content": "p"}]
    assert pairs["chosen"][1] == [{"role": "assistant", "content": "good 1"}]


def test_optional_columns_are_typed(tmp_path: Path) -> None:
    rows = [pair(margin=1, user_id=7, source="a"), pair(margin=None, user_id="x", source=None)]
    for source in (rows, write(tmp_path / "pairs.csv", rows), write(tmp_path / "pairs.jsonl", rows)):
        pairs = load_pairs(source)
        assert pairs.features["margin"].dtype == "float64"
        assert pairs.select_columns(["margin", "user_id", "source"]).to_list() == [
            {"margin": 1.0, "user_id": "7", "source": "a"},
            {"margin": None, "user_id": "x", "source": None},
        ]


CONVERSATIONS = {
    "explicit": ([USER], [GOOD], [BAD]),
    "mixed": ([USER], "hello", "go away"),
    "string prompt": ("hi", [GOOD], [BAD]),
    "repeated prompt": ("hi", [USER, GOOD], [USER, BAD]),
    "implicit": (None, [USER, GOOD], [USER, BAD]),
    "HH strings": (None, HH.format("hello"), HH.format("go away")),
    "extra keys": ([{**USER, "name": "Ann"}], [GOOD], [BAD]),
    "tuples and arrays": ((USER,), np.array([GOOD]), (BAD,)),
}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_every_conversation_has_one_normal_form(form: str) -> None:
    prompt, chosen, rejected = CONVERSATIONS[form]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if prompt is None:
        del row["prompt"]
    pairs = load_pairs([row])
    assert pairs.to_list() == [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}]
    assert load_pairs(pairs).to_list() == pairs.to_list(), "the normal form must load as itself"


def test_only_a_prompt_that_both_completions_repeat_is_taken_off() -> None:
    other = {**USER, "content": "other"}
    for chosen, rejected in (([USER, GOOD], [BAD]), ([USER, GOOD], [other, BAD]), ([other, GOOD], [other, BAD])):
        row = {"prompt": [USER], "chosen": chosen, "rejected": rejected}
        assert load_pairs([row]).to_list() == [row]


def test_implicit_prompt_is_the_longest_shared_beginning() -> None:
    # one conversation begins with the whole other: its completion must not be left empty
    row = {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}
    assert load_pairs([row]).to_list() == [{"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD, USER, BAD]}]
    turns = HH.format("one\n\nHuman: two\n\nAssistant:{}")
    first = load_pairs([{"chosen": turns.format(" x\n\ny "), "rejected": turns.format(" z")}])[0]
    assert [m["content"] for m in first["prompt"]] == ["hi", "one", "two"]
    assert first["chosen"] == [{"role": "assistant", "content": "x\n\ny"}]


def test_pandas_nullable_cells(tmp_path: Path) -> None:
    frame = pd.DataFrame([pair(user_id=7, margin=0.5), pair(user_id=None, margin=None)])
    frame = frame.astype({"prompt": "string", "user_id": "Int64", "margin": "Float64"})
    frame.to_parquet(tmp_path / "pairs.parquet")
    expected = [pair(user_id="7", margin=0.5), pair(user_id=None, margin=None)]
    assert load_pairs(frame.to_dict("records")).to_list() == expected
    assert load_pairs(tmp_path / "pairs.parquet").to_list() == expected
    assert load_pairs([pair(user_id=7.0), pair(user_id=float("nan"))])["user_id"][:] == ["7", None]
    assert 'row 1: column "chosen" is null' in message_of([pair(), pair(chosen=pd.NA)])


# ---- what is not

NO_PAIR = {
    'column "chosen" is missing': {"prompt": "p", "rejected": "bad"},
    'column "rejected" is missing': {"prompt": "p", "chosen": "bad"},
    'column "prompt" is null': pair(prompt=None),
    'column "chosen" is null': pair(chosen=float("nan")),
    'column "chosen" is neither': pair(chosen=3),
    'column "prompt" is neither': pair(prompt={"role": ["user"]}),
    'column "rejected" is empty': pair(rejected=" \n\t"),
    'column "chosen" is empty': pair(chosen=[{"role": "assistant", "content": " "}]),
    'column "rejected" equals chosen': pair(rejected="good"),
    'column "chosen" is an empty message list': pair(chosen=[]),
    'column "prompt" has a message without role or content': pair(prompt=[{"role": "user"}]),
    'column "rejected" has a message without role or content': pair(rejected=["bad"]),
    'column "chosen" has a message with an unknown role': pair(chosen=[{"role": "bot\n", "content": "x"}]),
    'column "chosen" has a message whose content': pair(chosen=[{"role": "assistant", "content": None}]),
    'column "chosen" does not end with an assistant turn': pair(chosen=[GOOD, USER]),
    'column "rejected" shares no beginning': {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "x"}, BAD]},
    'column "prompt" is missing': {"chosen": "good", "rejected": "bad"},
    'column "chosen" has no Assistant turn': {"chosen": "\n\nHuman: hi", "rejected": HH.format("x")},
    'column "chosen" is empty;': {"chosen": HH.format(" "), "rejected": HH.format("x")},
    'column "margin" is not a finite number': pair(margin="much"),
    'column "margin" is not a finite number; it is inf': pair(margin=float("inf")),
    'column "margin" is not a finite number; it is nan': pair(margin=float("nan")),
    'column "margin" is not a finite number; it is True': pair(margin=True),
    'column "user_id" is not a name': pair(user_id=[1]),
    'column "chosen" is not valid UTF-8': pair(chosen="half \ud800"),
    'column "rejected" is not valid UTF-8': pair(rejected=[{"role": "assistant", "content": "\udfff"}]),
    'column "note" is not valid UTF-8': pair(note="\udc80"),
    "the row is not an object": ["prompt", "chosen"],
}


@pytest.mark.parametrize("what", NO_PAIR)
@pytest.mark.parametrize("form", ["list", "jsonl", "json"])
def test_bad_row_is_named_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, form: str) -> None:
    rows = [pair(), pair(chosen="better"), NO_PAIR[what], pair(), NO_PAIR[what]]
    source = rows if form == "list" else write(tmp_path / f"pairs.{form}", rows)
    said = message_of(source)
    assert said.startswith("row 2")
    assert what in said
    assert "1 of the next 2 rows" in said
    assert form != "jsonl" or "pairs.jsonl (line 3)" in said
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(source, on_bad="skip", skipped_file=tmp_path / "skipped.jsonl")
    assert len(pairs) == 3
    assert describe(pairs)["skipped"] == describe(pairs.filter(lambda row: True))["skipped"] == 2
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == [2, 4]
    column = f'column "{listed[0]["column"]}"' if listed[0]["column"] else "the row"
    assert f"{column} {listed[0]['reason']}" in said
    assert "skipped 2 of 5 rows" in caplog.text


def test_warning_is_given_again_from_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    rows = [pair(), pair(chosen=""), pair(chosen=None), pair(rejected="")]
    for _ in range(2):
        caplog.clear()
        load_pairs(rows, on_bad="skip")
        (record,) = caplog.records
        assert '1 because column "chosen" is empty, 1 because column "chosen" is null' in record.getMessage()
        path = record.getMessage().rpartition("listed in ")[2]
        assert len(Path(path).read_text().splitlines()) == 3
        assert path.startswith(os.environ["HF_DATASETS_CACHE"])
    assert 'row 1: column "chosen" is empty' in message_of(rows)  # the skipped result is not taken for a sound one


def test_malformed_lines_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    good = json.dumps(pair()).encode()
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\n".join([good, b"", b"{oops", b"\xff" + good, good, b"9" * 5000, b"[" * 99999])
    )
    said = message_of(path)
    assert "row 1 of" in said
    assert "(line 3): the row is not valid JSON" in said
    assert "3 of the next 4 rows" in said
    pairs = load_pairs(path, on_bad="skip", skipped_file=tmp_path / "skipped.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(pairs) == 2
    assert [(entry["row"], entry["line"]) for entry in listed] == [(1, 3), (2, 4), (4, 6), (5, 7)]
    assert listed[1]["reason"] == "is not valid UTF-8 text"


def test_json_list_that_breaks_off_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    for end in ("", ", {oops}]", "} 3"):
        path.write_text(json.dumps(ROWS)[:-1] + end)
        assert f"row {30 if end.startswith(',') else 29} of" in message_of(path, on_bad="skip")
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert load_pairs(path).to_list() == ROWS


@pytest.mark.parametrize("chunk", [1, 2, 7, 10_000])
def test_json_list_is_read_alike_in_pieces_of_any_size(tmp_path: Path, chunk: int) -> None:
    values = [12, -3.5e7, True, None, 'a,]é\\"', [1, [2]], {"k": {"l": []}}, 0]
    for text in (json.dumps(values), json.dumps(values, indent=2), "\n [] "):
        (tmp_path / "list.json").write_text(text)
        assert [row.value for row in json_list(tmp_path / "list.json", chunk)] == json.loads(text)


def test_csv_faults(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(
        b'prompt,chosen,rejected\np,"good, and\nlong",bad\np,good\np,good,b\xffd\np,good,bad,more\np,"a"b,c\n'
    )
    said = message_of(path)
    assert "row 1 of" in said
    assert "(line 4): the row has a wrong number of cells" in said
    assert "3 of the next 3 rows" in said
    pairs = load_pairs(path, on_bad="skip", skipped_file=tmp_path / "skipped.jsonl")
    assert pairs["chosen"][:] == ["good, and\nlong"]
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == [1, 2, 3, 4]
    assert listed[1]["reason"] == "is not valid UTF-8 text"
    assert listed[1]["column"] == "rejected"
    path.write_text("prompt,chosen,prompt\n")
    assert "same name twice" in message_of(path)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["p", "x" * 200_000, "y"]])
    assert len(load_pairs(path)["chosen"][0]) == 200_000
    path.write_text('prompt,chosen,rejected\np,good,bad\np,"never closed,bad\np,good,bad\n')
    assert "row 1 of" in message_of(path)


def test_whole_file_faults_raise_in_either_mode(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "b.json", "c.csv"):
        (tmp_path / name).write_text({"b.json": " [ ]", "c.csv": "prompt,chosen,rejected\n"}.get(name, ""))
        for mode in ("error", "skip"):
            assert "is empty" in message_of(tmp_path / name, on_bad=mode)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    whole = gzip.compress(os.urandom(5000))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("bad.parquet", "bad.jsonl.gz", "cut.jsonl.gz"):
        assert f"{name} cannot be read" in message_of(tmp_path / name, on_bad="skip")
    (tmp_path / "a.txt").write_text("x")
    assert "ending that is not supported" in message_of(tmp_path / "a.txt")
    assert "is not there" in message_of(tmp_path / "none.jsonl")
    (tmp_path / "folder").mkdir()
    assert "has no file" in message_of(tmp_path / "folder")
    assert "dict" in message_of({"prompt": "p"})
    assert "is empty" in message_of([])
    assert "has no rows" in message_of(datasets.Dataset.from_list(ROWS).select([]))
    assert "on_bad" in message_of(ROWS, on_bad="drop")
    assert "limit" in message_of(ROWS, limit=0)


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", ROWS)
    with path.open("a") as file:
        file.write("\n{oops")
    assert load_pairs(path, limit=30).to_list() == ROWS
    assert len(load_pairs(path, limit=4)) == 4


# ---- caching


def test_a_changed_file_never_gives_old_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [pair(chosen="one")])
    date = path.stat().st_mtime_ns
    first = load_pairs(path)
    again = load_pairs(path)
    assert again.cache_files == first.cache_files, "an unchanged file must come from the cache"
    assert again._fingerprint == first._fingerprint, "or later map calls are not cached"
    write(path, [pair(chosen="two")])
    os.utime(path, ns=(date, date))  # same size, same date
    assert load_pairs(path)["chosen"][:] == ["two"]
    assert first["chosen"][:] == ["one"]
    rows = [pair(chosen="one", x=np.arange(5000))]
    assert load_pairs(rows)["x"][0][2500] == 2500
    rows[0]["x"][2500] = -1
    assert load_pairs(rows)["x"][0][2500] == -1
    assert load_pairs(rows, columns={"chosen": "rejected", "rejected": "chosen"})["chosen"][:] == ["bad"]


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message_of([pair(chosen="")])
    assert list((tmp_path / "penchant_pairs").iterdir()) == []
    pairs = load_pairs([pair()])
    assert Path(pairs.cache_files[0]["filename"]).is_relative_to(tmp_path)


def test_two_processes_may_make_the_same_pairs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def build_twice(*arguments: Any) -> None:
        build(*arguments)
        shutil.copytree(arguments[-1], arguments[-1].with_suffix(""))  # what the other process left meanwhile

    monkeypatch.setattr("penchant.pairs.build", build_twice)
    pairs = load_pairs([pair()])
    assert pairs.to_list() == [pair()]
    assert len(list((tmp_path / "penchant_pairs").iterdir())) == 1


MEMORY = """
import resource, sys
from penchant.pairs import load_pairs, prompt_groups, split_by_prompt
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
split_by_prompt(load_pairs(sys.argv[1], limit=5000))
before = peak()
pairs = load_pairs(sys.argv[1])
print(len(pairs), peak() - before)
"""


@pytest.mark.parametrize(("ending", "rows"), [("jsonl", 200_000), ("json", 60_000)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str, rows: int) -> None:
    path = tmp_path / f"pairs.{ending}"
    start, comma, stop = ("[", ",\n", "]") if ending == "json" else ("", "\n", "")
    with path.open("w") as file:
        for i in range(rows):
            row = {"prompt": f"question {i} " * 10, "chosen": f"yes {i} " * 20, "rejected": f"no {i} " * 20, "gold": i}
            file.write((comma if i else start) + json.dumps(row))
        file.write(stop)
    out = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True).stdout
    loaded, grown = out.split()
    assert int(loaded) == rows
    assert float(grown) < 40, f"{grown} MiB for a file of {path.stat().st_size >> 20} MiB"


# ---- anything at all

TEXT = st.text(max_size=6) | st.sampled_from(["", " ", "Human: a\n\nAssistant: b", "\ud800", "user", "assistant"])
NAMES = st.sampled_from(
    ["prompt", "chosen", "rejected", "margin", "user_id", "source", "role", "content", "_type", "x", ""]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "bot"]), "content": TEXT})
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXT, inner, max_size=3), max_leaves=5
)
CELLS = VALUES | TEXT | st.lists(MESSAGE, max_size=3)
PAIRS = st.fixed_dictionaries(
    {"chosen": CELLS, "rejected": CELLS},
    optional={"prompt": CELLS, "margin": SCALARS, "user_id": SCALARS, "source": SCALARS, "x": VALUES, "_type": VALUES},
)
DEEP = json.loads("[" * 200 + "]" * 200)


@settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PAIRS | VALUES, min_size=1, max_size=4), st.sampled_from(["jsonl", "json", "list"]))
@example([pair(x=DEEP)], "jsonl")
@example([pair(x={"_type": "Value"}), pair(x={"": 1})], "list")
def test_any_rows_load_or_name_the_first_bad_one(tmp_path: Path, rows: list[Any], form: str) -> None:
    if form == "list":
        source: Any = [*rows, 0]  # a list of strings alone would be a list of files
        rows = source
    else:
        source = tmp_path / f"pairs.{form}"
        source.write_text("\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows))
    skipped_file = tmp_path / "skipped.jsonl"
    kept = load_pairs(source, on_bad="skip", skipped_file=skipped_file)
    skipped = [json.loads(line)["row"] for line in skipped_file.read_text().splitlines()]
    assert len(kept) + len(skipped) == len(rows)
    for row in kept.to_list():
        assert to_text(row["chosen"]).strip()
        assert row["chosen"] != row["rejected"]
    if skipped:
        assert message_of(source).startswith(f"row {skipped[0]}")
    else:
        assert load_pairs(source).to_list() == kept.to_list()


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz"]))
def test_any_bytes_load_or_fail_with_one_sentence(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    path.write_bytes((b"prompt,chosen,rejected\np,a,b\n" if ending == "csv" else b"") + content)
    for mode in ("error", "skip"):
        try:
            load_pairs(path, on_bad=mode)  # type: ignore[arg-type]
        except InputError as error:
            said = str(error)
        else:
            continue
        assert said.splitlines() == [said]
        assert str(path) in said


# ---- groups, splits, words


def test_split_keeps_prompts_apart_and_rows_in_order() -> None:
    pairs = load_pairs([pair(prompt=f"p{i % 50}", chosen=f"good {i}", n=i) for i in range(400)])
    train, test = split_by_prompt(pairs, test=0.2, seed=3)
    assert set(train["prompt"]).isdisjoint(test["prompt"])
    assert len(set(test["prompt"])) == 10
    assert sorted(train["n"][:] + test["n"][:]) == list(range(400))
    assert train["n"][:] == sorted(train["n"]) != test["n"][:] == sorted(test["n"])
    assert split_by_prompt(pairs, test=0.2, seed=3)[1].to_list() == test.to_list()
    assert set(split_by_prompt(pairs, seed=4)[1]["prompt"]) != set(test["prompt"])
    shuffled = pairs.shuffle(seed=0)
    assert set(split_by_prompt(shuffled, seed=3)[1]["prompt"]) == set(test["prompt"])
    assert len(split_by_prompt(pairs, test=0.001)[1]) == 8
    for share in (0, 1, 1.5, float("nan")):
        with pytest.raises(InputError, match="share"):
            split_by_prompt(pairs, test=share)
    with pytest.raises(InputError, match="2 different prompts"):
        split_by_prompt(load_pairs([pair()]))


def test_prompt_groups_number_prompts_not_rows() -> None:
    prompts = ["a", "b", "a", "", "a ", "b"]
    groups = prompt_groups(load_pairs([pair(prompt=p) for p in prompts]))
    assert groups.dtype == np.int64
    assert [[a == b for b in groups] for a in groups] == [[a == b for b in prompts] for a in prompts]
    as_messages = prompt_groups(load_pairs([pair(prompt=[{"role": "user", "content": p}]) for p in prompts]))
    assert groups.tolist() == as_messages.tolist()
    assert groups[0] == 4212762828907284394  # stable from one version to the next: stored latents carry it
    roles = [pair(prompt=[{"role": role, "content": "a"}]) for role in ("user", "system")]
    assert len(set(prompt_groups(load_pairs(roles)))) == 2


def test_describe_and_to_text() -> None:
    pairs = load_pairs([pair(source="a"), pair(source="a", prompt="q"), pair(source=None)])
    assert describe(pairs) == {"pairs": 3, "prompts": 2, "sources": {"a": 2}, "skipped": 0}
    assert describe(datasets.Dataset.from_list(ROWS)) == {"pairs": 30, "prompts": 7, "sources": {}, "skipped": 0}
    assert to_text("hi") == to_text([USER]) == "hi"
    assert to_text([USER, GOOD]) == "user: hi\n\nassistant: hello"


# ---- real data


@pytest.mark.parametrize(
    ("name", "rows", "prompts"),
    [("hh/test", 1013, 1013), ("science/novelty.test", 1213, 398), ("llmbar/test", 1191, 1067)],
)
def test_real_pairs(shared_data: Path, name: str, rows: int, prompts: int) -> None:
    path = shared_data / f"{name}.jsonl.gz"
    pairs = load_pairs(path)
    told = describe(pairs)
    assert (told["pairs"], told["prompts"], told["skipped"]) == (rows, prompts, 0)
    with gzip.open(path, "rt") as file:
        originals = [json.loads(line) for line in file]
    for ours, original in zip(pairs, originals, strict=True):
        assert {name: ours[name] for name in original} == original
    train, test = split_by_prompt(pairs)
    assert not set(prompt_groups(train)) & set(prompt_groups(test))
