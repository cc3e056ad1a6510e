"""A likelihood by its name, checked, as the kernels take it."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import row_sum
from vae_fast.functional._grouped import as_function
from vae_fast.functional._own_likelihood import LogProb
from vae_fast.functional._own_likelihood import log_prob as own_log_prob
from vae_fast.likelihoods import term_params
from vae_fast.terms import in_order

Recon = Tensor | tuple[Tensor, ...]


_TUPLES = {2: "pair", 3: "triple"}

#: A likelihood's term, its inputs and its parameters, as the kernels take them.
LikelihoodTerm = tuple[str, list[Tensor], list[float]]


def likelihood_term(
    x: Tensor,
    recon: Recon,
    likelihood: str,
    clip: str | None,
    eps: float,
    event_dim: int,
    scale_bounds: bounds.ScaleBounds | None = None,
) -> LikelihoodTerm:
    """A likelihood by name, checked, as the kernels take it."""
    found = check.likelihood(likelihood, clip, eps)
    many = len(found.parameters) > 1 and isinstance(recon, tuple | list)
    parameters: list[Tensor] = list(recon) if many else [recon]  # type: ignore[list-item]
    if len(parameters) not in found.arity or (many and len(parameters) == 1):
        what = "a tensor or " if 1 in found.arity else f"({', '.join(found.parameters[:-1])}) or " if len(found.arity) > 1 else ""
        came = f"{len(parameters)} items" if many else f"a {type(recon).__name__}"
        raise ValueError(f"recon: expected {what}a ({', '.join(found.parameters)}) {_TUPLES[len(found.parameters)]}, got {came}")
    names = [f"recon[{i}]" for i in range(len(parameters))] if many else ["recon"]
    ordered = dict(in_order(found.family, list(zip(names, parameters, strict=True))))
    (check.counted if found.of_counts else check.observed)(x, event_dim, **ordered)
    term, inputs = found.term(len(parameters), clip), [x, *found.completed(parameters)]
    if scale_bounds is not None:
        given = len(parameters) == len(found.parameters) and found.parameters[-1] in ("logvar", "log_scale")
        if not given:
            raise ValueError(
                f"recon_scale_bounds={check.shown(scale_bounds)}: expected None where recon has no scale "
                f"(likelihood={likelihood!r}, recon: {len(parameters)} of {', '.join(found.parameters)})"
            )
        term, inputs = bounds.held(term, inputs, bounds.checked(scale_bounds, found.scale or "log_std", "recon_scale_bounds"))
    return term, inputs, [*found.params, *term_params(clip, eps)]


def log_likelihood(
    x: Tensor,
    recon: Recon,
    likelihood: str | LogProb,
    clip: str | None,
    eps: float,
    event_dim: int,
    scale_bounds: bounds.ScaleBounds | None = None,
) -> Tensor:
    """``log p(x|z)`` of each sample, the first term of :func:`elbo`."""
    likelihood = as_function(likelihood, clip, eps, event_dim)
    if callable(likelihood):
        no_recon_bounds(scale_bounds)
        return own_log_prob(likelihood, x, recon)
    term, data, params = likelihood_term(x, recon, likelihood, clip, eps, event_dim, scale_bounds)
    if values.STATE.on:
        values.require(*values.term(term, data, values.data_names(term, data)))
    return row_sum(term, data, [*params], event_dim)


def no_recon_bounds(given: bounds.ScaleBounds | None) -> None:
    """A function, or a likelihood over groups of parameters, holds its scales itself."""
    if given is not None:
        raise ValueError(
            f"recon_scale_bounds={check.shown(given)}: expected None for a likelihood that is a function, or over groups of parameters"
        )
