"""What a VAE's decoder gives, and the model's own scale beside it: the parameters of p(x|z)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from vae_fast._scales import bounded
from vae_fast.functional._own_likelihood import parameters_of

if TYPE_CHECKING:
    from vae_fast.models.vae import VAE

Recon = Tensor | tuple[Tensor, ...]


class VAEOutput(NamedTuple):
    """One pass through the network: the decoder's raw output, the posterior, and the sample that was decoded.

    Of several samples per row ``recon`` and ``z`` have the samples in front, ``(num_samples, batch, ...)``.
    """

    recon: Recon
    mu: Tensor
    logvar: Tensor
    z: Tensor


class Losses(NamedTuple):
    """The training loss (negative ELBO, with beta and free bits) and the plain KL divergence, both in nats."""

    loss: Tensor
    kl: Tensor


def decode_samples(model: VAE, z: Tensor) -> Recon:
    """The decoder's output for ``(num_samples, batch, *latent)``, all decoded at once: each ``(num_samples, batch, ...)``."""
    recon = model.decode(z.flatten(0, 1))
    # one scale for all, say, has no samples' dimension
    each = [t.unflatten(0, (len(z), -1)) if t.ndim > model.event_dim and len(t) > 1 else t for t in parameters_of(recon)]
    return each[0] if isinstance(recon, Tensor) else tuple(each)


def with_scale(model: VAE, recon: Recon) -> Recon:
    """The decoder's output with the model's own scale, if it has one."""
    if model.scale is None:
        return recon
    given, names = parameters_of(recon), model._entry().parameters
    if len(given) != len(names) - 1:
        raise ValueError(f"the decoder gives {len(given)} of {', '.join(names)}: expected {len(names) - 1}, as the model has a scale")
    return (*given, model.scale)


def parameters_of_x(model: VAE, recon: Recon) -> Sequence[Tensor]:
    """The parameters of p(x|z) with the scale within its bounds, as the likelihood has it."""
    parameters = parameters_of(with_scale(model, recon))
    if model.recon_scale_bounds is None or len(parameters) < len(model._entry().parameters):
        return parameters
    *others, scale = parameters
    return [*others, bounded(scale, model.recon_scale_bounds).to(scale.dtype)]
