"""Bounds of a scale: the argument ``scale_bounds`` of every function that takes one."""

from __future__ import annotations

from torch import Tensor

from vae_fast._scales import BOUND_MODES, Bounds, bounded, scale_input, with_bounds
from vae_fast.functional import _arguments as check

#: What ``scale_bounds=`` takes: ``(low, high, mode)``, in units of the scale as it is given.
ScaleBounds = tuple[float, float, str]


def checked(bounds: ScaleBounds | None, scale: str, name: str = "scale_bounds") -> Bounds | None:
    """Bounds of a scale of this form, or None; refuses what is none.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
    """
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 3:
        raise TypeError(f"{name}={check.shown(bounds)}: expected (low, high, mode), or None")
    low, high, mode = bounds
    check.one_of(f"{name}[2]", mode, BOUND_MODES)
    positive = scale in ("std", "var")
    low = float(check.real(f"{name}[0]", low, 0.0 if positive else -1e30, 1e30))
    high = float(check.real(f"{name}[1]", high, 0.0 if positive else -1e30, 1e30))
    if not low < high:
        raise ValueError(f"{name}=({low}, {high}, {mode!r}): expected low < high")
    return low, high, mode


def held(term: str, inputs: list[Tensor], bounds: Bounds | None) -> tuple[str, list[Tensor]]:
    """A term, or a scale's form, and its inputs, with the bounds in its name; where a device's kernels read none, in the scale itself."""
    if bounds is None:
        return term, inputs
    at = scale_input(term, len(inputs))
    if inputs[at].device.type == "cuda":
        scale = inputs[at]
        return term, [*inputs[:at], bounded(scale, bounds).to(scale.dtype), *inputs[at + 1 :]]
    return with_bounds(term, bounds), inputs
