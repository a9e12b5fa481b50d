"""Published SAEs that are damaged, contradictory, hostile, or one of several; and what is fetched from the hub."""

from __future__ import annotations

import fnmatch
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penchant.errors import InputError
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.formats import LAYOUTS, load_sae, save_sae
from penchant.writing import SEAL
from tests.test_sae_formats import (
    D,
    K,
    M,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    sparsify,
    states,
    write_json,
)


def saelens(root: Path) -> tuple[Path, None]:
    folder = save_sae(SparseAutoencoder.random(SAEConfig(D, M, k=K, layer=3)), root / "me" / "sae" / "blocks.2")
    (folder / SEAL).unlink()  # as others save it
    return folder, None


WRITERS = [saelens, gemma_scope, gemma_scope_2, llama_scope, sparsify, dictionary_learning]
MARKERS = dict(zip(WRITERS, LAYOUTS, strict=True))


def one_sentence(folder: Path | str, words: str = ".") -> str:
    with pytest.raises(InputError, match=words) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=WRITERS, ids=lambda write: write.__name__)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Folder and file of weights of one SAE in each layout."""
    folder, _ = request.param(tmp_path)
    return folder, folder / MARKERS[request.param]


def change(path: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace tensors in a file of weights of any layout, or take them out; they are named by what they start with."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    else:
        found = torch.load(path) if path.suffix == ".pt" else load_file(path)
    for start, tensor in changes.items():
        name = next(name for name in found if name.lower().startswith(start))
        del found[name]
        if tensor is not None:
            found[name] = tensor
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in found.items()})
    elif path.suffix == ".pt":
        torch.save(found, path)
    else:
        save_file(found, path)


def test_what_is_not_finite_is_refused(written: tuple[Path, Path]) -> None:
    folder, path = written
    encoder = load_sae(folder).W_enc.detach().clone()
    shape = (D, M) if path.name in ("sae_weights.safetensors", "params.npz", "params.safetensors") else (M, D)
    start = "w_enc" if shape == (D, M) else "encoder.weight"
    for bad in (torch.nan, torch.inf):
        encoder[1, 2] = bad
        change(path, {start: encoder.reshape(shape)})
        one_sentence(folder, "W_enc in .* not finite")


def test_a_missing_tensor_is_named(written: tuple[Path, Path]) -> None:
    folder, path = written
    change(path, {"b_dec" if path.name != "final.safetensors" else "decoder.bias": None})
    one_sentence(folder, "has no (b_dec|decoder.bias), only ")


def test_shapes_that_contradict_each_other_are_refused(written: tuple[Path, Path]) -> None:
    folder, path = written
    bias = "encoder.bias" if path.name in ("final.safetensors", "sae.safetensors", "ae.pt") else "b_enc"
    change(path, {bias: torch.zeros(M + 1)})
    one_sentence(folder, f"b_enc in .* is {M + 1}, where {M} belongs")


@pytest.mark.parametrize("write", [saelens, llama_scope, sparsify, dictionary_learning])  # the others record none
def test_shapes_that_contradict_the_config_are_refused(write: Any, tmp_path: Path) -> None:
    folder, _ = write(tmp_path)
    config = next(file for file in folder.iterdir() if file.suffix == ".json")
    right, sizes = config.read_text(), (D, 3 if write is sparsify else M)  # sparsify has expansion_factor
    for size in sizes:
        wrong = re.sub(rf": {size}(?=[,}}\n])", f": {size + 1}", right)
        assert wrong != right
        config.write_text(wrong)
        one_sentence(folder, "belongs; its files are not of one SAE")


def test_damage_is_one_sentence(written: tuple[Path, Path]) -> None:
    folder, path = written
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:20], b"", b"\xff" * 100):
        path.write_bytes(part)
        one_sentence(folder, "damaged")
    path.write_bytes(whole)
    for config in folder.glob("*.json"):
        right = config.read_text()
        for wrong in (b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000):
            config.write_bytes(wrong)
            one_sentence(folder, "fetch the SAE again")
        config.write_text(right)
        if path.name != "params.safetensors":
            config.write_text("{}")
            one_sentence(folder, "fetch the SAE again|give k|what can be read")
            config.unlink()
            one_sentence(folder, "missing")
            config.write_text(right)
    load_sae(folder)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    folder, _ = dictionary_learning(tmp_path)
    for content in ({"encoder.weight": Hostile(tmp_path / "ran")}, Hostile(tmp_path / "ran")):
        torch.save(content, folder / "ae.pt")
        one_sentence(folder, "more than tensors")
        (folder / "ae.pt").write_bytes(pickle.dumps(content))
        one_sentence(folder, "more than tensors")
    torch.save({"encoder.weight": 3}, folder / "ae.pt")
    one_sentence(folder, "more than tensors by name")
    gemma, _ = gemma_scope(tmp_path)
    np.savez(gemma / "params.npz", W_enc=np.array([Hostile(tmp_path / "ran")], dtype=object), allow_pickle=True)
    one_sentence(gemma, "damaged")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("write", "changes", "words"),
    [
        (sparsify, {"signed": True}, "asks for signed"),
        (sparsify, {"transcode": True, "skip_connection": True}, "asks for transcode, skip_connection"),
        (sparsify, {"activation": "groupmax"}, "asks for groupmax"),
        (sparsify, {"k": float("nan")}, "k in .* is nan, not a finite number"),
        (llama_scope, {"hook_point_out": "blocks.15.hook_mlp_out"}, "a transcoder from"),
        (llama_scope, {"hook_point_in": "blocks.15.hook_mlp_out", "hook_point_out": None}, "residual stream"),
        (llama_scope, {"hook_point_in": None}, "no hook_point_in"),
        (llama_scope, {"use_glu_encoder": True}, "use_glu_encoder"),
        (llama_scope, {"act_fn": "gelu"}, "'gelu'"),
        (llama_scope, {"norm_activation": "token-wise"}, "token-wise"),
        (llama_scope, {"dataset_average_activation_norm": {"in": 0.0}}, "one mean length"),
        (llama_scope, {"dataset_average_activation_norm": {"in": 2.0, "out": 3.0}}, "one mean length"),
        (gemma_scope_2, {"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"}, "residual stream"),
        (gemma_scope_2, {"hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output"}, "resid_post"),
        (gemma_scope_2, {"architecture": "gated"}, "'gated'"),
        (dictionary_learning, {"trainer": {"dict_class": "GatedAutoEncoder"}}, "'GatedAutoEncoder'"),
        (dictionary_learning, {"trainer": [1]}, "not an object"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(write: Any, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder, _ = write(tmp_path)
    config = next(file for file in folder.iterdir() if file.suffix == ".json")
    write_json(config, json.loads(config.read_text()) | changes)
    one_sentence(folder, words)


def test_an_sae_with_a_linear_path_around_it_is_refused(tmp_path: Path) -> None:
    for write, name, words in (
        (sparsify, "W_skip", "asks for W_skip"),
        (gemma_scope_2, "affine_skip_connection", "not of the residual stream"),
    ):
        folder, _ = write(tmp_path)
        path = folder / MARKERS[write]
        save_file(load_file(path) | {name: torch.eye(D)}, path)
        one_sentence(folder, words)


@pytest.mark.parametrize("part", ["layers.3.mlp", "embed_tokens", "h.3.attn", "layers_3_mlp"])
def test_sparsify_of_another_place(part: str, tmp_path: Path) -> None:
    one_sentence(sparsify(tmp_path, part)[0], f"'{part}', and only the residual stream")
    for name, layer in (("h-3", None), ("model.layers.3", 4), ("h.3", 4), ("layers_3", 4)):
        assert load_sae(sparsify(tmp_path, name)[0]).config.layer == layer


def test_gemma_scope_of_another_place(tmp_path: Path) -> None:
    folder, _ = gemma_scope(tmp_path)
    for repository in ("gemma-scope-9b-pt-mlp", "gemma-scope-2b-pt-att"):
        shutil.copytree(folder, tmp_path / repository / "layer_20")
        one_sentence(tmp_path / repository / "layer_20", "not of the residual stream")
    folder, _ = gemma_scope_2(tmp_path)
    (folder / "config.json").unlink()
    assert load_sae(folder).config.layer == 14
    shutil.copytree(folder, tmp_path / "attn_out" / "layer_13")
    one_sentence(tmp_path / "attn_out" / "layer_13", "resid_post")


def test_a_latent_may_be_switched_off_by_an_infinite_threshold(tmp_path: Path) -> None:
    folder, _ = gemma_scope(tmp_path)
    change(folder / "params.npz", {"threshold": torch.full((M,), torch.inf)})
    assert not load_sae(folder).encode(states()).any()
    change(folder / "params.npz", {"threshold": torch.full((M,), torch.nan)})
    one_sentence(folder, "threshold in .* not finite")


def test_a_folder_of_several_says_which_in_order_of_number(tmp_path: Path) -> None:
    for layer in (12, 3, 7):
        sparsify(tmp_path, f"layers.{layer}")
    folder = tmp_path / "EleutherAI" / "sae-llama-3-8b-32x"
    assert one_sentence(folder).endswith("choose one below it: layers.3, layers.7, layers.12")
    gemma_scope(tmp_path)
    one_sentence(tmp_path / "google", "below it: gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    for layer in range(20):
        sparsify(tmp_path, f"layers.{layer}")
    one_sentence(folder, "layers.9 and 10 more")
    (tmp_path / "empty").mkdir()
    one_sentence(tmp_path / "empty", "none of sae_weights.safetensors, params.npz")
    (tmp_path / "empty" / "cfg.json").write_text("{}")
    one_sentence(tmp_path / "empty" / "cfg.json", "there is no SAE in")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, list[str]]]:
    """A hub that serves the folders below tmp_path/hub and notes what was asked of it."""
    asked: list[tuple[str, str | None, list[str]]] = []
    root = tmp_path / "hub"

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (root / repo).is_dir():
            raise OSError(f"401 Client Error.\nRepository Not Found: {repo}")
        copy, names = tmp_path / "cache" / repo, [p for p in (root / repo).rglob("*") if p.is_file()]
        files = [name.relative_to(root / repo).as_posix() for name in names]
        wanted = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)]
        for file in wanted:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / repo / file, copy / file)
        asked.append((repo, revision, sorted(wanted)))
        return str(copy)

    class FakeHub:
        def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
            return [p.relative_to(root / repo).as_posix() for p in (root / repo).rglob("*") if p.is_file()]

    monkeypatch.setattr("penchant.sae.formats.snapshot_download", snapshot_download)
    monkeypatch.setattr("penchant.sae.formats.HfApi", FakeHub)
    return asked


@pytest.mark.parametrize("write", WRITERS)
def test_of_a_repository_only_the_sae_asked_for_is_fetched(write: Any, hub: list[Any], tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "hub")
    (folder / "examples.safetensors").write_bytes(b"large")
    shutil.copytree(folder, folder.parent / "another")
    name = folder.relative_to(tmp_path / "hub").as_posix()
    sae = load_sae(name, revision="v1")
    assert sae.source == name
    assert torch.equal(sae(states()), load_sae(folder)(states()))
    assert sae.config == load_sae(folder).config == load_sae(f"{name}/{MARKERS[write]}").config
    (repo, revision, files), _ = hub
    inside = name.removeprefix(f"{repo}/")
    assert (revision, f"{inside}/{MARKERS[write]}") == ("v1", next(f for f in files if f.endswith(MARKERS[write])))
    assert all(file == "config.json" or file.startswith(f"{inside}/") for file in files)
    assert not any("examples" in file for file in files)


def test_a_repository_of_several_says_which(hub: list[Any], tmp_path: Path) -> None:
    for layer in (10, 2):
        sparsify(tmp_path / "hub", f"layers.{layer}")
    one_sentence("EleutherAI/sae-llama-3-8b-32x", "choose one below it: layers.2, layers.10")
    one_sentence("EleutherAI/sae-llama-3-8b-32x/layers.3", "there is no SAE in")
    one_sentence("EleutherAI/other", "hub gives no SAE: 401 Client Error. Repository Not Found: EleutherAI/other")


@pytest.mark.parametrize(
    "name",
    ["", "sae", "a/../b", "a/b/../../c", "/a/b/c", "./a/b", "../a/b", "a/b/*", "a/b/[c]", "a//b", "a/b\\c", "c:/a/b"],
)
def test_names_that_lead_elsewhere_never_reach_the_hub(
    name: str, hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    one_sentence(name, "there is no SAE (at|in)")
    assert hub == []
