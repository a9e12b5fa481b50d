"""Sparse autoencoders: train one on any text, read published ones, and say how good they are."""

from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder

__all__ = ["SAEConfig", "SparseAutoencoder"]
