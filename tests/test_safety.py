"""No pickle, no code from files, no name that leads out of its folder: the source is walked, loaders are lied to."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from penchant import InputError, LinearHead, RewardModel, load_pairs
from penchant.backbone import load_llm
from penchant.heads import load_head
from penchant.latents import LatentPairs, Recipe
from penchant.personal import saving as personal_saving
from penchant.personal.reading import load_z
from penchant.policy import saving as policy_saving
from penchant.reward_model import FILE
from penchant.saved import MOST_JSON, read_json, read_tensors, within
from penchant.store_admin import STATES, TRUNKS, list_stores, prune
from tests.tiny_llm import save_tiny_llm, tiny_pairs

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for folder in ("penchant", "benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py"))

# --- What the source may not say

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "pickletools"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("torch.save", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
    *("tempfile.mktemp", "shutil.unpack_archive", "tarfile.open", "pd.read_pickle", "pandas.read_pickle"),
}
METHODS = {"extractall", "to_pickle", "read_pickle"}


def offences(tree: ast.AST, file: str = "") -> Iterator[str]:
    """What is forbidden in some source: pickle in any dress, code from data, a shell, archives unpacked whole."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"import {name}" for name in names if name.partition(".")[0] in PICKLES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        method = called.rpartition(".")[2]
        if called in CALLS or called in BUILTINS or ("." in called and method in METHODS):
            yield called
        if called == "torch.load" and told.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if told.get("allow_pickle", "False") != "False" or told.get("shell", "False") != "False":
            yield f"{called}: allow_pickle or shell"
        if told.get("trust_remote_code") == "True":
            yield f"{called}: trust_remote_code=True"
        if method == "from_pretrained" and re.match(r"(transformers\.)?Auto", called):
            safe = told.get("use_safetensors") == "True" or "gguf_file" in told or "Tokenizer" in called
            if not safe and file != "penchant/backbone.py":  # its load_llm is tried below
                yield f"{called} without use_safetensors=True"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_pickle_and_no_code_from_data(file: Path) -> None:
    assert list(offences(ast.parse(file.read_text(encoding="utf-8")), str(file.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.externals",
        "from cloudpickle import dumps",
        "def f():\n    import marshal",
        "torch.save(x, path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wish)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run(text, shell=True)",
        "tempfile.mktemp()",
        "archive.extractall(folder)",
        "frame.to_pickle(path)",
        "load(name, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(name)",
    ],
)
def test_the_walk_finds_what_it_looks_for(source: str) -> None:
    assert list(offences(ast.parse(source)))


def test_the_walk_lets_be_what_is_harmless() -> None:
    source = "model.eval()\nre.compile(x)\ntorch.load(x, weights_only=True)\nnp.load(x)\nyaml.safe_load(x)\nzip(a, b)"
    assert len(FILES) > 200
    assert list(offences(ast.parse(source))) == []


# --- Names that lead elsewhere

DEEP = "[" * 200_000 + "]" * 200_000


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("safety") / "llm")


@pytest.fixture
def copy(llm: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llm, tmp_path / "llm")


def test_a_name_stays_in_its_folder(tmp_path: Path) -> None:
    folder, file = tmp_path / "here", tmp_path / "here" / "config.json"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "within").symlink_to(folder / "below")
    for name in ("below", "below/file", "within/file", "new.safetensors"):
        assert within(folder, name, file) == folder / name
    for name in ("../secret", "below/../../secret", str(tmp_path / "secret"), "link", "..", "", "a\0b", None, 3, ["a"]):
        with pytest.raises(InputError, match="not a file in its own folder"):
            within(folder, name, file)


def test_the_hubs_cache_links_to_its_own_blobs_alone(tmp_path: Path) -> None:
    shot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (shot, blobs, tmp_path / "models--x--y" / "blobs"):
        folder.mkdir(parents=True)
    (blobs / "1").touch()
    (shot / "model").symlink_to("../../blobs/1")
    (shot / "other").symlink_to("../../../models--x--y/blobs/1")
    assert within(shot, "model", shot / "index") == shot / "model"
    for name in ("other", "../../blobs/1"):
        with pytest.raises(InputError, match="not a file in its own folder"):
            within(shot, name, shot / "index")


@pytest.mark.parametrize("shard", ["../stolen.safetensors", "/stolen.safetensors", "link.safetensors"])
def test_an_index_of_shards_names_files_beside_it(shard: str, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "stolen.safetensors")
    (copy / "link.safetensors").symlink_to(copy.parent / "stolen.safetensors")
    named = str(copy.parent / "stolen.safetensors") if shard[0] == "/" else shard
    names = load_file(copy.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, named)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not a file in its own folder"):
        load_llm(str(copy), "float32")


def test_a_pickled_llm_is_refused_and_not_run(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"weight": Hostile(copy / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load the backbone"):
        load_llm(str(copy), "float32")
    assert not (copy / "ran").exists()
    torch.save({"weight": torch.zeros(2)}, copy / "pytorch_model.bin")  # not even one without code
    with pytest.raises(InputError, match=r"cannot load the backbone.*safetensors"):
        load_llm(str(copy), "float32")


def test_an_llm_that_sends_to_another_is_refused(copy: Path) -> None:
    facts = {"peft_type": "LORA", "base_model_name_or_path": "someone/elses"}
    (copy / "adapter_config.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="adapters of another LLM"):
        load_llm(str(copy), "float32")


CODE = {"auto_map": {"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil.X"}, "model_type": "evil"}


@pytest.mark.parametrize(
    "changes",
    [CODE, {"transformers_weights": "../stolen.safetensors"}, {"hidden_size": "x"}, {"model_type": "../x"}, None],
    ids=["code", "weights elsewhere", "a size that is none", "a type that is a path", "deep JSON"],
)
def test_an_llm_whose_config_lies_is_one_sentence(changes: dict[str, Any] | None, copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\nX = None")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(DEEP if changes is None else json.dumps(config | changes))
    with pytest.raises(InputError, match="cannot load the backbone") as error:
        load_llm(str(copy), "float32")
    assert "\n" not in str(error.value)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\0" * 7 + b"\x10" * 9, b"GGUF\3\0\0\0" + b"\xfa" * 99]
)
def test_a_gguf_file_that_lies_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "llm.gguf").write_bytes(content)
    with pytest.raises(InputError, match="cannot load the backbone"):
        load_llm(str(tmp_path / "llm.gguf"), "float32")


POLICY = {"loss": "dpo", "base": "base", "asked_revision": None, "revision": "r", "dtype": "float32"}
POLICY |= {"max_length": 64, "lora": {"rank": 2}, "latent": None}


def test_a_policys_adapters_are_safetensors(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(POLICY))
    torch.save({"weight": Hostile(tmp_path / "ran")}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        policy_saving.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_policy_that_lacks_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: POLICY[name] for name in POLICY if name != "dtype"}))
    with pytest.raises(InputError, match="lacks dtype"):
        policy_saving.read_config(tmp_path)


def test_a_personal_systems_own_llm_lies_in_its_folder(tmp_path: Path) -> None:
    facts = {"llm": "../elsewhere", "llm_revision": "r", "dtype": "float32", "max_length": 64}
    with pytest.raises(InputError, match="elsewhere"):
        personal_saving.load_llm(facts, tmp_path)


def test_a_saved_data_set_reads_its_own_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list(tiny_pairs(4)).save_to_disk(str(tmp_path / "mine"))
    assert len(load_pairs(tmp_path / "mine")) == 4
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    state = json.loads((tmp_path / "theirs" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../mine/data-00000-of-00001.arrow"}]
    (tmp_path / "theirs" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="not a file in its own folder"):
        load_pairs(tmp_path / "theirs")
    (tmp_path / "theirs" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no data set that can be read"):
        load_pairs(tmp_path / "theirs")


def test_prune_does_not_follow_links(tmp_path: Path) -> None:
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    store = outside / ("0" * 32)
    store.mkdir(parents=True)
    (cache / "real").mkdir(parents=True)
    for file in (outside / f"a{STATES}", store / "recipe.json", store / f"b{STATES}"):
        file.write_text("{}")
    (cache / TRUNKS).symlink_to(outside)
    (cache / store.name).symlink_to(store)
    assert list_stores(cache) == []
    assert prune(cache, everything=True) == []
    assert sorted(file.name for file in outside.rglob("*")) == ["0" * 32, f"a{STATES}", f"b{STATES}", "recipe.json"]


# --- Files that lie about what they hold


@pytest.fixture(scope="module")
def head_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 20, 4)).astype(np.float32)
    recipe = Recipe("model", "revision", ("1:mean",), 4, "none", 512, "float32")
    rm = RewardModel.fit(LatentPairs(chosen, rejected, rejected, recipe, np.arange(20)), LinearHead(strength=1.0))
    rm.save_pretrained(tmp_path_factory.mktemp("head"))
    return next(tmp_path_factory.getbasetemp().glob("head*"))


Change = Callable[[Path], Any]


def edited(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | changes))

    return change


def header(size: int, text: bytes = b"{}") -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text)


def huge(folder: Path) -> None:
    text = json.dumps({"weight_": {"dtype": "F64", "shape": [2**57], "data_offsets": [0, 2**60]}}).encode()
    header(len(text), text)(folder)


def weights(value: float) -> Change:
    return lambda folder: save_file({"weight_": np.full(4, value)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(header(2**60), id="a header of 2^60 bytes"),
        pytest.param(huge, id="a tensor of 2^60 bytes"),
        pytest.param(weights(np.nan), id="NaN"),
        pytest.param(weights(np.inf), id="inf"),
        pytest.param(edited("config.json", surprise=1), id="an unknown argument"),
        pytest.param(edited("config.json", learned={"score": 1}), id="a method replaced"),
        pytest.param(edited("config.json", head=["linear"]), id="a head that is a list"),
        pytest.param(lambda folder: (folder / "config.json").write_text(DEEP), id="deep JSON"),
        pytest.param(edited(FILE, temperature=float("nan")), id="no temperature"),
        pytest.param(edited(FILE, facts=[]), id="facts that are a list"),
        pytest.param(edited(FILE, recipe={"model": "m", "surprise": 1}), id="an unknown key of the recipe"),
        pytest.param(lambda folder: (folder / FILE).write_text(DEEP), id="deep JSON beside the head"),
    ],
)
def test_a_reward_model_that_lies_is_one_sentence(change: Change, head_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(head_folder, tmp_path / "rm")
    assert RewardModel.from_pretrained(folder).head.name == "linear"
    change(folder)
    with pytest.raises(InputError, match="save the model again") as error:
        RewardModel.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_head_by_itself_is_checked_as_well(head_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(head_folder, tmp_path / "rm")
    weights(np.nan)(folder)
    with pytest.raises(InputError, match="NaN or inf in weight_"):
        load_head(folder)


def test_tensors_and_json_are_checked_for_what_they_are(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 8, b"[]", b"null", b'"a"'):
        (tmp_path / "file").write_bytes(content)
        for read in (read_json, read_tensors):
            with pytest.raises(InputError, match=r"missing or damaged.*; cure"):
                read(tmp_path / "file", "cure")  # type: ignore[operator]
    os.truncate(tmp_path / "file", MOST_JSON + 1)
    with pytest.raises(InputError, match="larger than 256 MB"):
        read_json(tmp_path / "file", "cure")
    save_file({"keys": np.zeros((2, 16), np.uint8), "z": np.zeros((1, 4), np.float32)}, tmp_path / "file")
    with pytest.raises(InputError, match="a key for each z"):
        load_z(tmp_path / "file")


# --- More than it seems


def test_a_gzip_bomb_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.gunzip.SANE", 1 << 16)
    rows = "".join(json.dumps(row) + "\n" for row in tiny_pairs(400))
    with gzip.open(tmp_path / "good.jsonl.gz", "wt") as file:
        file.write(rows * 3)  # repeated text packs well, and more than SANE
    assert len(rows) * 3 > 1 << 16
    assert len(load_pairs(tmp_path / "good.jsonl.gz")) > 0
    for name in ("bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"):
        with gzip.open(tmp_path / name, "wb") as packed:
            packed.write(b"[" if "json.gz" in name else b"")
            packed.write(b'"' + b"a" * (1 << 22))
        with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
            load_pairs(tmp_path / name)


def test_a_row_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.pair_files.LONGEST", 1 << 16)
    row = json.dumps({**tiny_pairs(2)[0], "prompt": "a" * (3 << 20)})
    for name, text in (("long.jsonl", row), ("long.json", f"[{row}]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"(line 1|row 0) of .* is longer than"):
            load_pairs(tmp_path / name)


def test_security_md_names_files_and_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []
    files = [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r"\btests/[\w/]+\.py\b", text)]
    assert [file for file in files if not (ROOT / file).exists()] == []
