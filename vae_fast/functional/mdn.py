"""The likelihood of a mixture density network: a mixture of Gaussians whose parameters come with each sample."""

from __future__ import annotations

import math

from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable


@overridable
def mdn_log_prob(
    y: Tensor, weight_logits: Tensor, means: Tensor, log_scale: Tensor, *, min_scale: float = 0.0, check_data: bool = False
) -> Tensor:
    r"""Log-likelihood of a mixture density network, in nats (Bishop 1994, "Mixture density networks", eq. 22 and 29).

    .. math:: \log p(y) = \log \sum_k w_k \prod_d N(y_d; \mu_{kd}, \sigma_{kd}^2), \qquad w = \mathrm{softmax}(\text{weight logits})

    with ``log sigma = max(log_scale, log min_scale)``. One pass over the parameters forward, one backward; nothing of their size is
    saved. A density network that may shrink sigma without bound finds a target to sit on and drives the likelihood to infinity:
    ``min_scale`` is the floor that stops it. Where it holds, the gradient in ``log_scale`` is zero.

    Args:
        y: targets, any floating dtype, ``(..., D)`` with D >= 1. Leading (batch) dimensions broadcast.
        weight_logits: ``(..., K)``.
        means: ``(..., K, D)``.
        log_scale: log standard deviations: ``(..., K, D)``, or ``(..., K)`` for one per component (as many dimensions as ``means``, or one
            fewer).
        min_scale: least standard deviation; 0 for none.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), the batch shape. Differentiable in all four tensors.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.mdn_log_prob(torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3, 1), torch.zeros(2, 3))
        tensor([-0.9189, -0.9189])
    """
    for name, t in {"y": y, "weight_logits": weight_logits, "means": means, "log_scale": log_scale}.items():
        check.tensor(name, t)
    check.same_device(y=y, weight_logits=weight_logits, means=means, log_scale=log_scale)
    min_scale = check.real("min_scale", min_scale, 0.0)
    if means.ndim < 2 or 0 in means.shape[-2:]:
        raise ValueError(f"means has shape {tuple(means.shape)}: expected (..., K, D) with K and D of at least 1")
    k, d = means.shape[-2:]
    shared = log_scale.ndim == means.ndim - 1
    if y.ndim < 1 or y.shape[-1] != d:
        raise ValueError(f"y has shape {tuple(y.shape)}: expected (..., {d}), the last dimension of means")
    if weight_logits.ndim < 1 or weight_logits.shape[-1] != k:
        raise ValueError(f"weight_logits has shape {tuple(weight_logits.shape)}: expected (..., {k}), the components of means")
    if log_scale.shape[-1 if shared else -2 :] != ((k,) if shared else (k, d)) or log_scale.ndim < means.ndim - 1:
        raise ValueError(
            f"log_scale has shape {tuple(log_scale.shape)}: expected (..., {k}, {d}) or (..., {k}) with the batch dimensions of means, "
            f"which has shape {tuple(means.shape)}"
        )
    batches = {
        "y": y.shape[:-1],
        "weight_logits": weight_logits.shape[:-1],
        "means": means.shape[:-2],
        "log_scale": log_scale.shape[: -1 if shared else -2],
    }
    check.broadcast_shapes("batch dimensions: ", **batches)
    if values.wanted(check_data):
        values.require(("weight_logits", weight_logits, "log weight"), *values.finite(y=y, means=means, log_scale=log_scale))
    floor = math.log(min_scale) if min_scale > 0.0 else -math.inf
    kernel = kernels()
    if kernel is None:
        return reference.mdn_log_prob(y, weight_logits, means, log_scale, floor)
    out: Tensor = kernel.mdn(y, weight_logits, means, log_scale, floor)
    return out
