"""What a VAE may be built from."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.likelihoods import Likelihood


def check_scale(scale: Tensor, entry: Likelihood | None, event_dim: int) -> None:
    """A scale of the model's own belongs to a likelihood that has one; ``entry``: None for a function."""
    check.tensor("scale", scale)
    if entry is None or entry.scale is None:
        named = "that is a function" if entry is None else f"likelihood={entry.name!r}, which has none"
        raise ValueError(f"scale of shape {tuple(scale.shape)} was given: expected None for a likelihood {named}")
    if scale.ndim > event_dim:
        raise ValueError(f"scale has shape {tuple(scale.shape)}: expected at most the event_dim={event_dim} dimensions of one x")
