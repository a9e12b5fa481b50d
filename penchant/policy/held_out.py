"""What a trained policy is worth on pairs it has not seen: its implicit reward, its codes, and answers to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from penchant.chat import Text
from penchant.evaluate import accuracy, accuracy_interval, baselines, correctness
from penchant.pairs import prompt_groups, to_text
from penchant.policy.batches import TokenPair
from penchant.policy.codes import LatentCodes, PairStates
from penchant.policy.generate import generate
from penchant.policy.losses import Loss, PairLogProbs
from penchant.policy.policy import Policy
from penchant.policy.watch import code_figures, warnings

EXAMPLE_TOKENS = 64
"""Tokens of an answer that the report shows."""


def evaluate_policy(
    policy: Policy,
    loss: Loss,
    test: Dataset,
    held_out: list[TokenPair],
    reference: PairLogProbs | None,
    *,
    train: Dataset | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How often the policy's implicit reward is right, z being the prior's expectation, beside simple baselines."""
    shifts = {"prior": policy.expected}
    if isinstance(policy.codes, LatentCodes):
        shifts["posterior"] = policy.by_posterior
    states, found = policy.score(held_out, shifts, evidence=policy.known_people(test))
    groups = prompt_groups(test)
    source = np.array(test["source"], dtype=object) if "source" in test.column_names else None
    margins = {name: loss.margins(probs, reference).numpy().astype(np.float64) for name, probs in found.items()}
    right = {name: correctness(margin, np.zeros_like(margin)) for name, margin in margins.items()}
    simple = {name: interval._asdict() for name, interval in baselines(train, test, seed=seed)[0].items()}
    if reference is not None:
        mean = (reference.chosen / reference.chosen_tokens, reference.rejected / reference.rejected_tokens)
        simple["reference log-probability a token"] = accuracy_interval(
            correctness(*(part.numpy() for part in mean)), groups, seed=seed
        )._asdict()
    metrics: dict[str, Any] = {
        "accuracy": accuracy(margins["prior"], np.zeros(len(groups)), groups, source, seed=seed),
        "baselines": simple,
    }
    if isinstance(policy.codes, LatentCodes):
        with torch.inference_mode():
            prior = policy.codes.prior_logits(states.prompt.to(policy.backbone.device)).softmax(-1)
        figures = code_figures(prior, policy.weights_by_posterior(states))
        by = {name: accuracy_interval(each, groups, seed=seed)._asdict() for name, each in right.items()}
        gap = by["posterior"]["value"] - by["prior"]["value"]
        metrics["codes"] = {
            **figures,
            "accuracy_prior": by["prior"],
            "accuracy_posterior": by["posterior"],
            "gap": gap,
            "warnings": warnings(figures, by["prior"]["value"], by["posterior"]["value"], known_share(states)),
        }
    return metrics


def known_share(states: PairStates) -> float | None:
    """Share of pairs on whose judge there is evidence; None without the posterior "people"."""
    return None if states.evidence is None else float(states.evidence.any(-1).float().mean())


def examples(
    policy: Policy, prompts: list[Text], before: list[list[str]], metrics: dict[str, Any], tokens: int
) -> list[dict[str, Any]]:
    """Greedy answers of the LLM as it was, of the policy, and of its most used codes, side by side."""
    usage = metrics["codes"]["usage"] if isinstance(policy.codes, LatentCodes) else []
    used = [int(k) for k in np.argsort(usage)[::-1][:2] if len(usage) > 1]
    ways: dict[str, Any] = {"policy": "expectation"} | {str(k): k for k in used}
    made = {name: generate(policy, prompts, code=code, max_new_tokens=tokens) for name, code in ways.items()}
    return [
        {
            "prompt": to_text(prompt),
            "base": before[i][0],
            "policy": made["policy"][i][0],
            "codes": {str(k): made[str(k)][i][0] for k in used},
        }
        for i, prompt in enumerate(prompts)
    ]
