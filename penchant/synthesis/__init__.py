"""Synthesizers: more preference pairs out of few."""

from penchant.synthesis.base import SYNTHESIZERS, Synthesizer
from penchant.synthesis.lens import Lens
from penchant.synthesis.noise import CrossPairs, DirectNoise, GaussianSynthesis, PCANoise
from penchant.synthesis.theory import displacement, order_kept, order_preservation

__all__ = [
    "SYNTHESIZERS",
    "CrossPairs",
    "DirectNoise",
    "GaussianSynthesis",
    "Lens",
    "PCANoise",
    "Synthesizer",
    "displacement",
    "order_kept",
    "order_preservation",
]
