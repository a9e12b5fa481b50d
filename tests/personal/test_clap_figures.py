"""Figures on z's use: what an untrained z gives, and the gain over the plain LLM with its interval over prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penchant.evaluate.accuracy import bootstrap_mean
from penchant.personal.clap import AdapterKind, Clap
from penchant.personal.clap_figures import evaluate_clap, plain_log_probs
from penchant.personal.groups import Group, groups_of
from tests.personal.tiny import ADAPTERS, ANSWERS, make_clap, opened, prompts
from tests.tiny_llm import save_tiny_llm


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"))


def saying(llm: Path) -> tuple[Clap, list[Group]]:
    """A CLaP in which z tells something, at random."""
    clap = make_clap(llm)
    opened(clap.adapter)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.3)
    return clap, groups_of(clap, prompts(4), [ANSWERS, ANSWERS[:2], ANSWERS[1:], ANSWERS[2:]])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_untrained_z_says_nothing(llm: Path, adapter: AdapterKind) -> None:
    clap = make_clap(llm, adapter=adapter)
    figures = evaluate_clap(clap, groups_of(clap, prompts(3), [ANSWERS] * 3))
    assert figures["active_units"] == 0
    assert figures["contrastive_accuracy"] == 0  # all z are equal, and a tie is no success
    assert figures["mutual_information"] == pytest.approx(0, abs=1e-5)
    assert figures["nats_per_token"] == pytest.approx(figures["prior"], abs=1e-5)


@torch.no_grad()
def test_the_gain_is_that_of_whole_responses_and_its_interval_one_over_prompts(llm: Path) -> None:
    clap, groups = saying(llm)
    figures = evaluate_clap(clap, groups)
    each = [clap.log_probs(items, clap.read(items).mean) - clap.log_probs(items, None) for items in groups]
    gains = torch.cat(each).double().numpy()
    prompt = np.repeat(np.arange(4), [4, 2, 3, 2])
    expected = bootstrap_mean(gains, prompt)
    assert figures["gain"] == pytest.approx(expected.value, abs=1e-3)
    assert (figures["gain_ci_low"], figures["gain_ci_high"]) == pytest.approx((expected.low, expected.high), abs=1e-3)
    assert figures["gain_ci_low"] < figures["gain"] < figures["gain_ci_high"]
    assert bootstrap_mean(gains, np.arange(len(gains))).low != pytest.approx(expected.low, abs=0.1)
    tokens = sum(len(item.response) for items in groups for item in items)
    per_token = figures["plain"] - figures["nats_per_token"]
    assert figures["gain"] * figures["responses"] == pytest.approx(per_token * tokens, rel=1e-4)


def test_the_plain_llm_may_be_one_from_before(llm: Path) -> None:
    clap, groups = saying(llm)
    now = evaluate_clap(clap, groups)
    before = plain_log_probs(clap, groups)
    assert evaluate_clap(clap, groups, plain=before) == now
    moved = evaluate_clap(clap, groups, plain=[part - 2.0 for part in before])
    assert moved["gain"] == pytest.approx(now["gain"] + 2.0, abs=1e-4)
    assert moved["plain"] > now["plain"]
    assert moved["nats_per_token"] == now["nats_per_token"]
