"""What a VAE may be built from."""

from __future__ import annotations

from torch import Tensor

from vae_fast._scales import Bounds
from vae_fast.functional import _arguments as check
from vae_fast.functional._bounds import ScaleBounds, checked
from vae_fast.likelihoods import Likelihood


def check_scale(scale: Tensor, entry: Likelihood | None, event_dim: int) -> None:
    """A scale of the model's own belongs to a likelihood that has one; ``entry``: None for a function."""
    check.tensor("scale", scale)
    if entry is None or entry.scale is None:
        named = "that is a function" if entry is None else f"likelihood={entry.name!r}, which has none"
        raise ValueError(f"scale of shape {tuple(scale.shape)} was given: expected None for a likelihood {named}")
    if scale.ndim > event_dim:
        raise ValueError(f"scale has shape {tuple(scale.shape)}: expected at most the event_dim={event_dim} dimensions of one x")


def check_recon_bounds(bounds: ScaleBounds | None, entry: Likelihood | None) -> Bounds | None:
    """Bounds of the scale of p(x|z) belong to a likelihood that has one; ``entry``: None for a function."""
    if bounds is not None and (entry is None or entry.parameters[-1] not in ("logvar", "log_scale")):
        named = "that is a function" if entry is None else f"likelihood={entry.name!r}, which has no scale"
        raise ValueError(f"recon_scale_bounds={check.shown(bounds)}: expected None for a likelihood {named}")
    return checked(bounds, "logvar", "recon_scale_bounds")
