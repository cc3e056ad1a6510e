"""Mixtures of Gaussians by gradient ascent on the mean log-likelihood, with Adam, over parameters that any step leaves valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast._world import World
from vae_fast.errors import DivergedError
from vae_fast.functional.mixture import has_factors
from vae_fast.models._em import Parameters, Report, Run
from vae_fast.models._em_fit import Keep, adopted

_CUTS = 3  # how often the step is cut to a quarter before there is nothing more to gain


def constrain(free: Tensor, covariance_type: str) -> Tensor:
    """The ``scale`` of :func:`vae_fast.mixture_log_prob` for any numbers at all.

    Log standard deviations are free as they are; a precision Cholesky factor has the exponentials of the diagonal on its diagonal.
    """
    if not has_factors(covariance_type):
        return free
    return free.triu(1) + torch.diag_embed(free.diagonal(dim1=-2, dim2=-1).exp())


def unconstrain(scale: Tensor, covariance_type: str) -> Tensor:
    """The inverse of :func:`constrain`; zero below the diagonal."""
    if not has_factors(covariance_type):
        return scale
    return scale.triu(1) + torch.diag_embed(scale.diagonal(dim1=-2, dim2=-1).log())


def gradient_ascent(
    blocks: Callable[[], Iterable[Tensor]],
    samples: int,
    spread: Tensor,
    start: Parameters,
    covariance_type: str,
    *,
    step_per_block: bool,
    lr: float,
    tol: float,
    max_iter: int,
    reg_covar: float,
    patience: int,
    before: float,
    report: Report,
    world: World,
    keep: Keep,
    state: Mapping[str, Any] | None = None,
) -> Run:
    r"""Adam on :math:`\frac1N \sum_n \mathrm{LSE}(a_1^n, \dots, a_K^n)`, ``a_k = log w_k + log N(x; mu_k, Sigma_k)``.

    Adam moves every number by about ``lr`` a step whatever its unit, so it is given numbers without one: means in units of ``spread`` and
    scales relative to it. What it maximises is the same. No standard deviation (for ``"full"`` and ``"tied"``: none given the features
    that come before) falls below ``sqrt(reg_covar)``.

    Args:
        blocks: called once per iteration: the samples of this process, in blocks; for a step per block, its part of each.
        samples: how many there are.
        spread: a standard deviation for each feature, ``(D,)``.
        start: where to begin.
        covariance_type: as in :func:`vae_fast.mixture_log_prob`.
        step_per_block: a step for each block (minibatches); else one for all of them, whose gradients are added up.
        lr, tol, max_iter, reg_covar: as in :class:`vae_fast.models.MixtureOfGaussians`.
        patience: after that many iterations that raised the best bound by less than ``tol`` in all, it goes on from the best with a quarter
            of the step; after four times that it has converged.
        before: the lower bound to compare the first one with; -inf for a fresh start.
        report: called after each iteration.
        world: the processes that share the samples. The gradients of all are added in the order of the ranks, and each takes the same step.
        keep, state: as in :func:`vae_fast.models._em_fit.expectation_maximisation`.

    Raises:
        DivergedError: if the likelihood is no longer a number.
    """
    unit = spread.mean() if covariance_type == "spherical" else spread
    matrix = has_factors(covariance_type)
    row = unit.unsqueeze(1) if matrix else unit

    def in_units(free: Parameters) -> Parameters:
        scale = constrain(free.scale, covariance_type)
        return Parameters(free.weight_logits, free.means * spread, scale / row if matrix else scale + row.log())

    scale = unconstrain(start.scale * row, covariance_type) if matrix else start.scale - row.log()
    free = Parameters(*(t.detach().clone().requires_grad_() for t in (start.weight_logits, start.means / spread, scale)))
    floor = 0.5 * (math.log(reg_covar) if reg_covar > 0.0 else -math.inf) - row.log()
    optimizer = torch.optim.Adam(list(free), lr=lr)
    bounds, previous, best, best_free, reached, since, cuts = list[float](), before, before, _copy(free), before, 0, 0
    if state is not None:
        with torch.no_grad():
            for t, value in zip(free, adopted(state["parameters"], free), strict=True):
                t.copy_(value)
        best_free, bounds = adopted(state["best_parameters"], free), list(state["bounds"])
        previous, best, reached, since, cuts = (state[name] for name in ("previous", "best", "reached", "since", "cuts"))
        optimizer = torch.optim.Adam(list(free), lr=lr * 0.25**cuts)
        optimizer.load_state_dict(state["optimizer"])

    def kept() -> dict[str, Any]:
        named = {"parameters": _named(free), "best_parameters": _named(best_free), "optimizer": optimizer.state_dict()}
        return named | {"bounds": bounds, "previous": previous, "best": best, "reached": reached, "since": since, "cuts": cuts}

    def gradient(x: Tensor, rows: int | None) -> Tensor:
        """Adds to the gradients that of one block, over ``rows`` (None: of this block, in all processes); its log-likelihood."""
        log_prob = F.mixture_log_prob(x, *in_units(free), covariance_type=covariance_type)
        (-log_prob.sum() / (rows or 1)).backward()
        return log_prob.detach().double().sum()

    def shared(rows: int | None) -> None:
        """The gradients of all processes, added up; of means over as many rows as all have together if ``rows`` is not known."""
        if world.size == 1 and rows is None:
            return
        count = torch.tensor(float(rows or 0), dtype=torch.float64, device=spread.device)
        total, *grads = world.add_up([count, *(t.grad.double() for t in free if t.grad is not None)])
        for t, grad in zip(free, grads, strict=True):
            t.grad = (grad / total if rows is not None else grad).to(t)

    if state is None:
        keep(0, kept)
    for iteration in range(len(bounds) + 1, max_iter + 1):
        total, tried = torch.zeros((), dtype=torch.float64, device=spread.device), _copy(free)
        for x in blocks():
            total += gradient(x, None if step_per_block else samples)
            if step_per_block:
                shared(len(x))
                _step(optimizer, free, floor, matrix)
        if not step_per_block:
            shared(None)
            _step(optimizer, free, floor, matrix)
        bound = world.add_up([total])[0].item() / samples
        if not math.isfinite(bound):
            raise DivergedError(
                f"iteration {iteration}: the mean log-likelihood is {bound}: lower lr={lr:g} or raise reg_covar={reg_covar:g}"
            )
        bounds.append(bound)
        if bound > best:
            # For all samples at once the bound is that of the parameters before the step.
            best, best_free = bound, _copy(free) if step_per_block else tried
        reached, since = (best, 0) if best > reached + tol else (reached, since + 1)
        change, previous = bound - previous, bound
        report(in_units(tried if not step_per_block else free), iteration, bound, change)
        if since >= patience:
            if cuts == _CUTS:
                return Run(in_units(best_free), bounds, best, True)
            cuts, since = cuts + 1, 0
            with torch.no_grad():
                for t, value in zip(free, best_free, strict=True):
                    t.copy_(value)
            optimizer = torch.optim.Adam(list(free), lr=lr * 0.25**cuts)
        keep(iteration, kept)
    return Run(in_units(best_free) if bounds else start, bounds, best, False)


def _named(parameters: Parameters) -> dict[str, Tensor]:
    return dict(zip(Parameters._fields, (t.detach() for t in parameters), strict=True))


def _copy(parameters: Parameters) -> Parameters:
    return Parameters(*(t.detach().clone() for t in parameters))


@torch.no_grad()
def _step(optimizer: torch.optim.Optimizer, free: Parameters, floor: Tensor, matrix: bool) -> None:
    optimizer.step()
    optimizer.zero_grad()
    if matrix:
        diagonal = free.scale.diagonal(dim1=-2, dim2=-1)
        diagonal.copy_(torch.minimum(diagonal, -floor.squeeze(1)))
    else:
        free.scale.copy_(torch.maximum(free.scale, floor))
