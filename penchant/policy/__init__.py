"""Policies: preference optimisation with DPO, IPO or SimPO, and latent codes for conflicting preferences (LPC)."""
