"""Bounds of a scale as an option of a family: drawn, given to the call, and in the words of torch."""

from dataclasses import replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case
from .family import Tensors

Bounds = tuple[float, float, str]


def draw(rng: Random, scale: str | None) -> Bounds | None:
    """Of a scale in this form; most often none. Not straight-through, whose gradient is not that of its value."""
    if scale is None or rng.random() < 0.7:
        return None
    low, high = (0.25, 4.0) if scale in ("std", "var") else rng.choice(((-7.0, 2.0), (-1.5, 1.25), (0.5, 80.0)))
    return low, high, rng.choice(("clamp", "softclip", "tanh"))


def held(case: Case, t: Tensors) -> Tensors:
    """The tensors with the scale, "logvar", between its bounds."""
    bounds = case.options["bounds"]
    return t if bounds is None else t | {"logvar": bounded(t["logvar"], bounds)}


def nearby(case: Case) -> list[Case]:
    """Bounds a rounding away: the scale that is held is a sum of numbers of their size."""
    found = []
    for name in ("bounds", "recon_bounds"):
        if case.options.get(name) is None:
            continue
        low, high, mode = case.options[name]
        step = max(abs(low), abs(high)) * (2.0**-53 if any(s.dtype == "float64" for s in case.specs) else 2.0**-24)
        found += [replace(case, options=case.options | {name: (low + s, high + s, mode)}) for s in (-step, step)]
    return found


def bounded(t: Tensor, bounds: Bounds) -> Tensor:
    low, high, mode = bounds
    if mode == "clamp":
        return t.clamp(low, high)
    if mode == "straight_through":  # not drawn: for the derivative by the scale that is held
        return t + (t.clamp(low, high) - t).detach()
    if mode == "tanh":
        u = (t - (low + high) / 2) / ((high - low) / 2)
        if t.dtype != torch.float64:
            return (low + high) / 2 + (high - low) / 2 * u.tanh()
        above = high - (high - low) * (-2 * u).sigmoid()  # the same, and neither it nor its derivative cancels, as 1 - tanh^2 does
        return torch.where(u < 0, low + (high - low) * (2 * u).sigmoid(), above)
    return low + F.softplus(high - F.softplus(high - t, threshold=40) - low, threshold=40)
