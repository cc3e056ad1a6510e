"""Log-sum-exp, weighted or not, and the importance-weighted bound built on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable


@overridable
def logsumexp(a: Tensor, dim: int = -1, weights: Tensor | None = None) -> Tensor:
    r"""``log sum_k w_k exp(a_k)`` over one dimension, in one pass forward and one pass backward.

    With ``L`` the result and ``g`` the upstream gradient, ``da_k = g w_k e^{a_k - L}`` and ``dw_k = g e^{a_k - L}``; only ``L`` is saved.
    An infinite ``L`` has no gradient, it is 0: there are no shares of nothing, and none are known of infinite entries.

    Args:
        a: any floating dtype, any shape with ``dim``.
        dim: the dimension to sum over.
        weights: nonnegative, broadcast against ``a``; entries of weight exactly zero are left out whatever their ``a`` is. None is
            all ones.

    Returns:
        float32 (float64 for float64), the shape of ``a`` without ``dim``; ``-inf`` where nothing is left to sum. Differentiable in
        ``a`` and ``weights``.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.logsumexp(torch.zeros(2, 4))
        tensor([1.3863, 1.3863])
    """
    return _logsumexp(a, dim, weights, "a")


def _logsumexp(a: Tensor, dim: int, weights: Tensor | None, name: str) -> Tensor:
    """:func:`logsumexp`, with the caller's word for ``a`` in its errors."""
    check.tensor(name, a)
    shape = a.shape
    if weights is not None:
        check.tensor("weights", weights)
        check.same_device(**{"weights": weights, name: a})
        shape = check.broadcast(**{"weights": weights, name: a})
    n = len(shape)
    check.integer("dim", dim)
    if not -n <= dim < n:
        raise IndexError(f"dim={check.shown(dim)}: expected {-n} to {n - 1} for {name} of shape {tuple(shape)}")
    if values.STATE.on:
        values.require((name, a, "log weight"), ("weights", weights, "nonnegative"))
    k = kernels()
    if k is None:
        return reference.logsumexp(a, dim, weights)
    out: Tensor = k.logsumexp(a, weights, dim)
    return out


@overridable
def iwae_bound(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""The importance-weighted bound ``log (1/K) sum_k exp(log_w_k)``, in nats (Burda, Grosse and Salakhutdinov 2016, eq. 8).

    Its gradient weighs sample ``k`` by its normalised importance ``softmax(log_w)_k``.

    Args:
        log_w: log importance weights ``log p(x, z_k) - log q(z_k | x)``, K of them along ``dim``.
        dim: the dimension of the samples, of size at least 1.

    Returns:
        float32 (float64 for float64), the shape of ``log_w`` without ``dim``.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.iwae_bound(torch.zeros(50, 3))
        tensor([0., 0., 0.])
    """
    total = _logsumexp(log_w, dim, None, "log_w")
    count = log_w.shape[dim]
    if count == 0:
        raise ValueError(f"log_w has shape {tuple(log_w.shape)}: expected at least one sample along dim={dim}")
    if torch.compiler.is_compiling():  # the count may be a symbol, which math.log would turn into a constant
        return total - torch.scalar_tensor(count, dtype=total.dtype, device=total.device).log()
    return total - math.log(count)
