"""The forms that the scale of a distribution is given in, and the bounds that hold it (csrc/math/scale.h, csrc/math/bound.h)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast._precision import to_compute

#: What the scale of a distribution may be given as; ``std = softplus(t)`` for ``"softplus"``.
SCALES = ("logvar", "log_std", "std", "var", "softplus")
#: The tensor that stands for a standard deviation of one, in each scale form.
UNIT_SCALE = {"logvar": 0.0, "log_std": 0.0, "std": 1.0, "var": 1.0, "softplus": math.log(math.expm1(1.0))}


def softplus(t: Tensor) -> Tensor:
    """``log(1 + e^t)`` for every t (by itself ``F.softplus`` turns linear at 20, an error of 2e-9).

    Not ``torch.logaddexp``, whose second derivative is NaN from t = -746 down, where e^t is 0.
    """
    return torch.nn.functional.softplus(t, threshold=40.0)


def std(t: Tensor, scale: str) -> Tensor:
    """The standard deviation that ``t`` stands for in the given form."""
    if scale == "logvar":
        return (0.5 * t).exp()
    if scale == "log_std":
        return t.exp()
    if scale == "std":
        return t
    if scale == "var":
        return t.sqrt()
    if scale == "softplus":
        return softplus(t)
    raise _unknown_scale(scale)


def _unknown_scale(scale: str) -> ValueError:
    return ValueError(f"scale={scale!r}: expected one of {', '.join(SCALES)}")


def log_std(t: Tensor, scale: str) -> Tensor:
    """log of :func:`std`, without leaving the log domain where the form allows it."""
    if scale == "logvar":
        return 0.5 * t
    if scale == "log_std":
        return t
    if scale == "std":
        return t.log()
    if scale == "var":
        return 0.5 * t.log()
    if scale != "softplus":
        raise _unknown_scale(scale)
    # log softplus(t) is t to rounding where softplus itself would underflow. The unused branch is fed a harmless value, or its gradient
    # would be 0 * inf.
    low = t < (-37.0 if t.dtype == torch.float64 else -17.0)
    return torch.where(low, t, softplus(t.masked_fill(low, 0.0)).log())


def standardised(x: Tensor, mu: Tensor, s: Tensor, scale: str) -> Tensor:
    """``(x - mu) / std``: of half the difference where that overflows, and in the log forms by the root of 1 / std, which seldom does."""
    difference = x - mu
    over = difference.isinf()
    difference = torch.where(over, 0.5 * x - 0.5 * mu, difference)
    if scale in ("std", "var"):
        z = difference / std(s, scale)
    else:  # at the mean 1 / std is held finite, or zero times infinity would be NaN; by the clamp alone, for second derivatives need it
        exponent = log_std(s, scale)
        held = exponent.clamp(min=-math.log(torch.finfo(exponent.dtype).max) + 1.0)
        root = (-0.5 * torch.where(difference == 0, held, exponent)).exp()
        z = (difference * root) * root
    return torch.where(over, 2.0 * z, z)


def compare(s: Tensor, t: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """``log r`` and ``(r^2 - 1) / 2`` of the quotient r of two standard deviations, without cancellation where r is near 1."""
    if scale not in ("std", "var"):
        w = log_std(s, scale) - log_std(t, scale)
        return w.clamp(max=torch.finfo(w.dtype).max), 0.5 * torch.expm1(2.0 * w)
    near = (s - t).abs() < 0.5 * t
    excess = torch.where(near, s - t, torch.zeros_like(t)) / t
    w = torch.where(near, excess.log1p(), s.log() - t.log()) * (1.0 if scale == "std" else 0.5)
    r = std(s, scale) / std(t, scale)
    half = torch.where(near, excess * (1.0 + 0.5 * excess) if scale == "std" else 0.5 * excess, (0.5 * r) * r - 0.5)
    return w, half


# --- bounds ------------------------------------------------------------------------------------------

#: How a scale is held between two bounds (csrc/math/bound.h).
BOUND_MODES = ("clamp", "straight_through", "softclip", "tanh")
#: low, high and mode.
Bounds = tuple[float, float, str]


def bounded(t: Tensor, bounds: Bounds) -> Tensor:
    """``t`` in its compute type, held between two bounds.

    ``"clamp"``: as ``torch.clamp``, no gradient outside; ``"straight_through"``: the same value, the gradient 1; ``"softclip"``: ``low +
    softplus(u - low)`` with ``u = high - softplus(high - t)`` (Chua et al. 2018, appendix A.1); ``"tanh"``: ``m + h tanh((t - m) / h)``
    with m the middle and h half the width.
    """
    low, high, mode = bounds
    t = to_compute(t)
    if mode == "clamp":
        return t.clamp(low, high)
    if mode == "straight_through":
        passed = t - t.detach()
        return t.detach().clamp(low, high) + torch.where(passed == 0, passed, torch.zeros_like(t))  # of infinity too: nothing
    if mode == "softclip":
        return low + softplus((high - softplus(high - t)) - low)
    if mode == "tanh":
        middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
        u = (t - middle) / half
        left = (high - low) * torch.sigmoid(-2.0 * u.abs())  # from the bound, of which m may know little: h (1 - tanh |u|)
        return torch.where(u.abs() < 0.5, middle + half * u.tanh(), torch.where(u < 0, low + left, high - left))
    raise ValueError(f"bounds {mode!r}: expected one of {', '.join(BOUND_MODES)}")


def with_bounds(name: str, bounds: Bounds) -> str:
    """A term's name, or a scale's form, that says that its scale is bounded; to Python's and the kernels' terms alike."""
    low, high, mode = bounds
    return f"{name}|{mode}|{low!r}|{high!r}"


def split_bounds(name: str) -> tuple[str, Bounds | None]:
    """A term's name, or a scale's form, and the bounds of its scale."""
    name, *rest = name.split("|")
    if not rest:
        return name, None
    mode, low, high = rest
    return name, (float(low), float(high), mode)


def scale_input(name: str, inputs: int) -> int:
    """Which input of a term is the scale that may be bounded: the posterior's in a KL or a sample, the last one of a likelihood."""
    family, _, variant = split_bounds(name)[0].rpartition(".")
    if family in ("", "kl", "kl_prior") and variant in SCALES:
        return 1
    if variant not in SCALES and variant != "discretized_logistic":
        raise ValueError(f"term={name!r}: expected one with a scale, to bound it")
    return inputs - 1
