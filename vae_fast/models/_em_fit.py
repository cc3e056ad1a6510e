"""The loop of expectation maximisation, in one process or several, which can be left after any iteration and taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from vae_fast._world import World
from vae_fast.models import _em
from vae_fast.models._em import Parameters, Report, Run, Sums

#: What a loop gives at the end of each iteration: its number, and what it takes to go on from there.
Keep = Callable[[int, Callable[[], dict[str, Any]]], None]


def expectation_maximisation(
    blocks: Callable[[], Iterable[Tensor]],
    start: Parameters,
    covariance_type: str,
    *,
    tol: float,
    max_iter: int,
    reg_covar: float,
    reseed_dead: bool,
    before: float,
    report: Report,
    world: World,
    keep: Keep,
    state: Mapping[str, Any] | None = None,
) -> Run:
    """EM from ``start`` until the mean log-likelihood changes by less than ``tol`` (nats per sample) in one iteration.

    Args:
        blocks: called once per iteration: the samples of this process, in blocks.
        start: where to begin, the same in every process.
        covariance_type: as in :func:`vae_fast.mixture_log_prob`.
        tol, max_iter, reg_covar, reseed_dead: as in :class:`vae_fast.models.MixtureOfGaussians`.
        before: the lower bound to compare the first one with; -inf for a fresh start.
        report: called after each iteration.
        world: the processes that share the samples. All take the main process's M-step.
        keep: called before the first iteration and after each, with what gives ``state``.
        state: where an earlier call had come to; ``start`` and ``before`` do not count then.

    Raises:
        SingularCovarianceError: see :func:`vae_fast.models._em.maximise`.
        ValueError: if the likelihood is out of range.
    """
    parameters, bounds, previous = start, list[float](), before
    if state is not None:
        parameters, bounds, previous = adopted(state["parameters"], start), list(state["bounds"]), state["previous"]

    def kept() -> dict[str, Any]:
        return {"parameters": dict(zip(Parameters._fields, parameters, strict=True)), "bounds": bounds, "previous": previous}

    if state is None:
        keep(0, kept)
    for iteration in range(len(bounds) + 1, max_iter + 1):
        sums = _em.expectation(blocks, parameters, covariance_type, len(start.means) if reseed_dead else 0, world)
        bound = _em.finite_bound(sums, iteration)
        dead = sums.counts < _em.DEAD_COUNT
        reseeded = reseed_dead and bool(dead.any())

        def step(old: Parameters = parameters, sums: Sums = sums, dead: Tensor = dead, iteration: int = iteration) -> Parameters:
            new = _em.maximise(old, sums, reg_covar, covariance_type, f"iteration {iteration}")
            return _em.reseed(new, dead, sums.worst, covariance_type) if reseed_dead and bool(dead.any()) else new

        parameters = Parameters(*world.of_main(world.together(step)))
        bounds.append(bound)
        change, previous = bound - previous, bound
        report(parameters, iteration, bound, change)
        if abs(change) < tol and not reseeded:
            return Run(parameters, bounds, bound, True)
        keep(iteration, kept)
    return Run(parameters, bounds, bounds[-1] if bounds else -math.inf, False)


def adopted(saved: Mapping[str, Tensor], like: Parameters) -> Parameters:
    """Parameters from a checkpoint, on the device of others."""
    return Parameters(**saved).on(like.means.device)
