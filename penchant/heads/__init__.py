"""Heads score latents: linear, a small MLP, or whichever cross-validation picks."""

from penchant.heads.base import HEADS, Head, load_head
from penchant.heads.linear import LinearHead

__all__ = ["HEADS", "Head", "LinearHead", "load_head"]
