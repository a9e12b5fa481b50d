"""Heads score latents: linear, prompt-dependent, a small MLP, or whichever cross-validation picks."""

from penchant.heads.auto import AutoHead
from penchant.heads.base import HEADS, Head, load_head
from penchant.heads.context import ContextHead
from penchant.heads.linear import LinearHead
from penchant.heads.mlp import MLPHead

__all__ = ["HEADS", "AutoHead", "ContextHead", "Head", "LinearHead", "MLPHead", "load_head"]
