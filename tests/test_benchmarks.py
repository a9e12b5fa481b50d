"""Benchmarks: each author's aggregation on cases small enough to do by hand, bad rows by number, and a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from penchant import RewardModel
from penchant.cli.main import main
from penchant.errors import InputError
from penchant.evaluate.benchmark_rows import Benchmark, read_items
from penchant.evaluate.benchmark_subsets import COUNTS, SECTIONS
from penchant.evaluate.benchmarks import evaluate_benchmark
from penchant.heads import LinearHead
from tests.tiny_llm import save_tiny_llm, tiny_pairs


def pair(subset: str, prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "good", "rejected": "worse still", "subset": subset, **more}


def several(subset: str, chosen: int, rejected: int, prompt: str = "p", **more: Any) -> dict[str, Any]:
    rights, wrongs = ([f"{word} {i}" for i in range(n)] for word, n in (("yes", chosen), ("no", rejected)))
    return {"prompt": prompt, "chosen": rights, "rejected": wrongs, "subset": subset, **more}


def styled(domain: str, prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": ["a", "bb", "ccc"], "rejected": ["d", "ee", "fff"], "domain": domain}


def result(benchmark: Benchmark, rows: list[dict[str, Any]], scores: list[float], **more: Any) -> dict[str, Any]:
    return evaluate_benchmark(benchmark, read_items(rows, benchmark).items, np.array(scores), draws=200, **more)


def values(benchmark: Benchmark, rows: list[dict[str, Any]], scores: list[float]) -> dict[str, float]:
    return {name: f["value"] for name, f in result(benchmark, rows, scores)["figures"].items()}


class TestRewardBench:
    def test_sections_weigh_subsets_by_the_fixed_counts(self) -> None:
        """math-prm 1 of 2 at weight 984, hep-go 1 of 1 at 164; a tie is wrong."""
        rows = [pair("math-prm", "a"), pair("math-prm", "b"), pair("hep-go", "c"), pair("donotanswer", "d")]
        found = values("rewardbench", rows, [2, 1, 0, 1, 1, 0, 5, 5])
        assert found["math-prm"] == 0.5
        assert found["Reasoning"] == pytest.approx((984 * 0.5 + 164 * 1) / (984 + 164))
        assert found["Safety"] == 0
        assert found["average"] == pytest.approx(found["Reasoning"] / 2)

    def test_prior_sets_count_half_a_section_and_some_of_them_nothing(self) -> None:
        rows = [pair("alpacaeval-easy"), pair("shp"), pair("summarize"), pair("anthropic_harmless")]
        found = values("rewardbench", rows, [1, 0, 0, 1, 1, 0, 0, 1])
        assert found["Prior Sets"] == 0.5  # of shp and summarize alone
        assert found["average"] == pytest.approx((2 * 1 + 1 * 0.5) / 3)

    def test_the_weights_are_those_published(self) -> None:
        assert sorted(COUNTS) == sorted(name for names in SECTIONS.values() for name in names)
        assert sum(COUNTS[name] for name in SECTIONS["Chat"]) == 358
        assert sum(COUNTS[name] for name in SECTIONS["Chat Hard"]) == 456
        assert sum(COUNTS[name] for name in SECTIONS["Safety"]) == 740
        assert COUNTS["math-prm"] == sum(COUNTS[name] for name in SECTIONS["Reasoning"][1:])

    def test_rows_that_all_count_nothing_are_refused_while_they_are_read(self) -> None:
        with pytest.raises(InputError, match=r"no row is of a subset that RewardBench scores.*'pku_safer'"):
            read_items([pair("pku_safer")], "rewardbench")


class TestRewardBench2:
    def test_ties_at_the_top_share_the_credit(self) -> None:
        rows = [several("Math", 1, 3, "a"), several("Math", 1, 3, "b"), several("Focus", 1, 3, "c")]
        found = values("rewardbench2", rows, [4, 4, 1, 4, 0, 1, 2, 3, 9, 8, 8, 8])
        assert found["Math"] == pytest.approx((1 / 3 + 0) / 2)
        assert found["Focus"] == 1
        assert found["average"] == pytest.approx((1 / 6 + 1) / 2)

    def test_the_ties_formula_by_hand(self) -> None:
        """Question 1: tied gap 2, spread 1, ref gap .5. Question 2: tied gap -1, spread 0, ref gap 3."""
        rows = [
            several("Ties", 2, 1, "many 1", id="tied:1"),
            several("Ties", 1, 2, "one 1", id="ref:1"),
            several("ties", 2, 1, "many 2", id="tied:2"),
            several("Ties", 1, 1, "one 2", id="ref:2"),
        ]
        scores = [4.0, 3, 1, 2.5, 2, 0, 1, 1, 2, 5, 2]
        tied, ref, margin, hard = 0.5, 1.0, 0.5, 0.0
        tanh = (math.tanh(0.5 / 1 - 1) + math.tanh(-math.inf)) / 2
        expected = 0.3 * tied + 0.3 * ref + 0.2 * margin + 0.2 * hard + 0.01 * tanh
        found = values("rewardbench2", rows, scores)
        assert found["Ties"] == pytest.approx(expected)
        assert found["average"] == found["Ties"]

    def test_no_gap_and_no_spread_add_nothing(self) -> None:
        """All scores equal: 0 / 0 in the last term counts 0."""
        rows = [several("Ties", 2, 1, id="tied:0"), several("Ties", 1, 1, id="ref:0")]
        assert values("rewardbench2", rows, [1.0] * 5)["Ties"] == 0

    def test_a_question_without_its_ref_counts_for_accuracy_alone(self) -> None:
        rows = [several("Ties", 2, 1, f"q{i}", id=f"tied:{i}") for i in range(2)] + [several("Ties", 1, 1, id="ref:0")]
        found = values("rewardbench2", rows, [3, 3, 0, 0, 0, 1, 3, 0])
        assert found["Ties"] == pytest.approx(0.3 * 0.5 + 0.3 + 0.2 + 0.2 + 0.01 * 1)

    def test_ties_without_any_whole_question_are_refused_while_they_are_read(self) -> None:
        with pytest.raises(InputError, match="both its rows"):
            read_items([several("Ties", 2, 1, id="tied:0"), several("Ties", 1, 1, id="ref:1")], "rewardbench2")


class TestRMBench:
    def test_the_matrix_gives_easy_normal_and_hard(self) -> None:
        """Chosen 1, 2, 3 against rejected 0, 2, 9: right are (1>0), (2>0), (3>0), (3>2)."""
        found = values("rm-bench", [styled("chat", "p")], [1, 2, 3, 0, 2, 9])
        assert found["easy"] == pytest.approx(3 / 3)  # 2>0, 3>0, 3>2
        assert found["normal"] == pytest.approx(1 / 3)  # 1>0; 2=2 is wrong; 3<9
        assert found["hard"] == 0  # 1<2, 1<9, 2<9
        assert found["chat"] == found["average"] == pytest.approx((1 + 1 / 3 + 0) / 3)

    def test_both_halves_of_safety_are_one_domain(self) -> None:
        rows = [styled("safety-refuse", "a"), styled("safety-response", "b"), styled("math", "c")]
        rows += [styled("safety-response", "d")]
        won, lost = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
        found = values("rm-bench", rows, [*won, *lost, *lost, *lost])
        assert found["safety"] == 0.5  # the mean of 1 of 1 and 0 of 2, not 1 of 3
        assert found["math"] == 0
        assert found["average"] == found["hard"] == 0.25


class TestBestOfN:
    def test_rows_of_any_size(self) -> None:
        rows = [{"prompt": f"p{n}", "chosen": "right", "rejected": [f"wrong {i}" for i in range(n)]} for n in (1, 2, 4)]
        found = result("best-of-n", rows, [1, 0, 1, 1, 0, 0, 1, 2, 3, 4])
        assert found["figures"]["average"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
        assert found["ties"] == 1
        assert set(found["figures"]) == {"average"}

    def test_the_mean_is_over_rows_not_over_subsets(self) -> None:
        rows = [several("a", 1, 1, str(i)) | {"chosen": "yes"} for i in range(3)] + [
            several("b", 1, 1) | {"chosen": "y"}
        ]
        found = values("best-of-n", rows, [1, 0, 1, 0, 1, 0, 0, 1])
        assert (found["a"], found["b"], found["average"]) == (1, 0, 0.75)

    def test_a_subset_may_be_called_ties_and_is_like_any_other(self) -> None:
        rows = [several("Ties", 1, 2, f"p{i}") for i in range(2)]
        assert values("best-of-n", rows, [1, 0, 0, 0, 1, 0]) == {"Ties": 0.5, "average": 0.5}


class TestIntervals:
    def test_they_hold_the_value_narrow_with_prompts_and_depend_on_the_seed_alone(self) -> None:
        rng = np.random.default_rng(0)
        widths = []
        for n in (20, 320):
            rows = [several("Math", 1, 3, f"p{i}") for i in range(n)] + [
                several("Focus", 1, 3, f"p{i}") for i in range(n)
            ]
            scores = rng.normal(size=8 * n).tolist()
            found = result("rewardbench2", rows, scores, seed=3)
            assert found == result("rewardbench2", rows, scores, seed=3)
            figure = found["figures"]["average"]
            assert figure["low"] < figure["value"] < figure["high"]
            widths.append(figure["high"] - figure["low"])
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)  # the root of 16

    def test_pairs_of_one_prompt_are_drawn_together(self) -> None:
        same, apart = ([pair("shp", str(i // 20 if same else i)) for i in range(40)] for same in (True, False))
        rows, scores = [pair("donotanswer", "x")], [1.0, 0] * 20 + [0.0, 1] * 20
        spread = []
        for more in (same, apart):
            f = result("rewardbench", rows + more, [1.0, 0, *scores])["figures"]["shp"]
            spread.append(f["high"] - f["low"])
        assert 0.2 < spread[1] < spread[0] / 2

    def test_all_right_is_not_certain(self) -> None:
        figure = result("rewardbench2", [several("Math", 1, 3, str(i)) for i in range(5)], [1, 0, 0, 0] * 5)["figures"]
        assert figure["Math"]["value"] == 1
        assert figure["Math"]["low"] < 0.6

    def test_all_alike_is_not_certain(self) -> None:
        """Five prompts of 5/9 each: a share of up to 1 - .025^(1/5) of all prompts may say anything from 0 to 1."""
        p = 0.025 ** (1 / 5)
        figures = result("rm-bench", [styled("chat", str(i)) for i in range(5)], [2, 1, 3, 0, 1, 4] * 5)["figures"]
        value = figures["average"]["value"]
        assert 0 < value < 1
        assert figures["average"]["low"] == pytest.approx(p * value)
        assert figures["average"]["high"] == pytest.approx(p * value + 1 - p)

    def test_a_subset_of_one_prompt_gives_no_interval(self) -> None:
        rows = [several("Math", 1, 3, f"p{i}") for i in range(4)] + [several("Focus", 1, 3)] * 2
        figures = result("rewardbench2", rows, [1, 0, 0, 0, 0, 1, 0, 0] * 3)["figures"]
        assert figures["Math"]["low"] < 0.5 < figures["Math"]["high"]
        for name in ("Focus", "average"):
            for figure in (figures[name], figures[name]["longer"], figures[name]["over_longer"]):
                assert (figure["low"], figure["high"]) == (None, None)
        assert figures["average"]["value"] == 0.5

    def test_ties_need_two_whole_questions_for_an_interval(self) -> None:
        rows = [several("Ties", 2, 1, f"q{i}", id=f"tied:{i}") for i in range(3)]
        scores = [3.0, 2, 1] * 3
        for refs, none in ((1, True), (2, False)):
            more = [several("Ties", 1, 1, f"r{i}", id=f"ref:{i}") for i in range(refs)]
            assert (
                result("rewardbench2", rows + more, scores + [1, 0] * refs)["figures"]["Ties"]["low"] is None
            ) is none

    def test_the_longer_text_is_scored_by_its_length_and_compared(self) -> None:
        rows = [pair("donotanswer", str(i)) | {"chosen": "long enough" if i % 2 else "no"} for i in range(8)]
        figure = result("rewardbench", rows, [1, 0] * 8)["figures"]["Safety"]
        assert figure["longer"]["value"] == 0  # "worse still" has as many characters, and a tie is wrong
        assert figure["over_longer"] == {"value": 1, "low": pytest.approx(2 * 0.025 ** (1 / 8) - 1), "high": 1}

    def test_a_score_that_is_no_number_names_its_row(self) -> None:
        with pytest.raises(InputError, match="row 1 is nan"):
            result("rewardbench2", [several("Math", 1, 3), several("Math", 1, 3)], [1, 0, 0, 0, 0, math.nan, 0, 0])
        with pytest.raises(InputError, match="for 2 responses"):
            result("best-of-n", [several("a", 1, 1)], [1, 0, 0])


BAD: list[tuple[Benchmark, dict[str, Any], str]] = [
    ("rewardbench", {"prompt": "p", "chosen": "a", "rejected": "b"}, 'column "subset" is missing'),
    ("rewardbench", pair("mine"), 'column "subset" names no part of rewardbench; it is "mine", and there are alpaca'),
    ("rewardbench2", pair("alpacaeval-easy"), "there are Factuality, Precise IF, Math, Safety, Focus, Ties"),
    ("rewardbench2", several("Mathh", 1, 3), 'it is "Mathh"'),
    ("rewardbench2", several("Ties ", 1, 3, id="ref:1"), 'it is "Ties "'),
    ("rewardbench2", several("Math", 1, 2), "it has 2, give 3"),
    ("rm-bench", styled("chta", "p"), 'it is "chta", and there are chat, code, math, safety-refuse, safety-response'),
    ("best-of-n", pair("alpacaeval-easy"), 'column "rejected" is not a list of responses'),
    ("rewardbench", pair("shp") | {"chosen": ["a", "b"]}, 'column "chosen" has the wrong number of responses'),
    ("rewardbench", pair("shp") | {"rejected": " "}, 'column "rejected" is empty'),
    ("rewardbench", pair("") | {"prompt": "q"}, 'column "subset" is empty'),
    ("rewardbench2", several("Math", 2, 2), "only rows of Ties may"),
    ("rewardbench2", several("Math", 1, 3, num_correct=2), "is not the number of chosen responses"),
    ("rewardbench2", several("Ties", 2, 2, id="7"), 'must be "ref:7" or "tied:7"'),
    ("rewardbench2", several("Ties", 1, 2, id="tied:7"), "one response in a tied row"),
    ("rm-bench", styled("chat", "p") | {"rejected": ["a", "b"]}, "it has 2, give 3"),
    ("rm-bench", several("chat", 3, 3), 'column "domain" is missing'),
    ("best-of-n", several("a", 1, 0), "it has 0, give at least 1"),
    ("best-of-n", several("a", 1, 1) | {"prompt": None}, 'column "prompt" is null'),
]


class TestRows:
    @pytest.mark.parametrize(("benchmark", "row", "says"), BAD)
    def test_a_bad_row_is_one_sentence_with_its_number(
        self, benchmark: Benchmark, row: dict[str, Any], says: str, tmp_path: Path
    ) -> None:
        good = {
            "rewardbench": pair("donotanswer"), "rewardbench2": several("Math", 1, 3), "rm-bench": styled("chat", "p"),
            "best-of-n": several("a", 1, 1),
        }[benchmark]  # fmt: skip
        with pytest.raises(InputError) as error:
            read_items([good, row], benchmark)
        assert str(error.value).startswith("row 1: ")
        assert says in str(error.value)
        kept = read_items([good, row], benchmark, on_bad="skip", skipped_file=tmp_path / "skipped.jsonl")
        assert len(kept.items) == 1
        assert sum(kept.skipped.values()) == 1
        assert json.loads((tmp_path / "skipped.jsonl").read_text())["row"] == 1

    def test_a_question_of_ties_may_not_come_twice(self) -> None:
        with pytest.raises(InputError, match=r"row 1: .*was there before"):
            read_items([several("Ties", 2, 1, id="tied:1")] * 2, "rewardbench2")

    def test_columns_can_be_named_and_messages_are_texts(self) -> None:
        row = {"question": [{"role": "user", "content": "p"}], "best": "a", "rejected": [[
            {"role": "assistant", "content": "b"}]]}  # fmt: skip
        (item,) = read_items([row], "best-of-n", columns={"question": "prompt", "best": "chosen"}).items
        assert item.responses == ["a", [{"role": "assistant", "content": "b"}]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained model and the same pairs as rows of RewardBench 2."""
    folder = tmp_path_factory.mktemp("benchmarks")
    llm = str(save_tiny_llm(folder / "llm"))
    RewardModel.train(
        tiny_pairs(60), head=LinearHead(), model=llm, dtype="float32", views=["3:mean"], cache=folder / "cache",
        show_progress=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    rows = [
        {"prompt": r["prompt"], "chosen": [r["chosen"]], "rejected": [r["rejected"], f"No, {i}", "<b>?</b>"],
         "subset": "Math" if i % 3 else "Focus"}
        for i, r in enumerate(tiny_pairs(24))
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENCHANT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


class TestCommand:
    def test_a_whole_run(self, work: Path, capsys: Any) -> None:
        asked = ["evaluate", "model", "--benchmark", "rewardbench2", "--data", "rows.jsonl", "--out", "run"]
        assert main(asked) == 0
        printed = capsys.readouterr().out
        found = json.loads((work / "run" / "metrics.json").read_text())["benchmark"]
        items = read_items(str(work / "rows.jsonl"), "rewardbench2").items
        rm = RewardModel.from_pretrained(work / "model")
        scores = [rm.score(item.prompt, item.responses) for item in items]
        assert found["figures"]["average"]["value"] == pytest.approx(
            np.mean([np.mean([s.argmax() == 0 for s, i in zip(scores, items, strict=True) if i.subset == name])
                     for name in ("Math", "Focus")])
        )  # fmt: skip
        assert found["rows"] == 24
        assert f"{100 * found['figures']['average']['value']:.1f}" in printed
        assert "average minus that of the longer text" in printed
        page = (work / "run" / "report.html").read_text()
        assert "Benchmark: rewardbench2" in page
        assert "No accuracy was measured" not in page

    def test_names_are_escaped_and_one_prompt_has_no_interval(self, work: Path, capsys: Any) -> None:
        rows = [{"prompt": "p", "chosen": "a", "rejected": ["b", "cc"], "subset": "<script>alert(1)</script>"}]
        (work / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(["evaluate", "model", "one.jsonl", "--benchmark", "best-of-n", "--out", "one"]) == 0
        assert capsys.readouterr().out.count("too few prompts") == 3  # the subset, the average, their difference
        page = (work / "one" / "report.html").read_text()
        assert "too few prompts" in page
        assert "<script>" not in page

    def test_skipped_rows_are_listed_in_the_folder(self, work: Path) -> None:
        (work / "some.jsonl").write_text((work / "rows.jsonl").read_text() + "{}\n")
        asked = ["evaluate", "model", "some.jsonl", "--benchmark", "rewardbench2", "--on_bad", "skip", "--out", "some"]
        assert main(asked) == 0
        assert json.loads((work / "some" / "skipped.jsonl").read_text())["row"] == 24

    def test_a_printed_config_has_the_data_that_were_named(self, work: Path, capsys: Any) -> None:
        asked = ["evaluate", "model", "--benchmark", "rewardbench2", "--data", "rows.jsonl", "--print_config"]
        with pytest.raises(SystemExit):
            main(asked)
        printed = yaml.safe_load(capsys.readouterr().out)
        assert (printed["data"], printed["benchmark"]) == ("rows.jsonl", "rewardbench2")

    def test_without_a_name_the_data_still_come_second(self, work: Path, capsys: Any) -> None:
        asked = ["evaluate", "model", "--benchmark", "rewardbench2", "--out"]
        assert main([*asked, "named", "--data", "rows.jsonl"]) == main([*asked, "second", "rows.jsonl"]) == 0
        first, second = (json.loads((work / n / "metrics.json").read_text())["benchmark"] for n in ("named", "second"))
        assert first == second

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--benchmark", "rewardbench2"], "the following arguments are required: evaluate.data"),
            (["rows.jsonl", "--benchmark", "rewardbench"], "row 0 of rows.jsonl (line 1): column"),
            (
                ["rows.jsonl", "--benchmark", "nope"],
                "penchant: there is no benchmark 'nope'; the known ones are rewardb",
            ),
            (["rows.jsonl"], "row 0 of rows.jsonl (line 1): column"),
            (
                ["rows.jsonl", "--benchmark", "rewardbench2", "--token_budget", "-5"],
                "token_budget is -5; give at least",
            ),
            (["rows.jsonl", "--benchmark", "rewardbench2", "--gold", "g"], "--gold is for pairs"),
        ],
    )
    def test_wrong_input_is_one_sentence(self, work: Path, arguments: list[str], says: str, capsys: Any) -> None:
        assert main(["evaluate", "model", *arguments, "--out", "bad"]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        assert not (work / "bad").exists()
