"""Diagonal Gaussians: KL divergence and log-density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast._precision import compute_dtype
from vae_fast._scales import SCALES, UNIT_SCALE, Bounds
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, reduce, row_sum
from vae_fast.functional._numbers import Number, number


def prior_of(
    mu: Tensor, logvar: Tensor, prior_mu: Number | None, prior_logvar: Number | None, scale: str
) -> tuple[Tensor | None, Tensor | None]:
    """A prior as tensors: a number becomes one of no dimensions, which the kernels read wherever it is needed; nothing waits for it.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected, for what is neither a number nor a tensor.
    """
    if prior_mu is None and prior_logvar is None:
        return None, None
    check.one_of("scale", scale, SCALES)  # before it is compared with any
    dtype = compute_dtype([check.tensor("mu", mu), check.tensor("logvar", logvar)])

    def one(name: str, value: Number | None, low: float = -math.inf) -> Tensor | None:
        if isinstance(value, Tensor):
            return value.to(mu.device) if value.ndim == 0 and not value.is_nested and value.layout == torch.strided else value
        if value is None:
            return None
        found = number(name, value, mu, low)
        return found.to(dtype) if isinstance(found, Tensor) else torch.full((), found, dtype=dtype, device=mu.device)

    return one("prior_mu", prior_mu), one("prior_logvar", prior_logvar, torch.finfo(dtype).tiny if scale in ("std", "var") else -math.inf)


def kl_term(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, scale: str, scale_bounds: Bounds | None = None
) -> tuple[str, list[Tensor]]:
    """The kernels' name for this KL and its inputs; where only half of a prior is given, the mean is 0 or the std 1."""
    if prior_mu is None and prior_logvar is None:
        return bounds.held(f"kl.{scale}", [mu, logvar], scale_bounds)
    if prior_mu is None:
        prior_mu = torch.zeros((), dtype=mu.dtype, device=mu.device)
    if prior_logvar is None:
        prior_logvar = torch.full((), UNIT_SCALE[scale], dtype=torch.promote_types(mu.dtype, torch.float32), device=mu.device)
    return bounds.held(f"kl_prior.{scale}", [mu, logvar, prior_mu, prior_logvar], scale_bounds)


def floor_of(free_bits: float | Tensor | None, like: Tensor) -> Number:
    """The least value of one KL element, in nats."""
    return -math.inf if free_bits is None else number("free_bits", free_bits, like, 0.0)


@overridable
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Number | None = None,
    prior_logvar: Number | None = None,
    *,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    free_bits: float | Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    r"""KL divergence of a diagonal Gaussian from N(0, I) or from another diagonal Gaussian, in nats.

    .. math:: \mathrm{KL}(N(m, s^2) \| N(p, t^2)) = \sum_j \log t_j - \log s_j + \frac{s_j^2 + (m_j - p_j)^2}{2 t_j^2} - \tfrac12

    evaluated as ``(e^u - 1 - u + ((m - p)/t)^2) / 2`` with ``u = 2 (log s - log t)``, which keeps its relative accuracy where the two
    distributions nearly agree. Against N(0, I) it is Kingma and Welling (2014), appendix B.

    Args:
        mu: mean, any floating dtype, shape ``(*batch, *event)``.
        logvar: what ``scale`` says, broadcast against ``mu``.
        prior_mu: mean of the prior, broadcast against ``mu``; None is 0. A number stands for all elements, without a tensor of them.
        prior_logvar: scale of the prior, in the same form as ``logvar``, or a number as ``prior_mu``; None is unit variance.
        scale: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"`` (std = softplus(t)); it applies to both scales.
        scale_bounds: ``(low, high, mode)``: ``logvar`` (not the prior's) is held between two bounds as it is given, in the units that
            ``scale`` says: where the kernel reads it, its gradient where that is written, without a pass over memory (on CUDA a bounded
            copy is made). With t the scale, m the middle of the bounds and h half their distance, the modes are ``"clamp"``: ``min(max(t,
            low), high)`` with no gradient outside, as ``torch.clamp``; ``"straight_through"``: the same value, and the gradient as if it
            were t; ``"softclip"``: ``low + softplus(u - low)`` with ``u = high - softplus(high - t)`` (Chua et al. 2018, "Deep
            reinforcement learning in a handful of trials", appendix A.1; its lower half is the softclip of the sigma-VAE), which stays
            above low and below ``high + log(1 + e^(low - high))``; ``"tanh"``: ``m + h tanh((t - m) / h)``. None leaves it as it is.
        event_dim: number of trailing dimensions that are summed.
        free_bits: least value of each element ``j`` of each sample, in nats; below it the gradient is zero (Kingma et al. 2016,
            appendix C.8, which takes the mean over the minibatch first). A number, or a 0-d tensor, which is read on the device.
        reduction: over the batch: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        float32 (float64 for float64 inputs), shape ``batch`` or ``()``. Differentiable in all four tensors.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.gaussian_kl(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor([0., 0., 0.])
        >>> vae_fast.gaussian_kl(torch.zeros(1, 2), torch.tensor([[-50.0, 0.0]]), scale_bounds=(-7.0, 2.0, "clamp"))
        tensor([3.0005])
    """
    prior_mu, prior_logvar = prior_of(mu, logvar, prior_mu, prior_logvar, scale)
    shape = check.gaussian(mu, logvar, prior_mu, prior_logvar, scale)
    between = bounds.checked(scale_bounds, scale)
    check.event_dims("event_dim", event_dim, "mu", shape)
    check.one_of("reduction", reduction, check.REDUCTIONS)
    floor = floor_of(free_bits, mu)
    if values.STATE.on:
        values.require(*values.gaussian(mu, logvar, prior_mu, prior_logvar, scale, between is not None))
    name, inputs = kl_term(mu, logvar, prior_mu, prior_logvar, scale, between)
    return reduce(row_sum(name, inputs, [floor], event_dim), reduction)


@overridable
def gaussian_log_prob(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor | None = None,
    *,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-density of a diagonal Gaussian, in nats.

    .. math:: \log N(x; m, s^2) = -\sum_j \tfrac12 \log 2\pi + \log s_j + \frac{(x_j - m_j)^2}{2 s_j^2}

    Args:
        x: observations, any floating dtype, bool or uint8 (read as ``x / 255``), shape ``(*batch, *event)``.
        mu: mean; same event shape, batch dimensions broadcast.
        logvar: what ``scale`` says, broadcast against ``mu``; None is unit variance.
        scale: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"``.
        scale_bounds: ``(low, high, mode)``: ``logvar`` is held between two bounds as it is given, in the units that ``scale`` says, see
            :func:`gaussian_kl`; None leaves it as it is.
        event_dim: number of trailing dimensions that are summed.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 inputs), one value per sample, not reduced over the batch. Differentiable in ``x``, ``mu``, ``logvar``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.gaussian_log_prob(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([-1.8379])
    """
    check.one_of("scale", scale, SCALES)
    given = {"mu": mu} if logvar is None else {"mu": mu, "logvar": logvar}
    check.observed(x, event_dim, **given)
    between = bounds.checked(scale_bounds, scale)
    if between is not None and logvar is None:
        raise ValueError(f"scale_bounds={scale_bounds!r}: expected None without logvar, of which it holds the bounds")
    name, inputs = bounds.held("gaussian_unit" if logvar is None else f"gaussian.{scale}", [x, *given.values()], between)
    if values.wanted(check_data):
        values.require(*values.term(name, inputs, ("x", *given)))
    return row_sum(name, inputs, [], event_dim)
