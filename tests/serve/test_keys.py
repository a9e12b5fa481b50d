"""API keys: several, kept as hashes, added and revoked while the server runs."""

from __future__ import annotations

import json
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penchant.cli.main import main
from penchant.errors import InputError, PenchantError
from penchant.serve.keys import Keys
from penchant.serve.server import check_host, listen, url_of
from tests.serve.conftest import Serve

BODY = {"prompt": "a", "responses": ["b"]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_open_the_server_until_they_are_revoked(served: Serve, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json", make=True)
    ann, bob = keys.add("ann"), keys.add("bob")
    client = served(keys=Keys(tmp_path / "keys.json"))
    for headers in ({}, bearer("pk-wrong"), {"Authorization": ann}, bearer(""), {"Authorization": f"Basic {ann}"}):
        answer = client.post("/score", json=BODY, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/metrics", "/openapi.json", "/nowhere"):
        assert client.get(path).status_code == 401
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.post("/score", json=BODY, headers=bearer(ann)).status_code == 200
    keys.revoke("ann")
    assert client.post("/score", json=BODY, headers=bearer(ann)).status_code == 401
    assert client.post("/score", json=BODY, headers=bearer(bob)).status_code == 200
    assert client.post("/score", json=BODY, headers=bearer(keys.add("cleo"))).status_code == 200
    keys.path.rename(tmp_path / "good.json")
    keys.path.write_text("{", encoding="utf-8")
    assert client.post("/score", json=BODY, headers=bearer(bob)).status_code == 503
    keys.path.rename(tmp_path / "broken.json")
    (tmp_path / "good.json").rename(keys.path)  # the very file that was there before
    assert client.post("/score", json=BODY, headers=bearer(bob)).status_code == 200
    keys.path.unlink()
    assert client.post("/score", json=BODY, headers=bearer(bob)).status_code == 401
    assert client.get("/openapi.json").status_code == 401


def test_only_hashes_are_kept(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json", make=True)
    key = keys.add("ann")
    text = keys.path.read_text(encoding="utf-8")
    assert key not in text
    assert key.removeprefix("pk-") not in text
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert Keys(keys.path).name_of(key) == "ann"
    assert [entry["name"] for entry in json.loads(text)["keys"]] == ["ann"]


@pytest.mark.parametrize("sha256", ["é", "", "0" * 63, "G" * 64])
def test_a_hash_that_is_none_is_no_key(tmp_path: Path, sha256: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "ann", "sha256": sha256, "made": ""}]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"'ann' is not 64 hex digits.*move it away first"):
        Keys(file)


def test_where_it_listens() -> None:
    for port in (70_000, -1):
        with pytest.raises(PenchantError, match="choose another --port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP  # asyncio sends small answers at once for this one only
        port = sock.getsockname()[1]
        assert url_of("127.0.0.1", sock) == f"http://127.0.0.1:{port}"
        assert url_of("::1", sock) == f"http://[::1]:{port}"


@pytest.mark.parametrize(
    ("option", "says"), [("--cache_mb", "at least 0"), ("--timeout", "above 0"), ("--max_items", "1")]
)
def test_amounts_have_bounds(option: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "-1" if option == "--cache_mb" else "0"
    assert main(["serve", "nothing", option, wrong]) == 2
    assert f"{option} is too small; give " in (told := capsys.readouterr().err)
    assert says in told


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    check_host("127.0.0.1", None)
    for none in (None, Keys(tmp_path / "none.json", make=True)):
        with pytest.raises(InputError, match="so keys are needed"):
            check_host("0.0.0.0", none)
    some = Keys(tmp_path / "keys.json", make=True)
    some.add("ann")
    check_host("0.0.0.0", some)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["keys", "add", "ann", "--file", file]) == 0
    assert Keys(file).name_of(capsys.readouterr().out.strip()) == "ann"
    assert main(["keys", "add", "ann", "--file", file]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["keys", "list", "--file", file]) == 0
    assert capsys.readouterr().out.split()[-1] == "ann"
    assert main(["keys", "revoke", "bob", "--file", file]) == 2
    assert main(["keys", "revoke", "ann", "--file", file]) == 0
    assert main(["keys", "list", "--file", str(tmp_path / "none.json")]) == 2
    capsys.readouterr()
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["serve", str(tmp_path), "--keys", str(tmp_path / "none.json")]) == 2
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "there is no reward model" in capsys.readouterr().err


def test_two_writers_do_not_undo_each_other(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    Keys(file, make=True).add("revoked")
    start = threading.Barrier(4)

    def write(who: int) -> list[str]:
        keys = Keys(file)
        start.wait()
        if not who:
            keys.revoke("revoked")
        return [keys.add(f"{who}-{i}") for i in range(8)]

    with ThreadPoolExecutor(4) as pool:
        made = [key for keys in pool.map(write, range(4)) for key in keys]
    assert sorted(name for name, _ in Keys(file).names()) == sorted(f"{who}-{i}" for who in range(4) for i in range(8))
    assert all(map(Keys(file).name_of, made))
    assert stat.S_IMODE((tmp_path / "keys.json.lock").stat().st_mode) == 0o600
