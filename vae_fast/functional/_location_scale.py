"""The log-densities with a location and a scale in any form: one call behind each public name."""

from __future__ import annotations

from torch import Tensor

from vae_fast._scales import SCALES
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import row_sum
from vae_fast.terms import in_order


def location_scale_log_prob(
    family: str,
    x: Tensor,
    parameters: dict[str, Tensor],
    scale: str,
    scale_bounds: bounds.ScaleBounds | None,
    event_dim: int,
    check_data: bool,
) -> Tensor:
    """The row sums of a family of terms; ``parameters`` are in the order of the public function, the scale last."""
    check.one_of("scale", scale, SCALES)
    name = f"{family}.{scale}"
    names = in_order(name, list(parameters))
    check.observed(x, event_dim, **{n: parameters[n] for n in names})
    name, inputs = bounds.held(name, [x, *(parameters[n] for n in names)], bounds.checked(scale_bounds, scale))
    if values.wanted(check_data):
        values.require(*values.term(name, inputs, ("x", *names)))
    return row_sum(name, inputs, [], event_dim)
