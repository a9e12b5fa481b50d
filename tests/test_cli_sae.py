"""`penchant sae`: trained on pairs or texts, interrupted and resumed, judged, and refused where it does not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from penchant.cli import sae as cli
from penchant.cli.main import main
from penchant.sae.formats import load_sae
from tests.tiny_llm import LAYERS, save_tiny_llm, tiny_pairs

SMALL = ["--latents", "48", "--k", "4", "--batch", "64", "--dtype", "float32", "--held_out", "0.2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM, pairs, and a finished SAE run, which no test changes."""
    folder = tmp_path_factory.mktemp("sae")
    save_tiny_llm(folder / "llm")
    rows = [json.dumps(row) for row in tiny_pairs(40)]
    (folder / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert main(["sae", "train", *arguments(folder), "--out", str(folder / "run")]) == 0
    return folder


def arguments(work: Path) -> list[str]:
    return [str(work / "pairs.jsonl"), "--model", str(work / "llm"), "--layer", "2", "--block_tokens", "600", *SMALL]


def test_a_run_leaves_an_sae_its_metrics_and_a_page(work: Path) -> None:
    sae = load_sae(work / "run" / "sae")
    assert (sae.config.layer, sae.config.d_sae, sae.config.k) == (2, 48, 4)
    metrics = json.loads((work / "run" / "metrics.json").read_text())
    assert metrics["quality"] == sae.facts["quality"]
    assert metrics["quality"]["l0"] == pytest.approx(4, abs=0.5)
    assert 0 < metrics["quality"]["variance_explained"] < 1
    assert metrics["loss"]["plain"] != metrics["loss"]["zero"]
    assert metrics["data"]["held_out_rows"] > 0
    page = (work / "run" / "report.html").read_text()
    assert "Variance explained" in page
    assert "How training went" in page
    assert not list((work / "run").glob("checkpoint*"))


def test_interrupted_and_started_again_gives_the_same_sae(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penchant.sae import training

    whole, blocks = training.Trainer.block, []

    def stops(self: training.Trainer, *some: object) -> None:
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(1)
        whole(self, *some)  # type: ignore[arg-type]

    monkeypatch.setattr(training.Trainer, "block", stops)
    monkeypatch.setattr(cli, "SAVE_SECONDS", 0.0)
    assert main(["sae", "train", *arguments(work), "--out", str(tmp_path)]) == 130
    assert (tmp_path / training.CHECKPOINT).is_file()
    monkeypatch.setattr(training.Trainer, "block", whole)
    assert main(["sae", "train", *arguments(work), "--out", str(tmp_path)]) == 0
    one, other = (load_sae(folder / "sae").state_dict() for folder in (work / "run", tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_plain_texts_serve_too(work: Path, tmp_path: Path) -> None:
    texts = [json.dumps({"text": f"{row['prompt']} {row['chosen']}"}) for row in tiny_pairs(30)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    asked = ["sae", "train", str(tmp_path / "texts.jsonl"), "--text", "text", *arguments(work)[1:]]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    assert load_sae(tmp_path / "run" / "sae").config.layer == 2


def test_info_says_what_it_is_and_how_good(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(work / "run" / "sae")
    assert main(["sae", "info", folder]) == 0
    assert "48 latents, width 32, layer 2" in capsys.readouterr().out
    asked = ["sae", "info", folder, "--data", str(work / "pairs.jsonl"), "--dtype", "float32", "--out", str(tmp_path)]
    assert main(asked) == 0
    assert "variance explained" in capsys.readouterr().out
    assert "variance_explained" in (tmp_path / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--layer", "99"], f"layer from 1 to {LAYERS}"),
        (["--k", "0"], "k is 0"),
        (["--k", "4000"], "k is 4000"),
        (["--held_out", "1.5"], "1.5"),
        (["--text", "body"], "no text in column 'body'"),
        (["--learning_rate", "-1"], "learning_rate is -1"),
        (["--architecture", "gated"], "architecture"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    assert main(["sae", "train", *arguments(work), *change, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_an_sae_of_another_llm_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sae", "info", str(work / "run" / "sae"), "--data", str(work / "pairs.jsonl"), "--dtype", "float32"]
    assert main([*asked, "--model", "smollm2-135m-instruct"]) == 2
    assert "width" in capsys.readouterr().err
