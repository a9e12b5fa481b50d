"""Heads score latents: linear, prompt-dependent, coded, an MLP, on SAE features, a taste a person, or a committee."""

from penchant.heads.auto import AutoHead
from penchant.heads.base import HEADS, Head, load_head
from penchant.heads.coded import CodedHead
from penchant.heads.committee import CommitteeHead
from penchant.heads.context import ContextHead
from penchant.heads.linear import LinearHead
from penchant.heads.mlp import MLPHead
from penchant.heads.pca import PCAHead
from penchant.heads.sae_linear import SAELinearHead
from penchant.heads.sparse import SparseHead
from penchant.heads.tastes import TasteHead

__all__ = [
    "HEADS",
    "AutoHead",
    "CodedHead",
    "CommitteeHead",
    "ContextHead",
    "Head",
    "LinearHead",
    "MLPHead",
    "PCAHead",
    "SAELinearHead",
    "SparseHead",
    "TasteHead",
    "load_head",
]
