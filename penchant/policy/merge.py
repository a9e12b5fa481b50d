"""A policy under one fixed code as a plain transformers folder: LoRA merged into the weights, z made a bias.

    W (h + z) = W h + b,   b = W z the same at every position

so a fixed z needs no code of Penchant's, only a place for a constant. Which one there is depends on the LLM's class:

    head           the vocabulary's head has a bias (Phi, GPT-J): b is added to it
    norm           the final norm has one (GPT-2, GPT-NeoX, Falcon, Starcoder 2): z is, as LMHead sees norm(x) + z
    renamed        Llama, Mistral and Qwen 2 have neither, but the network that transformers calls Ernie 4.5 MoE, with
                   no layer made a mixture of experts, is the same with a bias on everything, the head included
    sequence_bias  all others: b stands in generation_config.json, and `generate` adds it to the scores

The first three are exact wherever transformers runs the model. The last one is exact in `generate` alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from penchant.backbone import PROBE_TOLERANCE
from penchant.chat import Text
from penchant.decoding import shifted_head
from penchant.errors import InputError
from penchant.policy.codes import LatentCodes
from penchant.policy.generate import fixed_weights
from penchant.policy.log_probs import Vocabulary

if TYPE_CHECKING:
    from penchant.policy.policy import Policy

RENAMED = ("llama", "mistral", "qwen2")
SAYS = {
    "none": "The policy has no codes; this is its LLM as trained.",
    "head": "z is in the bias of the vocabulary's head: exact in every use.",
    "norm": "z is in the bias of the final norm: exact in every use.",
    "renamed": (
        "z is in the bias of the vocabulary's head. {kind} has no such bias, so the same network is written as an"
        " Ernie 4.5 MoE without experts: exact in every use of transformers; other runtimes may drop that bias."
    ),
    "sequence_bias": (
        "z is in generation_config.json, as sequence_bias: exact in transformers' generate. The logits of a plain"
        " forward pass do not carry it, and other runtimes, such as vLLM and llama.cpp, leave it out."
    ),
}
"""What each place of z means for those who use the folder."""


class Merged(NamedTuple):
    folder: Path
    place: str
    """Where z went: a key of `SAYS`."""
    says: str
    """What that means, in a sentence or two."""


@torch.no_grad()
def merge(
    policy: Policy,
    code: int | str | Sequence[float] | NDArray[Any] | Tensor | None,
    folder: str | Path,
    prompts: Sequence[Text] | None = None,
) -> Merged:
    """Write `policy` under one code into `folder`, for AutoModelForCausalLM; the policy is left as it was.

    Weights keep their number type. The folder's `generate` ends an answer where Penchant does.

    Args:
        code: the number of a code, K weights of a mixture, or "average", the mean of the prior's weights over
            `prompts`; None for a policy without codes.
        folder: made if it is not there.

    Raises:
        InputError: no such code, or none given; logits that are capped after the head, where no place but the
            generation config is left; a folder that cannot be written.
    """
    z = _fixed_z(policy, code, prompts)
    model: Any = copy.deepcopy(policy.model).eval()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.get_text_config()._attn_implementation = policy.backbone.plain_attention  # not the packed one
    place, written, bias = _placed(model, z)
    says = SAYS[place].format(kind=type(model).__name__)
    chat = policy.backbone.chat
    ends = sorted(chat.ends)
    written.generation_config.eos_token_id = ends
    written.generation_config.pad_token_id = ends[0] if (pad := chat.tokenizer.pad_token_id) is None else pad
    target = Path(folder)
    if (target / "adapter").exists() or (target / "codes.safetensors").exists():
        raise InputError(f"{target} holds a policy, whose config.json would be overwritten; give another folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        written.save_pretrained(target)
        chat.tokenizer.save_pretrained(target)
        if bias is not None:
            _write_sequence_bias(target / "generation_config.json", bias)
        (target / "README.md").write_text(card(policy.facts, code, says), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write into {target}: {error.strerror or error}; choose another folder.") from error
    return Merged(target, place, says)


def card(facts: dict[str, Any], code: Any, says: str) -> str:
    """The README that a merged policy carries."""
    told = {None: "", "average": " under its average mixture of codes"}
    under = told[code] if code is None or isinstance(code, str) else f" under code {np.asarray(code).tolist()}"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [preference-learning, penchant]",
            "---",
            "",
            "# Aligned LLM",
            "",
            f"`{facts.get('base', 'an LLM')}`, aligned with {str(facts.get('loss', 'a preference loss')).upper()} by"
            f" Penchant{under}.",
            says,
            "",
        ]
    )


def _fixed_z(policy: Policy, code: Any, prompts: Sequence[Text] | None) -> Tensor | None:
    """z [d] of the code asked for."""
    if policy.codes is None and code is None:
        return None
    if not isinstance(policy.codes, LatentCodes):
        raise InputError("this policy was trained without codes (codes 0); leave the code out.")
    if isinstance(code, str) and code == "average":
        if not prompts:
            raise InputError("the average code is one over prompts; give prompts.")
        weights = policy.prior(prompts).mean(0)
    elif code is None or isinstance(code, str):
        raise InputError(f"code is {code!r}; give a code's number, a weight for each code, or average with prompts.")
    else:
        weights = fixed_weights(code, policy.codes.codes)
    z: Tensor = policy.codes.z(weights.to(policy.codes.codebook)[None])[0]
    return z


def _placed(model: Any, z: Tensor | None) -> tuple[str, Any, Tensor | None]:
    """Where z [d] went, the model to write (its weights may be `model`'s), and b [v] where that has no place for it."""
    if z is None:
        return "none", model, None
    vocabulary = Vocabulary.of(model)
    head: Any = vocabulary.head
    bias = nn.functional.linear(z.to(head.weight.dtype), head.weight).float()
    if head.bias is not None:
        head.bias += bias
        return "head", model, None
    if (norm := _final_norm(model, head)) is not None:
        norm.bias += z
        return "norm", model, None
    if (renamed := _renamed(model)) is not None:
        renamed.lm_head.bias.copy_(bias)
        if _agree(renamed, model, z):
            return "renamed", renamed, None
    if vocabulary.cap is not None:
        raise InputError(
            f"{type(model).__name__} caps its logits, so no code can be merged into it; use the policy as it is."
        )
    return "sequence_bias", model, vocabulary.scale * bias


def _probe(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], (1, 12), generator=generator)
    return ids.to(model.device)


def _final_norm(model: Any, head: nn.Module) -> Any:
    """The norm with a bias whose output is what the head reads, if there is one."""
    outputs: dict[nn.Module, Any] = {}
    read: list[Tensor] = []
    norms = [
        m for m in model.modules() if all(getattr(getattr(m, n, None), "ndim", 0) == 1 for n in ("weight", "bias"))
    ]
    handles = [norm.register_forward_hook(lambda m, _, output: outputs.update({m: output})) for norm in norms]
    handles.append(head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])))
    model(input_ids=_probe(model), use_cache=False)
    for handle in handles:
        handle.remove()
    return next((norm for norm, output in outputs.items() if torch.equal(output, read[0])), None)


def _renamed(model: Any) -> Any:
    """The same network as Ernie4_5_MoeForCausalLM on the weights of `model`, or None where it is another one.

    That class turns neighbouring numbers of a query by one angle, Llama numbers half a head apart, so the rows of each
    head's query and key matrices are interleaved; their products do not change.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in RENAMED or kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return None
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act"
        " max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings rope_parameters bos_token_id"
        " eos_token_id pad_token_id dtype"
    )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own: dict[str, Any] = {name: getattr(config, name) for name in kept.split()}
    own |= {"head_dim": head_dim, "use_bias": True}
    own |= {"moe_layer_start_index": config.num_hidden_layers, "moe_num_experts": 1, "moe_k": 1}  # no layer is MoE
    made = transformers.Ernie4_5_MoeConfig(**own)
    with torch.device("meta"):
        renamed: Any = transformers.AutoModelForCausalLM.from_config(made, dtype=model.dtype)
    theirs = {
        name: _interleaved(tensor, head_dim) if ".q_proj." in name or ".k_proj." in name else tensor
        for name, tensor in model.state_dict().items()
    }
    zeros = {
        name: torch.zeros(parameter.shape, dtype=model.dtype, device=model.device)
        for name, parameter in renamed.named_parameters()
        if name.endswith(".bias") and name not in theirs
    }
    renamed.load_state_dict(theirs | zeros, assign=True)
    renamed.model.rotary_emb = type(renamed.model.rotary_emb)(made).to(model.device)  # built on meta, and not saved
    renamed.tie_weights()
    renamed.generation_config = model.generation_config
    return renamed.eval()


def _interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows 0, 1, ... of each head's first half between those of its second: [0, d/2, 1, d/2 + 1, ...]."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape).contiguous()


def _agree(made: Any, model: Any, z: Tensor) -> bool:
    """Whether `made` gives the logits of `model` under z."""
    ids = _probe(model)
    with shifted_head(model.get_output_embeddings(), z[None]):
        wanted = model(input_ids=ids, use_cache=False).logits.float()
    found = made(input_ids=ids, use_cache=False).logits.float()
    return bool((found - wanted).norm() <= PROBE_TOLERANCE.get(model.dtype, 0.1) * wanted.norm())


def _write_sequence_bias(path: Path, bias: Tensor) -> None:
    """Add one entry a token to a generation config, in as few characters as carry float32 without loss."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["sequence_bias"] = [[[token], float(f"{value:.9g}")] for token, value in enumerate(bias.tolist())]
    path.write_text(json.dumps(config, separators=(",", ":")), encoding="utf-8")
