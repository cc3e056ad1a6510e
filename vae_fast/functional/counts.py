"""Log-probabilities of counts: Poisson, negative binomial, zero-inflated negative binomial, and a mixture of two."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast._precision import compute_dtype
from vae_fast._scales import softplus
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, row_sum
from vae_fast.functional.logsumexp import logsumexp
from vae_fast.terms import SPACES


def _log_prob(family: str, variant: str, x: Tensor, params: list[float], event_dim: int, check_data: bool, **parameters: Tensor) -> Tensor:
    """The sum of a term of counts, its arguments checked."""
    check.counted(x, event_dim, **parameters)
    name, inputs = f"{family}.{variant}", [x, *parameters.values()]
    if values.wanted(check_data):
        values.require(*values.term(name, inputs, ("x", *parameters)))
    return row_sum(name, inputs, [*params], event_dim)


def _constant(eps: float | None) -> list[float]:
    return [0.0] if eps is None else [check.real("eps", eps, 0.0, 1.0)]


@overridable
def poisson_log_prob(
    x: Tensor, rate: Tensor | None = None, *, log_rate: Tensor | None = None, event_dim: int = 1, check_data: bool = False
) -> Tensor:
    r"""Log-probability of independent Poisson counts, in nats.

    .. math:: \log \mathrm{Poisson}(x; r) = \sum_j x_j \log r_j - r_j - \log x_j!

    It is computed as a deviance (Loader 2000, "Fast and accurate computation of binomial probabilities"), so nothing is lost where the
    count and its rate are both large.

    Args:
        x: counts: uint8, int16, int32, int64 or any floating dtype, shape ``(*batch, *event)``. Bytes are numbers, not ``x / 255``. They
            are computed with in the precision of the result: float32 holds every count up to 2^24, and the nearest of its numbers above.
            They have no gradient, and are refused if they ask for one. A ``torch.sparse_csr`` tensor of them (on the CPU, of the shape of
            the parameters, ``event_dim=1``) is read as it is: what it does not store is 0.
        rate: r >= 0; same event shape, batch dimensions broadcast. Give either ``rate`` or ``log_rate``.
        log_rate: its logarithm, of any size.
        event_dim: number of trailing dimensions that are summed.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any input is float64), one value per sample, not reduced over the batch. Differentiable in the rate.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.poisson_log_prob(torch.tensor([[0, 2]]), torch.tensor([1.0, 3.0]))
        tensor([-2.4959])
    """
    if (rate is None) == (log_rate is None):
        raise ValueError(f"rate and log_rate: expected exactly one of them, got {'both' if rate is not None else 'neither'}")
    if rate is not None:
        return _log_prob("poisson", "rate", x, [], event_dim, check_data, rate=rate)
    assert log_rate is not None
    return _log_prob("poisson", "log_rate", x, [], event_dim, check_data, log_rate=log_rate)


@overridable
def negative_binomial_log_prob(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    *,
    space: str = "linear",
    eps: float | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-probability of independent negative binomial counts of mean mu and inverse dispersion theta, in nats.

    .. math:: \log p(x) = \sum_j \log \frac{\Gamma(x_j + \theta_j)}{\Gamma(\theta_j)\, x_j!}
              + \theta_j \log \frac{\theta_j}{\theta_j + \mu_j} + x_j \log \frac{\mu_j}{\theta_j + \mu_j}

    The variance is ``mu + mu^2 / theta``; over a large theta it is Poisson's distribution, to rounding (``theta = inf`` is it). No
    difference of large logarithms or gamma functions is formed (Loader 2000, "Fast and accurate computation of binomial probabilities";
    Stirling's remainders as in DLMF 5.11), and a count of 0, as most are, takes one logarithm.

    Args:
        x: counts, as in :func:`poisson_log_prob`.
        mu: the mean, >= 0; same event shape, batch dimensions broadcast.
        theta: the inverse dispersion, > 0, broadcast against ``mu``: one per element, per gene ``(G,)``, or per group. It is read within
            [1e-30, 1e30], neither end of which is told from 0 and infinity.
        space: ``"log"``: ``mu`` and ``theta`` are given by their logarithms, as many decoders give them; that of mu is read as at most
            60, that of theta within [-60, 60], with a gradient of 0 beyond.
        eps: what is added within the logarithms, None (0) for the distribution itself. 1e-8 gives what scvi-tools computes
            (``log_nb_positive``): ``log(theta + eps)``, ``log(mu + eps)`` and ``log(theta + mu + eps)``.
        event_dim: number of trailing dimensions that are summed.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any input is float64), one value per sample, not reduced over the batch. Differentiable in mu and theta.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.negative_binomial_log_prob(torch.tensor([[0, 2]]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5]))
        tensor([-3.0730])
    """
    check.one_of("space", space, SPACES)
    return _log_prob("negative_binomial", space, x, _constant(eps), event_dim, check_data, mu=mu, theta=theta)


@overridable
def zero_inflated_negative_binomial_log_prob(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    *,
    space: str = "linear",
    eps: float | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-probability of independent zero-inflated negative binomial counts, in nats.

    .. math:: p(x) = \sigma(l)\, [x = 0] + \sigma(-l)\, \mathrm{NB}(x; \mu, \theta)

    Args:
        x, mu, theta, space, eps, event_dim, check_data: as in :func:`negative_binomial_log_prob`; with ``eps=1e-8`` the values are those
            of scvi-tools' ``log_zinb_positive``.
        zi_logits: l, the logits of a zero that is no count (scvi-tools' ``pi``), broadcast against ``mu``.

    Returns:
        float32 (float64 if any input is float64), one value per sample, not reduced over the batch. Differentiable in mu, theta and
        zi_logits.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, mu, theta = torch.tensor([[0, 2]]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5])
        >>> vae_fast.zero_inflated_negative_binomial_log_prob(x, mu, theta, torch.zeros(2))
        tensor([-3.2807])
    """
    check.one_of("space", space, SPACES)
    given = {"mu": mu, "theta": theta, "zi_logits": zi_logits}
    return _log_prob("zero_inflated_negative_binomial", space, x, _constant(eps), event_dim, check_data, **given)


@overridable
def negative_binomial_mixture_log_prob(
    x: Tensor,
    mu_1: Tensor,
    mu_2: Tensor,
    theta_1: Tensor,
    theta_2: Tensor | None,
    pi_logits: Tensor,
    *,
    space: str = "linear",
    eps: float | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-probability of counts of which each is of one of two negative binomials, in nats.

    .. math:: p(x) = \sigma(l)\, \mathrm{NB}(x; \mu_1, \theta_1) + \sigma(-l)\, \mathrm{NB}(x; \mu_2, \theta_2)

    Args:
        x, space, eps, event_dim, check_data: as in :func:`negative_binomial_log_prob`; with ``eps=1e-8`` the values are those of
            scvi-tools' ``log_mixture_nb``, whose arguments these are.
        mu_1, mu_2: the means, as ``mu`` there.
        theta_1, theta_2: the inverse dispersions, as ``theta`` there; None for ``theta_2`` is ``theta_1``.
        pi_logits: l, the logits of the first component, broadcast against ``mu_1``.

    Returns:
        float32 (float64 if any input is float64), one value per sample, not reduced over the batch. Differentiable in everything but x. A
        count that neither component can have given (both means 0) has the value -inf, and no gradient.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, mu, theta = torch.tensor([[0, 2]]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5])
        >>> vae_fast.negative_binomial_mixture_log_prob(x, mu, mu, theta, None, torch.zeros(2))
        tensor([-3.0730])
    """
    check.one_of("space", space, SPACES)
    params, second = _constant(eps), theta_1 if theta_2 is None else theta_2
    given = {"mu_1": mu_1, "mu_2": mu_2, "theta_1": theta_1, "theta_2": second, "pi_logits": pi_logits}
    check.counted(x, event_dim, **given)
    name = f"negative_binomial.{space}"
    if values.wanted(check_data):
        values.require(*values.term(name, [x, mu_1, theta_1], ("x", "mu_1", "theta_1")))
        values.require(*values.term(name, [x, mu_2, second], ("x", "mu_2", "theta_2" if theta_2 is not None else "theta_1")))
        values.require(*values.finite(pi_logits=pi_logits))
    # both in the precision of the result, which any of them may ask for
    dtype = compute_dtype([mu_1, mu_2, theta_1, second, pi_logits, *([x] if x.is_floating_point() else [])])
    if dtype == torch.float64:
        mu_1, mu_2 = mu_1.double(), mu_2.double()
    if theta_2 is None:
        theta_1 = second = theta_1.to(dtype)  # its gradient is a sum of two, rounded once
    first, other = row_sum(name, [x, mu_1, theta_1], [*params], 0), row_sum(name, [x, mu_2, second], [*params], 0)
    logits = pi_logits.to(dtype)
    # not torch.logaddexp: its gradient where neither component can have given the count is NaN
    mixed = logsumexp(torch.stack(torch.broadcast_tensors(first - softplus(-logits), other - softplus(logits))), dim=0)
    return mixed.flatten(-event_dim).sum(-1) if event_dim else mixed
