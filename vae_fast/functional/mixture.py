"""Mixtures of Gaussians: log-density, responsibilities, and the sums that an M-step or a gradient is made of."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable
from vae_fast.functional._row_chunks import by_rows

#: Whether ``scale`` holds precision Cholesky factors, and not log standard deviations.
_FACTORS = {"diag": False, "spherical": False, "tied": True, "full": True}
COVARIANCE_TYPES = tuple(_FACTORS)
PRECISIONS = ("float32", "tf32x3")


class MixtureStatistics(NamedTuple):
    """Sums over samples weighed by responsibilities; see :func:`mixture_statistics`."""

    log_prob: Tensor | None
    counts: Tensor
    first: Tensor
    second: Tensor


class MixtureLogProbs(NamedTuple):
    """``log p(x)`` and ``sum_d log p(x_d)``; see :func:`mixture_log_prob`."""

    joint: Tensor
    factorized: Tensor


def has_factors(covariance_type: str) -> bool:
    """Whether ``scale`` holds precision Cholesky factors, and not log standard deviations; an unknown name is refused, not guessed at."""
    check.one_of("covariance_type", covariance_type, COVARIANCE_TYPES)
    return _FACTORS[covariance_type]


def _arguments(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str, precision: str) -> None:
    factors = has_factors(covariance_type)
    check.one_of("precision", precision, PRECISIONS)
    for name, t in {"x": x, "weight_logits": weight_logits, "means": means, "scale": scale}.items():
        check.tensor(name, t)
        if precision == "tf32x3" and t.dtype == torch.float64:
            raise ValueError(f"{name} has dtype float64: expected float32 or narrower with precision='tf32x3'")
    if precision == "tf32x3" and factors:
        raise ValueError(f"covariance_type={covariance_type!r}: expected 'diag' or 'spherical' with precision='tf32x3'")
    check.same_device(x=x, weight_logits=weight_logits, means=means, scale=scale)
    if means.ndim != 2:
        raise ValueError(f"means has shape {tuple(means.shape)}: expected (K, D)")
    k, d = means.shape
    if k < 1 or d < 1:
        raise ValueError(f"means has shape {tuple(means.shape)}: expected (K, D) with K and D of at least 1")
    wanted = {"diag": (k, d), "spherical": (k,), "tied": (d, d), "full": (k, d, d)}[covariance_type]
    if scale.shape != wanted:
        form = "precision Cholesky factors" if factors else "log standard deviations"
        raise ValueError(f"scale has shape {tuple(scale.shape)}: expected {wanted}, {form} for covariance_type={covariance_type!r}")
    if x.ndim < 1 or x.shape[-1] != d:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (..., {d}), the last dimension of means")


def _shared_weights(weight_logits: Tensor, means: Tensor) -> None:
    if weight_logits.shape != means.shape[:1]:
        raise ValueError(f"weight_logits has shape {tuple(weight_logits.shape)}: expected {(means.shape[0],)}, one per row of means")


def _weights(x: Tensor, weight_logits: Tensor, means: Tensor) -> Tensor:
    """The weights as the ops take them: ``(K,)``, or ``(*batch, K)`` in full."""
    k, batch = means.shape[0], x.shape[:-1]
    if weight_logits.ndim <= 1:
        _shared_weights(weight_logits, means)
        return weight_logits
    lead = weight_logits.shape[:-1]
    fits = len(lead) <= len(batch) and all(a in (1, b) for a, b in zip(reversed(lead), reversed(batch), strict=False))
    if weight_logits.shape[-1] != k or not fits:
        raise ValueError(
            f"weight_logits has shape {tuple(weight_logits.shape)}: expected {(k,)}, one per row of means, or what broadcasts to "
            f"{(*batch, k)}, one more for each x"
        )
    if all(size == 1 for size in lead):
        # a sum over one row each: a view would not do for a DTensor that is sharded there
        return weight_logits.sum(tuple(range(weight_logits.ndim - 1)))
    return weight_logits.expand(*batch, k)


def _check_values(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor) -> None:
    values.require(*values.finite(x=x, means=means, scale=scale), ("weight_logits", weight_logits, "log weight"))


def _terms(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str, both: bool) -> tuple[Tensor, ...]:
    """``log p(x)`` and, of ``both``, ``sum_d log p(x_d)``, on plain torch in blocks of rows."""
    batch, (k, d) = x.shape[:-1], means.shape
    rows = [x.reshape(-1, d)] + ([weight_logits.reshape(-1, k)] if weight_logits.ndim > 1 else [])
    shared = [means, scale] if weight_logits.ndim > 1 else [weight_logits, means, scale]

    def one(x: Tensor, w: Tensor, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        if both:
            return reference.mixture_factorized(x, w, means, scale, covariance_type)
        return (reference.mixture_log_prob(x, w, means, scale, covariance_type),)

    return tuple(t.reshape(batch) for t in by_rows(one, k * d, rows, shared))


@overload
def mixture_log_prob(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    *,
    covariance_type: str = "diag",
    factorized: bool = False,
    precision: str = "float32",
    check_data: bool = False,
) -> Tensor: ...


@overload
def mixture_log_prob(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    *,
    covariance_type: str = "diag",
    factorized: Literal["both"],
    precision: str = "float32",
    check_data: bool = False,
) -> MixtureLogProbs: ...


@overridable
def mixture_log_prob(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    *,
    covariance_type: str = "diag",
    factorized: bool | str = False,
    precision: str = "float32",
    check_data: bool = False,
) -> Tensor | MixtureLogProbs:
    r"""Log-density of a mixture of Gaussians, in nats.

    .. math:: \log p(x) = \log \sum_k w_k N(x; \mu_k, \Sigma_k), \qquad w = \mathrm{softmax}(\text{weight logits})

    (Bishop 2006, eq. 9.7.) One pass over ``x`` forward and one backward. The responsibilities ``q_k = p(k | x)`` are recomputed in the
    backward pass: memory is O(N + K D^2), never N x K. With upstream gradient g: ``dlogit_k = sum g (q_k - w_k)``,
    ``dmu_k = sum g q_k P_k P_k^T (x - mu_k)``, ``dx = -sum_k g q_k P_k P_k^T (x - mu_k)`` and, for the diagonal, ``dlog sigma_k = sum g q_k
    (((x - mu_k) / sigma_k)^2 - 1)``. Sums over samples are in an order that no number of threads changes.

    With ``factorized`` every dimension is a mixture by itself, under the same weights, and the densities are multiplied:

    .. math:: \log \prod_d p(x_d) = \sum_d \log \sum_k w_k N(x_d; \mu_{kd}, \sigma_{kd}^2)

    which is the prior of RecVAE and of SysVI, and the product of marginals in a total correlation (:func:`total_correlation`). ``"both"``
    gives the two densities from one pass, forward and backward, in memory O(N D + K D).

    Weights may differ from sample to sample over components that all share (MRVI and CytoVI in scvi-tools): ``(..., K)`` logits.
    Weights of each sample take memory O(N K) besides: their logarithms, and their gradient in the backward pass.

    Both have kernels on the CPU and on CUDA. There too nothing of size N x K x D exists: the forward pass of ``factorized`` keeps two
    numbers for each element of x, and the backward pass finds the terms again from them, once for the gradients of x and of each sample's
    weights and once for those of the parameters, beside at most 16 MiB of the joint density's responsibilities at a time. The CUDA kernels
    have been compiled and have run in emulation, not on a GPU.

    The quadratic is centred: ``((x - mu) / sigma)^2``, never ``x^2 - 2 x mu + mu^2``, which loses 5e-2 nats at D = 16 with a common offset
    of 100 in float32.

    ``precision="tf32x3"`` permits CUDA to give that up for tensor cores, as ``torch.set_float32_matmul_precision`` does for products of
    matrices: the quadratic is multiplied out about the mean c of the mixture, ``((x - c)^2 - 2 (x - c) (mu - c) + (mu - c)^2) /
    sigma^2``, each operand split in two TF32 numbers, and three of the four products of their parts are summed in float32. It loses
    about 1e-7 nats times the squared distance of x from c, counted in standard deviations of the component that x belongs to: little
    beside float32's own rounding where components overlap, far too much where they are narrow and far apart. The largest errors in nats
    (and in a responsibility) of 200 rows and 24 components against float64, as ``native_tests --only mixture_products`` prints them for
    tensor cores emulated on a CPU, which cut off all that lies below 24 bits:

    ===============================  ========  =================  =================  ================
    means and x                      distance  float32            tf32x3             one TF32 product
    ===============================  ========  =================  =================  ================
    D=2                              4.85      2.5e-7 (1.6e-7)    2.3e-6 (4.1e-7)    8.5e-3 (1.8e-3)
    D=16, all offset by 100          6.33      1.6e-6 (3.9e-7)    2.2e-6 (5.6e-7)    3.6e-3 (1.0e-3)
    D=128                            13.9      9.9e-6 (9.2e-7)    1.4e-5 (1.4e-6)    7.3e-3 (1.4e-3)
    D=784, all offset by 1000        29.9      6.5e-5 (3.9e-6)    8.3e-5 (8.7e-6)    2.0e-2 (3.9e-3)
    D=16, pairs of means 10 apart    13.4      1.7e-6 (4.2e-7)    8.8e-6 (1.7e-6)    2.3e-2 (5.4e-3)
    D=16, pairs 100 apart            112       2.9e-6 (3.0e-7)    8.6e-4 (2.6e-4)    3.0 (0.67)
    D=16, pairs 1000 apart           1100      2.0e-6 (3.1e-7)    9.1e-2 (2.1e-2)    410 (1.0)
    ===============================  ========  =================  =================  ================

    On tensor cores are the exponents of the forward pass and, to the same bits, those of the backward pass, and with more than 16
    components and at least 16 dimensions, where tiles of 64 by 64 are not too empty, the sums over rows and the gradient of x that they
    weigh: these lose less than 1e-6 of what cancels once c is put right, of the distance of x from c in the gradients of x and of the
    means, of its square in those of ``scale``. Rows and parameters so far out that products might overflow, weights of each sample,
    densities of each dimension, GPUs before compute capability 8.0, the CPU and the plain-torch backend compute as by default.

    Args:
        x: any floating dtype, any shape ``(..., D)``.
        weight_logits: ``(K,)``; the weights are their softmax over K. ``-inf`` is a weight of zero. Or ``(..., K)``, which broadcasts
            against the leading dimensions of ``x``: weights of each sample.
        means: ``(K, D)``.
        scale: by ``covariance_type``: ``"diag"``: log standard deviations ``(K, D)``; ``"spherical"``: log standard deviations ``(K,)``;
            ``"full"`` and ``"tied"``: Cholesky factors of the precisions, ``(K, D, D)`` and ``(D, D)``: upper triangular ``P`` with
            ``Sigma^-1 = P P^T``, which is scikit-learn's ``precisions_cholesky_``. What lies below the diagonal is not read and gets a
            gradient of zero.
        covariance_type: ``"diag"``, ``"spherical"``, ``"tied"`` or ``"full"``.
        factorized: False: ``log p(x)``; True: ``sum_d log p(x_d)``, for ``"diag"`` and ``"spherical"``; ``"both"``: the two.
        precision: ``"float32"`` (float64 arguments are then computed in float64), or ``"tf32x3"``, see above: for ``"diag"`` and
            ``"spherical"`` and arguments of at most float32.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), shape ``(...)``; ``-inf`` only where the density is out of range. Differentiable in ``x`` and
        all parameters. ``factorized="both"``: ``MixtureLogProbs(joint, factorized)``, each ``(...)``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, means = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
        >>> vae_fast.mixture_log_prob(x, torch.zeros(2), means, torch.zeros(2, 2))
        tensor([-2.5310, -2.5310, -2.5310])
        >>> vae_fast.mixture_log_prob(x, torch.zeros(2), means, torch.zeros(2, 2), factorized=True)
        tensor([-3.2242, -3.2242, -3.2242])
    """
    _arguments(x, weight_logits, means, scale, covariance_type, precision)
    if not isinstance(factorized, str):
        check.flag("factorized", factorized)
    else:
        check.one_of("factorized", factorized, ("both",))
    if factorized and has_factors(covariance_type):
        raise ValueError(f"covariance_type={covariance_type!r}: expected 'diag' or 'spherical' with factorized={factorized!r}")
    weight_logits = _weights(x, weight_logits, means)
    if values.wanted(check_data):
        _check_values(x, weight_logits, means, scale)
    k = kernels()
    by_row = weight_logits.ndim > 1
    if k is None and not (by_row or factorized):
        return reference.mixture_log_prob(x, weight_logits, means, scale, covariance_type)
    if k is None:
        found = _terms(x, weight_logits, means, scale, covariance_type, bool(factorized))
        return found[0] if not factorized else MixtureLogProbs(*found) if factorized == "both" else found[1]
    if factorized:
        joint, product, _ = k.mixture_factorized(x, weight_logits, means, scale, covariance_type)
        return MixtureLogProbs(joint, product) if factorized == "both" else product
    out: Tensor = k.mixture(x, weight_logits, means, scale, covariance_type, precision)[0]
    return out


@overridable
def mixture_responsibilities(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    *,
    covariance_type: str = "diag",
    precision: str = "float32",
    check_data: bool = False,
) -> Tensor:
    r"""The posterior over components ``q_k = w_k N(x; mu_k, Sigma_k) / p(x)`` (Bishop 2006, eq. 9.13).

    Args:
        x, weight_logits, means, scale, covariance_type, precision, check_data: as in :func:`mixture_log_prob`.

    Returns:
        float32 (float64 if any argument is), shape ``(..., K)``; sums to one over ``K``, or is all zero where ``log p(x)`` is ``-inf``.
        Differentiable in ``x`` and all parameters.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> vae_fast.mixture_responsibilities(torch.zeros(1, 1), torch.zeros(2), means, torch.zeros(2, 1))
        tensor([[0.5000, 0.5000]])
    """
    _arguments(x, weight_logits, means, scale, covariance_type, precision)
    _shared_weights(weight_logits, means)
    if values.wanted(check_data):
        _check_values(x, weight_logits, means, scale)
    k = kernels()
    if k is None:
        return reference.mixture_responsibilities(x, weight_logits, means, scale, covariance_type)
    out: Tensor = k.mixture_responsibilities(x, weight_logits, means, scale, covariance_type, precision)
    return out


@overridable
@torch.no_grad()
def mixture_statistics(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    *,
    covariance_type: str = "diag",
    precision: str = "float32",
    responsibilities: Tensor | None = None,
    sample_weight: Tensor | None = None,
    check_data: bool = False,
) -> MixtureStatistics:
    r"""What an M-step of expectation maximisation needs, summed over samples (Bishop 2006, eq. 9.24 to 9.27), without forming N x K.

    .. math:: n_k = \sum_n q_{nk}, \qquad f_k = \sum_n q_{nk} (x_n - \mu_k), \qquad S_k = \sum_n q_{nk} (x_n - \mu_k)(x_n - \mu_k)^T

    The new mean is ``mu_k + f_k / n_k`` and the new covariance ``S_k / n_k - (f_k / n_k)(f_k / n_k)^T``: sums about the present means lose
    nothing to a common offset. The same kernels give the gradients of :func:`mixture_log_prob`. Nothing here is differentiable.

    Args:
        x, weight_logits, means, scale, covariance_type, precision, check_data: as in :func:`mixture_log_prob`.
        responsibilities: ``(..., K)``, to use instead of ``p(k | x)``: hard assignments, say. Weights and scale then do not matter.
        sample_weight: ``(...)``, a weight for each sample; None is one.

    Returns:
        ``MixtureStatistics(log_prob, counts, first, second)``: ``log p(x)`` of shape ``(...)``, None if the responsibilities were given;
        ``(K,)``; ``(K, D)``; and the second moments: ``(K, D)`` for ``"diag"``, ``(K,)`` for ``"spherical"`` (summed over D), ``(D, D)``
        for ``"tied"`` (summed over components), ``(K, D, D)`` for ``"full"``. float32, or float64 if any of x and the parameters is.
        They are made in units of the standard deviations: in float32 second moments below 1e-36 of a variance are 0 (data within
        1e-18 standard deviations of a mean).

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x = torch.tensor([[-1.0], [1.0], [3.0]])
        >>> s = vae_fast.mixture_statistics(x, torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, 1))
        >>> s.counts.item(), s.first.item(), s.second.item()
        (3.0, 3.0, 11.0)
    """
    _arguments(x, weight_logits, means, scale, covariance_type, precision)
    _shared_weights(weight_logits, means)
    batch, components = x.shape[:-1], means.shape[0]
    if responsibilities is not None:
        check.tensor("responsibilities", responsibilities)
        if responsibilities.shape != (*batch, components):
            raise ValueError(f"responsibilities has shape {tuple(responsibilities.shape)}: expected {(*batch, components)}")
    if sample_weight is not None:
        check.tensor("sample_weight", sample_weight)
        if sample_weight.shape != batch:
            raise ValueError(f"sample_weight has shape {tuple(sample_weight.shape)}: expected {tuple(batch)}")
    check.same_device(x=x, responsibilities=responsibilities, sample_weight=sample_weight)
    if values.wanted(check_data):
        _check_values(x, weight_logits, means, scale)
        values.require(("responsibilities", responsibilities, "nonnegative"), ("sample_weight", sample_weight, "nonnegative"))
    k = kernels()
    if k is None:
        found = reference.mixture_statistics(x, weight_logits, means, scale, responsibilities, sample_weight, covariance_type)
    else:
        found = k.mixture_statistics(x, weight_logits, means, scale, responsibilities, sample_weight, covariance_type, precision)
    log_prob, counts, first, second = found
    return MixtureStatistics(None if responsibilities is not None else log_prob, counts, first, second)
