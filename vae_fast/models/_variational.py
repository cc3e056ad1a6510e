r"""The variational posterior of a mixture of Gaussians (Bishop 2006, section 10.2; Blei and Jordan 2006), from the sums of an E-step.

Weights have a Dirichlet posterior, or sticks of a truncated Dirichlet process with a beta posterior each; a mean and a precision a
Gaussian-Wishart one (for ``"diag"`` and ``"spherical"`` with one number of degrees of freedom for a component, for ``"tied"`` one Wishart
posterior). As in scikit-learn the covariances are those of the Wishart posterior over its degrees of freedom, and constants are left out
of the bound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.functional.mixture import has_factors
from vae_fast.models import _em
from vae_fast.models._em import Parameters, Sums

WEIGHTS = ("dirichlet_process", "dirichlet_distribution")


class Prior(NamedTuple):
    """What is believed before the data, float64; ``mean`` is ``(D,)``, ``covariance`` ``(D, D)``, ``(D,)`` or ``()``."""

    weight_concentration: float
    mean_precision: float
    mean: Tensor
    degrees_of_freedom: float
    covariance: Tensor


class Posterior(NamedTuple):
    """What is believed after them, float64.

    ``concentration`` is ``(K,)`` for a Dirichlet distribution and ``(2, K)`` for the beta distributions of a Dirichlet process;
    ``mean_precision`` ``(K,)``, ``means`` ``(K, D)``, ``degrees_of_freedom`` ``(K,)`` or ``()`` (tied); ``scale`` is that of
    :func:`vae_fast.mixture_log_prob`, of the covariances.
    """

    concentration: Tensor
    mean_precision: Tensor
    means: Tensor
    degrees_of_freedom: Tensor
    scale: Tensor


@torch.no_grad()
def posterior(old: Parameters, sums: Sums, prior: Prior, reg_covar: float, covariance_type: str, process: bool, when: str) -> Posterior:
    """The M-step (Bishop 2006, eq. 10.58 and 10.60 to 10.63; Blei and Jordan 2006, eq. 18 and 19).

    Args:
        old: the parameters the sums were taken with.
        sums: of an E-step over all samples.
        prior: see there.
        reg_covar: added to the diagonals of the samples' covariances.
        covariance_type: as in :func:`vae_fast.mixture_log_prob`.
        process: whether weights come of a Dirichlet process.
        when: what is being done, for the error message.

    Raises:
        SingularCovarianceError: naming the components whose covariance is not positive definite.
    """
    counts, means, second, _ = _em.moments(old, sums, covariance_type)
    k, d = means.shape
    eye = torch.eye(d, dtype=means.dtype, device=means.device)
    second = second + reg_covar * (eye if has_factors(covariance_type) else 1.0)
    if process:
        later = torch.cat([counts.flip(0).cumsum(0).flip(0)[1:], counts.new_zeros(1)])
        concentration = torch.stack([1.0 + counts, prior.weight_concentration + later])
    else:
        concentration = prior.weight_concentration + counts
    mean_precision = prior.mean_precision + counts
    apart = means - prior.mean
    drawn = counts * prior.mean_precision / mean_precision
    freedom = prior.degrees_of_freedom + (counts.sum() / k if covariance_type == "tied" else counts)
    if covariance_type == "full":
        moved = drawn[:, None, None] * apart.unsqueeze(2) * apart.unsqueeze(1)
        covariances = (prior.covariance + counts[:, None, None] * second + moved) / freedom[:, None, None]
    elif covariance_type == "tied":
        covariances = (prior.covariance + second * counts.sum() / k + apart.T @ (drawn.unsqueeze(1) * apart) / k) / freedom
    elif covariance_type == "diag":
        covariances = (prior.covariance + counts.unsqueeze(1) * second + drawn.unsqueeze(1) * apart.square()) / freedom.unsqueeze(1)
    elif covariance_type == "spherical":
        covariances = (prior.covariance + counts * second + drawn * apart.square().mean(1)) / freedom
    else:
        raise ValueError(f"covariance_type={covariance_type!r}: expected one whose posterior is here")
    new = (prior.mean_precision * prior.mean + counts.unsqueeze(1) * means) / mean_precision.unsqueeze(1)
    scale = _em.scale_of(covariances, new, 0.0, covariance_type, old.means.dtype, when)
    return Posterior(concentration, mean_precision, new, freedom, scale)


def expected(p: Posterior, covariance_type: str, dtype: torch.dtype) -> Parameters:
    """The E-step's parameters (Bishop 2006, eq. 10.46 and 10.64 to 10.66).

    ``E log w_k + E log N(x; mu_k, Lambda_k)`` is a Gaussian log-density at the posterior's mean and covariance plus a number for each
    component, which goes into the log weights: they are not normalised.
    """
    d = p.means.shape[1]
    if p.concentration.ndim == 2:
        first, second = torch.special.digamma(p.concentration)
        both = torch.special.digamma(p.concentration.sum(0))
        rest = (second - both).cumsum(0)
        log_weights = first - both + torch.cat([rest.new_zeros(1), rest[:-1]])
    else:
        log_weights = torch.special.digamma(p.concentration) - torch.special.digamma(p.concentration.sum())
    log_lambda = d * math.log(2.0) + torch.special.digamma(_halves(p.degrees_of_freedom, d)).sum(-1)
    number = log_weights + 0.5 * (log_lambda - d * p.degrees_of_freedom.log() - d / p.mean_precision)
    return Parameters(number.to(dtype), p.means.to(dtype), p.scale.to(dtype))


def _halves(freedom: Tensor, d: int) -> Tensor:
    return 0.5 * (freedom.unsqueeze(-1) - torch.arange(d, dtype=freedom.dtype, device=freedom.device))


def weights(p: Posterior) -> Tensor:
    """The expected weights ``(K,)``; of a truncated process, made to sum to one."""
    if p.concentration.ndim == 1:
        return p.concentration / p.concentration.sum()
    first, second = p.concentration / p.concentration.sum(0)
    w: Tensor = first * torch.cat([first.new_ones(1), second[:-1].cumprod(0)])
    return w / w.sum()


@torch.no_grad()
def bound(old: Parameters, sums: Sums, new: Posterior, covariance_type: str) -> float:
    """The lower bound on the evidence, in nats but for constants, with the responsibilities of the E-step and the posterior they made.

    The entropy of the responsibilities follows from the sums: ``log q_nk = log rho_nk - log sum_j rho_nj``, and the sum of the first term
    is that of Gaussian log-densities, which the counts and the second moments about the E-step's means decide.
    """
    (k, d), scale, numbers = new.means.shape, old.scale.double(), old.weight_logits.double()
    if has_factors(covariance_type):
        factor = scale.triu()
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        squares = ((factor @ factor.mT) * sums.second).sum()
    else:
        log_det = -scale.sum(1) if covariance_type == "diag" else -d * scale
        squares = ((-2.0 * scale).exp() * sums.second).sum()
    joint = (sums.counts * (numbers + log_det - 0.5 * d * math.log(2.0 * math.pi))).sum() - 0.5 * squares
    entropy = sums.log_prob + sums.samples * numbers.logsumexp(0) - joint
    freedom = new.degrees_of_freedom
    if has_factors(covariance_type):
        new_log_det = new.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        new_log_det = -new.scale.sum(1) if covariance_type == "diag" else -d * new.scale
    new_log_det = new_log_det - 0.5 * d * freedom.log()
    wishart = -(freedom * (new_log_det + 0.5 * d * math.log(2.0)) + torch.lgamma(_halves(freedom, d)).sum(-1))
    total_wishart = wishart.sum() * (k if covariance_type == "tied" else 1)
    if new.concentration.ndim == 2:
        log_weights = -(torch.lgamma(new.concentration).sum(0) - torch.lgamma(new.concentration.sum(0))).sum()
    else:
        log_weights = torch.lgamma(new.concentration.sum()) - torch.lgamma(new.concentration).sum()
    return (entropy - total_wishart - log_weights - 0.5 * d * new.mean_precision.log().sum()).item()
