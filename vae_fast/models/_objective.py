"""The loss of a VAE from one pass through its network: the negative ELBO, and the regularizer that may stand beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vae_fast import functional as F
from vae_fast._scales import bounded
from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import reduce
from vae_fast.models._decoded import with_scale

if TYPE_CHECKING:
    from vae_fast.models.vae import VAE, VAEOutput

Regularizer = Callable[[Tensor, Tensor, Tensor], Tensor]

EXPECTED = "expected a function f(z, mu, logvar) that gives a tensor of shape () or (batch,)"


def loss_of(model: VAE, x: Tensor, output: VAEOutput, reduction: str) -> Tensor:
    """:meth:`vae_fast.models.VAE.loss` from what ``forward`` gave."""
    if model.prior is not None:
        return _loss_with(_log_ratio(model, output), model, x, output, reduction)
    loss: Tensor = F.elbo_loss(x, with_scale(model, output.recon), output.mu, output.logvar, **_head(model), reduction=reduction)
    return _regularized(loss, model, output, reduction)


def loss_and_kl(model: VAE, x: Tensor, output: VAEOutput, reduction: str) -> tuple[Tensor, Tensor]:
    """:meth:`vae_fast.models.VAE.losses_of`."""
    if model.prior is not None:
        kl = _log_ratio(model, output)
        return _loss_with(kl, model, x, output, reduction), reduce(kl.detach(), reduction)
    if model.free_bits is None:
        recon = with_scale(model, output.recon)
        loss, _, kl = F.elbo_loss(x, recon, output.mu, output.logvar, **_head(model), reduction=reduction, return_parts=True)
        return _regularized(loss, model, output, reduction), kl
    mu, logvar = output.mu.detach(), output.logvar.detach()
    prior_mu, prior_logvar = (None if p is None else p.detach() for p in (model.prior_mu, model.prior_logvar))
    kl = F.gaussian_kl(
        mu, logvar, prior_mu, prior_logvar, scale_bounds=model.scale_bounds, event_dim=model.latent_ndim, reduction=reduction
    )
    return loss_of(model, x, output, reduction), kl


def _head(model: VAE) -> dict[str, Any]:
    """The options of :func:`vae_fast.elbo_loss` that are the model's."""
    return {
        "likelihood": model.likelihood,
        "beta": model.beta,
        "clip": model.clip,
        "eps": model.eps,
        "prior_mu": model.prior_mu,
        "prior_logvar": model.prior_logvar,
        "scale_bounds": model.scale_bounds,
        "recon_scale_bounds": model.recon_scale_bounds,
        "free_bits": model.free_bits,
        "event_dim": model.event_dim,
        "latent_dim": model.latent_ndim,
    }


def _log_ratio(model: VAE, output: VAEOutput) -> Tensor:
    """``log q(z|x) - log p(z)`` for each sample: one draw of the KL divergence."""
    return model.log_posterior(output.z, output.mu, output.logvar) - model.log_prior(output.z)


def _loss_with(kl: Tensor, model: VAE, x: Tensor, output: VAEOutput, reduction: str) -> Tensor:
    check.one_of("reduction", reduction, check.REDUCTIONS)
    return _regularized(reduce(model.beta * kl - model.log_likelihood(x, output.recon), reduction), model, output, reduction)


# --- the regularizer --------------------------------------------------------------------------------------------------


def check_regularizer(regularizer: object) -> None:
    """Anything that can be called, but a class: that would be a module of which no object was made."""
    if isinstance(regularizer, type):
        raise TypeError(f"regularizer={regularizer.__name__} is a class: {EXPECTED}")
    if not callable(regularizer):
        raise TypeError(f"regularizer={check.shown(regularizer)}: {EXPECTED}, or None")


def _regularized(loss: Tensor, model: VAE, output: VAEOutput, reduction: str) -> Tensor:
    if model.regularizer is None:
        return loss
    logvar = output.logvar if model.scale_bounds is None else bounded(output.logvar, model.scale_bounds).to(output.logvar.dtype)
    return loss + reduce(_penalty(model.regularizer, output, logvar, model.latent_ndim), reduction)


def _penalty(regularizer: Regularizer, output: VAEOutput, logvar: Tensor, latent_ndim: int) -> Tensor:
    """The regularizer of each sample, of the shape of the batch; what is of the batch as a whole is every sample's."""
    shape, mu = output.mu.shape, output.mu
    batch, latent = shape[: len(shape) - latent_ndim], shape[len(shape) - latent_ndim :]
    given = regularizer(*(t.reshape(batch.numel(), latent.numel()) for t in (output.z, mu, logvar)))
    if not isinstance(given, Tensor):
        raise TypeError(f"regularizer gave {type(given).__name__}: {EXPECTED}")
    if not given.is_floating_point():
        raise TypeError(f"regularizer gave dtype {str(given.dtype).removeprefix('torch.')}: {EXPECTED} and of a floating dtype")
    if given.ndim > 0 and given.shape != (batch.numel(),):
        raise ValueError(f"regularizer gave shape {tuple(given.shape)} for batch={batch.numel()}: {EXPECTED}")
    return given.expand(batch) if given.ndim == 0 else given.reshape(batch)
