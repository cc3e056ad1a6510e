"""The loss of a VAE from one pass through its network: the negative ELBO, and the regularizer that may stand beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast._scales import bounded
from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import reduce
from vae_fast.models._decoded import with_scale

if TYPE_CHECKING:
    from vae_fast.models._decoded import VAEOutput
    from vae_fast.models.vae import VAE

KL = ("analytic", "sampled")
Regularizer = Callable[[Tensor, Tensor, Tensor], Tensor]

EXPECTED = "expected a function f(z, mu, logvar) that gives a tensor of shape () or (batch,)"


class How(NamedTuple):
    """How a loss is made of its samples, checked: see :meth:`vae_fast.models.VAE.loss`."""

    reduction: str
    kl: str
    dataset_size: int | None


def how_of(model: VAE, reduction: str, kl: str | None, dataset_size: int | None) -> How:
    """The arguments of :meth:`vae_fast.models.VAE.loss`, with the model's own ``kl`` for None."""
    check.one_of("reduction", reduction, check.REDUCTIONS)
    if dataset_size is not None:
        check.positive_int("dataset_size", dataset_size)
        if reduction == "mean":
            raise ValueError(f"dataset_size={dataset_size}: expected None with reduction='mean'; it scales what 'sum' or 'none' gives")
    kl = model.kl if kl is None else check_kl(model.prior, model.free_bits, kl)
    return How(reduction, ("analytic" if model.prior is None else "sampled") if kl is None else kl, dataset_size)


def check_kl(prior: object, free_bits: object, kl: str) -> str:
    """``"analytic"`` needs a Gaussian prior, and free bits are of the analytic KL's elements."""
    check.one_of("kl", kl, KL)
    if kl == "analytic" and prior is not None:
        raise ValueError("kl='analytic': expected 'sampled' or None with prior, whose KL divergence has no closed form")
    if kl == "sampled" and free_bits is not None:
        raise ValueError("kl='sampled': expected 'analytic' or None with free_bits, the floor of each element of the analytic KL")
    return kl


def loss_of(model: VAE, x: Tensor, output: VAEOutput, how: How) -> Tensor:
    """:meth:`vae_fast.models.VAE.loss` from what ``forward`` gave."""
    x, several = _against(x, output)
    if how.kl == "sampled":
        loss = _sampled(_log_ratio(model, output), model, x, output, how.reduction)
    else:
        recon = with_scale(model, output.recon)
        loss = F.elbo_loss(x, recon, output.mu, output.logvar, **_head(model), reduction=how.reduction)
    return _scaled(_regularized(_over_samples(loss, several, how.reduction), model, output, how.reduction), x, model, how)


def loss_and_kl(model: VAE, x: Tensor, output: VAEOutput, how: How) -> tuple[Tensor, Tensor]:
    """:meth:`vae_fast.models.VAE.losses_of`."""
    x, several = _against(x, output)
    if how.kl == "sampled":
        ratio = _log_ratio(model, output)
        loss, kl = _sampled(ratio, model, x, output, how.reduction), reduce(ratio.detach(), how.reduction)
    elif model.free_bits is None:
        recon = with_scale(model, output.recon)
        loss, _, kl = F.elbo_loss(x, recon, output.mu, output.logvar, **_head(model), reduction=how.reduction, return_parts=True)
    else:
        return loss_of(model, x, output, how), _scaled(_plain_kl(model, output, how.reduction), x, model, how)
    loss, kl = (_over_samples(t, several, how.reduction) for t in (loss, kl))
    return _scaled(_regularized(loss, model, output, how.reduction), x, model, how), _scaled(kl, x, model, how)


def _against(x: Tensor, output: VAEOutput) -> tuple[Tensor, int | None]:
    """x as it is broadcast against the samples, and how many there are; None: one, without a dimension of its own."""
    if output.z.ndim == output.mu.ndim:
        return x, None
    return (x.to_dense() if x.layout == torch.sparse_csr else x), len(output.z)


def _over_samples(values: Tensor, several: int | None, reduction: str) -> Tensor:
    """The mean over the samples of what was reduced over all rows of all samples."""
    if several is None or reduction == "mean":
        return values
    return values / several if reduction == "sum" else values.mean(0)


def _scaled(values: Tensor, x: Tensor, model: VAE, how: How) -> Tensor:
    """From the batch to the data set: Kingma and Welling 2014, eq. 8."""
    if how.dataset_size is None:
        return values
    return values * (how.dataset_size / x.shape[: x.ndim - model.event_dim].numel())


def _plain_kl(model: VAE, output: VAEOutput, reduction: str) -> Tensor:
    mu, logvar = output.mu.detach(), output.logvar.detach()
    prior_mu, prior_logvar = (None if p is None else p.detach() for p in (model.prior_mu, model.prior_logvar))
    return F.gaussian_kl(
        mu, logvar, prior_mu, prior_logvar, scale_bounds=model.scale_bounds, event_dim=model.latent_ndim, reduction=reduction
    )


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


def _sampled(kl: Tensor, model: VAE, x: Tensor, output: VAEOutput, reduction: str) -> Tensor:
    return reduce(model.beta * kl - model.log_likelihood(x, output.recon), reduction)


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
    draws = [output.z] if output.z.ndim == output.mu.ndim else output.z.unbind(0)
    given = [_penalty(model.regularizer, z, output.mu, logvar, model.latent_ndim) for z in draws]
    return loss + reduce(given[0] if len(given) == 1 else torch.stack(given).mean(0), reduction)


def _penalty(regularizer: Regularizer, z: Tensor, mu: Tensor, logvar: Tensor, latent_ndim: int) -> Tensor:
    """The regularizer of each row, of the shape of the batch; what is of the batch as a whole is every row's."""
    shape = mu.shape
    batch, latent = shape[: len(shape) - latent_ndim], shape[len(shape) - latent_ndim :]
    given = regularizer(*(t.reshape(batch.numel(), latent.numel()) for t in (z, mu, logvar)))
    if not isinstance(given, Tensor):
        raise TypeError(f"regularizer gave {type(given).__name__}: {EXPECTED}")
    if not given.is_floating_point():
        raise TypeError(f"regularizer gave dtype {str(given.dtype).removeprefix('torch.')}: {EXPECTED} and of a floating dtype")
    if given.ndim > 0 and given.shape != (batch.numel(),):
        raise ValueError(f"regularizer gave shape {tuple(given.shape)} for batch={batch.numel()}: {EXPECTED}")
    return given.expand(batch) if given.ndim == 0 else given.reshape(batch)
