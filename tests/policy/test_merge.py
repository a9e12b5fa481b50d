"""A merged folder says, in transformers alone, what the policy says under that code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penchant.backbone import load_whole
from penchant.cli.main import main
from penchant.errors import InputError
from penchant.policy import merge as merging
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import generate, shifted
from penchant.policy.merge import merge
from penchant.policy.policy import Policy
from tests import tiny
from tests.policy.test_generate import CODES, PROMPTS, digest, policy

MIXTURE = [0.5, 0.2, 0.3, 0, 0]
PLACES = {
    "phi": "head",
    "gpt-j": "head",
    "gpt2": "norm",
    "gpt-neox": "norm",
    "opt": "norm",
    "falcon": "norm",
    "bloom": "norm",
    "llama": "renamed",
    "qwen2": "renamed",
    "qwen3": "sequence_bias",
    "mistral": "sequence_bias",  # the tiny one has a sliding window
    "phi3": "sequence_bias",
    "cohere2": "sequence_bias",  # its logits are scaled
    "mpt": "sequence_bias",
}


def load(folder: Path) -> tuple[Any, Any]:
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def logits_of(made: Policy, z: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    model: Any = made.model
    with shifted(made, z):
        return model(input_ids=ids, use_cache=False).logits


def answers_of(folder: Path, tokens: int = 20) -> list[list[str]]:
    """What a user of transformers alone gets."""
    model, tokenizer = load(folder)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
        found.append([tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)])
    return found


@pytest.mark.parametrize("family", PLACES)
@pytest.mark.parametrize("code", [3, MIXTURE])
def test_answers_and_logits_are_those_of_the_policy(family: str, code: Any, tmp_path: Path) -> None:
    made = policy(family)
    before = {name: digest(tensor) for name, tensor in made.state_dict().items()}
    done = merge(made, code, tmp_path)
    assert (done.place, done.folder) == (PLACES[family], tmp_path)
    assert done.says in (tmp_path / "README.md").read_text()
    assert not list(tmp_path.glob("*.py")) + list(tmp_path.glob("*.bin"))
    wanted = generate(made, PROMPTS, code=code, max_new_tokens=20)
    assert answers_of(tmp_path) == wanted
    assert wanted != generate(made, PROMPTS, code=0, max_new_tokens=20)
    ids = torch.randint(tiny.VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    z = torch.as_tensor(MIXTURE if code != 3 else [0, 0, 0, 1.0, 0]) @ made.codes.codebook
    if done.place == "sequence_bias":
        z = None  # what the folder's README says of plain forward passes
    with torch.no_grad():
        wanted_logits, found = logits_of(made, z, ids), load(tmp_path)[0](input_ids=ids).logits
    assert float((found - wanted_logits).norm() / wanted_logits.norm()) < 1e-5
    assert {name: digest(tensor) for name, tensor in made.state_dict().items()} == before


@torch.no_grad()
def test_a_sequence_bias_is_the_shift_of_the_scores_that_are_drawn_from(tmp_path: Path) -> None:
    """So answers that are sampled follow the policy's distribution too, for logits that are scaled as well."""
    for family in ("qwen3", "cohere2"):
        made = policy(family)
        assert merge(made, 3, tmp_path / family).place == "sequence_bias"
        model, _ = load(tmp_path / family)
        ids = torch.randint(tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
        ways = {"do_sample": True, "top_k": 0, "output_scores": True, "return_dict_in_generate": True}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, **ways)
        assert torch.allclose(
            out.scores[0].softmax(-1), logits_of(made, made.codes.codebook[3], ids)[:, -1].softmax(-1), atol=1e-6
        )


def test_a_renamed_llama_without_the_trick_answers_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = policy()
    merge(made, 2, tmp_path / "renamed")
    monkeypatch.setattr(merging, "RENAMED", ())
    assert merge(made, 2, tmp_path / "plain").place == "sequence_bias"
    assert answers_of(tmp_path / "plain") == answers_of(tmp_path / "renamed")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_makes_llamas_differ_is_kept(tie: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: Any) -> None:
    """Heads wider than the hidden size allows, biases, scaled rotations, tied embeddings, the number type."""
    config = hf.LlamaConfig(
        **tiny._grouped,
        head_dim=16,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=tie,
        rms_norm_eps=1e-3,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e5,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    )
    monkeypatch.setitem(tiny.FAMILIES, "odd", lambda: config)
    made = policy("odd")
    for name, parameter in made.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made.model.to(dtype)
    assert merge(made, 1, tmp_path).place == "renamed"
    ids = torch.randint(tiny.VOCABULARY, (2, 100), generator=torch.Generator().manual_seed(0))
    model, _ = load(tmp_path)
    wanted = logits_of(made, made.codes.codebook[1], ids).float()
    assert model.dtype == dtype
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    assert float((model(input_ids=ids).logits.float() - wanted).norm() / wanted.norm()) < (
        1e-5 if dtype == torch.float32 else 0.05
    )


def test_lora_is_merged_with_and_without_codes(tmp_path: Path) -> None:
    for codes, code in ((CODES, 1), (0, None)):
        made = policy(codes=codes, lora=True)
        done = merge(made, code, tmp_path / str(codes))
        assert done.place == ("renamed" if codes else "none")
        wanted = generate(made, PROMPTS, code=code if codes else "expectation", max_new_tokens=20)
        assert answers_of(done.folder) == wanted
        assert not any("lora" in name for name in load(done.folder)[0].state_dict())
        assert any("lora" in name for name in made.state_dict())


def test_average_is_the_mean_of_the_prior(tmp_path: Path) -> None:
    made = policy("gpt2")
    merge(made, "average", tmp_path / "average", PROMPTS)
    merge(made, made.prior(PROMPTS).mean(0), tmp_path / "weights")
    average, weights = (load(tmp_path / name)[0].state_dict() for name in ("average", "weights"))
    assert all(torch.equal(average[name], weights[name]) for name in average)
    assert "average mixture" in (tmp_path / "average" / "README.md").read_text()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CODES, "no code 5"),
        (None, "give a code's number"),
        ("expectation", "'expectation'; give a code's number"),
        ("average", "give prompts"),
        ([1.0], "1 weights for 5"),
    ],
)
def test_what_is_no_fixed_code_is_said(code: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        merge(policy(), code, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="trained without codes"):
        merge(policy(codes=0), 0, tmp_path / "out")
    with pytest.raises(InputError, match="Gemma2ForCausalLM caps its logits"):
        merge(policy("gemma2"), 0, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into"):
        merge(policy(), 0, tmp_path / "file" / "out")


def test_export_takes_a_run_and_a_code(tmp_path: Path, capsys: Any) -> None:
    made = policy("gpt2")
    made.facts |= {"lora": None, "latent": {"codes": CODES}, "dtype": "float32", "asked_revision": None}
    made.facts |= {"max_length": 256, "revision": "0"}
    made.save_pretrained(tmp_path / "run" / "policy")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "b"}) + "\n" for p in PROMPTS))
    wishes = {
        "one": ["--code", "3"],
        "mix": ["--code", str(MIXTURE)],
        "all": ["--code", "average", "--data", str(pairs)],
    }
    codes = {"one": 3, "mix": MIXTURE, "all": made.prior(PROMPTS).mean(0)}
    for name, wish in wishes.items():
        assert main(["export", str(tmp_path / "run"), str(tmp_path / name), *wish]) == 0
        assert "exact in every use" in capsys.readouterr().out
        assert answers_of(tmp_path / name) == generate(made, PROMPTS, code=codes[name], max_new_tokens=20)
    assert main(["export", str(tmp_path / "run" / "policy"), str(tmp_path / "none")]) == 2
    assert "give a code's number" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "one"), str(tmp_path / "none"), "--code", "3"]) == 2
    assert "is no policy" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


FRESH = """
import sys, json, transformers as hf
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (hf.AutoModelForCausalLM, hf.AutoTokenizer))
turn = [{"role": "user", "content": sys.argv[2]}]
ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=24, do_sample=False)
print(json.dumps(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("renamed", [merging.RENAMED, ()])
def test_the_embedded_llm_answers_in_a_process_that_knows_only_transformers(
    renamed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "RENAMED", renamed)
    model, backbone = load_whole(dtype="float32")
    torch.manual_seed(0)
    made = Policy(model, backbone, LatentCodes(backbone.width, 8, scale=0.15), {"loss": "dpo"}).eval()
    done = merge(made, 5, tmp_path)
    assert done.place == ("renamed" if renamed else "sequence_bias")
    question = "How do I rest my eyes?"
    run = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path), question], capture_output=True, text=True)
    answers = {code: generate(made, [question], code=code, max_new_tokens=24)[0][0] for code in (5, 6)}
    assert json.loads(run.stdout) == answers[5] != answers[6]
