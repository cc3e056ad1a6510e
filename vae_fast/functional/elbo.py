"""The evidence lower bound in one call: likelihood and KL of every sample, summed and reduced in one pass over memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._backend import C
from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import kernels
from vae_fast.functional.bernoulli import bernoulli_term
from vae_fast.functional.gaussian import floor_of, gaussian_term, kl_term

Recon = Tensor | tuple[Tensor, Tensor]


def _likelihood(x: Tensor, recon: Recon, likelihood: str, clip: str | None, eps: float, event_dim: int) -> tuple[str, list[Tensor]]:
    if likelihood == "gaussian":
        if clip is not None:
            raise ValueError(f"clip={clip!r}: expected None for likelihood='gaussian'")
        if isinstance(recon, tuple | list):
            if len(recon) != 2:
                raise ValueError(f"recon: expected a tensor or a (mean, logvar) pair, got {len(recon)} items")
            check.tensor("recon[1]", recon[1])
            return gaussian_term(x, recon[0], recon[1], "logvar", event_dim, ("recon[0]", "recon[1]"))
        return gaussian_term(x, recon, None, "logvar", event_dim, ("recon", ""))
    check.one_of("likelihood", likelihood, check.LIKELIHOODS)
    kind = "logits" if likelihood == "bernoulli" else "probs"
    return bernoulli_term(x, recon, kind, clip, eps, event_dim, "recon")  # type: ignore[arg-type]


#: The kernels' names of the likelihoods over one tensor, by (likelihood, clip).
_TERMS = {("bernoulli", c): f"bernoulli_logits.{c or 'none'}" for c in check.CLIPS}
_TERMS |= {("bernoulli_probs", c): f"bernoulli_probs.{c or 'none'}" for c in check.CLIPS}
_TERMS[("gaussian", None)] = "gaussian_unit"

_Arguments = tuple[list[Tensor], list[Tensor], str, str, float, float, float, int, int]


def _arguments(
    k: Any,
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    likelihood: str,
    beta: float,
    clip: str | None,
    eps: float,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    free_bits: float | None,
    event_dim: int,
    latent_dim: int,
) -> _Arguments:
    """Check everything; the arguments of the kernels ``k`` in their order."""
    check.real("beta", beta)
    floor = -math.inf if free_bits is None else floor_of(free_bits)
    if (
        k is C
        and k is not None
        and prior_mu is None
        and prior_logvar is None
        and (likelihood, clip) in _TERMS
        and type(event_dim) is int
        and type(latent_dim) is int
        and k.ordinary_head(x, recon, mu, logvar, event_dim, latent_dim)
    ):
        check.clip(clip, eps)
        data: list[Any] = [x, recon]
        return data, [mu, logvar], _TERMS[(likelihood, clip)], "kl.logvar", eps, floor, beta, event_dim, latent_dim
    lik, lik_inputs = _likelihood(x, recon, likelihood, clip, eps, event_dim)
    shape = check.gaussian(mu, logvar, prior_mu, prior_logvar, "logvar")
    check.event_dims("latent_dim", latent_dim, "mu", shape)
    if mu.device != lik_inputs[1].device:
        raise ValueError(f"mu is on {mu.device}, recon is on {lik_inputs[1].device}: expected one device")
    full = check.broadcast(x=lik_inputs[0], recon=lik_inputs[1])
    batch, latent_batch = full[: len(full) - event_dim], shape[: len(shape) - latent_dim]
    if batch != latent_batch:
        try:
            torch.broadcast_shapes(batch, latent_batch)
        except RuntimeError:
            raise ValueError(
                f"recon has batch shape {tuple(batch)} (event_dim={event_dim}), mu has batch shape {tuple(latent_batch)} "
                f"(latent_dim={latent_dim}): expected shapes that broadcast to one another"
            ) from None
    kl, kl_inputs = kl_term(mu, logvar, prior_mu, prior_logvar, "logvar")
    return lik_inputs, kl_inputs, lik, kl, eps, floor, beta, event_dim, latent_dim


def elbo(
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str = "bernoulli",
    beta: float = 1.0,
    clip: str | None = None,
    eps: float = 1e-9,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    free_bits: float | None = None,
    event_dim: int = 1,
    latent_dim: int = 1,
) -> Tensor:
    r"""Evidence lower bound of each sample with an analytic KL, in nats.

    .. math:: \mathrm{ELBO}(x) = \log p(x \mid z) - \beta\, \mathrm{KL}(N(\mu, \sigma^2) \| N(\mu_0, \sigma_0^2))

    (Kingma and Welling 2014, eq. 10; beta: Higgins et al. 2017.) The result is not reduced over the batch: see :func:`elbo_loss`.

    Args:
        x: data, any floating dtype, bool, or uint8 (read as ``x / 255``), shape ``(*batch, *event)``.
        recon: the decoder's output: logits for ``"bernoulli"``, probabilities for ``"bernoulli_probs"``, the mean (of unit variance)
            or a (mean, logvar) pair for ``"gaussian"``.
        mu: posterior mean, shape ``(*batch, *latent)``; batch dimensions broadcast against those of ``recon``.
        logvar: posterior log-variance.
        likelihood: ``"bernoulli"``, ``"bernoulli_probs"`` or ``"gaussian"``.
        beta: weight of the KL.
        clip: clip mode of the Bernoulli likelihoods, see :func:`bernoulli_log_prob`.
        eps: the constant of the clip mode.
        prior_mu: prior mean, None is 0.
        prior_logvar: prior log-variance, None is 0.
        free_bits: least value of each KL element, see :func:`gaussian_kl`.
        event_dim: number of trailing dimensions of ``x`` that are summed.
        latent_dim: number of trailing dimensions of ``mu`` that are summed.

    Returns:
        float32 (float64 if any input is float64), one value per sample. Differentiable in every tensor.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, logits, mu, logvar = torch.rand(4, 784), torch.randn(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> vae_fast.elbo(x, logits, mu, logvar).shape
        torch.Size([4])
    """
    k = kernels()
    args = _arguments(k, x, recon, mu, logvar, likelihood, beta, clip, eps, prior_mu, prior_logvar, free_bits, event_dim, latent_dim)
    out: Tensor = reference.elbo(*args) if k is None else k.elbo(*args)
    return out


def elbo_loss(
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str = "bernoulli",
    beta: float = 1.0,
    clip: str | None = None,
    eps: float = 1e-9,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    free_bits: float | None = None,
    event_dim: int = 1,
    latent_dim: int = 1,
    reduction: str = "mean",
) -> Tensor:
    """The negative :func:`elbo`, reduced over the batch: the loss of a VAE, in nats.

    With ``"mean"`` or ``"sum"`` and gradients wanted, the forward pass writes the gradients too (three passes over memory instead
    of five); the backward pass hands them over, scaled only if the upstream gradient is not 1.

    Args:
        x, recon, mu, logvar, likelihood, beta, clip, eps, prior_mu, prior_logvar, free_bits, event_dim, latent_dim: as in :func:`elbo`.
        reduction: ``"mean"`` (default; over samples, never over pixels), ``"sum"`` or ``"none"``.

    Returns:
        float32 (float64 if any input is float64), shape ``()``, or ``batch`` for ``"none"``.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, mu, logvar = torch.rand(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> logits = torch.randn(4, 784, requires_grad=True)
        >>> vae_fast.elbo_loss(x, logits, mu, logvar).backward()
    """
    check.one_of("reduction", reduction, check.REDUCTIONS)
    k = kernels()
    args = _arguments(k, x, recon, mu, logvar, likelihood, beta, clip, eps, prior_mu, prior_logvar, free_bits, event_dim, latent_dim)
    if k is None or reduction == "none":
        per_sample = reference.elbo(*args) if k is None else k.elbo(*args)
        return reference.reduce(-per_sample, reduction)
    out: Tensor = k.elbo_loss(*args, reduction == "mean")
    return out
