"""A decoder's last linear layer and its Bernoulli or multinomial log-likelihood without the logits in between."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._precision import compute_dtype
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable, reduce, row_sum
from vae_fast.functional.categorical import as_counts, log_coefficient
from vae_fast.likelihoods import term_params


@overridable
def linear_bernoulli_log_prob(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    clip: str | None = None,
    eps: float = 1e-9,
    reduction: str = "none",
    check_data: bool = False,
) -> Tensor:
    r"""``bernoulli_log_prob(x, F.linear(h, weight, bias))`` in little memory: neither the logits nor their gradient are ever stored whole.

    .. math:: \log p(x \mid h) = \sum_i x_i a_i - \log(1 + e^{a_i}), \qquad a = W h + b

    Rows are taken a chunk at a time (4 MiB of logits on the CPU, 32 MiB on a GPU and where 256 rows need it): product, likelihood,
    gradient over the logits, and the gradient's two products, while the chunk is in the cache. The kernels are those of
    :func:`bernoulli_log_prob`. The products are the libraries' that torch brings; on the CPU each is done by the faster, tried once per
    shape and number of threads (at the first call, tens of milliseconds; ``VAE_FAST_PRODUCTS=blas`` or ``onednn`` fixes it), where the
    promised error leaves a choice. The sums over pixels are in an order that no number of threads changes; the order inside a product
    is the library's, so that with another number of threads the last bits of the logits, and of all that follows from them, may be
    others, as with ``F.linear``.

    With ``reduction="sum"`` or ``"mean"`` the forward pass does all of it, as the upstream gradient can only be one number: three
    products, as many as the plain form has. With ``"none"`` every row may have an upstream gradient of its own, so the backward pass
    computes the logits once more: four products, which is what the saved memory costs.

    When to prefer ``elbo_loss(x, F.linear(h, weight, bias), ...)``: for up to a thousand rows or so the logits are small anyway, a chunk
    holds them all and nothing is saved; and where the products take nearly all of the time, as the few passes over the logits that are
    spared then count for little. This function is for batches whose logits do not fit, or should not take, the memory.

    Args:
        x: targets, any floating dtype, bool, or uint8 (read as ``x / 255``), ``(*batch, D)``. Batch dimensions broadcast against those
            of ``h`` and are never repeated in memory along the leading ones: ``x (B, D)`` with ``h (K, B, H)`` is the case of K samples.
        h: the last hidden layer, any floating dtype, ``(*batch, H)``. Where rows of x share its rows, its logits are stored: fewer than x.
        weight: as of ``torch.nn.Linear``, ``(D, H)``, in the dtype of ``h``; under autocast all three are cast to its dtype.
        bias: ``(D,)``, or None.
        clip, eps: as in :func:`bernoulli_log_prob`.
        reduction: over the batch: ``"none"`` (default), ``"mean"`` or ``"sum"``; pixels are always summed.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        Nats; float32 (float64 if ``h`` is), shape ``batch``, or ``()``. Differentiable in every tensor. A gradient for ``x`` is as large
        as ``x``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> head = torch.nn.Linear(500, 784)
        >>> x, h = torch.rand(64, 784), torch.randn(64, 500, requires_grad=True)
        >>> loss = -vae_fast.linear_bernoulli_log_prob(x, h, head.weight, head.bias, reduction="mean")
        >>> loss.backward()
        >>> h.grad.shape
        torch.Size([64, 500])
    """
    x = check.tensor("x", x, check.TARGETS)
    h, weight, bias = _checked(x, h, weight, bias)
    check.clip(clip, eps)
    check.one_of("reduction", reduction, check.REDUCTIONS)
    if values.wanted(check_data):
        values.require(("x", x, "unit"), *values.finite(h=h, weight=weight, bias=bias))
    return _in_chunks(x, h, weight, bias, f"bernoulli_logits.{clip or 'none'}", term_params(clip, eps), reduction)


@overridable
def linear_multinomial_log_prob(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    coefficient: bool = False,
    reduction: str = "none",
    check_data: bool = False,
) -> Tensor:
    r"""``multinomial_log_prob(x, F.linear(h, weight, bias))`` in the memory of one chunk of logits.

    .. math:: \log p(x \mid h) = x \cdot a - \Big(\sum_k x_k\Big) \log \sum_k e^{a_k}, \qquad a = W h + b

    Chunks, products, threads and the number of products are those of :func:`linear_bernoulli_log_prob`; a vocabulary or a catalogue of
    tens of thousands of columns is where they count most, as the logits are far larger than all else.

    Args:
        x: counts as in :func:`multinomial_log_prob`, ``(*batch, D)``, or a ``torch.sparse_csr`` matrix ``(B, D)`` for ``h (*K, B, H)``,
            of which nothing dense is made. CSR counts need eager mode: they do not go through ``torch.compile``.
        h, weight, bias: as in :func:`linear_bernoulli_log_prob`.
        coefficient: as in :func:`multinomial_log_prob`.
        reduction: over the batch: ``"none"`` (default), ``"mean"`` or ``"sum"``.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        Nats; float32 (float64 if ``h`` is), shape ``batch``, or ``()``. Differentiable in ``h``, ``weight``, ``bias`` and a dense ``x``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> head = torch.nn.Linear(200, 20_000)
        >>> x = torch.zeros(64, 20_000).scatter_(1, torch.randint(20_000, (64, 30)), 1.0).to_sparse_csr()
        >>> h = torch.randn(64, 200, requires_grad=True)
        >>> (-vae_fast.linear_multinomial_log_prob(x, h, head.weight, head.bias, reduction="mean")).backward()
        >>> h.grad.shape
        torch.Size([64, 200])
    """
    counts, row_begin, _ = as_counts(x)
    h, weight, bias = _checked(x, h, weight, bias)
    check.flag("coefficient", coefficient)
    check.one_of("reduction", reduction, check.REDUCTIONS)
    if row_begin is not None and (h.ndim < 2 or h.shape[-2] != x.shape[0]):
        raise ValueError(f"x is sparse and has shape {tuple(x.shape)}, h has shape {tuple(h.shape)}: expected h (*K, {x.shape[0]}, H)")
    if values.wanted(check_data):
        values.require(("x", counts, "nonnegative"), *values.finite(h=h, weight=weight, bias=bias))
    if row_begin is None and not x.is_floating_point():
        x = x.to(torch.float32 if h.dtype != torch.float64 else torch.float64)
    if coefficient and counts.requires_grad:
        counts = x = x.to(compute_dtype([x, h]))  # its gradient is a sum of two, rounded once
    out = _in_chunks(x, h, weight, bias, "multinomial", [], reduction)
    if not coefficient:
        return out
    batch = torch.broadcast_shapes(x.shape[:-1], h.shape[:-1])
    added = log_coefficient(counts, row_begin, x.shape).expand(batch)
    return out + reference.reduce(added, reduction).to(out.dtype)


def _in_chunks(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, term: str, params: list[float], reduction: str) -> Tensor:
    k = kernels()
    if k is None:
        return reference.reduce(reference.linear_likelihood(x, h, weight, bias, term, params), reduction)
    if x.layout == torch.strided and h.shape[:-1].numel() < torch.broadcast_shapes(x.shape[:-1], h.shape[:-1]).numel():
        # Rows of x share rows of h: those have fewer logits than there are data, and a gradient that is summed before the products.
        logits = torch.nn.functional.linear(h, weight, bias)
        x = x.float() if x.dtype == torch.float64 != h.dtype else x  # the precision is that of the product
        each = k.softmax(x, logits, None, None, -1, 1) if term == "multinomial" else row_sum(term, [x, logits], [*params], 1)
        return reduce(each, reduction)
    if reduction == "none":
        rows: Tensor = k.linear_likelihood(x, h, weight, bias, term, params)
        return rows
    total: Tensor = k.linear_likelihood_sum(x, h, weight, bias, term, params, reduction == "mean")
    return total


def _checked(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    h, weight = check.tensor("h", h), check.tensor("weight", weight)
    if bias is not None:
        bias = check.tensor("bias", bias)
    check.same_device(h=h, x=x, weight=weight, bias=bias)
    # torch asks no device without autocast, such as meta, whether it is on
    if torch.amp.is_autocast_available(h.device.type) and torch.is_autocast_enabled(h.device.type):
        dtype = torch.get_autocast_dtype(h.device.type)
        h, weight, bias = h.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != h.dtype:
            raise TypeError(f"{name} has dtype {t.dtype}, h has dtype {h.dtype}: expected one dtype (torch.autocast casts all of them)")
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (D, H), as torch.nn.Linear has")
    d, features = weight.shape
    if h.ndim < 1 or h.shape[-1] != features:
        raise ValueError(f"h has shape {tuple(h.shape)}, weight has shape {tuple(weight.shape)}: expected h (*batch, {features})")
    if x.ndim < 1 or x.shape[-1] != d:
        raise ValueError(f"x has shape {tuple(x.shape)}, weight has shape {tuple(weight.shape)}: expected x (*batch, {d})")
    if bias is not None and bias.shape != (d,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, weight has shape {tuple(weight.shape)}: expected bias ({d},)")
    check.broadcast_shapes("batch dimensions: ", x=x.shape[:-1], h=h.shape[:-1])
    return h, weight, bias
