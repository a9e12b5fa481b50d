"""A hub model is loaded at the commit that was recorded, wherever its main branch has gone since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from penchant import Backbone, InputError, LinearHead, RewardModel, load_pairs
from penchant.errors import RecipeMismatch
from penchant.heads import SAELinearHead
from penchant.hub import commit_of, named, pinned
from penchant.personal import saving as personal_saving
from penchant.policy import saving as policy_saving
from penchant.policy.align import align_run
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from penchant.reward_model import FILES
from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder
from penchant.sae.formats import load_sae, save_sae
from tests.tiny_llm import save_tiny_llm, tiny_pairs

OLD, NEW = "a" * 40, "b" * 40
LLM = "org/llm"


class Hub:
    """org/llm at two commits; `main` is where its main branch stands, `asked` the revisions that were asked for."""

    def __init__(self, root: Path) -> None:
        self.main, self.asked = OLD, list[str | None]()
        self.shots = root / "models--org--llm" / "snapshots"
        for seed, commit in enumerate((OLD, NEW)):
            save_tiny_llm(self.shots / commit, seed=seed)

    def folder(self, revision: str | None) -> Path:
        self.asked.append(revision)
        return self.shots / (self.main if revision in (None, "main") else revision)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")

    def download(name: str, file: str, *, revision: str | None) -> str:
        assert name == LLM
        return str(made.folder(revision) / file)

    monkeypatch.setattr("penchant.hub.hf_hub_download", download)
    for auto in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):

        def load(path: str, *, real: Any = auto.from_pretrained, revision: str, **named: Any) -> Any:
            return real(str(made.folder(revision)) if path == LLM else path, **named)

        monkeypatch.setattr(auto, "from_pretrained", load)
    return made


def test_names_carry_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("org/llm") == ("org/llm", None)
    assert named("org/llm@v1") == ("org/llm", "v1")
    assert named("org/llm@v1", "v1") == ("org/llm", "v1")
    assert named("org/llm", "v1") == ("org/llm", "v1")
    for name, revision in (("org/llm@v1", "v2"), ("org/llm@", None)):
        with pytest.raises(InputError, match="give one of them"):
            named(name, revision)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home").mkdir()
    assert named("me@home") == ("me@home", None)


def test_a_recipe_pins_commits_alone() -> None:
    assert pinned(OLD) == OLD
    assert [pinned(each) for each in (None, "main", "unknown", "a" * 32, "A" * 40, f"{OLD}\n")] == [None] * 6


def test_a_commit_is_what_the_cache_says(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of(LLM) == OLD
    hub.main = NEW
    assert commit_of(LLM, "main") == NEW
    assert commit_of(LLM, OLD) == OLD
    assert hub.asked == [None, "main"]  # a commit needs no asking
    monkeypatch.setattr("penchant.hub.hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match="does not say which commit"):
        commit_of(LLM)


def test_everything_of_a_hub_model_is_of_one_commit_and_recorded(hub: Hub) -> None:
    backbone = Backbone.load(LLM, dtype="float32")
    assert (backbone.name, backbone.revision) == (LLM, OLD)
    assert hub.asked == [None, OLD, OLD]  # the branch once, then config, tokenizer and weights of what it stood for
    hub.main = NEW
    other, old = Backbone.load(LLM, dtype="float32"), Backbone.load(f"{LLM}@{OLD}", dtype="float32")
    assert (other.revision, old.revision, old.name) == (NEW, OLD, LLM)
    weights = [each.model.state_dict()["layers.0.mlp.up_proj.weight"] for each in (backbone, other, old)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_reward_model_scores_with_the_commit_it_was_trained_on(hub: Hub, tmp_path: Path) -> None:
    rm = RewardModel.train(
        tiny_pairs(8), model=LLM, dtype="float32", head=LinearHead(1.0), views=["2:last"], cache=tmp_path / "cache"
    )
    assert rm.recipe.revision == OLD
    rm.save_pretrained(tmp_path / "rm")
    assert f"`{LLM}`, revision `{OLD}`" in (tmp_path / "rm" / "README.md").read_text()
    hub.main = NEW
    hub.asked.clear()
    again = RewardModel.from_pretrained(tmp_path / "rm")
    assert again.score("Hi", ["a", "b"]).tobytes() == rm.score("Hi", ["a", "b"]).tobytes()
    assert set(hub.asked) == {OLD}
    moved = Backbone.load(LLM, dtype="float32")
    with pytest.raises(RecipeMismatch, match="revision"):
        RewardModel.from_pretrained(tmp_path / "rm", backbone=moved)


FACTS = {"base": LLM, "asked_revision": None, "revision": OLD, "dtype": "float32", "max_length": 64}


def test_policies_and_personal_systems_ask_for_the_commit_they_were_made_on(hub: Hub, tmp_path: Path) -> None:
    hub.main = NEW
    for load in (policy_saving.load_base, lambda facts: personal_saving.load_llm(facts, tmp_path)):
        hub.asked.clear()
        assert load(FACTS)[1].revision == OLD
        assert set(hub.asked) == {OLD}
    with pytest.raises(RecipeMismatch, match="get the same weights"):
        policy_saving.load_base({**FACTS, "revision": "unknown"})


def test_a_reward_model_of_the_hub_is_fetched_at_the_revision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("penchant.reward_model.snapshot_download", snapshot)
    for name, revision in (("me/taste", None), ("me/taste@v1", None), ("me/taste", "v2")):
        with pytest.raises(InputError, match="there is no reward model"):
            RewardModel.from_pretrained(name, revision=revision)
    assert asked == [("me/taste", revision, FILES) for revision in (None, "v1", "v2")]


def test_a_head_remembers_the_commit_of_its_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SAEConfig(4, 8, k=2, layer=1, model=LLM, revision=NEW)
    save_sae(SparseAutoencoder.random(config), tmp_path / "snapshots" / OLD / "layer_1")
    asked = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path / "snapshots" / OLD)

    monkeypatch.setattr("penchant.sae.formats.snapshot_download", snapshot)
    sae = load_sae("org/saes/layer_1")
    assert sae.source == f"org/saes/layer_1@{OLD}"
    assert load_sae(sae.source).source == sae.source
    assert load_sae("org/saes/layer_1@v1").source == sae.source
    assert asked == [("org/saes", None), ("org/saes", OLD), ("org/saes", "v1")]
    named_only = SAELinearHead("org/saes/layer_1")
    named_only.autoencoder()
    assert named_only._loaded is not None
    assert named_only._loaded.source == sae.source


def test_what_is_trained_on_a_revision_is_saved_under_the_plain_name(hub: Hub, tmp_path: Path) -> None:
    """Else the branch that was asked for and the commit would contradict each other from then on."""
    hub.main = NEW
    pairs = load_pairs(tiny_pairs(8))
    settings = Settings(steps=1, batch_size=2, micro_batch=2, codes=0, save_steps=0)
    policy, _ = align_run(
        pairs, pairs, ("a", "b"), settings, tmp_path / "run", model=f"{LLM}@{OLD}", dtype="float32", max_length=64,
        cache=tmp_path / "cache", show_progress=False,
    )  # fmt: skip
    told = [policy.facts[name] for name in ("base", "asked_revision", "revision")]
    assert told == [LLM, OLD, OLD]
    assert Policy.from_pretrained(tmp_path / "run" / "policy").backbone.revision == OLD
