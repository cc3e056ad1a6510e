"""The grouped likelihoods by name: as functions of x and the decoder's output, which an ELBO takes like one of the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional._own_likelihood import LogProb
from vae_fast.functional.categorical import categorical_log_prob, multinomial_log_prob
from vae_fast.functional.discretized import discretized_logistic_mixture_log_prob
from vae_fast.likelihoods import LIKELIHOODS


def _categorical(x: Any, logits: Any, event_dim: int, check_data: bool) -> Tensor:
    return categorical_log_prob(x, logits, event_dim=event_dim, check_data=check_data)


def _multinomial(x: Any, logits: Any, event_dim: int, check_data: bool) -> Tensor:
    if event_dim != 1:
        raise ValueError(f"event_dim={check.shown(event_dim)}: expected 1 for likelihood='multinomial'")
    return multinomial_log_prob(x, logits, check_data=check_data)


def _pixels(x: Any, params: Any, event_dim: int, check_data: bool) -> Tensor:
    if event_dim != 3:
        raise ValueError(f"event_dim={check.shown(event_dim)}: expected 3 for likelihood='discretized_logistic_mixture'")
    if isinstance(x, Tensor) and (x.ndim < 3 or x.shape[-3] != 3):
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected (*batch, 3, H, W) for likelihood='discretized_logistic_mixture'; for others give a "
            "function, with discretized_logistic_mixture_log_prob"
        )
    return discretized_logistic_mixture_log_prob(x, params, layout="nchw", check_data=check_data)


_FUNCTIONS: dict[str, Callable[[Any, Any, int, bool], Tensor]] = {
    "categorical": _categorical,
    "multinomial": _multinomial,
    "discretized_logistic_mixture": _pixels,
}


def as_function(likelihood: str | LogProb, clip: str | None, eps: float, event_dim: int, check_data: bool = False) -> str | LogProb:
    """A grouped likelihood's name as a function ``f(x, recon)``; anything else as it is."""
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS or LIKELIHOODS[likelihood].grouped_data is None:
        return likelihood
    check.likelihood(likelihood, clip, eps)
    function = _FUNCTIONS[likelihood]

    def log_prob(x: Any, *recon: Any) -> Tensor:
        if len(recon) != 1:
            raise ValueError(f"recon: expected one tensor for likelihood={likelihood!r}, got {len(recon)}")
        return function(x, recon[0], event_dim, check_data)

    return log_prob
