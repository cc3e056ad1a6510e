"""What a VAE may be built from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_fast.functional import _arguments as check
from vae_fast.likelihoods import Likelihood
from vae_fast.models._distribution_prior import DistributionPrior


def check_prior(prior: object) -> nn.Module:
    """A prior of the caller's own has log_prob and sample; an object of torch.distributions becomes a module that has."""
    if isinstance(prior, Distribution):
        return DistributionPrior(prior)
    if not (isinstance(prior, nn.Module) and callable(getattr(prior, "log_prob", None)) and callable(getattr(prior, "sample", None))):
        raise TypeError(f"prior={type(prior).__name__}: expected a torch.nn.Module with log_prob(z) and sample(n)")
    return prior


def check_scale(scale: Tensor, entry: Likelihood | None, event_dim: int) -> None:
    """A scale of the model's own belongs to a likelihood that has one; ``entry``: None for a function."""
    check.tensor("scale", scale)
    if entry is None or entry.scale is None:
        named = "that is a function" if entry is None else f"likelihood={entry.name!r}, which has none"
        raise ValueError(f"scale of shape {tuple(scale.shape)} was given: expected None for a likelihood {named}")
    if scale.ndim > event_dim:
        raise ValueError(f"scale has shape {tuple(scale.shape)}: expected at most the event_dim={event_dim} dimensions of one x")


def broadcasts_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` can be expanded to ``target``."""
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))
