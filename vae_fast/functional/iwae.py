"""The importance-weighted bound of a VAE in one call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, reduce, row_sum
from vae_fast.functional._grouped import as_function
from vae_fast.functional._likelihood_term import Recon, likelihood_term, no_recon_bounds
from vae_fast.functional._numbers import Number
from vae_fast.functional._own_likelihood import LogProb, parameters_of
from vae_fast.functional._own_likelihood import log_prob as own_log_prob
from vae_fast.functional.gaussian import gaussian_log_prob, prior_of
from vae_fast.functional.logsumexp import iwae_bound
from vae_fast.terms import in_order


@overridable
def iwae_loss(
    x: Tensor,
    recon: Recon,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str | LogProb = "bernoulli",
    clip: str | None = None,
    eps: float = 1e-9,
    prior_mu: Number | None = None,
    prior_logvar: Number | None = None,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    recon_scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    latent_dim: int = 1,
    sample_dim: int = 0,
    reduction: str = "mean",
    check_data: bool = False,
) -> Tensor:
    r"""The negative importance-weighted bound of K samples, in nats (Burda, Grosse and Salakhutdinov 2016, eq. 8).

    .. math:: -\log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x) = N(\mu, \sigma^2)

    ``x``, ``mu`` and ``logvar`` are broadcast against the samples inside the kernels, never repeated in memory. For K = 1 its mean over z
    is that of :func:`elbo_loss`.

    A bound out of range is infinite and has no gradient: a loss of inf where the model's density of every sample is out of range, of -inf
    where the posterior's is of a sample that the model explains. A batch with losses of inf and of -inf has neither a mean nor a sum: NaN.

    Args:
        x: data, ``(*batch, *event)``, dtypes as in :func:`elbo`.
        recon: the decoder's output for each sample, ``(K, *batch, *event)``, or a pair, see :func:`elbo`. ``sample_dim`` says where K is.
        z: the samples that were decoded, ``(K, *batch, *latent)``: ``reparameterize(mu, logvar, num_samples=K)``. One so far out that its
            densities under the posterior and under the model are both out of range (1e19 standard deviations in float32) has no weight.
        mu, logvar: the posterior, ``(*batch, *latent)``.
        likelihood, clip, eps, prior_mu, prior_logvar, scale, scale_bounds, recon_scale_bounds, event_dim, latent_dim, check_data: as in
            :func:`elbo`.
        sample_dim: which of the batch dimensions of ``z`` and ``recon`` holds the K samples; below 0 it counts from the last batch
            dimension, just before an event: ``z`` of ``(batch, K, latent)`` has it at 1, or at -1. ``x``, ``mu``, ``logvar`` and the prior
            have no such dimension, and are broadcast over it. A ``likelihood`` that is a function gets ``x`` as it came.
        reduction: over the batch: ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Returns:
        float32 (float64 if any input is float64), shape ``()``, or ``batch`` for ``"none"``. Differentiable in every tensor.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, mu, logvar = torch.rand(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> z = vae_fast.reparameterize(mu, logvar, num_samples=5)
        >>> vae_fast.iwae_loss(x, torch.nn.Linear(20, 784)(z), z, mu, logvar, reduction="none").shape
        torch.Size([4])
    """
    check.one_of("reduction", reduction, check.REDUCTIONS)
    check.tensor("z", z)
    prior_mu, prior_logvar = prior_of(mu, logvar, prior_mu, prior_logvar, scale)
    after = _check_samples(z, mu, logvar, check.gaussian(mu, logvar, prior_mu, prior_logvar, scale), latent_dim, sample_dim)
    check.same_device(mu=mu, z=z)
    between = bounds.checked(scale_bounds, scale)
    posterior = [mu, logvar, *(t for t in (prior_mu, prior_logvar) if t is not None)]
    if values.wanted(check_data):
        values.require(("z", z, "finite"), *values.gaussian(mu, logvar, prior_mu, prior_logvar, scale, between is not None))
    likelihood = as_function(likelihood, clip, eps, event_dim, check_data)
    if callable(likelihood):
        check.any_likelihood(likelihood, clip, eps)
        no_recon_bounds(recon_scale_bounds)
        log_p_x = own_log_prob(likelihood, x, recon)
        batch = z.shape[: z.ndim - latent_dim]
        if log_p_x.shape != batch:
            raise ValueError(f"likelihood gives shape {tuple(log_p_x.shape)}, z has batch shape {tuple(batch)}: expected one per sample")
        dtype = reference.compute_dtype([log_p_x, z, *posterior])
    else:
        log_p_x, dtype = _log_prob_of_samples(
            x, recon, z, posterior, likelihood, clip, eps, recon_scale_bounds, event_dim, latent_dim, after, check_data
        )
    # One precision for all three terms before they are summed. Of half samples too: the gradients of both densities would each be rounded
    # to a half, and may be out of its range where their sum is not.
    z = z.to(dtype)
    mu, logvar = _over_samples(mu, after + latent_dim), _over_samples(logvar, after + latent_dim)
    prior_mu, prior_logvar = (None if t is None else _over_samples(t, after + latent_dim) for t in (prior_mu, prior_logvar))
    prior = z.new_zeros(()) if prior_mu is None else prior_mu.to(dtype)  # before it is broadcast: its gradient is a sum, rounded once
    event = torch.broadcast_shapes(prior.shape, z.shape[z.ndim - latent_dim :])
    log_p = log_p_x + gaussian_log_prob(z, prior.expand(event), prior_logvar, scale=scale, event_dim=latent_dim)
    log_q = gaussian_log_prob(z, mu, logvar, scale=scale, scale_bounds=scale_bounds, event_dim=latent_dim)
    # No posterior drew a sample whose density is out of range: it has no weight if that under the model is out of range too.
    log_q = log_q.masked_fill((log_q == -math.inf) & (log_p == -math.inf), 0.0)
    return reduce(-iwae_bound(log_p - log_q, dim=-1 - after), reduction)


def _over_samples(t: Tensor, after: int) -> Tensor:
    """A tensor without a dimension of samples, to be broadcast over one that ``after`` dimensions follow; nothing is copied."""
    return t.unsqueeze(t.ndim - after) if t.ndim > after else t


def _log_prob_of_samples(
    x: Tensor,
    recon: Recon,
    z: Tensor,
    posterior: list[Tensor],
    likelihood: str,
    clip: str | None,
    eps: float,
    scale_bounds: bounds.ScaleBounds | None,
    event_dim: int,
    latent_dim: int,
    after: int,
    check_data: bool,
) -> tuple[Tensor, torch.dtype]:
    """``log p(x|z_k)``, and the precision in which the bound is computed; ``after`` batch dimensions follow that of the samples."""
    found = check.likelihood(likelihood, clip, eps)
    check.tensor("x", x, check.COUNTS if found.of_counts else check.TARGETS)
    check.event_dims("event_dim", event_dim, "x", x.shape)
    samples, place = z.shape[z.ndim - latent_dim - after - 1], x.ndim - event_dim - after
    first = in_order(found.family, parameters_of(recon))[0]
    if isinstance(first, Tensor) and not first.is_nested and (first.ndim != x.ndim + 1 or place < 0 or first.shape[place] != samples):
        where = "(K, *x.shape)" if place <= 0 else f"x.shape with K as its dimension {place}"
        raise ValueError(
            f"recon has shape {tuple(first.shape)}, x has shape {tuple(x.shape)}: expected recon {where} with the K={samples} of z"
        )
    term, data, params = likelihood_term(_over_samples(x, after + event_dim), recon, likelihood, clip, eps, event_dim, scale_bounds)
    check.same_device(mu=posterior[0], recon=data[1])
    batch, latent = data[1].shape[: data[1].ndim - event_dim], z.shape[: z.ndim - latent_dim]
    check.broadcast_shapes("batch dimensions: ", recon=batch, z=latent)
    if len(batch) != len(latent):  # or one's samples would meet the other's rows
        raise ValueError(f"batch dimensions: recon has shape {tuple(batch)}, z has shape {tuple(latent)}: expected as many of them")
    if values.wanted(check_data):
        values.require(*values.term(term, data, values.data_names(term, data)))
    dtype = reference.compute_dtype([*data, z, *posterior])
    if dtype == torch.float64:
        data[1] = data[1].double()
    return row_sum(term, data, [*params], event_dim), dtype


def _check_samples(z: Tensor, mu: Tensor, logvar: Tensor, full: torch.Size, latent_dim: int, sample_dim: int) -> int:
    """How many batch dimensions follow that of the samples; ``full`` is the common shape of the posterior and its prior."""
    shape = check.broadcast(mu=mu, logvar=logvar)
    check.event_dims("latent_dim", latent_dim, "mu", shape)
    batch = len(shape) - latent_dim
    check.integer("sample_dim", sample_dim)
    if not -batch - 1 <= sample_dim <= batch:
        raise ValueError(
            f"sample_dim={check.shown(sample_dim)}: expected {-batch - 1} to {batch}, the batch dimensions of samples of mu "
            f"(shape {tuple(mu.shape)}, latent_dim={latent_dim})"
        )
    place = sample_dim + batch + 1 if sample_dim < 0 else sample_dim
    one = z.shape[:place] + z.shape[place + 1 :]
    try:
        fits = len(z.shape) == len(shape) + 1 and one[batch:] == shape[batch:] and torch.broadcast_shapes(one, full) == one
    except RuntimeError:
        fits = False
    if not fits or z.shape[place] < 1:
        wide = "" if full == mu.shape else f" (with logvar and the prior {tuple(full)})"
        where = "(K, *mu.shape)" if place == 0 else f"mu.shape with K as its dimension {place}"
        raise ValueError(f"z has shape {tuple(z.shape)}, mu has shape {tuple(mu.shape)}{wide}: expected z {where} with K at least 1")
    return batch - place
