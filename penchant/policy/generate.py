"""A policy's answers: the prior weighs the codes for each prompt, and every token is drawn from softmax(LMHead(h + z)).

At inference there is no pair, so z comes from the prompt alone (or from the user): the mixture of codes that the prior
expects, its likeliest code, a code drawn from it, or one fixed mixture for all prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from penchant.backbone import Backbone
from penchant.chat import Chat, Text
from penchant.decoding import TOP, shifted_head
from penchant.errors import InputError
from penchant.generation import ROWS, Generator, check_settings, prompt_ids, prompt_seed, uniforms
from penchant.policy.codes import LatentCodes

if TYPE_CHECKING:
    from penchant.policy.policy import Policy

FROM_PRIOR = ("expectation", "best", "sample")
"""Ways to let the prior choose."""
Code = str | int | Sequence[float] | NDArray[Any] | Tensor
"""One of `FROM_PRIOR`, the number of a code, or K weights of a mixture."""


@torch.no_grad()
def choose_z(
    policy: Policy,
    prompts: Sequence[Text],
    code: Code = "expectation",
    seed: int = 0,
    evidence: Tensor | None = None,
) -> Tensor | None:
    """z [n, d] of each prompt, float32; None for a policy without codes.

    Args:
        code: "expectation", the mean of the codebook under the prior; "best", the prior's likeliest code; "sample", a
            code drawn from the prior, which depends on `seed` and the prompt alone; the number of one code; or K
            weights, none negative, that sum to one. The last two are the same for all prompts.
        evidence: [K], each code's log-likelihood by the pairs of whoever asks (`Policy.evidence_on`, `evidence_of`):
            in place of the prior then stands prior times likelihood.

    Any other latent than `LatentCodes` has its expectation alone.

    Raises:
        InputError: there is no such code, the weights are none, or codes were asked of a policy that has none.
    """
    prior_alone = isinstance(code, str) and code == "expectation" and evidence is None
    if policy.codes is None and prior_alone:
        return None
    if not isinstance(policy.codes, LatentCodes) and not prior_alone:
        raise InputError("this policy was trained without codes (codes 0), so there is none to choose.")
    if evidence is not None and isinstance(policy.codes, LatentCodes) and evidence.shape != (policy.codes.codes,):
        raise InputError(
            f"the evidence on who asks has the shape {list(evidence.shape)}; give one number for each of the"
            f" {policy.codes.codes} codes, summed over their pairs."
        )
    if prior_alone:
        z: Tensor = policy.codes.expected(policy.prompt_states(prompts).to(policy.backbone.device))
        return z
    if not isinstance(code, str):
        weights = fixed_weights(code, policy.codes.codes).expand(len(prompts), -1)
    elif code in FROM_PRIOR:
        weights = policy.prior(prompts)
        if evidence is not None:
            weights = (weights.log() + evidence.cpu()).softmax(-1)
        if code != "expectation":
            chosen = weights.argmax(-1) if code == "best" else _drawn(policy.backbone.chat, prompts, weights, seed)
            weights = F.one_hot(chosen, policy.codes.codes)
    else:
        raise InputError(f"code {code!r} is not {', '.join(FROM_PRIOR)}, the number of a code or a weight for each.")
    z = policy.codes.z(weights.to(policy.codes.codebook))
    return z


def fixed_weights(code: int | Sequence[float] | NDArray[Any] | Tensor, codes: int) -> Tensor:
    """Weights [K], K = `codes`, of one code or of a mixture; InputError if there is no such code or mixture."""
    if isinstance(code, int | np.integer):
        if not 0 <= code < codes:
            raise InputError(f"there is no code {code}; this policy has codes 0 to {codes - 1}.")
        return F.one_hot(torch.tensor(int(code)), codes).float()
    weights = torch.as_tensor(code, dtype=torch.float32)
    if weights.shape != (codes,):
        raise InputError(f"{weights.numel()} weights for {codes} codes; give one for each.")
    if not (bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < 1e-3):
        raise InputError("the codes' weights must not be negative and must sum to one; divide them by their sum.")
    return weights


def _drawn(chat: Chat, prompts: Sequence[Text], prior: Tensor, seed: int) -> Tensor:
    """A code [n] for each prompt with probabilities [n, K], by random numbers that its tokens have no part in."""
    keys = [b"code" + item.prompt.tobytes() for item in chat.encode(prompts, ["a"] * len(prompts))]
    reached = prior.double().cumsum(-1)
    point = uniforms(seed, keys, 1, 1)[:, 0].double() * reached[:, -1:]
    return torch.searchsorted(reached, point, right=True)[:, 0].clamp(max=prior.shape[1] - 1)


def generate(
    policy: Policy,
    prompts: Sequence[Text],
    *,
    code: Code = "expectation",
    evidence: Tensor | None = None,
    answers: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    show_progress: bool = False,
) -> list[list[str]]:
    """`answers` texts for each prompt, in the prompts' order, under z as `choose_z` has it.

    `Generator` samples them side by side; a model that it refuses answers prompt by prompt with transformers' own
    `generate`. An answer ends with a special token or after `max_new_tokens`, and depends on nothing but the seed and
    its prompt. The policy is left as it was: what was trained can be trained on.

    Args:
        code, evidence: which codes speak, and what is known of who asks, see `choose_z`.
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the fewest likeliest that reach this probability, at most 200.

    Raises:
        InputError: a setting out of range, no such code, or a prompt that the chat template refuses.
    """
    chat = policy.backbone.chat
    check_settings(answers, max_new_tokens, temperature, top_p, ROWS, chat.max_length)
    if not prompts:
        return []
    model = whole_model(policy)
    z = choose_z(policy, prompts, code, seed, evidence)
    with _undisturbed(model):
        try:
            generator = Generator(model, policy.backbone)
        except InputError:
            with _plain_attention(policy.backbone):
                return _one_by_one(
                    model, chat, prompts, z, answers, max_new_tokens, temperature, top_p, seed, show_progress
                )
        return generator.sample(
            prompts,
            answers=answers,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            shift=z,
            show_progress=show_progress,
        )


@contextmanager
def shifted(policy: Policy, z: Tensor | None) -> Iterator[None]:
    """Within it `policy.model` speaks under z, in `policy.model.generate` and in plain forward passes alike.

    `z` [d] serves every row; [n, d] serves n prompts in order, with as many answers or beams each as are asked for.
    None, of a policy without codes, changes nothing. Raises InputError for another width.
    """
    rows = z.view(-1, z.shape[-1]) if z is not None else None
    if rows is not None and rows.shape[1] != policy.backbone.width:
        raise InputError(f"z is {rows.shape[1]} wide, but this policy's hidden states are {policy.backbone.width}.")
    with _plain_attention(policy.backbone), shifted_head(policy.lm_head, rows):
        yield


def whole_model(policy: Policy) -> transformers.PreTrainedModel:
    """The causal LLM itself, with what LoRA put into its layers."""
    model: Any = policy.model
    return cast(transformers.PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)


@contextmanager
def _plain_attention(backbone: Backbone) -> Iterator[None]:
    """Within it the model runs as transformers would, not packed as the backbone ran it last."""
    found, backbone.config._attn_implementation = backbone.config._attn_implementation, backbone.plain_attention
    try:
        yield
    finally:
        backbone.config._attn_implementation = found


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards parameters are trained, and modules are in training mode, as before; `Generator` freezes them all."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, found in trained:
            parameter.requires_grad_(found)
        for module, mode in training:
            module.training = mode


def _one_by_one(
    model: transformers.PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Text],
    z: Tensor | None,
    answers: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    show_progress: bool,
) -> list[list[str]]:
    """Answers by transformers' `generate`, without padding, which not every model here can bear on the left."""
    ends = sorted(chat.ends)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
    if temperature:
        settings |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": TOP}
        settings["num_return_sequences"] = answers
    run: Any = model
    asked = prompt_ids(chat, prompts, max_new_tokens)
    own, run.generation_config = run.generation_config, transformers.GenerationConfig()  # its penalties are not ours
    found = []
    try:
        for row, prompt in enumerate(tqdm(asked, desc="sample", disable=not show_progress, leave=False)):
            ids = torch.from_numpy(prompt).long().to(model.device)[None]
            shift = z[row, None] if z is not None else None
            with torch.random.fork_rng(), shifted_head(run.get_output_embeddings(), shift):
                torch.manual_seed(prompt_seed(seed, prompt.tobytes()) % 2**63)
                out = run.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            texts = chat.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            found.append(texts if temperature else texts * answers)
    finally:
        run.generation_config = own
    return found
