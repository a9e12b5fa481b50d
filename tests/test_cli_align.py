"""`penchant align` from a file to policy, page and metrics, its resume, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.cli.main import main
from penchant.pairs import load_pairs
from penchant.policy import align as align_module
from penchant.policy.batches import token_pairs
from penchant.policy.policy import Policy
from tests.tiny_llm import save_tiny_llm, tiny_pairs


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("align")
    save_tiny_llm(folder / "llm")
    rows = [{**row, "source": "ab"[i % 2], "user_id": "uvw"[i % 3]} for i, row in enumerate(tiny_pairs(60))]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(work: Path, out: str, *more: str) -> int:
    files = [str(work / "pairs.jsonl"), "--out", str(work / out), "--model", str(work / "llm")]
    return main(["align", *files, "--cache", str(work / "cache"), "--codes", "4", "--lora", "4", *more])


def metrics(work: Path, out: str) -> dict[str, Any]:
    return dict(json.loads((work / out / "metrics.json").read_text()))


def test_from_a_file_to_policy_and_page(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "first", "--learning_rate", "5e-3", "--epochs", "4") == 0
    said = capsys.readouterr().out
    found = metrics(work, "first")
    assert f"{found['accuracy']['overall']['value']:.1%}" in said
    assert found["accuracy"]["overall"]["value"] > 0.9  # the tiny pairs are easy
    assert set(found["accuracy"]["by_source"]) <= {"a", "b"}
    assert {"longer text", "n-gram + length", "reference log-probability a token"} <= found["baselines"].keys()
    assert {"kl", "perplexity", "top_share", "gap", "warnings", "usage"} <= found["codes"].keys()
    assert found["policy"]["trainable"] < found["policy"]["parameters"]
    assert len(found["examples"]) == 3
    assert found["examples"][0]["base"] != found["examples"][0]["policy"]
    page = (work / "first" / "report.html").read_text()
    assert "<html" in page
    assert "src=" not in page
    rows = [json.loads(line) for line in (work / "first" / "metrics.jsonl").open()]
    assert rows == found["history"]


def test_the_saved_policy_gives_the_accuracy_that_was_reported(work: Path) -> None:
    run(work, "kept", "--test", str(work / "pairs.jsonl"), "--steps", "3")
    policy = Policy.from_pretrained(work / "kept" / "policy")
    tokens = token_pairs(policy.backbone, load_pairs(work / "pairs.jsonl"))
    plain, moved = (policy.score(tokens, {"": shift})[1][""] for shift in (lambda _: None, policy.expected))
    with policy.model.disable_adapter():  # type: ignore[operator, union-attr]
        before = policy.score(tokens, {"": lambda _: None})[1][""]
    margins = (moved.chosen - before.chosen) - (moved.rejected - before.rejected)
    reported = metrics(work, "kept")["accuracy"]["overall"]["value"]
    assert float((margins > 0).float().mean()) == pytest.approx(reported, abs=0.02)
    assert not torch.equal(plain.chosen, moved.chosen)


@pytest.mark.parametrize("posterior", ["concat", "people"])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(
    work: Path, monkeypatch: pytest.MonkeyPatch, posterior: str
) -> None:
    more = ("--steps", "8", "--save_steps", "2", "--learning_rate", "5e-3", "--posterior", posterior)
    again, whole = f"{posterior}-again", f"{posterior}-whole"
    assert run(work, whole, *more) == 0

    class Stopped(Exception):
        pass

    step = align_module.AlignTrainer.training_step
    done: list[int] = []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(align_module.AlignTrainer, "training_step", stopping)
    assert run(work, again, *more) == 130
    monkeypatch.setattr(align_module.AlignTrainer, "training_step", step)
    assert (work / again / "checkpoints" / "checkpoint-4").is_dir()
    assert run(work, again, *more) == 0
    one, other = (metrics(work, name) for name in (whole, again))
    assert [row["loss"] for row in other["history"]] == [row["loss"] for row in one["history"]]
    assert other["accuracy"] == one["accuracy"]
    files = [(work / name / "policy" / "codes.safetensors").read_bytes() for name in (whole, again)]
    assert files[0] == files[1]


def test_people_are_told_apart_where_it_is_known_who_judged(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "people", "--posterior", "people", "--steps", "2") == 0
    assert "policy, told who judged" in capsys.readouterr().out
    assert metrics(work, "people")["policy"]["people"] == ["u", "v", "w"]
    page = (work / "people" / "report.html").read_text()
    assert "Temperature" not in page  # nothing is drawn
    assert "what else the same person judged" in page
    assert main(["codes", str(work / "people"), str(work / "pairs.jsonl"), "--prompts", "0"]) == 0


def test_without_codes_and_with_all_weights(work: Path) -> None:
    assert run(work, "plain", "--codes", "0", "--steps", "2", "--loss", "ipo") == 0
    assert "codes" not in metrics(work, "plain")
    assert not (work / "plain" / "policy" / "codes.safetensors").exists()
    assert run(work, "all", "--lora", "0", "--steps", "2", "--loss", "simpo") == 0
    assert (work / "all" / "policy" / "model" / "model.safetensors").is_file()


def test_only_the_top_layers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "top", "--top_layers", "1", "--steps", "2") == 0
    assert metrics(work, "top")["policy"]["top_layers"] == 1
    (states,) = (work / "cache" / "trunk").glob("*.states")
    capsys.readouterr()
    assert main(["cache", "list", "--cache", str(work / "cache")]) == 0
    assert f"{states.stem} " in (said := capsys.readouterr().out)
    assert "states of frozen layers" in said
    assert main(["cache", "prune", "--cache", str(work / "cache"), "--fingerprint", states.stem]) == 0
    assert not states.exists()
    assert list((work / "cache").glob("*/*"))  # the reference's log-probabilities are still there


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--codes", "-1"], "codes is -1"),
        (["--beta", "-1"], "beta is -1"),
        (["--loss", "hinge"], "hinge"),
        (["--loss", "ipo", "--label_smoothing", "0.1"], "belongs to the dpo loss"),
        (["--gamma", "1"], "belongs to the simpo loss"),
        (["--micro_batch", "3"], "divisor of batch_size"),
        (["--top_layers", "3"], "give 1 to 2"),
        (["--top_layers", "0"], "give 1 to 2"),
        (["--learning_rate", "-1"], "learning_rate is -1"),
        (["--temperature", "0"], "temperature is 0"),
        (["--lora", "-2"], "lora is -2"),
        (["--epochs", "0"], "epochs is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--test", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "./nowhere"], "no folder at"),
        (["--kl_weight", "-1"], "kl_weight is -1"),
        (["--warmup", "2"], "warmup is 2"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "-7"], "steps is -7"),
        (["--lora", "0", "--dtype", "bfloat16"], "float32"),
    ],
)
def test_wrong_input_is_one_sentence(
    work: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(work, "wrong", *more) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said.split("penchant: ")[-1]


def test_a_missing_package_is_named_before_any_work(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(work, "missing") == 2
    assert "pip install 'penchant[align]'" in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "taken", "--steps", "2", "--save_steps", "1") == 0
    assert run(work, "taken", "--steps", "2", "--save_steps", "1", "--loss", "ipo") == 2
    assert "belongs to a run with other loss" in capsys.readouterr().err


def test_a_run_that_diverges_says_so(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(work, "wild", "--steps", "6", "--learning_rate", "1e30", "--loss", "ipo") == 2
    assert "lower --learning_rate" in capsys.readouterr().err


def test_short_sequences_still_show_examples(work: Path) -> None:
    assert run(work, "short", "--steps", "1", "--max_length", "100") == 0
    assert len(metrics(work, "short")["examples"]) == 3


def test_pairs_that_become_equal_are_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"a{i}", "chosen": "b " * 80, "rejected": "c" + "b " * 80} for i in range(3)]
    (work / "equal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(["align", str(work / "equal.jsonl"), "--model", str(work / "llm"), "--max_length", "20"])
    assert code == 2
    assert "raise max_length" in capsys.readouterr().err
