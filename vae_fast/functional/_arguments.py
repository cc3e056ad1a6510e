"""Argument checks shared by every public function: the argument, what came, and what was expected.

They run before the backend is chosen, so all backends refuse the same calls with the same words. Checks look only at metadata,
never at values: no device is synchronised and torch.compile traces straight through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast.reference import SCALES

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
TARGETS = FLOATS | {torch.uint8, torch.bool}
REDUCTIONS = ("none", "mean", "sum")
CLIPS = (None, "clamp", "add", "bce")
LIKELIHOODS = ("bernoulli", "bernoulli_probs", "gaussian")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse anything but a finite number in [low, high]."""
    if type(value) is float and low <= value <= high and abs(value) != math.inf:
        return
    if isinstance(value, Tensor) or not isinstance(value, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{name}={value!r}: expected a Python number, got {type(value).__name__}")
    if not low <= value <= high or value in (math.inf, -math.inf):
        raise ValueError(f"{name}={value!r}: expected a finite number in [{low:g}, {high:g}]")


def positive_int(name: str, value: int) -> None:
    """Refuse anything but an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}={value!r}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def tensor(name: str, value: object, dtypes: frozenset[torch.dtype] = FLOATS) -> Tensor:
    """Refuse anything but a strided tensor of one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise TypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}: expected one of {names}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}: expected a dense (strided) tensor")
    return value


def same_device(**tensors: Tensor | None) -> None:
    """Refuse tensors on different devices."""
    first = None
    for name, t in tensors.items():
        if t is None:
            continue
        if first is None:
            first, device = name, t.device
        elif t.device != device:
            raise ValueError(f"{name} is on {t.device}, {first} is on {device}: expected one device")


def broadcast(**tensors: Tensor | None) -> torch.Size:
    """The common shape of the tensors, or an error that lists every shape."""
    return broadcast_shapes("", **{name: t.shape for name, t in tensors.items() if t is not None})


def broadcast_shapes(context: str, **shapes: torch.Size) -> torch.Size:
    """The common shape, or an error that starts with ``context`` and lists every shape."""
    first, *others = shapes.values()
    if all(s == first for s in others):
        return first
    try:
        return torch.Size(torch.broadcast_shapes(first, *others))
    except RuntimeError:
        listed = ", ".join(f"{name} has shape {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{context}{listed}: expected shapes that broadcast to one another") from None


def event_dims(name: str, value: int, of: str, shape: Sequence[int]) -> None:
    """Refuse a number of event dimensions that ``shape`` does not have."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected an int, got {type(value).__name__}")
    if not 0 <= value <= len(shape):
        raise ValueError(f"{name}={value}: expected 0 to {len(shape)}, the number of dimensions of {of} (shape {tuple(shape)})")


def same_event(event_dim: int, **tensors: Tensor) -> None:
    """Refuse a target and a reconstruction whose event shapes differ: they are never broadcast."""
    (a_name, a), (b_name, b) = tensors.items()
    n = event_dim
    if n and (len(a.shape) < n or a.shape[len(a.shape) - n :] != b.shape[len(b.shape) - n :]):
        raise ValueError(
            f"{a_name} has shape {tuple(a.shape)}, {b_name} has shape {tuple(b.shape)}: "
            f"expected the same last {n} dimension{'s' * (n > 1)} (event_dim={n})"
        )


def gaussian(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, scale: str) -> torch.Size:
    """Check a diagonal Gaussian and its optional prior; return their common shape."""
    tensor("mu", mu)
    tensor("logvar", logvar)
    if prior_mu is not None:
        tensor("prior_mu", prior_mu)
    if prior_logvar is not None:
        tensor("prior_logvar", prior_logvar)
    one_of("scale", scale, SCALES)
    same_device(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    return broadcast(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)


def clip(clip: str | None, eps: float) -> None:
    """Check a clip mode and its constant."""
    one_of("clip", clip, CLIPS)
    if clip in ("clamp", "add"):
        real("eps", eps, 1e-30, 0.499)
