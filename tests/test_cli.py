"""The command line: whole runs on a tiny LLM, one sentence for every wrong input, and going on after an interrupt."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from penchant import RewardModel
from penchant.cli.lines import write_batches
from penchant.cli.main import main, parser
from penchant.errors import InputError
from tests.tiny_llm import LAYERS, save_tiny_llm, tiny_pairs

N_PAIRS = 60
TIMES = ("created", "cost", "versions")


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an LLM, pairs, a finished run and its cache, which every test may read and none may change."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_llm(folder / "llm")
    write_lines(folder / "pairs.jsonl", tiny_pairs(N_PAIRS, noise=0.2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENCHANT_CACHE", str(folder / "cache"))
        assert main(["train", *train_arguments(folder), "--out", str(folder / "run")]) == 0
        yield folder


def train_arguments(work: Path) -> list[str]:
    return [str(work / "pairs.jsonl"), "--model", str(work / "llm"), "--dtype", "float32"]


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steady(metrics: Path) -> dict[str, Any]:
    """A run's metrics without what depends on the clock, the machine or the cache."""
    return {k: v for k, v in json.loads(metrics.read_text()).items() if k not in TIMES}


class TestWholeRun:
    def test_train_leaves_everything(self, work: Path) -> None:
        run = work / "run"
        assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics.json", "report.html", "model"}
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["data"]["train"]["pairs"] + metrics["data"]["test"]["pairs"] == N_PAIRS
        assert metrics["accuracy"]["overall"]["value"] > 0.6
        assert set(metrics["baselines"]) == {"chance", "longer text", "n-gram + length"}
        assert metrics["cost"]["encoded_sequences"] == 2 * N_PAIRS
        assert {"penchant", "torch", "transformers", "python"} <= set(metrics["versions"])
        assert metrics["seed"] == 0
        assert metrics["learning_curve"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["data"] == str(work / "pairs.jsonl")
        assert (config["dtype"], config["seed"], config["head"]) == ("float32", 0, "auto")
        assert "Reward model from" in (run / "report.html").read_text()

    def test_summary_shows_accuracy_beside_the_baselines(self, work: Path, here: Path, capsys: Any) -> None:
        assert main(["evaluate", str(work / "run" / "model"), str(work / "pairs.jsonl"), "--out", "eval"]) == 0
        printed = capsys.readouterr().out
        overall = json.loads((here / "eval" / "metrics.json").read_text())["accuracy"]["overall"]
        assert f"accuracy on {N_PAIRS} held-out pairs" in printed
        assert f"{overall['value']:.1%}  ({overall['low']:.1%} to {overall['high']:.1%})" in printed
        for name in ("reward model", "chance", "longer text"):
            assert f"\n  {name} " in printed
        assert "report: eval/report.html" in printed

    def test_evaluating_again_uses_the_cache(self, work: Path, here: Path, capsys: Any) -> None:
        command = ["evaluate", str(work / "run" / "model"), str(work / "pairs.jsonl"), "--out"]
        assert main([*command, "first"]) == main([*command, "second"]) == 0
        first, second = (json.loads((here / name / "metrics.json").read_text()) for name in ("first", "second"))
        assert first["cost"]["encoded_sequences"] == 2 * N_PAIRS
        assert second["cost"]["unique_tokens"] == second["cost"]["encoded_sequences"] == 0
        assert steady(here / "first" / "metrics.json") == steady(here / "second" / "metrics.json")
        assert "no LLM pass was needed" in capsys.readouterr().out

    def test_same_seed_same_metrics_and_other_seed_others(self, work: Path, here: Path) -> None:
        """With an empty cache and with the first run's: resuming from the cache changes no figure."""
        assert main(["train", *train_arguments(work), "--out", "again"]) == 0
        assert steady(here / "again" / "metrics.json") == steady(work / "run" / "metrics.json")
        assert main(["train", *train_arguments(work), "--out", "other", "--seed", "1"]) == 0
        other, first = steady(here / "other" / "metrics.json"), steady(work / "run" / "metrics.json")
        assert other.pop("seed") == 1
        assert other["accuracy"] != first["accuracy"]

    def test_a_run_can_be_made_again_from_its_config(self, work: Path, here: Path) -> None:
        config = work / "run" / "config.yaml"
        assert main(["train", "--config", str(config), "--out", "again"]) == 0
        assert steady(here / "again" / "metrics.json") == steady(work / "run" / "metrics.json")

    def test_print_config_can_be_fed_back(self, work: Path, here: Path, capsys: Any) -> None:
        arguments = [
            *train_arguments(work), "--views", "[2:last,2:mean]", "--head", "linear", "--seed", "3", "--curve", "false",
        ]  # fmt: skip
        with pytest.raises(SystemExit) as done:
            main(["train", *arguments, "--print_config"])
        assert done.value.code == 0
        (here / "fed.yaml").write_text(capsys.readouterr().out)
        assert main(["train", *arguments, "--out", "plain"]) == 0
        assert main(["train", "--config", "fed.yaml", "--out", "fed"]) == 0
        assert steady(here / "fed" / "metrics.json") == steady(here / "plain" / "metrics.json")
        config = yaml.safe_load((here / "fed" / "config.yaml").read_text())
        assert (config["views"], config["seed"]) == (["2:last", "2:mean"], 3)

    def test_a_test_file_a_margin_a_gold_column_and_skipped_rows(self, work: Path, here: Path, capsys: Any) -> None:
        rows = [{**row, "margin": 1.0, "source": f"s{i % 2}"} for i, row in enumerate(tiny_pairs(30))]
        write_lines(here / "train.jsonl", [*rows, {"prompt": "no answers"}])
        gold = [{**row, "taste_chosen": 1 + i % 3, "taste_rejected": 0} for i, row in enumerate(tiny_pairs(60)[30:])]
        write_lines(here / "test.jsonl", gold)
        assert main([
            "train", "train.jsonl", "--test", "test.jsonl", "--model", str(work / "llm"), "--dtype", "float32",
            "--head", "linear", "--margin", "true", "--on_bad", "skip", "--gold", "taste", "--out", "run",
        ]) == 0  # fmt: skip
        metrics = json.loads((here / "run" / "metrics.json").read_text())
        assert metrics["data"]["train"]["skipped"] == 1
        assert metrics["data"]["train"]["sources"] == {"s0": 15, "s1": 15}
        assert metrics["data"]["test"]["pairs"] == 30
        assert metrics["best_of_n"]["gold"] == "taste"
        assert [line["row"] for line in read_lines(here / "run" / "skipped.jsonl")] == [30]

    def test_report_can_be_made_again(self, work: Path, here: Path, capsys: Any) -> None:
        assert main(["report", str(work / "run"), "--out", "page.html"]) == 0
        assert (here / "page.html").read_bytes() == (work / "run" / "report.html").read_bytes()
        assert capsys.readouterr().out == "page.html\n"

    @pytest.mark.parametrize("views", [[], ["--views", "[1:last,1:mean]"]])
    def test_encode_then_train_runs_the_llm_once(self, views: list[str], work: Path, here: Path, capsys: Any) -> None:
        assert main(["encode", *train_arguments(work), *views]) == 0
        assert f"{2 * N_PAIRS} sequences encoded, 0 were cached" in capsys.readouterr().out
        assert main(["train", *train_arguments(work), *views, "--out", "run"]) == 0
        assert json.loads((here / "run" / "metrics.json").read_text())["cost"]["unique_tokens"] == 0


class TestSynthesis:
    def test_lens_with_unlabelled_responses(self, work: Path, here: Path, capsys: Any) -> None:
        rows = [{"prompt": row["prompt"], "response": [row["chosen"] + " Yes.", "Hm."]} for row in tiny_pairs(20)]
        write_lines(here / "more.jsonl", rows)
        command = ["--synthesis", "lens", "--factor", "3", "--unlabelled", "more.jsonl", "--head", "linear"]
        assert main(["train", *train_arguments(work), *command, "--out", "run"]) == 0
        assert "synthesis: 96 synthetic pairs by lens were added to 48 real ones." in capsys.readouterr().out
        found = json.loads((here / "run" / "metrics.json").read_text())["synthesis"]
        assert (found["kind"], found["factor"], found["unlabelled"], found["decision"]) == ("lens", 3, 40, None)
        assert 0 <= found["order"]["order_kept"] <= 1
        assert found["theory"][0]["noise"] == 0
        assert 'href="#synthesis"' in (here / "run" / "report.html").read_text()
        assert RewardModel.from_pretrained("run/model").score("Hi", "Hello.").shape == (1,)

    def test_auto_says_what_it_decided(self, work: Path, here: Path, capsys: Any) -> None:
        command = ["--synthesis", "auto", "--factor", "2", "--views", "[2:mean]", "--head", "linear"]
        assert main(["train", *train_arguments(work), *command, "--curve", "false", "--out", "run"]) == 0
        found = json.loads((here / "run" / "metrics.json").read_text())["synthesis"]
        assert [row["name"] for row in found["decision"]["rows"]] == ["none", "lens", "pca", "noise"]
        assert sum(row["chosen"] for row in found["decision"]["rows"]) == 1
        assert f"synthesis: {found['says']}\n" in capsys.readouterr().out

    def test_context_head(self, work: Path, here: Path) -> None:
        command = ["--head", "context", "--views", "[2:mean,2:prompt]", "--curve", "false", "--out", "run"]
        assert main(["train", *train_arguments(work), *command]) == 0
        metrics = json.loads((here / "run" / "metrics.json").read_text())
        assert metrics["head"]["name"] == "context"
        assert "synthesis" not in metrics


class TestScore:
    ROWS = (
        {"id": 7, "prompt": "Hi", "response": "Hello.", "note": "ünïcode ☺"},
        {"id": 3, "prompt": [{"role": "user", "content": "Hi"}], "response": ["No.", "Gladly!", "Hm"]},
        {"id": 5, "response": [{"role": "assistant", "content": "Hello."}], "prompt": "Hi"},
    )

    def test_keeps_rows_their_order_and_columns(self, work: Path, here: Path) -> None:
        rows = [{**row, "id": i} for i, row in enumerate(self.ROWS * 3)]
        write_lines(here / "in.jsonl", rows)
        assert main(["score", str(work / "run" / "model"), "in.jsonl", "--out", "out.jsonl"]) == 0
        found = read_lines(here / "out.jsonl")
        assert [{k: v for k, v in row.items() if k != "score"} for row in found] == rows
        rm = RewardModel.from_pretrained(work / "run" / "model")
        assert found[0]["score"] == pytest.approx(float(rm.score("Hi", "Hello.")[0]), abs=1e-5)
        assert found[1]["score"] == pytest.approx(rm.score("Hi", ["No.", "Gladly!", "Hm"]).tolist(), abs=1e-5)
        assert found[2]["score"] == found[0]["score"]

    def test_batches_change_nothing(self, work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_lines(here / "in.jsonl", list(self.ROWS * 3))
        assert main(["score", str(work / "run" / "model"), "in.jsonl", "--out", "whole.jsonl"]) == 0
        monkeypatch.setattr("penchant.cli.score.BATCH", 2)
        assert main(["score", str(work / "run" / "model"), "in.jsonl", "--out", "pieces.jsonl"]) == 0
        for whole, piece in zip(read_lines(here / "whole.jsonl"), read_lines(here / "pieces.jsonl"), strict=True):
            assert piece.pop("score") == pytest.approx(whole.pop("score"), abs=1e-5)
            assert piece == whole

    def test_pipes_and_other_column_names(
        self, work: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        text = json.dumps({"q": "Hi", "a": "Hello."}) + "\n\n" + json.dumps({"q": "Hi", "a": "No."}) + "\n"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(["score", str(work / "run" / "model"), "-", "--prompt", "q", "--response", "a"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["a"] for row in found] == ["Hello.", "No."]
        assert found[0]["score"] != found[1]["score"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    def test_a_full_disk_is_one_sentence(self, work: Path, here: Path, capsys: Any) -> None:
        write_lines(here / "in.jsonl", list(self.ROWS))
        assert main(["score", str(work / "run" / "model"), "in.jsonl", "--out", "/dev/full"]) == 2
        assert "penchant: /dev/full cannot be written (No space left on device): make room" in capsys.readouterr().err


def test_export(work: Path, here: Path, capsys: Any) -> None:
    final = ["--head", "linear", "--views", f"[{LAYERS}:last]", "--curve", "false"]
    assert main(["train", *train_arguments(work), *final, "--out", "run"]) == 0
    assert main(["export", "run/model", "classifier"]) == 0
    assert AutoModelForSequenceClassification.from_pretrained("classifier").config.num_labels == 1
    capsys.readouterr()
    assert main(["export", str(work / "run" / "model"), "refused"]) == 2
    assert "--head linear --views [" in capsys.readouterr().err
    assert not (here / "refused").exists()


class TestCache:
    @pytest.fixture
    def cache(self, work: Path, here: Path) -> Path:
        return Path(shutil.copytree(work / "cache", here / "cache"))

    def test_list_verify_and_prune(self, cache: Path, capsys: Any) -> None:
        (store,) = cache.iterdir()
        assert main(["cache", "list"]) == 0
        printed = capsys.readouterr().out
        assert store.name in printed
        assert printed.endswith(f"{cache}\n")
        assert main(["cache", "verify"]) == 0
        assert capsys.readouterr().out == "every checksum is right\n"
        assert main(["cache", "prune", "--older_than_days", "1"]) == 0
        assert store.exists()
        assert main(["cache", "prune", "--fingerprint", store.name]) == 0
        assert not store.exists()
        assert capsys.readouterr().out == f"0 removed\nremoved {store.name}\n1 removed\n"

    def test_a_flipped_byte_is_named_and_redone(self, work: Path, cache: Path, here: Path, capsys: Any) -> None:
        shard = next(cache.glob("*/*.safetensors"))
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        assert main(["cache", "verify"]) == 2
        printed = capsys.readouterr()
        assert str(shard) in printed.out
        assert "1 files are damaged" in printed.err
        with pytest.warns(UserWarning, match="damaged|checksum|shard"):
            assert main(["train", *train_arguments(work), "--out", "run"]) == 0
        assert json.loads((here / "run" / "metrics.json").read_text())["cost"]["encoded_sequences"] > 0
        assert steady(here / "run" / "metrics.json") == steady(work / "run" / "metrics.json")
        assert main(["cache", "verify"]) == 0


BAD_INPUT = {
    "no verb": ("", "verb"),
    "unknown verb": ("trian pairs.jsonl", "trian"),
    "unknown argument": ("train {pairs} --hed linear", "--hed"),
    "no data": ("train", "data"),
    "no such file": ("train missing.jsonl", "missing.jsonl is not there"),
    "unsupported ending": ("train pairs.xlsx", "pairs.xlsx"),
    "bad head": ("train {pairs} --head forest", "head"),
    "bad dtype": ("train {pairs} --model {llm} --dtype int8", "int8"),
    "bad view": ("train {pairs} --model {llm} --views [99:last]", "99:last"),
    "bad pooling": ("train {pairs} --model {llm} --views [1:max]", "1:max"),
    "views twice": ("train {pairs} --model {llm} --views [1:last,1:last]", "once"),
    "bad number": ("train {pairs} --limit many", "limit"),
    "no rows": ("train {pairs} --limit 0", "limit"),
    "bad seed": ("train {pairs} --seed -1", "seed is -1"),
    "bad share": ("train {pairs} --test_share 1.5", "1.5"),
    "bad max_length": ("train {pairs} --model {llm} --max_length 1", "max_length is 1"),
    "bad smoothing": ("train {pairs} --model {llm} --head linear --label_smoothing 0.7", "label_smoothing is 0.7"),
    "margin for another head": ("train {pairs} --head mlp --margin true", "--head linear"),
    "unknown synthesis": ("train {pairs} --synthesis lenz", "lenz"),
    "bad factor": ("train {pairs} --model nowhere --synthesis lens --factor 0", "factor is 0"),
    "no such unlabelled file": ("train {pairs} --model nowhere --synthesis lens --unlabelled no.jsonl", "no.jsonl"),
    "unlabelled folder": ("train {pairs} --model nowhere --synthesis lens --unlabelled empty", "empty"),
    "torn unlabelled file": ("train {pairs} --model nowhere --unlabelled torn.jsonl", "torn.jsonl: line 2 is not JSON"),
    "unlabelled without a response": ("train {pairs} --unlabelled columns.jsonl", "columns.jsonl: line 1 has no"),
    "unlabelled for nobody": ("train {pairs} --head linear --unlabelled rows.jsonl", "add --synthesis"),
    "context without a prompt": ("train {pairs} --model {llm} --head context --views [1:mean]", "add 1:prompt"),
    "no such gold": ("train {pairs} --model {llm} --gold taste", "taste_chosen"),
    "one prompt": ("train one.jsonl --model {llm}", "2 different prompts"),
    "malformed lines": ("train torn.jsonl", "row 1 of torn.jsonl (line 2)"),
    "missing column": ("train columns.jsonl", "chosen"),
    "columns that are not there": ("train {pairs} --columns {{win:chosen}}", "win"),
    "no such config": ("train {pairs} --config nowhere.yaml", "nowhere.yaml"),
    "broken config": ("train {pairs} --config broken.yaml", "parsing config"),
    "config with an unknown name": ("train {pairs} --config unknown.yaml", "haed"),
    "out that is a file": ("train {pairs} --out one.jsonl", "cannot write into one.jsonl"),
    "no such model folder": ("train {pairs} --model ./nowhere", "nowhere"),
    "folder without a model": ("train {pairs} --model empty", "empty"),
    "no such GGUF file": ("encode {pairs} --model nowhere.gguf", "nowhere.gguf"),
    "GGUF file that is not one": ("encode {pairs} --model fake.gguf", "fake.gguf"),
    "hub id that cannot be reached": ("encode {pairs} --model nobody/nothing", "nobody/nothing"),
    "hub data that cannot be reached": ("encode nobody/nothing", "nobody/nothing"),
    "hub reward model that cannot be reached": ("score nobody/nothing rows.jsonl", "nobody/nothing"),
    "not a reward model": ("evaluate {llm} {pairs}", "no reward model"),
    "damaged reward model": ("evaluate damaged {pairs}", "damaged"),
    "nothing to score": ("score {model} missing.jsonl", "missing.jsonl"),
    "no response column": ("score {model} columns.jsonl", "line 1 has no 'response', only prompt, answer"),
    "empty response": ("score {model} empty.jsonl", "line 2"),
    "torn score file": ("score {model} torn.jsonl", "line 2 is not JSON"),
    "score file in another encoding": ("score {model} latin.jsonl", "line 1 is not JSON"),
    "score file of lists": ("score {model} lists.jsonl", "line 1 is not a JSON object"),
    "scores into a missing folder": ("score {model} rows.jsonl --out no/where.jsonl", "no/where.jsonl"),
    "scores over their own rows": ("score {model} rows.jsonl --out rows.jsonl", "rows.jsonl"),
    "report without metrics": ("report empty", "metrics.json"),
    "report of damaged metrics": ("report torn.json", "is not JSON"),
    "report of other JSON": ("report other.json", "no metrics"),
    "report into a missing folder": ("report {run} --out one.jsonl/page.html", "cannot write one.jsonl/page.html"),
    "prune what": ("cache prune", "say which"),
    "prune what is not there": ("cache prune --fingerprint 0123", "0123"),
    "unknown cache action": ("cache empty", "empty"),
    "export to a file": ("export {model} one.jsonl", "--head linear"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_wrong_input_is_one_sentence(
    name: str, work: Path, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test waits for a network
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    pair = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}
    write_lines(here / "one.jsonl", [pair, {**pair, "chosen": "Gladly!"}])
    write_lines(here / "rows.jsonl", [{"prompt": "Hi", "response": "Hello."}])
    write_lines(here / "columns.jsonl", [{"prompt": "Hi", "answer": "Hello."}])
    write_lines(here / "empty.jsonl", [{"prompt": "Hi", "response": "Hello."}, {"prompt": "Hi", "response": " "}])
    write_lines(here / "lists.jsonl", [[1, 2]])
    row = {**pair, "response": "Hello."}
    (here / "torn.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:20] + "\n")
    (here / "latin.jsonl").write_bytes('{"prompt": "Hi", "response": "Grüß dich"}\n'.encode("latin-1"))
    (here / "torn.json").write_text('{"accuracy": ')
    (here / "other.json").write_text("[1, 2]")
    (here / "broken.yaml").write_text("head: [linear\nseed: }")
    (here / "unknown.yaml").write_text("haed: linear")
    (here / "fake.gguf").write_bytes(b"GGUF is not what this is")
    (here / "empty").mkdir()
    (here / "damaged").mkdir()
    (here / "damaged" / "reward_model.json").write_text('{"recipe": {"model": "x"}}')
    before = {path: path.read_bytes() for path in here.glob("*.json*")}

    command, named = BAD_INPUT[name]
    places = {"pairs": work / "pairs.jsonl", "llm": work / "llm", "run": work / "run", "model": work / "run" / "model"}
    code = main(command.format(**places).split())
    told = capsys.readouterr().err
    assert code == 2
    assert told.split("\r")[-1].startswith("penchant: ")  # a progress bar may have stood there before
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert "Traceback" not in told
    assert named in told
    assert {path: path.read_bytes() for path in here.glob("*.json*")} == before


def test_help_comes_from_the_docstrings(capsys: Any) -> None:
    _, known = parser()
    assert set(known) >= {"encode", "train", "evaluate", "score", "report", "cache", "demo"}
    alone = {(name,): verb for name, verb in known.items() if not isinstance(verb, dict)}
    nested = {(name, each): f for name, verb in known.items() if isinstance(verb, dict) for each, f in verb.items()}
    assert len(nested) >= 2
    for words, function in {**alone, **nested}.items():
        with pytest.raises(SystemExit) as done:
            main([*words, "--help"])
        assert done.value.code == 0
        page = " ".join(capsys.readouterr().out.split())
        assert " ".join((function.__doc__ or "").split("\n\n")[0].split()) in page
        assert "--config" in page
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    assert all(f"\n    {name} " in page for name in known)


def test_an_interrupt_says_how_to_go_on(work: Path, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penchant.cli.train.train_run", interrupted)
    assert main(["train", *train_arguments(work), "--out", "run"]) == 130
    assert capsys.readouterr().err == (
        "penchant: interrupted; what the cache holds is kept: run the same command to go on.\n"
    )


def test_sigint_while_encoding_keeps_what_was_done(work: Path, here: Path) -> None:
    """A process interrupted in the middle ends with 130; the next one encodes only the rest, to the same figures."""
    write_lines(here / "pairs.jsonl", tiny_pairs(600))
    command = [
        sys.executable, "-m", "penchant", "train", "pairs.jsonl", "--model", str(work / "llm"), "--dtype", "float32",
        "--views", "[2:last]", "--head", "linear", "--curve", "false", "--token_budget", "256", "--out", "run",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while len(list(here.glob("cache/*/*.safetensors"))) < 5 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "run the same command to go on" in told
    assert "Traceback" not in told
    assert not (here / "run" / "metrics.json").exists()

    arguments = command[3:]
    assert main(arguments) == 0
    resumed = json.loads((here / "run" / "metrics.json").read_text())
    assert main([*arguments, "--cache", "other", "--out", "whole"]) == 0
    whole = json.loads((here / "whole" / "metrics.json").read_text())
    assert 0 < resumed["cost"]["unique_tokens"] < whole["cost"]["unique_tokens"]
    assert steady(here / "run" / "metrics.json") == steady(here / "whole" / "metrics.json")


def test_what_a_disk_refuses_is_one_sentence_and_a_mistake_of_ours_is_none(
    work: Path, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int, name: str | None) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number), name)

        return fail

    monkeypatch.setattr("penchant.cli.train.train_run", failing(errno.EIO, "/a/file"))
    assert main(["train", *train_arguments(work), "--out", "run"]) == 2
    assert capsys.readouterr().err == (
        "penchant: /a/file cannot be used (Input/output error): make room, or check its permissions and disk, then run"
        " the same command again.\n"
    )
    for number, name in ((errno.ENOENT, "/a/file"), (errno.EIO, None)):
        monkeypatch.setattr("penchant.cli.train.train_run", failing(number, name))
        with pytest.raises(OSError, match=os.strerror(number)):
            main(["train", *train_arguments(work), "--out", "run"])


def test_a_reader_that_leaves_is_no_error(work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `penchant score ... | head`."""

    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    write_lines(here / "rows.jsonl", [{"prompt": "Hi", "response": "Hello."}])
    told = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(told, "close", lambda: None)
    assert main(["score", str(work / "run" / "model"), "rows.jsonl"]) == 0
    assert told.getvalue() == ""


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("what was there before, and is longer than what comes\n" * 20)
    data = str(tmp_path / "data.jsonl")
    Path(data).touch()

    def batches() -> Iterator[tuple[str, int]]:
        yield "1\n", 1
        with pytest.raises(InputError, match=r"another process is writing .*; wait until it has ended, or choose"):
            write_batches(data, str(out), "score", iter([("other\n", 1)]))
        yield "2\n", 1

    write_batches(data, str(out), "score", batches())
    assert out.read_text() == "1\n2\n"
    write_batches(data, str(out), "score", iter([("3\n", 1)]))
    assert out.read_text() == "3\n"
    write_batches(data, os.devnull, "score", iter([("4\n", 1)]))
