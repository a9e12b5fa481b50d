"""Synthetic pairs as texts: the LLM samples answers to the seeds' prompts, a judge ranks them.

What LENS is compared with. The judge is a reward model trained on the seeds, by its `score`, or the LLM itself
(`llm_judge`). The pairs are encoded and learned from like any others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from numpy.typing import NDArray

from penchant.chat import Text, Tokens
from penchant.encode import TOKEN_BUDGET, MemoryStore, encode
from penchant.errors import InputError
from penchant.generation import Generator
from penchant.packing import stack_keys
from penchant.pairs import prompt_groups, to_text
from penchant.synthesis.base import check_factor

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
ScoreFunction = Callable[[list[Text], list[str]], NDArray[Any]]
"""Scores [n] of response i to prompt i, such as `RewardModel.score`."""
SYNTHETIC = "synthetic"
"""What the column `source` says of a synthetic pair."""
QUESTION = """Here is a conversation and an answer to its last message.

{prompt}

Answer:
{answer}

Is this a good answer, one that is helpful, correct and harmless? Reply with Yes or No."""


def llm_judge(
    generator: Generator, prompts: Sequence[Text], answers: Sequence[Sequence[str]], token_budget: int = TOKEN_BUDGET
) -> Array:
    """Float32 scores [P, k]: how much likelier the LLM is to say Yes than No when asked whether an answer is good.

    score = logit(Yes) - logit(No) of the first token of the reply, each answer asked about by itself. What the
    questions about one prompt begin with is run once. Raises InputError unless every prompt has as many answers.
    """
    counts = {len(each) for each in answers}
    if len(prompts) != len(answers) or len(counts) > 1:
        raise InputError("llm_judge needs a list of answers for each prompt, all of one length; fill them up.")
    k = counts.pop() if counts else 0
    if not k:
        return np.zeros((len(prompts), 0), np.float32)
    backbone = generator.backbone
    asked = [
        QUESTION.format(prompt=to_text(prompt), answer=answer)
        for prompt, texts in zip(prompts, answers, strict=True)
        for answer in texts
    ]
    ids = [item.prompt for item in backbone.chat.encode(asked, ["Yes"] * len(asked))]
    tokens = [item for start in range(0, len(ids), k) for item in sharing(ids[start : start + k])]
    recipe = backbone.recipe((f"{backbone.depth}:last",))
    store = MemoryStore()
    encode(backbone, recipe, tokens, store, token_budget=token_budget)
    last = torch.from_numpy(store.read(stack_keys(item.key for item in tokens)))
    yes, no = (int(item.response[0]) for item in backbone.chat.encode(["a", "a"], ["Yes", "No"]))
    head: Any = generator.model.get_output_embeddings()
    scores: Array = (last @ (head.weight[yes].float() - head.weight[no].float()).cpu()).numpy()
    return scores.reshape(len(prompts), k)


def sharing(rows: list[NDArray[np.int32]]) -> list[Tokens]:
    """Sequences of ids as what they all begin with and the rest of each, of at least one token."""
    shared = len(os.path.commonprefix([row[:-1].tolist() for row in rows]))  # noqa: RUF071 (items are meant)
    return [Tokens(row[:shared], row[shared:], 0) for row in rows]


def judged_pairs(
    scores: NDArray[Any], per_prompt: int | Rows, valid: NDArray[np.bool_] | None = None
) -> tuple[Rows, Rows, Rows]:
    """The pairs of answers to one prompt whose scores lie farthest apart; ties are left out.

    Args:
        scores: [P, k] of the answers to each prompt.
        per_prompt: most pairs from a prompt, one number or [P]; k answers make at most k (k - 1) / 2.
        valid: [P, k], the answers that may be used; all by default.

    Returns:
        row [m] (the prompt), better [m] and worse [m] (its answers, in 0 ... k - 1), int64; by prompt, and within one
        from the largest gap to the smallest.

    Raises:
        InputError: shapes do not fit, or a valid answer's score is not finite.
    """
    valid = np.ones(scores.shape, bool) if valid is None else valid
    if scores.ndim != 2 or valid.shape != scores.shape:
        raise InputError(
            f"scores and valid must both be [prompts, answers]; they are {scores.shape} and {valid.shape}."
        )
    if bad := int((valid & ~np.isfinite(scores)).sum()):
        raise InputError(f"{bad} scores are not finite; mark those answers as not valid.")
    scores = np.where(valid, scores, 0.0)
    first, second = np.triu_indices(scores.shape[1], 1)
    gap = scores[:, first] - scores[:, second]
    usable = valid[:, first] & valid[:, second] & (gap != 0)
    order = np.argsort(-np.where(usable, np.abs(gap), -1.0), axis=1, kind="stable")
    wanted = np.broadcast_to(np.asarray(per_prompt), len(scores))[:, None]
    kept = np.take_along_axis(usable, order, 1) & (np.arange(order.shape[1]) < wanted)
    row, place = np.nonzero(kept)
    pair = order[row, place]
    won = gap[row, pair] > 0
    return row, np.where(won, first[pair], second[pair]), np.where(won, second[pair], first[pair])


def least_answers(pairs: int) -> int:
    """The least k >= 2 for which k answers make `pairs` pairs: k (k - 1) / 2 >= pairs."""
    k = 2
    while k * (k - 1) // 2 < pairs:
        k += 1
    return k


def augment(
    pairs: Dataset,
    generator: Generator,
    score_fn: ScoreFunction | None = None,
    factor: int = 4,
    *,
    answers: int | None = None,
    max_new_tokens: int = 48,
    temperature: float = 0.8,
    seed: int = 0,
    file: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """The seed pairs and after them synthetic ones: answers that the LLM samples to the seeds' prompts, judged.

    Factor x means n seed pairs and (factor - 1) n synthetic ones: a prompt with c seed pairs gets the (factor - 1) c
    pairs of its answers whose scores lie farthest apart. It gets fewer where answers are empty, or score alike; how
    many in all is logged. 4 answers give at most 6 pairs.

    Args:
        pairs: from `load_pairs`.
        generator: the LLM that answers.
        score_fn: the judge, such as `RewardModel.score`; by default the LLM itself, by `llm_judge`.
        factor: at least 1.
        answers: sampled to each prompt; by default the least k with k (k - 1) / 2 >= (factor - 1) c for every prompt.
        max_new_tokens, temperature, seed, file, show_progress: see `Generator.sample`.

    Returns:
        The columns of `pairs`, and `source` if it was not there; `source` is "synthetic" for synthetic pairs, and
        columns of which they know nothing are None.

    Raises:
        InputError: a factor below 1, or too few answers for it.
    """
    check_factor(factor)
    if factor == 1:
        return _with_source(pairs)
    _, where, counts = np.unique(prompt_groups(pairs), return_index=True, return_counts=True)
    order = np.argsort(where)
    where, wanted = where[order], counts[order] * (factor - 1)
    most = int(wanted.max())
    answers = least_answers(most) if answers is None else answers
    if answers * (answers - 1) // 2 < most:
        raise InputError(
            f"{answers} answers make {answers * (answers - 1) // 2} pairs, and factor {factor} takes {most} from one"
            f" prompt; use answers={least_answers(most)} or a smaller factor."
        )
    prompts: list[Text] = list(pairs.select(where)["prompt"])
    texts = generator.sample(
        prompts,
        answers=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        file=file,
        show_progress=show_progress,
    )
    valid = np.array([[bool(text.strip()) for text in row] for row in texts])
    row, better, worse = judged_pairs(_judge(generator, score_fn, prompts, texts, valid), wanted, valid)
    if len(row) < wanted.sum():
        log.warning(
            "%d synthetic pairs instead of %d: %d of %d answers are empty, others score alike",
            len(row),
            wanted.sum(),
            (~valid).sum(),
            valid.size,
        )
    made = [
        {"prompt": prompts[r], "chosen": texts[r][b], "rejected": texts[r][w]}
        for r, b, w in zip(row.tolist(), better.tolist(), worse.tolist(), strict=True)
    ]
    return concatenate_datasets([_with_source(pairs), _as_pairs(made, _with_source(pairs).features)])


def _judge(
    generator: Generator,
    score_fn: ScoreFunction | None,
    prompts: list[Text],
    texts: list[list[str]],
    valid: NDArray[np.bool_],
) -> NDArray[Any]:
    if score_fn is None:
        return llm_judge(generator, prompts, texts)
    scores = np.zeros(valid.shape)
    here = np.argwhere(valid)
    if len(here):
        scores[valid] = score_fn([prompts[r] for r, _ in here], [texts[r][c] for r, c in here])
    return scores


def _with_source(pairs: Dataset) -> Dataset:
    if "source" in pairs.column_names:
        return pairs
    return pairs.add_column("source", [None] * len(pairs), feature=Value("string"))


def _as_pairs(rows: list[dict[str, Any]], features: Features) -> Dataset:
    """Rows in the seeds' form: strings, or one assistant message an answer where the seeds have messages."""
    if not isinstance(features["chosen"], Value):
        for row in rows:
            row.update({side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")})
    known = {"source": SYNTHETIC}
    columns = {name: [row.get(name, known.get(name)) for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features)
