"""The prior of a VAE: what it may be, its log-density and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_fast import functional as F
from vae_fast.functional import _arguments as check
from vae_fast.functional._numbers import Number, number
from vae_fast.models._distribution_prior import DistributionPrior

if TYPE_CHECKING:
    from vae_fast.models.vae import VAE


def check_prior(prior: object) -> nn.Module:
    """A prior of the caller's own has log_prob and sample; an object of torch.distributions becomes a module that has."""
    if isinstance(prior, Distribution):
        return DistributionPrior(prior)
    if not (isinstance(prior, nn.Module) and callable(getattr(prior, "log_prob", None)) and callable(getattr(prior, "sample", None))):
        raise TypeError(f"prior={type(prior).__name__}: expected a torch.nn.Module with log_prob(z) and sample(n)")
    return prior


def gaussian_parameter(name: str, value: Number | None, latent_shape: Sequence[int] | None, like: Tensor) -> Tensor | None:
    """The mean or log-variance of a Gaussian prior as a tensor, a number in the dtype and on the device of ``like``."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        value = torch.as_tensor(number(name, value, like), dtype=like.dtype, device=like.device)
    check.tensor(name, value)
    if latent_shape is not None and not _broadcasts_to(value.shape, latent_shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected one that broadcasts to latent_dim={latent_shape}")
    return value


def _broadcasts_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` can be expanded to ``target``."""
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def log_prior(model: VAE, z: Tensor) -> Tensor:
    """:meth:`vae_fast.models.VAE.log_prior`."""
    ndim = model.latent_ndim
    if model.prior is not None:
        log_p: Tensor = model.prior.log_prob(z if ndim == 1 else z.flatten(-ndim))
        return log_p
    zero = z.new_zeros(z.shape[z.ndim - ndim :])
    prior_mu = zero if model.prior_mu is None else model.prior_mu.expand(zero.shape)
    return F.gaussian_log_prob(z, prior_mu, model.prior_logvar, event_dim=ndim)


def sample_prior(model: VAE, like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draws of z of ``shape``, ``(n, *latent)``, in the dtype and on the device of ``like``."""
    if model.prior is not None:
        drawn = model.prior.sample(shape[0]) if generator is None else model.prior.sample(shape[0], generator=generator)
        return torch.as_tensor(drawn[0] if isinstance(drawn, tuple) else drawn, dtype=like.dtype, device=like.device).reshape(shape)
    zero = torch.zeros(shape, dtype=like.dtype, device=like.device)
    mu = zero if model.prior_mu is None else model.prior_mu.expand_as(zero)
    logvar = zero if model.prior_logvar is None else model.prior_logvar.expand_as(zero)
    return F.reparameterize(mu, logvar, generator=generator)
