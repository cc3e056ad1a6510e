"""Bounds of a scale as an option of a family: drawn, given to the call, and in the words of torch."""

from random import Random

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
    return t if bounds is None else t | {"logvar": _bounded(t["logvar"], bounds)}


def _bounded(t: Tensor, bounds: Bounds) -> Tensor:
    low, high, mode = bounds
    if mode == "clamp":
        return t.clamp(low, high)
    if mode == "tanh":
        return (low + high) / 2 + (high - low) / 2 * ((t - (low + high) / 2) / ((high - low) / 2)).tanh()
    return low + F.softplus(high - F.softplus(high - t, threshold=40) - low, threshold=40)
