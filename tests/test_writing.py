"""Files that are whole or refused: a changed bit anywhere, a disk that refuses, a save that did not come to its end."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from penchant.errors import InputError, PenchantError
from penchant.writing import (
    SEAL,
    alone,
    broken_seal,
    check_seal,
    read_tensors,
    refusal,
    save_tensors,
    saving,
    seal,
    write_text,
    writing,
)

TENSORS = {
    "a": torch.arange(12.0).view(3, 4).T,
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "one": torch.tensor(3),
}


def test_tensors_come_back_bit_for_bit_and_no_changed_bit_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    save_tensors(path, TENSORS, {"facts": "{}"})
    found, metadata = read_tensors(path)
    assert metadata == {"facts": "{}"}
    assert found.keys() == TENSORS.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in TENSORS.items())
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    content, rng = path.read_bytes(), random.Random(0)
    for place in range(8, len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            again, told = read_tensors(path)
        except ValueError:
            continue
        # A space of the header may be another space; then nothing has changed.
        assert told == metadata
        assert all(torch.equal(again[name], value) for name, value in TENSORS.items()), place
    for cut in range(0, len(content), 17):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r".+"):
            read_tensors(path)
    save_file(found, path, {"facts": "{}"})
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(path)


def test_what_a_disk_refuses_is_one_sentence_and_any_other_error_itself(tmp_path: Path) -> None:
    refusals = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 21376 vs 21268"),
    ]
    for error in refusals:
        with pytest.raises(PenchantError, match=r"cannot be written .*make room") as caught, writing(tmp_path):
            raise error
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert refusal(refusals[1]) == os.strerror(errno.ENOSPC)
    for other in (
        FileNotFoundError(errno.ENOENT, "gone"),
        RuntimeError("shapes"),
        SafetensorError("header"),
        KeyError(),
    ):
        with pytest.raises(type(other)), writing(tmp_path):
            raise other


def test_a_text_takes_its_place_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    write_text(path, "one")
    monkeypatch.setattr(os, "replace", _refused)
    with pytest.raises(PenchantError, match="No space"):
        write_text(path, "two")
    assert [each.name for each in tmp_path.iterdir()] == ["text"]
    assert path.read_text() == "one"


def _refused(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save(folder: Path, word: str) -> None:
    with saving(folder) as new:
        for name in ("a", "deep/b", "README.md"):
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(f"{word} {name}")


def test_a_folder_is_the_old_one_the_new_one_or_refused_whenever_saving_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.replace, set()
    for step in range(20):
        folder = tmp_path / str(step)
        save(folder, "old")
        (folder / "notes").write_text("mine")
        calls = [0]

        def replace(a: Any, b: Any, calls: list[int] = calls, step: int = step) -> None:
            if calls[0] == step:
                raise KeyboardInterrupt
            calls[0] += 1
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                save(folder, "new")
                finished = True
            except KeyboardInterrupt:
                finished = False
        words = {(folder / name).read_text().split()[0] for name in ("a", "deep/b")}
        if broken_seal(folder) is None:
            check_seal(folder, "save it again")
            assert len(words) == 1
            seen |= words
        else:
            with pytest.raises(InputError, match="was not saved to the end; save it again"):
                check_seal(folder, "save it again")
            seen.add("refused")
        assert (folder / "notes").read_text() == "mine"
        assert not list(folder.glob(".tmp*"))
        if finished:
            assert words == {"new"}
            break
    assert seen == {"old", "new", "refused"}


def test_a_full_disk_leaves_what_was_saved_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "old")
    monkeypatch.setattr("penchant.writing.seal", _refused)
    with pytest.raises(PenchantError, match="cannot be written"):
        save(tmp_path, "new")
    assert broken_seal(tmp_path) is None
    assert (tmp_path / "a").read_text() == "old a"


def test_a_folder_is_one_processs_until_it_ends(tmp_path: Path) -> None:
    code = f"""
import sys; from pathlib import Path; from penchant.writing import alone
with alone(Path({str(tmp_path)!r})):
    print("mine", flush=True); sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    with pytest.raises(PenchantError, match=f"another process is at work in {tmp_path}; wait"), alone(tmp_path):
        pass
    start = time.monotonic()
    ending = threading.Timer(0.5, process.kill)
    ending.start()
    with alone(tmp_path, patience=60):
        assert time.monotonic() - start >= 0.5
    ending.join()
    assert process.wait() == -signal.SIGKILL


def test_a_seal_covers_every_file_but_the_card(tmp_path: Path) -> None:
    save(tmp_path, "one")
    assert json.loads((tmp_path / SEAL).read_text()).keys() == {"a", "deep/b"}
    (tmp_path / "README.md").write_text("mine")
    check_seal(tmp_path, "")
    for name in ("a", "deep/b"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept[:-1] + b"?")
        assert broken_seal(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
        assert broken_seal(tmp_path) == tmp_path / name
        (tmp_path / name).write_bytes(kept)
    for text in ("", "[1]", "{", '{"a": 3}'):
        (tmp_path / SEAL).write_text(text)
        assert broken_seal(tmp_path) is not None
    (tmp_path / SEAL).unlink()
    check_seal(tmp_path, "")  # an older version's
    seal(tmp_path, ["a"])
    (tmp_path / "deep" / "b").unlink()
    assert broken_seal(tmp_path) is None


@pytest.mark.parametrize("text", ['[[1, "a"]]', "[" * 200_000, '{"a": 1}', '{"../x": "00"}', '{"/dev/zero": "00"}', ""])
def test_a_seal_that_lies_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / SEAL).write_text(text)
    with pytest.raises(InputError, match=rf"{SEAL} is damaged, or was not saved to the end; save it again"):
        check_seal(tmp_path, "save it again")
