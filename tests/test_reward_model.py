"""A reward model scores the same wherever, with whomever and however often it is asked, and says when it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import AutoHead, Backbone, InputError, LinearHead, MLPHead, RewardModel, load_pairs
from penchant.encode import encode_pairs
from penchant.errors import RecipeMismatch
from penchant.pairs import split_by_prompt
from penchant.reward_model import FILE
from penchant.runs import train_run
from penchant.writing import SEAL
from tests.tiny_llm import CHATML, save_tiny_llm, tiny_pairs

VIEWS = ("2:last", "3:mean")
PROMPTS = ["Hi", "Name a river.", [{"role": "user", "content": "Hi"}], "Why?" * 20, "Name a river."]
RESPONSES = ["Hello.", "The Po.", [{"role": "assistant", "content": "Hello."}], "So?", "Gladly! The Nile. " * 9]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def backbone(llm: Path) -> Backbone:
    return Backbone.load(str(llm), dtype="float32", max_length=256)


@pytest.fixture(scope="module")
def rm(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel.train(
        tiny_pairs(40),
        model=backbone,
        head=LinearHead(),
        views=VIEWS,
        cache=tmp_path_factory.mktemp("cache"),
        show_progress=False,
    )


@pytest.fixture
def saved(rm: RewardModel, tmp_path: Path) -> Path:
    rm.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def python(code: str, **environment: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestScore:
    def test_learns(self, rm: RewardModel) -> None:
        """Warm answers to prompts it has not seen win: what the tiny pairs teach."""
        unseen = tiny_pairs(60)[40:]
        prompts = [row["prompt"] for row in unseen]
        won = rm.score(prompts, [row["chosen"] for row in unseen]) > rm.score(prompts, [r["rejected"] for r in unseen])
        assert won.mean() > 0.9

    def test_is_float32(self, rm: RewardModel) -> None:
        scores = rm.score(PROMPTS, RESPONSES)
        assert scores.dtype == np.float32
        assert scores.shape == (5,)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) == 4  # rows 0 and 2 say the same, as text and as messages
        assert rm.score([], []).shape == (0,)

    @pytest.mark.parametrize("token_budget", [1, 64, 100_000])
    def test_does_not_depend_on_the_company(self, rm: RewardModel, token_budget: int) -> None:
        together = rm.score(PROMPTS, RESPONSES, token_budget=token_budget)
        alone = np.concatenate([rm.score([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
        order = np.random.default_rng(0).permutation(len(PROMPTS) * 3) % len(PROMPTS)
        shuffled = rm.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], token_budget=token_budget)
        np.testing.assert_allclose(shuffled, alone[order], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("prompt", ["Name a river.", [{"role": "user", "content": "Name a river."}]])
    def test_one_prompt_may_stand_for_all(self, rm: RewardModel, prompt: Any) -> None:
        np.testing.assert_array_equal(rm.score(prompt, RESPONSES), rm.score([prompt] * 5, RESPONSES))
        np.testing.assert_array_equal(rm.score([prompt], RESPONSES), rm.score([prompt] * 5, RESPONSES))

    @pytest.mark.parametrize(
        ("prompts", "responses", "reason"),
        [
            (["a", "b"], ["c", "d", "e"], "2 prompts for 3 responses"),
            ("a", ["c", ""], "response 1 is empty"),
            ("a", " \n", "response 0 is empty"),
            ("a", [[{"role": "assistant", "content": " "}]], "response 0 is empty"),
            ("a", ["c", []], "response 1 is empty"),
        ],
    )
    def test_refuses_what_cannot_be_scored(self, rm: RewardModel, prompts: Any, responses: Any, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            rm.score(prompts, responses)

    def test_of_latents_equals_that_of_their_texts(self, rm: RewardModel, backbone: Backbone) -> None:
        pairs = load_pairs(tiny_pairs(6))
        more = encode_pairs(backbone, pairs, ("1:mean", "3:mean", "2:last"), show_progress=False)
        scores = rm.score_latents(more.chosen, more.recipe)
        np.testing.assert_allclose(scores, rm.score(pairs["prompt"][:], pairs["chosen"][:]), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "change", [{"revision": "0"}, {"template": "0"}, {"max_length": 8}, {"dtype": "bfloat16"}, {"width": 31}]
    )
    def test_of_latents_of_another_recipe_is_refused(self, rm: RewardModel, change: dict[str, Any]) -> None:
        latents = np.zeros((2, rm.recipe.dim), np.float32)
        moved = replace(rm.recipe, model="the same files in another folder")
        np.testing.assert_array_equal(rm.score_latents(latents, moved), 0)
        with pytest.raises(RecipeMismatch):
            rm.score_latents(latents, replace(rm.recipe, **change))

    def test_of_latents_without_the_views_is_refused(self, rm: RewardModel) -> None:
        with pytest.raises(RecipeMismatch, match="3:mean"):
            rm.score_latents(np.zeros((2, 32), np.float32), replace(rm.recipe, views=("2:last",)))


class TestCompare:
    def test_is_antisymmetric(self, rm: RewardModel) -> None:
        first, second = RESPONSES, RESPONSES[::-1]
        one, other = rm.compare("Hi", first, second), rm.compare("Hi", second, first)
        np.testing.assert_allclose(one + other, 1, atol=1e-6)
        assert np.ptp(one) > 0.1
        assert one[2] == 0.5  # the same text twice
        assert one.dtype == np.float32

    def test_is_the_logistic_function_of_the_scaled_difference(self, rm: RewardModel) -> None:
        assert rm.temperature not in (0, 1)
        a, b = rm.score("Hi", "Hello."), rm.score("Hi", "No. 3")
        assert rm.compare("Hi", "Hello.", "No. 3") == pytest.approx(1 / (1 + np.exp((b - a) / rm.temperature)), 1e-4)

    def test_is_calibrated_on_pairs_it_has_not_seen(self, backbone: Backbone, tmp_path: Path) -> None:
        """With a third of the labels flipped, a pair's mean probability must be near the share that is right."""
        train, test = split_by_prompt(load_pairs(tiny_pairs(300, noise=1 / 3)), 0.5)
        model = RewardModel.train(
            train, model=backbone, head=LinearHead(), views=("2:mean",), cache=tmp_path, show_progress=False
        )
        p = model.compare(test["prompt"][:], test["chosen"][:], test["rejected"][:])
        confidence, right = np.maximum(p, 1 - p).mean(), (p > 0.5).mean()
        assert abs(confidence - right) < 0.1

    @pytest.mark.parametrize(
        ("prompts", "first", "second", "reason"),
        [
            ("a", ["b", "c"], ["d"], "2 first responses for 1 second"),
            (["a", "b"], ["c", "d", "e"], ["f", "g", "h"], "2 prompts for 3 comparisons"),
            ("a", ["b"], [""], "empty"),
        ],
    )
    def test_refuses_counts_that_differ(
        self, rm: RewardModel, prompts: Any, first: Any, second: Any, reason: str
    ) -> None:
        with pytest.raises(InputError, match=reason):
            rm.compare(prompts, first, second)


class TestSaving:
    @pytest.mark.parametrize("head", [LinearHead(), MLPHead(epochs=3), AutoHead()])
    def test_gives_equal_scores_bit_for_bit(self, backbone: Backbone, tmp_path: Path, head: Any) -> None:
        made = RewardModel.train(
            tiny_pairs(30), model=backbone, head=head, views=VIEWS, cache=tmp_path / "cache", show_progress=False
        )
        made.save_pretrained(tmp_path / "rm")
        again = RewardModel.from_pretrained(tmp_path / "rm")
        assert again.recipe == made.recipe
        assert again.temperature == made.temperature
        assert again.facts == made.facts
        assert again.score(PROMPTS, RESPONSES).tobytes() == made.score(PROMPTS, RESPONSES).tobytes()
        assert again.backbone.layers_run == max(made.recipe.layers)
        assert sorted(p.name for p in (tmp_path / "rm").iterdir()) == [
            "README.md", SEAL, "config.json", "model.safetensors", FILE,
        ]  # fmt: skip

    def test_the_head_is_in_the_folder(self, rm: RewardModel, saved: Path, tmp_path: Path) -> None:
        """A process that has nothing but the folder (and the LLM) gives the scores, after the original is gone."""
        shutil.copytree(saved, tmp_path / "moved")
        shutil.rmtree(saved)
        code = (
            "from penchant import RewardModel\n"
            f"rm = RewardModel.from_pretrained({str(tmp_path / 'moved')!r})\n"
            f"print(rm.score({PROMPTS!r}, {RESPONSES!r}).tobytes().hex())"
        )
        found = np.frombuffer(bytes.fromhex(python(code, PENCHANT_CACHE=str(tmp_path / "no"))), np.float32)
        # A process of its own may use another number of threads, which moves the last bits of the LLM.
        np.testing.assert_allclose(found, rm.score(PROMPTS, RESPONSES), rtol=1e-5, atol=1e-5)

    def test_a_copy_of_the_backbone_elsewhere_serves(self, rm: RewardModel, saved: Path, llm: Path) -> None:
        there = shutil.copytree(llm, saved.parent / "llm")
        other = Backbone.load(str(there), dtype="float32", max_length=256)
        again = RewardModel.from_pretrained(saved, backbone=other)
        assert again.score(PROMPTS, RESPONSES).tobytes() == rm.score(PROMPTS, RESPONSES).tobytes()

    @pytest.mark.parametrize(
        ("tiny", "loading", "named"),
        [
            ({"seed": 1}, {}, "revision"),
            ({"template": CHATML.replace("assistant", "model")}, {}, "template"),
            ({}, {"max_length": 128}, "max_length"),
            ({}, {"dtype": "bfloat16"}, "dtype"),
        ],
    )
    def test_another_backbone_is_refused(
        self, saved: Path, tiny: dict[str, Any], loading: dict[str, Any], named: str
    ) -> None:
        folder = save_tiny_llm(saved.parent / "other", **tiny)
        other = Backbone.load(str(folder), **{"dtype": "float32", "max_length": 256, **loading})
        with pytest.raises(RecipeMismatch, match=named):
            RewardModel.from_pretrained(saved, backbone=other)

    def test_a_backbone_that_changed_in_place_is_refused(self, tmp_path: Path) -> None:
        folder = save_tiny_llm(tmp_path / "llm")
        made = RewardModel.train(
            tiny_pairs(8), model=str(folder), dtype="float32", head=LinearHead(1.0), views=VIEWS, cache=tmp_path / "c"
        )
        made.save_pretrained(tmp_path / "rm")
        save_tiny_llm(folder, seed=5)
        with pytest.raises(RecipeMismatch, match="revision"):
            RewardModel.from_pretrained(tmp_path / "rm").score("a", "b")

    @pytest.mark.parametrize("name", [FILE, "config.json", "model.safetensors"])
    @pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff\xfe"])
    def test_a_damaged_folder_is_one_sentence(self, saved: Path, name: str, content: bytes | None) -> None:
        (saved / name).unlink()
        if content is not None:
            (saved / name).write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(saved))):
            RewardModel.from_pretrained(saved)

    @pytest.mark.parametrize("name", [FILE, "config.json", "model.safetensors"])
    def test_one_bit_of_another_save_is_enough_to_be_refused(self, saved: Path, name: str) -> None:
        """As when a save over an old model was killed half-way; the files are whole, but not of one model."""
        content = bytearray((saved / name).read_bytes())
        digit = max(i for i, byte in enumerate(content) if byte in b"12345")
        content[digit] ^= 1 if content[digit] != ord("1") else 2
        (saved / name).write_bytes(bytes(content))
        with pytest.raises(InputError, match=rf"{name} is damaged, or was not saved to the end; save the model again"):
            RewardModel.from_pretrained(saved)

    def test_a_hub_id_that_is_not_there_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(_name: str, **_: Any) -> str:
            raise OSError("401 Client Error.\nRepository Not Found")

        monkeypatch.setattr("penchant.reward_model.snapshot_download", missing)
        with pytest.raises(InputError, match=r"someone/something.*401 Client Error\. Repository Not Found"):
            RewardModel.from_pretrained("someone/something")


class TestHub:
    def test_what_is_pushed_can_be_pulled(
        self, rm: RewardModel, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[str, Any]] = []

        class FakeHub:
            def __init__(self, token: str | None) -> None:
                calls.append(("token", token))

            def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
                calls.append((repo_id, (private, exist_ok)))

            def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
                shutil.copytree(folder_path, tmp_path / repo_id)
                return f"hub/{repo_id}/commit/1"

        monkeypatch.setattr("penchant.reward_model.HfApi", FakeHub)
        monkeypatch.setattr("penchant.reward_model.snapshot_download", lambda name, **_: str(tmp_path / name))
        assert rm.push_to_hub("me/taste", token="hf_x") == "hub/me/taste/commit/1"
        assert calls == [("token", "hf_x"), ("me/taste", (True, True))]  # private unless told otherwise
        again = RewardModel.from_pretrained("me/taste", backbone=backbone)
        assert again.score(PROMPTS, RESPONSES).tobytes() == rm.score(PROMPTS, RESPONSES).tobytes()


def test_the_model_card_holds_what_was_measured(backbone: Backbone, tmp_path: Path) -> None:
    train, test = split_by_prompt(load_pairs(tiny_pairs(60)), 0.4)
    model, metrics = train_run(
        train, test, ("my pairs", "the rest"), backbone, views=("2:last",), cache=tmp_path, curve=False,
        show_progress=False,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "rm")
    card = (tmp_path / "rm" / "README.md").read_text()
    overall = metrics["accuracy"]["overall"]
    figures = {"accuracy on held-out pairs": overall}
    figures |= {f"baseline: {name}": figure for name, figure in metrics["baselines"].items()}
    assert len(figures) == 4
    for name, figure in figures.items():
        assert f"| {name} | {figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}) |" in card
    assert f"| train pairs | {len(train)} of my pairs" in card
    assert f"| test pairs | {len(test)} of the rest" in card
    assert f"| expected calibration error | {metrics['calibration']['ece']:.3f} |" in card
    assert "`2:last`" in card
    assert backbone.name in card
    assert card.startswith("---\nlibrary_name: penchant\n")
    assert json.loads((tmp_path / "rm" / FILE).read_text())["facts"]["accuracy"]["overall"] == overall


class TestPublicApi:
    def test_import_does_not_wait_for_torch(self) -> None:
        heavy = "torch transformers datasets sklearn matplotlib"
        code = f"import sys, penchant; print([name for name in {heavy!r}.split() if name in sys.modules])"
        assert python(code) == "[]"

    def test_every_public_name_is_there(self) -> None:
        import penchant

        assert {"load_pairs", "RewardModel"} <= set(penchant.__all__)
        for name in penchant.__all__:
            assert getattr(penchant, name).__name__ == name
        with pytest.raises(AttributeError, match="no attribute 'RewardModels'"):
            penchant.RewardModels  # noqa: B018

    @pytest.mark.slow
    def test_the_readme_example_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        readme = Path(__file__).parents[1] / "README.md"
        if not readme.is_file():
            pytest.skip("there is no README.md yet")
        blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
        example = next(block for block in blocks if "RewardModel" in block)
        assert len(example.strip().splitlines()) <= 10
        # The example names the demo pairs as seen from a checkout, and writes into the working folder.
        (tmp_path / "penchant").mkdir()
        (tmp_path / "penchant" / "data").symlink_to(readme.parent / "penchant" / "data")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
        exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
        assert (tmp_path / "my-reward-model" / FILE).is_file()
