"""Likelihoods over classes: one class per element, and counts of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._precision import compute_dtype
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable

INDICES = frozenset({torch.uint8, torch.int16, torch.int32, torch.int64})
COUNTS = check.FLOATS | INDICES | {torch.int8, torch.bool}


@overridable
def categorical_log_prob(x: Tensor, logits: Tensor, *, dim: int = -1, event_dim: int = 1, check_data: bool = False) -> Tensor:
    r"""Log-probability of class indices, in nats: of tokens, or of pixels of 256 levels.

    .. math:: \log p(x) = \sum_j l_{j x_j} - \log \sum_k e^{l_{jk}}

    Exact for logits of any finite size: the largest is subtracted first. Where a gradient is wanted, the forward pass writes it,
    :math:`[k = x_j] - \mathrm{softmax}(l_j)_k`, and the backward pass multiplies it by the sample's upstream gradient.

    Args:
        x: class indices from 0 to C - 1, uint8, int16, int32 or int64, shape ``(*batch, *event)``. On the CPU an index out of range is
            refused. On a GPU that would mean waiting for the device: there the kernels read nothing for it, and its sample's value and
            the gradient of its element's logits are NaN; ``check_data=True`` waits and refuses.
        logits: any floating dtype; the shape of ``x`` with the C classes in an additional dimension ``dim``; batch dimensions broadcast.
        dim: where the classes are among the dimensions of ``logits``: the last one (default), or one of the event's, such as -3 or 1 for
            ``(B, C, H, W)`` and x ``(B, H, W)``.
        event_dim: number of trailing dimensions of ``x`` that are summed (2 for ``(B, H, W)``).
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 logits), one value per sample, not reduced over the batch. Differentiable in ``logits``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected; for an index out of range, the index.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.categorical_log_prob(torch.tensor([[0, 3]]), torch.zeros(1, 2, 4))
        tensor([-2.7726])
    """
    check.tensor("x", x, INDICES)
    check.tensor("logits", logits)
    check.same_device(logits=logits, x=x)
    check.event_dims("event_dim", event_dim, "x", x.shape)
    check.integer("dim", dim)
    if logits.ndim < event_dim + 1:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: expected at least {event_dim + 1} dimensions (event_dim={event_dim})")
    given, dim = dim, dim - logits.ndim if dim >= 0 else dim
    if not -event_dim - 1 <= dim < 0:
        raise ValueError(
            f"dim={check.shown(given)}: expected one of the last {event_dim + 1} dimensions of logits, of shape {tuple(logits.shape)} "
            f"(event_dim={event_dim})"
        )
    shape = list(logits.shape)
    classes = shape.pop(dim)
    first = len(shape) - event_dim
    if classes == 0 or list(x.shape[x.ndim - event_dim :]) != shape[first:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, logits has shape {tuple(logits.shape)}: expected logits as x with at least one class in "
            f"dimension {dim} (event_dim={event_dim})"
        )
    check.broadcast_shapes("batch dimensions: ", x=x.shape[: x.ndim - event_dim], logits=torch.Size(shape[:first]))
    if values.wanted(check_data):
        values.require(("logits", logits, "log weight"))
        values.classes("x", x, classes)
    cells = x.unsqueeze(x.ndim + 1 + dim)
    k = kernels()
    if k is None:
        values.classes_at_hand("x", x, classes)
        return reference.softmax(cells, logits, None, None, dim, event_dim + 1)
    out: Tensor = k.softmax(cells, logits, None, None, dim, event_dim + 1)
    return out


@overridable
def multinomial_log_prob(x: Tensor, logits: Tensor, *, coefficient: bool = False, check_data: bool = False) -> Tensor:
    r"""Log-probability of counts under a softmax, in nats: bags of words, baskets, ratings.

    (Liang et al. 2018, "Variational autoencoders for collaborative filtering", eq. 2.)

    .. math:: \log p(x) = \sum_k x_k \log \mathrm{softmax}(l)_k = x \cdot l - \Big(\sum_k x_k\Big) \log \sum_k e^{l_k}

    as Multi-VAE, RecVAE and RecBole have it; with ``coefficient=True`` plus :math:`\log (\sum_k x_k)! - \sum_k \log x_k!`, as
    ``torch.distributions.Multinomial.log_prob`` has it, which does not change the gradient of ``logits``.

    Args:
        x: counts, at least 0: any floating dtype, int8 to int64, uint8 or bool, read as the numbers they are, ``(*batch, D)``; or a
            ``torch.sparse_csr`` matrix ``(B, D)``, whose zeros are not looked at (in eager mode: ``torch.compile`` does not take one).
            On the CPU damaged row pointers and columns are refused; on a GPU they make their row's value and gradient NaN.
        logits: any floating dtype, ``(*batch, D)``; batch dimensions broadcast (those of a CSR x do not).
        coefficient: whether the multinomial coefficient is added.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), the batch shape. Differentiable in ``logits``, and in a dense ``x``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x = torch.tensor([[2, 0, 0, 1]])
        >>> vae_fast.multinomial_log_prob(x, torch.zeros(1, 4))
        tensor([-4.1589])
        >>> vae_fast.multinomial_log_prob(x.float().to_sparse_csr(), torch.zeros(1, 4), coefficient=True)
        tensor([-3.0603])
    """
    check.tensor("logits", logits)
    check.flag("coefficient", coefficient)
    counts, row_begin, column = as_counts(x)
    check.same_device(logits=logits, x=x)
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: expected (*batch, D) with D of at least 1")
    if x.ndim < 1 or x.shape[-1] != logits.shape[-1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, logits has shape {tuple(logits.shape)}: expected the same last dimension")
    if column is not None and x.shape != logits.shape:
        raise ValueError(
            f"x is sparse and has shape {tuple(x.shape)}, logits has shape {tuple(logits.shape)}: expected the same shape; "
            "x.to_dense() broadcasts"
        )
    check.broadcast_shapes("batch dimensions: ", x=x.shape[:-1], logits=logits.shape[:-1])
    if values.wanted(check_data):
        values.require(("x", counts, "nonnegative"), ("logits", logits, "log weight"))
    counts = counts if counts.is_floating_point() else counts.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if coefficient and counts.requires_grad:
        counts = counts.to(compute_dtype([counts, logits]))  # its gradient is a sum of two, rounded once
    k = kernels()
    out: Tensor = (reference if k is None else k).softmax(counts, logits, row_begin, column, -1, 1)
    if not coefficient:
        return out
    return out + log_coefficient(counts, row_begin, x.shape).to(out.dtype)


def as_counts(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Dense counts, or those of a CSR matrix that are not zero, where each of its rows begins, and their columns."""
    if not isinstance(x, Tensor) or x.layout != torch.sparse_csr:
        return check.tensor("x", x, COUNTS), None, None
    counts = check.sparse_values("x", x, COUNTS)
    if x.requires_grad:
        raise ValueError("x is sparse and requires a gradient: expected x.detach(), or dense counts")
    return counts, x.crow_indices(), x.col_indices()


def log_coefficient(counts: Tensor, row_begin: Tensor | None, shape: torch.Size) -> Tensor:
    """``log (sum x)! - sum log x!`` of every row, in float64."""
    counts = counts.double()
    if row_begin is None:
        return (counts.sum(-1) + 1.0).lgamma() - (counts + 1.0).lgamma().sum(-1)
    rows = torch.arange(shape[0], device=counts.device).repeat_interleave(row_begin.diff(), output_size=counts.numel())
    sums = counts.new_zeros(2, shape[0]).index_add(1, rows, torch.stack([counts, (counts + 1.0).lgamma()]))
    return (sums[0] + 1.0).lgamma() - sums[1]
