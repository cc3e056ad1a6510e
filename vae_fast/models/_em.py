"""Expectation maximisation for mixtures of Gaussians: the sums of an E-step, the M-step they make, and the loop around both.

Parameters are in the form :func:`vae_fast.mixture_log_prob` takes. Sums over samples come from :func:`vae_fast.mixture_statistics` and are
added up in float64, and so is the M-step worked out, whatever the dtype of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast._world import World
from vae_fast.errors import SingularCovarianceError
from vae_fast.functional.mixture import has_factors

DEAD_COUNT = 0.1  # a component that accounts for less than this many samples is reported, and reseeded on request


class Parameters(NamedTuple):
    """The arguments of :func:`vae_fast.mixture_log_prob` that follow ``x``."""

    weight_logits: Tensor
    means: Tensor
    scale: Tensor

    def on(self, device: torch.device) -> Parameters:
        """The same on a device."""
        return Parameters(*(t.to(device) for t in self))


class Sums(NamedTuple):
    """An E-step summed over samples, in float64: see :func:`vae_fast.mixture_statistics`.

    ``worst`` are the least likely samples, ``lowest`` their log-likelihoods.
    """

    samples: int
    log_prob: Tensor
    counts: Tensor
    first: Tensor
    second: Tensor
    worst: Tensor
    lowest: Tensor


class Run(NamedTuple):
    """One fit from one start: where it ended, the mean log-likelihood of each iteration and of the end (nats), whether it converged."""

    parameters: Parameters
    lower_bounds: list[float]
    lower_bound: float
    converged: bool


Report = Callable[[Parameters, int, float, float], None]  # parameters, iteration, lower bound, its change


@torch.no_grad()
def expectation(
    blocks: Callable[[], Iterable[Tensor]], parameters: Parameters, covariance_type: str, worst: int = 0, world: World | None = None
) -> Sums:
    """The E-step over the blocks of all processes, and the ``worst`` samples of lowest log-likelihood: the same in every process.

    Every block is read once; memory is that of one block and of the parameters.
    """
    world = world or World()
    return _of_all(world.together(lambda: _of_one(blocks(), parameters, covariance_type, worst)), worst, world)


def _of_one(blocks: Iterable[Tensor], parameters: Parameters, covariance_type: str, worst: int) -> Sums:
    means = parameters.means
    total: list[Tensor] = []
    lowest, rows = means.new_empty(0), means.new_empty((0, means.shape[1]))
    samples, log_prob = 0, means.new_zeros((), dtype=torch.float64)
    for x in blocks:
        found = F.mixture_statistics(x, *parameters, covariance_type=covariance_type)
        assert found.log_prob is not None
        total = _add(total, found)
        samples += len(x)
        log_prob = log_prob + found.log_prob.double().sum()
        if worst:
            least, places = found.log_prob.to(means.dtype).topk(min(worst, len(x)), largest=False)
            lowest, kept = torch.cat([lowest, least]).topk(min(worst, len(lowest) + len(least)), largest=False)
            rows = torch.cat([rows, x[places].to(means.dtype)])[kept]
    counts, first, second = total
    return Sums(samples, log_prob, counts, first, second, rows, lowest)


def _of_all(sums: Sums, worst: int, world: World) -> Sums:
    """The sums of all processes, added in the order of the ranks."""
    if world.size == 1:
        return sums
    count = torch.tensor(float(sums.samples), dtype=torch.float64, device=sums.counts.device)
    samples, log_prob, counts, first, second = world.add_up([count, sums.log_prob, sums.counts, sums.first, sums.second])
    rows, lowest = sums.worst, sums.lowest
    if worst:
        parts = world.gather((sums.worst.cpu(), sums.lowest.cpu()))
        rows, lowest = (torch.cat([part[i] for part in parts]).to(sums.worst) for i in (0, 1))
        lowest, kept = lowest.topk(min(worst, len(lowest)), largest=False)
        rows = rows[kept]
    return Sums(int(samples), log_prob, counts, first, second, rows, lowest)


def _add(total: list[Tensor], found: F.MixtureStatistics) -> list[Tensor]:
    new = [t.double() for t in found[1:] if t is not None]
    return [a + b for a, b in zip(total, new, strict=True)] if total else new


@torch.no_grad()
def assigned(
    blocks: Callable[[], Iterable[tuple[Tensor, Tensor]]], around: Parameters, covariance_type: str, world: World | None = None
) -> Sums:
    """The sums for given responsibilities; blocks are pairs of samples and ``(rows, K)``."""
    world = world or World()

    def own() -> Sums:
        total, samples = list[Tensor](), 0
        for x, responsibilities in blocks():
            total = _add(total, F.mixture_statistics(x, *around, covariance_type=covariance_type, responsibilities=responsibilities))
            samples += len(x)
        nothing = around.means.new_zeros((), dtype=torch.float64)
        counts, first, second = total
        return Sums(samples, nothing, counts, first, second, around.means[:0], around.means[:0, 0])

    return _of_all(world.together(own), 0, world)


@torch.no_grad()
def maximise(old: Parameters, sums: Sums, reg_covar: float, covariance_type: str, when: str) -> Parameters:
    r"""The M-step (Bishop 2006, eq. 9.24 to 9.27), with ``reg_covar`` on the diagonal of every covariance.

    With ``n_k``, ``f_k``, ``S_k`` of :func:`vae_fast.mixture_statistics`: ``mu_k += f_k / n_k`` and ``Sigma_k = S_k / n_k - (f_k / n_k)
    (f_k / n_k)^T``. A component with no samples at all keeps its mean and covariance.

    Args:
        old: the parameters the sums were taken with.
        sums: of :func:`expectation` or :func:`assigned`.
        reg_covar: added to the diagonals.
        covariance_type: as in :func:`vae_fast.mixture_log_prob`.
        when: what is being done, for the error message.

    Raises:
        SingularCovarianceError: naming the components whose covariance is not positive definite.
    """
    dtype = old.means.dtype
    counts, means, second, held = moments(old, sums, covariance_type)
    scale = scale_of(second, means, reg_covar, covariance_type, dtype, when, held if covariance_type != "tied" else None)
    if covariance_type != "tied":
        scale = torch.where(held.reshape(-1, *[1] * (scale.ndim - 1)), old.scale.to(scale), scale)
    return Parameters((counts / counts.sum()).log().to(dtype), means.to(dtype), scale.to(dtype))


@torch.no_grad()
def moments(old: Parameters, sums: Sums, covariance_type: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the sums say of each component, in float64: counts (a rounding error above zero), means, covariances, and who has no samples."""
    dim, eps = old.means.shape[1], torch.finfo(old.means.dtype).eps
    counts = sums.counts + 10.0 * eps
    held = sums.counts < 10.0 * eps
    shift = (sums.first / counts.unsqueeze(1)).masked_fill(held.unsqueeze(1), 0.0)
    means = old.means.double() + shift
    # A mean that moves far loses as much of the second moment to rounding: that much variance is put back, until it has arrived.
    lost = 4.0 * eps * shift * shift
    if covariance_type == "full":
        second = sums.second / counts[:, None, None] - shift.unsqueeze(2) * shift.unsqueeze(1) + torch.diag_embed(lost)
    elif covariance_type == "tied":
        second = (sums.second - shift.T @ (counts.unsqueeze(1) * shift) + torch.diag(counts @ lost)) / counts.sum()
    elif covariance_type == "diag":
        second = (sums.second / counts.unsqueeze(1) - shift * shift).clamp(min=0.0) + lost
    elif covariance_type == "spherical":
        second = (sums.second / counts - (shift * shift).sum(1)).clamp(min=0.0) / dim + lost.mean(1)
    else:
        raise ValueError(f"covariance_type={covariance_type!r}: expected one whose M-step is here")
    return counts, means, second, held


def scale_of(
    covariances: Tensor,
    means: Tensor,
    reg_covar: float,
    covariance_type: str,
    dtype: torch.dtype,
    when: str,
    held: Tensor | None = None,
) -> Tensor:
    """Log standard deviations or precision Cholesky factors of float64 covariances, with ``reg_covar`` added to their diagonals.

    A variance is taken for zero where it is below what rounding leaves of equal values in ``dtype``, and a covariance for singular where
    what is left of a variance, given the features before it, is. Components in the mask ``held`` are let pass: their result is not used.
    """
    eps = torch.finfo(dtype).eps
    matrix = has_factors(covariance_type)
    variances = covariances.diagonal(dim1=-2, dim2=-1) if matrix else covariances
    resolved = (8.0 * eps * means.abs()).square()
    resolved = resolved.amin(1) if covariance_type == "spherical" else resolved.amin(0) if covariance_type == "tied" else resolved
    bad = (variances <= resolved) if reg_covar == 0.0 else ~(variances + reg_covar > 0.0)
    if not matrix:
        _refuse(bad.any(1) if covariance_type == "diag" else bad, covariance_type, reg_covar, dtype, when, held)
        return 0.5 * (covariances + reg_covar).log()
    eye = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
    covariances = covariances + reg_covar * eye
    if held is not None:
        covariances = torch.where(held[:, None, None], eye, covariances)
    lower, info = torch.linalg.cholesky_ex(covariances)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square()
    bad = bad | ~(pivots > eps * covariances.diagonal(dim1=-2, dim2=-1))
    _refuse(bad.any(-1) | (info != 0), covariance_type, reg_covar, dtype, when, held)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return inverse.mT.contiguous()


def _refuse(bad: Tensor, covariance_type: str, reg_covar: float, dtype: torch.dtype, when: str, held: Tensor | None) -> None:
    bad = bad if held is None else bad & ~held
    if not bool(bad.any()):
        return
    which = "the tied covariance is" if covariance_type == "tied" else f"the covariance of {named(bad)} is"
    single = ", fit in float64 (dtype=torch.float64)" if dtype != torch.float64 else ""
    raise SingularCovarianceError(
        f"{when}: {which} singular (too few distinct samples, or a feature that is constant or a combination of others): raise "
        f"reg_covar={reg_covar:g}, ask for fewer components, drop or rescale such features{single}"
    )


def named(mask: Tensor) -> str:
    """``component 3`` or ``components 0, 3, 4`` for a mask over components."""
    numbers = mask.nonzero().flatten().tolist()
    return f"component{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def covariances_of(parameters: Parameters, covariance_type: str) -> Tensor:
    """The covariances in float64: variances ``(K, D)`` or ``(K,)``, or matrices ``(K, D, D)`` or ``(D, D)``."""
    scale = parameters.scale.double()
    if not has_factors(covariance_type):
        return (2.0 * scale).exp()
    eye = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
    inverse: Tensor = torch.linalg.solve_triangular(scale.triu(), eye.expand_as(scale), upper=True)
    return inverse.mT @ inverse


@torch.no_grad()
def scale_from_precisions(precisions: Tensor, covariance_type: str) -> Tensor:
    """The ``scale`` of :func:`vae_fast.mixture_log_prob` for given precisions.

    Raises:
        ValueError: naming the components whose precision is not symmetric and positive definite.
    """
    if not has_factors(covariance_type):
        bad = ~(precisions > 0.0)
        bad = bad.any(1) if covariance_type == "diag" else bad
        if bool(bad.any()):
            raise ValueError(f"precisions_init: expected positive numbers, {named(bad)}: not so")
        return -0.5 * precisions.log()
    # P = U U^T with U upper triangular: the lower factor of P with rows and columns reversed, reversed back.
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(precisions.flip(-1, -2))
    tolerance = 1e-8 if precisions.dtype == torch.float64 else 1e-5
    bad = (info != 0) | ~torch.isclose(precisions, precisions.mT, rtol=1e-5, atol=tolerance).all(-1).all(-1)
    if bool(bad.any()):
        which = "" if covariance_type == "tied" else f", {named(bad)}: not so"
        raise ValueError(f"precisions_init: expected symmetric positive-definite matrices{which}")
    return lower.flip(-1, -2).contiguous()


@torch.no_grad()
def reseed(parameters: Parameters, dead: Tensor, rows: Tensor, covariance_type: str) -> Parameters:
    """Dead components moved to ``rows`` (one each, as far as they reach), with the average covariance and the average weight."""
    places = dead.nonzero().flatten()[: len(rows)]
    weights, means, scale = parameters.weight_logits.softmax(0), parameters.means.clone(), parameters.scale.clone()
    means[places] = rows[: len(places)]
    if covariance_type != "tied":
        share = weights.double().masked_fill(dead, 0.0)
        average = torch.tensordot(share / share.sum(), covariances_of(parameters, covariance_type), 1).unsqueeze(0)
        fresh = scale_of(
            average, torch.zeros_like(means[:1], dtype=torch.float64), 0.0, covariance_type, means.dtype, "reseeding dead components"
        )
        scale[places] = fresh.to(scale)
    weights = weights.index_fill(0, places, 1.0 / len(weights))
    return Parameters((weights / weights.sum()).log(), means, scale)


@torch.no_grad()
def blend(old: Parameters, new: Sums, gamma: float, reg_covar: float, covariance_type: str) -> Sums:
    """The running sums of online EM after a step of size ``gamma``, about the old means and for as many samples as the new ones.

    Those before the step are read off the parameters that came of them.
    """
    weights, covariances = old.weight_logits.double().softmax(0), covariances_of(old, covariance_type)
    if has_factors(covariance_type):
        covariances = covariances - reg_covar * torch.eye(old.means.shape[1], dtype=covariances.dtype, device=covariances.device)
    else:
        covariances = (covariances - reg_covar).clamp(min=0.0) * (old.means.shape[1] if covariance_type == "spherical" else 1)
    if covariance_type != "tied":
        covariances = weights.reshape(-1, *[1] * (covariances.ndim - 1)) * covariances
    kept = (1.0 - gamma) * new.samples
    return new._replace(counts=kept * weights + gamma * new.counts, first=gamma * new.first, second=kept * covariances + gamma * new.second)


def finite_bound(sums: Sums, iteration: int) -> float:
    """The mean log-likelihood, or an error if it is not a number that can be worked with."""
    bound = sums.log_prob.item() / sums.samples
    if not math.isfinite(bound):
        raise ValueError(f"iteration {iteration}: the mean log-likelihood is {bound}: X has values out of range; scale or centre the data")
    return bound
