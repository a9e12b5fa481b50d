"""Preference learning in the latent space of a frozen LLM."""

__version__ = "0.1.0"
