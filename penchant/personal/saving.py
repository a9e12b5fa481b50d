"""The parts of a personal LLM on disk that need care: CLaP's weights, and an LLM that was trained with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from penchant.backbone import Backbone, local_revision
from penchant.errors import InputError
from penchant.personal.clap import Clap
from penchant.policy.saving import load_base
from penchant.writing import writing

LLM = "llm"
"""The folder, in the system's own, of an LLM that was trained as well."""


def load_weights(clap: Clap, weights: dict[str, Tensor], path: Path) -> None:
    """Put saved weights back into `clap`, all but the skip's, which are kept nowhere.

    Raises InputError, by the file's name, where one is missing, unknown, or of another size.
    """
    try:
        left = clap.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of other sizes than CLaP has here; pretrain anew.") from error
    missing = [name for name in left.missing_keys if not name.startswith("skip.")]
    for names, says in ((missing, "lacks"), (left.unexpected_keys, "holds the unknown")):
        if names:
            raise InputError(f"{path} {says} {', '.join(names[:3])}; pretrain anew.")


def save_llm(llm: PreTrainedModel, backbone: Backbone, folder: Path) -> dict[str, str]:
    """Write an LLM that was trained, with its tokenizer, as a plain transformers model below a system's folder.

    Returns what config.json says of it. The backbone goes by the new LLM's name from then on.
    """
    path = folder / LLM
    with writing(path):
        llm.save_pretrained(path)
        backbone.chat.tokenizer.save_pretrained(path)
    backbone.name, backbone.revision = str(path), local_revision(str(path))
    return {"llm": LLM, "llm_revision": backbone.revision}


def load_llm(facts: dict[str, Any], folder: Path) -> tuple[PreTrainedModel, Backbone]:
    """The LLM of a system: the one in its folder, or the one it was made on; RecipeMismatch where that is another."""
    if "llm" in facts:
        if facts["llm"] != LLM:
            raise InputError(
                f"the LLM of {folder} is said to lie in {facts['llm']!r:.200}, not in its {LLM}/; pretrain anew."
            )
        own = {"base": str(folder / LLM), "revision": facts["llm_revision"], "asked_revision": None}
        return load_base(facts | own)
    return load_base(facts)
