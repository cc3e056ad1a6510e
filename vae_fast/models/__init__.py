"""Modules built from :mod:`vae_fast.functional`."""

from vae_fast.models.mlp import MLPVAE
from vae_fast.models.vae import VAE, Losses, VAEOutput

__all__ = ["MLPVAE", "VAE", "Losses", "VAEOutput"]
