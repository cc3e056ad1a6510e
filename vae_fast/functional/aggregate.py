"""The aggregate posterior q(z) of a batch, and what beta-TC-VAE makes of it: mutual information, total correlation, dimension-wise KL."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from vae_fast._precision import compute_all, compute_dtype, number_of
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, reduce, refuse_dtensors
from vae_fast.functional.gaussian import gaussian_log_prob
from vae_fast.functional.mixture import MixtureLogProbs, mixture_log_prob

ESTIMATORS = ("mws", "mss")
FORMULAS = ("beta-tcvae", "disentangling-vae")


class TotalCorrelation(NamedTuple):
    """The three parts of a KL divergence from the aggregate posterior; see :func:`total_correlation`."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


def _posteriors(z: Tensor, mu: Tensor, logvar: Tensor) -> None:
    for name, t in {"z": z, "mu": mu, "logvar": logvar}.items():
        check.tensor(name, t)
    check.same_device(z=z, mu=mu, logvar=logvar)
    if mu.ndim != 2 or 0 in mu.shape:
        raise ValueError(f"mu has shape {tuple(mu.shape)}: expected (M, L) with M and L of at least 1")
    if logvar.shape != mu.shape:
        raise ValueError(f"logvar has shape {tuple(logvar.shape)}: expected {tuple(mu.shape)}, the shape of mu")
    if z.ndim < 1 or z.shape[-1] != mu.shape[1]:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected (..., {mu.shape[1]}), the last dimension of mu")


@overload
def aggregate_log_prob(z: Tensor, mu: Tensor, logvar: Tensor, *, factorized: bool = False, check_data: bool = False) -> Tensor: ...


@overload
def aggregate_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, *, factorized: Literal["both"], check_data: bool = False
) -> MixtureLogProbs: ...


@overridable
def aggregate_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, *, factorized: bool | str = False, check_data: bool = False
) -> Tensor | MixtureLogProbs:
    r"""Log-density of the aggregate posterior of M inputs, in nats (Makhzani et al. 2016; Hoffman and Johnson 2016).

    .. math:: \log q(z) = \log \frac1M \sum_{m=1}^M N(z; \mu_m, \sigma_m^2)

    A mixture whose components are the posteriors: :func:`mixture_log_prob` with equal weights, in memory O(N L + M L).

    Args:
        z: any floating dtype, any shape ``(..., L)``.
        mu: means of the posteriors, ``(M, L)``.
        logvar: log-variances, ``(M, L)``.
        factorized: False: ``log q(z)``; True: ``sum_d log q(z_d)``; ``"both"``: the two from one pass.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), shape ``(...)``, differentiable in all three; ``factorized="both"``:
        ``MixtureLogProbs(joint, factorized)``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> mu = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
        >>> vae_fast.aggregate_log_prob(torch.zeros(3, 2), mu, torch.zeros(2, 2))
        tensor([-2.5310, -2.5310, -2.5310])
    """
    _posteriors(z, mu, logvar)
    if values.wanted(check_data):
        values.require(*values.finite(z=z, mu=mu, logvar=logvar))
    dtype = compute_dtype([z, mu, logvar])
    equal = mu.new_zeros(len(mu), dtype=dtype)  # a DTensor where mu is one
    # not half of a half: the gradient of the log standard deviation is twice that of logvar, and out of range sooner
    return mixture_log_prob(z, equal, mu, 0.5 * logvar.to(dtype), factorized=factorized)  # type: ignore[arg-type]


def _log_total(first: float, second: float, others: float, count: int) -> float:
    """``log(e^first + e^second + count e^others)``."""
    top = max(first, second, others if count else -math.inf)
    return top + math.log(math.exp(first - top) + math.exp(second - top) + (count * math.exp(others - top) if count else 0.0))


def _weighed(z: Tensor, mu: Tensor, log_std: Tensor, columns: tuple[float, float, float], power: int) -> tuple[Tensor, Tensor]:
    """``log sum_j W_j^power q(z|x_j)`` and ``sum_d log sum_j W_j q(z_d|x_j)``; ``columns``: log weights of j = 0, 1 and others."""
    count, dims = map(number_of, mu.shape)
    like: dict[str, Any] = {"dtype": compute_dtype([z, mu, log_std]), "device": z.device}
    log_w = torch.full((count,), columns[2], **like)
    log_w[0], log_w[1] = columns[0], columns[1]
    total, top = _log_total(*columns, count - 2), max(columns)
    if power == 1:
        joint, product = mixture_log_prob(z, log_w, mu, log_std, factorized="both")
        return joint + total, product + dims * total
    # The rest of the power is the density of one more dimension, in which all z are 0: exp(-u^2 / 2) = (W / max W)^(power - 1).
    low = [(power - 1) * (top - c) if c > -math.inf else 0.0 for c in columns]
    u = torch.full((count, 1), math.sqrt(2.0 * low[2]), **like)
    u[0], u[1] = math.sqrt(2.0 * low[0]), math.sqrt(2.0 * low[1])
    z, mu, log_std = torch.cat([z, torch.zeros_like(z[:, :1])], 1), torch.cat([mu, u], 1), torch.cat([log_std, torch.zeros_like(u)], 1)
    joint, product = mixture_log_prob(z, log_w, mu, log_std, factorized="both")
    constant = 0.5 * math.log(2.0 * math.pi)
    first, second, others = (c - less for c, less in zip(columns, low, strict=True))
    marginal = _log_total(first, second, others, count - 2) - constant  # of the dimension that was added
    return joint + (total + constant + (power - 1) * top), product + ((dims + 1) * total - marginal)


@overridable
def total_correlation(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    *,
    estimator: str = "mws",
    formula: str = "beta-tcvae",
    reduction: str = "mean",
    check_data: bool = False,
) -> TotalCorrelation:
    r"""The KL divergence of a VAE in three parts, in nats, estimated from a batch (Chen et al. 2018, "Isolating sources of
    disentanglement in variational autoencoders").

    .. math:: \underbrace{\log q(z|x) - \log q(z)}_{\text{mutual information}} + \underbrace{\log q(z) - \sum_d \log q(z_d)}_{\text{total
        correlation}} + \underbrace{\sum_d \log q(z_d) - \log p(z)}_{\text{dimension-wise KL}}, \qquad p(z) = N(0, I)

    q(z) and its marginals are estimated from the B posteriors of the batch, each z under all of them, in one pass forward and one backward
    and memory O(B L): an array of B x B x L is never formed. The two estimators of the paper (its eq. 4 and appendix C.2):

    - ``"mws"``, minibatch weighted sampling: ``log q(z_i) = log (1 / (N B)) sum_j q(z_i|x_j)``, and the same of each dimension.
    - ``"mss"``, minibatch stratified sampling: ``log sum_j W_ij q(z_i|x_j)`` with M = B - 1 and the weights that beta-tcvae, pythae and
      disentangling-vae share: ``1 / M``, but ``1 / N`` in column 0 and ``(N - M) / (N M)`` in column 1 and in the element (B - 2, 0). (The
      paper has 1 / N where j = i. These weights are columns in all three, and so they are here.)

    ``formula="disentangling-vae"`` gives the values of that project's losses, which differ: its ``"mws"`` leaves ``log (N B)`` out, and its
    ``"mss"`` adds ``log W`` to every dimension before they are summed, so that ``L log W`` enters ``log q(z)`` and the total correlation
    may be far below zero. ``"beta-tcvae"`` is the paper's code (rtqichen/beta-tcvae), and what pythae's ``BetaTCVAE`` computes.

    Args:
        z: samples of the posteriors, ``(B, L)``; a latent with several dimensions is flattened first.
        mu: means of the posteriors, ``(B, L)``.
        logvar: log-variances of the posteriors, ``(B, L)``.
        dataset_size: N, the number of training samples.
        estimator: ``"mws"`` or ``"mss"``; the latter needs B of at least 2 and N of at least B - 1.
        formula: ``"beta-tcvae"`` or ``"disentangling-vae"``.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        ``TotalCorrelation(mutual_information, total_correlation, dimension_wise_kl)``, float32 (float64 if any argument is), each of shape
        ``()``, or ``(B,)`` for ``"none"``; differentiable in all three tensors.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        A beta-TC-VAE's loss in three lines:

        >>> import torch, vae_fast
        >>> x, logits, mu, logvar = torch.rand(8, 784), torch.randn(8, 784), torch.randn(8, 10), torch.zeros(8, 10)
        >>> z = vae_fast.reparameterize(mu, logvar)
        >>> mi, tc, kl = vae_fast.total_correlation(z, mu, logvar, dataset_size=60_000)
        >>> loss = -vae_fast.bernoulli_log_prob(x, logits).mean() + mi + 6.0 * tc + kl
        >>> loss.shape
        torch.Size([])

        A model's loss holds it by ``VAE(..., regularizer=)``, see :class:`vae_fast.models.VAE`.
    """
    _posteriors(z, mu, logvar)
    refuse_dtensors("total_correlation", z=z, mu=mu, logvar=logvar)
    if z.shape != mu.shape:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected {tuple(mu.shape)}, the shape of mu")
    check.positive_int("dataset_size", dataset_size)
    check.one_of("estimator", estimator, ESTIMATORS)
    check.one_of("formula", formula, FORMULAS)
    check.one_of("reduction", reduction, check.REDUCTIONS)
    batch, dims = map(number_of, mu.shape)
    if estimator == "mss" and batch < 2:
        raise ValueError(f"mu has shape {tuple(mu.shape)}: expected at least 2 rows with estimator='mss'")
    if estimator == "mss" and dataset_size < batch - 1:
        raise ValueError(f"dataset_size={dataset_size}: expected at least {batch - 1}, the rows of mu less one, with estimator='mss'")
    if values.wanted(check_data):
        values.require(*values.finite(z=z, mu=mu, logvar=logvar))
    z, mu, logvar = compute_all([z, mu, logvar])  # their gradients are sums of several, rounded once
    log_std = 0.5 * logvar
    if estimator == "mws":
        joint, product = aggregate_log_prob(z, mu, logvar, factorized="both")
        shift = math.log(batch) if formula == "disentangling-vae" else -math.log(dataset_size)
        joint, product = joint + shift, product + dims * shift
    else:
        rest = batch - 1
        rare, common = -math.log(dataset_size), -math.log(rest)
        strata = math.log(dataset_size - rest) - math.log(dataset_size) - math.log(rest) if dataset_size > rest else -math.inf
        power = dims if formula == "disentangling-vae" else 1
        joint, product = _weighed(z, mu, log_std, (rare, strata, common), power)
        at = batch - 2  # the one row whose first weight is another
        own = _weighed(z[at : at + 1], mu, log_std, (strata, strata, common), power)
        joint, product = (torch.cat([t[:at], t_own, t[at + 1 :]]) for t, t_own in zip((joint, product), own, strict=True))
    posterior = gaussian_log_prob(z, mu, logvar)
    prior = gaussian_log_prob(z, torch.zeros(dims, dtype=z.dtype, device=z.device))
    return TotalCorrelation(*(reduce(t, reduction) for t in (posterior - joint, joint - product, product - prior)))
