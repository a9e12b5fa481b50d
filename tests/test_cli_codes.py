"""`penchant codes`: a saved policy is read, its page written, and what cannot be read is refused in one sentence."""

import json

import pytest

from penchant.cli.codes import codes as read
from penchant.errors import InputError
from penchant.policy.codes import LatentCodes
from penchant.policy.policy import Policy
from tests.policy.tiny_codes import pairs, plain_policy

SETTINGS = {"prompts": 1, "max_new_tokens": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with codes, a run without, and pairs."""
    folder, plain = tmp_path_factory.mktemp("runs"), plain_policy()
    latent = {"codes": 3, "posterior": "concat", "temperature": 1.0}
    facts = {"base": "tiny", "asked_revision": None, "dtype": "float32", "max_length": 256, "lora": None, "loss": "dpo"}
    coded = Policy(plain.model, plain.backbone, LatentCodes(32, **latent), {**facts, "beta": 0.1, "latent": latent})
    coded.save_pretrained(folder / "coded" / "policy")
    Policy(plain.model, plain.backbone, None, {**facts, "latent": None}).save_pretrained(folder / "plain" / "policy")
    rows = "".join(json.dumps(row) + "\n" for row in pairs().select(range(12)))
    (folder / "pairs.jsonl").write_text(rows)
    (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    return folder


def test_writes_codes_and_page_into_the_run(runs, capsys):
    read(str(runs / "coded"), str(runs / "pairs.jsonl"), **SETTINGS)
    found = json.loads((runs / "coded" / "codes.json").read_text())
    assert len(found["codes"]) == 3
    assert found["data"]["pairs"] == 12
    assert {"source", "user_id"} == {row["label"] for row in found["agreement"]}
    page = (runs / "coded" / "codes.html").read_text(encoding="utf-8")
    assert "of 3</em> codes are in use" in page
    said = capsys.readouterr().out
    assert "about 3.0 of 3 codes are in use on 6 prompts" in said
    assert said.count(" sooner") + said.count("hardly changes") == 3
    assert "prior and source: normalised mutual information 0.000" in said
    assert f"page: {runs / 'coded' / 'codes.html'}" in said


def test_takes_the_policy_folder_and_another_out(runs, tmp_path, capsys):
    read(str(runs / "coded" / "policy"), str(runs / "pairs.jsonl"), out=str(tmp_path / "new"), limit=4, **SETTINGS)
    first, second = (json.loads((f / "codes.json").read_text()) for f in (tmp_path / "new", runs / "coded"))
    assert first["data"]["pairs"] == 4
    assert first["policy"] == second["policy"]
    assert not (runs / "coded" / "policy" / "codes.json").exists()
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "data", "more", "says"),
    [
        ("nowhere", "pairs.jsonl", {}, "there is no folder"),
        (".", "pairs.jsonl", {}, "holds no policy"),
        ("plain", "pairs.jsonl", {}, "without codes"),
        ("coded", "nothing.jsonl", {}, "nothing.jsonl"),
        ("coded", "prompts.jsonl", {}, '"chosen"'),
        ("coded", "pairs.jsonl", {"prompts": -1}, "prompts is -1"),
        ("coded", "pairs.jsonl", {"out": "pairs.jsonl"}, "choose another --out"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(runs, run, data, more, says):
    more = {**more, "out": str(runs / more["out"])} if "out" in more else more
    with pytest.raises(InputError) as error:
        read(str(runs / run), str(runs / data), **more)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
