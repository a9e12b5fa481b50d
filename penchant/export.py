"""A reward model as a plain transformers folder, for servers and trainers that know nothing of Penchant.

The classifier's score is exact only where transformers computes what the head does: one bias-free matrix product on
the final hidden state of the last token. Everything else is refused.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from penchant.backbone import Backbone
from penchant.chat import FIXED_DATE, Chat, Text
from penchant.errors import InputError
from penchant.heads import LinearHead

if TYPE_CHECKING:
    from penchant.reward_model import RewardModel

PAD = "<|pad|>"
CURE = "train with: penchant train --head linear --views [{view}]"
PROBES: tuple[tuple[Text, str], ...] = (
    ("How do I boil an egg?", "Eight minutes in boiling water."),
    ("Hi", " 2 + 2 = 4\n\n```python\nprint('naïve')\n```\n"),
    (
        [
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "content": "The Po."},
            {"role": "user", "content": "Another?"},
        ],
        "The Rhine",
    ),
)
"""Prompts and responses that the exported tokenizer must turn into the very ids that Penchant scores."""


def export_sequence_classifier(rm: RewardModel, folder: str | Path) -> Path:
    """Write `rm` as an `AutoModelForSequenceClassification` folder in float32; returns the folder.

    The folder has num_labels=1, a bias-free `score` and a padding token that no text ends with, because transformers
    scores the last token that is not padding: with pad == eos that is one token too early. Its tokenizer's chat
    template ends a conversation where Penchant does. So

        ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True, padding=True)
        model(**ids).logits[:, 0]

    are the scores of `rm.score` to 1e-4 for a backbone in float32, at any batch size and with either padding side
    (left padding needs relative positions, such as rotary ones). A reward model that was trained in bfloat16 keeps its
    rounded weights, and its scores agree as far as bfloat16 activations do.

    Not carried over: a text tokenised in any other way (a rendered conversation needs add_special_tokens=False);
    truncation, unless truncation=True is passed, which then keeps the last `max_length` tokens as Penchant does; the
    temperature; and the ids of a response whose first characters merge with the end of the generation prompt, since
    Penchant tokenises prompt and response apart.

    Raises InputError for what is not exact: another head than LinearHead, other views than the last token of the last
    layer alone, a backbone without a chat template or without a sequence classifier; and for a folder that cannot be
    written.
    """
    head, backbone = _exact_head(rm), rm.backbone
    tokenizer, pad_id = _tokenizer(backbone.chat)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _classifier(backbone, head, tokenizer, pad_id).save_pretrained(target)
        tokenizer.save_pretrained(target)
    except OSError as error:
        raise InputError(f"cannot write into {target}: {error.strerror or error}; choose another folder.") from error
    return target


def _exact_head(rm: RewardModel) -> LinearHead:
    """The head, or InputError where no score layer on the final hidden state of the last token gives its scores."""
    cure = CURE.format(view="DEPTH:last")
    if not isinstance(rm.head, LinearHead):
        raise InputError(f"a {rm.head.name} head is not one matrix product, which is all a classifier has; {cure}.")
    if len(rm.recipe.views) > 1 or not rm.recipe.views[0].endswith(":last"):
        raise InputError(
            f"the head reads {', '.join(rm.recipe.views)}, but a classifier sees one layer's last token only; {cure}."
        )
    backbone, view = rm.backbone, rm.recipe.views[0]
    final = f"{backbone.depth}:last"
    if view != final:
        raise InputError(
            f"the head reads {view}, but a classifier sees the last layer only; {CURE.format(view=final)}."
        )
    if not backbone.chat.has_template:
        raise InputError(
            f"{backbone.name} has no chat template, so nothing in the exported folder could say where a response"
            f" begins; take an instruction-tuned model and {cure}."
        )
    return rm.head


def _tokenizer(chat: Chat) -> tuple[Any, int]:
    """A copy of the tokenizer that renders and pads as the classifier needs it, and the padding token's id."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    end = int(chat.encode(["Hi"], ["Hello."])[0].response[-1])
    tokenizer.chat_template = closing_template(chat)
    tokenizer.model_max_length = chat.max_length
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    tokenizer.init_kwargs |= {"padding_side": "right", "truncation_side": "left"}  # or they would not be saved
    if tokenizer.pad_token_id in (None, end, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    prompts, responses = [prompt for prompt, _ in PROBES], [response for _, response in PROBES]
    for prompt, response, scored in zip(prompts, responses, chat.encode(prompts, responses), strict=True):
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        conversation = [*before, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
        if not scored.cut and ids != [*scored.prompt.tolist(), *scored.response.tolist()]:
            raise InputError(
                "this backbone's tokenizer splits a whole conversation otherwise than prompt and response apart, so an"
                " exported classifier would give other scores; score with RewardModel.score or penchant score instead."
            )
    return tokenizer, int(tokenizer.pad_token_id)


def closing_template(chat: Chat) -> str:
    """The chat template, made to end a conversation where `Chat` does and to give `Chat`'s date.

    White space behind the end-of-turn token is dropped; where the template has no such token, EOS is added.
    """
    tokenizer = chat.tokenizer
    scored = chat.encode(["Hi"], ["Hello."])[0].response
    rendered = tokenizer(chat.render("Hi", "Hello.")[1].rstrip(), add_special_tokens=False).input_ids
    closed = rendered[-1] == scored[-1]
    close = "text.rstrip()" if closed else f"text + {tokenizer.eos_token or ''!r}"
    date = (
        f"{{%- set date_string = {FIXED_DATE!r} -%}}{{%- macro strftime_now(format) -%}}{FIXED_DATE}{{%- endmacro -%}}"
    )
    # The plus signs keep the engine from trimming white space of the original; its last line end never counts.
    original = f"{{%- set text +%}}{tokenizer.get_chat_template().removesuffix(chr(10))}{{%+ endset -%}}"
    return f"{date}{original}{{{{ text if add_generation_prompt else {close} }}}}"


def _classifier(backbone: Backbone, head: LinearHead, tokenizer: Any, pad_id: int) -> PreTrainedModel:
    """The backbone's weights under a score layer, with a row for every token; the backbone itself is not touched."""
    config = copy.deepcopy(backbone.model.config)
    config.num_labels, config.problem_type, config.dtype = 1, "regression", torch.float32
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad_id
        part.vocab_size = max(backbone.vocabulary, len(tokenizer))
    if hasattr(config, "quantization_config"):  # what a GGUF file leaves there; the weights are plain numbers by now
        del config.quantization_config
    config._attn_implementation = "eager"  # not saved; Penchant's own cannot be built by others
    inputs: Any = backbone.model.get_input_embeddings()
    embedding = next(name for name, module in backbone.model.named_modules() if module is inputs)
    try:
        with torch.device("meta"):
            classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        prefix = classifier.base_model_prefix
        weights = {name: tensor.float().cpu() for name, tensor in backbone.model.state_dict().items()}
        weights[f"{embedding}.weight"] = _with_rows(weights[f"{embedding}.weight"], config.get_text_config().vocab_size)
        weights = {f"{prefix}.{name}": tensor for name, tensor in weights.items()}
        weights["score.weight"] = torch.from_numpy(head.weight_).float()[None]
        classifier.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:  # no such class, or one with other parts than backbone and score
        raise InputError(
            f"transformers has no sequence classifier that fits {type(backbone.model).__name__}: use"
            " RewardModel.score or penchant score instead."
        ) from error
    return classifier


def _with_rows(embedding: Tensor, rows: int) -> Tensor:
    """The embedding [v, width] with zero rows added up to `rows`: only a padding token, which nothing sees, has one."""
    return torch.cat([embedding, embedding.new_zeros(rows - len(embedding), embedding.shape[1])])
