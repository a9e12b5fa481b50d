"""The paper's encoder a person: from N(0, I), on the prompt alone, to what was chosen; the posterior stays."""

from __future__ import annotations

import pytest
import torch

from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.personal.encoder import log_normal
from penchant.personal.full_encoder import FullEncoderSettings, encoder_of, fit_encoder, read_prompts
from penchant.personal.reading import read_pairs
from tests.tiny_llm import save_tiny_llm

PROMPTS = ["a tree", "rain and snow", "tea?", "what a song that was"]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Clap:
    torch.manual_seed(0)
    llm, backbone = load_whole(str(save_tiny_llm(tmp_path_factory.mktemp("full"))), dtype="float32")
    clap = Clap(llm, backbone, 8).eval()
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.2)
    return clap


def test_a_persons_encoder_moves_to_what_they_chose_and_leaves_the_rest_alone(clap: Clap) -> None:
    runs = [0]
    for layer in clap.backbone.layers:
        layer.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    items = clap.backbone.chat.encode(PROMPTS * 2, ["aaaa aa"] * 4 + ["zz z zzz"] * 4)
    pairs = list(zip(items[:4], items[4:], strict=True))
    judged = read_pairs(clap, pairs)
    before = {name: value.clone() for name, value in clap.state_dict().items()}
    new = read_prompts(encoder_of(clap), items[:4])
    assert not new.mean.any()
    assert not new.log_deviation.any()
    settings = FullEncoderSettings(steps=60, learning_rate=3e-3, batch=3)
    weights = fit_encoder(clap, judged, items[:4], settings)
    person = read_prompts(encoder_of(clap, weights), items[4:])  # another response: it is not read
    evidence = [person.log_prob(q.mean) - log_normal(q.mean).sum(-1) for q in judged]
    assert (evidence[0] > evidence[1] + 0.1).all()
    again = fit_encoder(clap, judged, items[:4], settings)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    further = fit_encoder(clap, judged, items[:4], FullEncoderSettings(steps=1, learning_rate=1e-5), weights)
    assert max(float((further[name] - value).abs().max()) for name, value in weights.items()) < 1e-4  # goes on
    assert all(torch.equal(value, before[name]) for name, value in clap.state_dict().items())
    assert runs == [0]


def test_what_is_the_llms_own_is_neither_copied_nor_kept(clap: Clap) -> None:
    encoder = encoder_of(clap)
    assert encoder._embedding[0] is clap.posterior._embedding[0]
    assert encoder.head.weight.data_ptr() != clap.posterior.head.weight.data_ptr()
    kept = sum(value.numel() for value in encoder.parameters() if value.requires_grad)
    assert kept == sum(value.numel() for value in clap.posterior.parameters() if value.requires_grad)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"beta": float("nan")}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        FullEncoderSettings(**wrong)  # type: ignore[arg-type]
