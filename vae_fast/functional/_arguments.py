"""Argument checks shared by every public function: the argument, the value given, and what was expected.

They run before the backend is chosen, so all backends refuse the same calls with the same words. Checks look only at metadata,
never at values: no device is synchronised and torch.compile traces straight through.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vae_fast._scales import SCALES
from vae_fast.likelihoods import CLIPS, LIKELIHOODS, Likelihood

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
TARGETS = FLOATS | {torch.uint8, torch.bool}
COUNTS = FLOATS | {torch.uint8, torch.int16, torch.int32, torch.int64}
REDUCTIONS = ("none", "mean", "sum")
LARGEST = 2**63 - 1  # of torch's sizes
_NAMES = (str, torch.dtype, type(None))  # an array or a tensor has an == of its own
_NUMBERS = (int, float, torch.SymFloat, torch.SymInt, np.floating, np.integer)
_INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def shown(value: object) -> str:
    """A value as an error message shows it: one line, and not a long one."""
    if isinstance(value, Tensor):
        return "a Tensor" if value.is_nested else f"a Tensor of shape {tuple(value.shape)}"
    try:
        words = " ".join(repr(value).split())
    except Exception:  # of an int with thousands of digits, or of a class whose repr fails
        words = f"<{type(value).__name__}>"
    return words if len(words) <= 60 else f"{words[:40]}...{words[-8:]}"


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not among ``allowed``."""
    if type(value) is str and value in allowed:
        return
    if not isinstance(value, _NAMES) or value not in allowed:
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(map(repr, allowed))}")


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Refuse anything but a finite number in [low, high]; a bool is not one, NumPy's scalars are. Returns it as Python has it."""
    if type(value) is float and low <= value <= high and abs(value) != math.inf:
        return value
    if isinstance(value, bool | Tensor) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{name}={shown(value)}: expected a Python number, got {type(value).__name__}")
    if isinstance(value, np.generic):
        value = float(value)
    if not low <= value <= high or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name}={shown(value)}: expected a finite number in [{low:g}, {high:g}]")
    return value


def flag(name: str, value: bool) -> None:
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)}: expected True or False, got {type(value).__name__}")


def integer(name: str, value: int) -> None:
    """Refuse anything but an int; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}={shown(value)}: expected an int, got {type(value).__name__}")


def positive_int(name: str, value: int) -> None:
    """Refuse anything but an integer of at least 1 that a tensor's size can be."""
    integer(name, value)
    if value < 1:
        raise ValueError(f"{name}={shown(value)}: expected at least 1")
    if value > LARGEST:
        raise ValueError(f"{name}={shown(value)}: expected at most {LARGEST}")


def count(name: str, value: int) -> None:
    """Refuse anything but an integer of at least 0."""
    integer(name, value)
    if value < 0:
        raise ValueError(f"{name}={shown(value)}: expected at least 0")
    if value != 0:
        positive_int(name, value)


def seed(name: str, value: int) -> None:
    """Refuse anything but a seed that torch takes."""
    integer(name, value)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name}={shown(value)}: expected a seed of 64 bits")


def module(name: str, value: object) -> None:
    """Refuse what cannot be called like a module."""
    if not callable(value):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(value).__name__}")


def device(name: str, value: torch.device | str | None) -> None:
    """Refuse what torch does not know as a device."""
    if value is None or isinstance(value, torch.device):
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)}: expected a torch.device or its name, got {type(value).__name__}")
    try:
        torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{name}={shown(value)}: {str(error).splitlines()[0]}") from None


def sizes(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """A size or a shape, as a shape of positive integers."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for size in value:
            positive_int(name, size)
        return tuple(value)
    positive_int(name, value)  # type: ignore[arg-type]
    return (value,)  # type: ignore[return-value]


def generator(value: torch.Generator | None, device: torch.device, of: str) -> None:
    """Refuse anything but None and a generator on the device of what ``of`` names."""
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(value).__name__}")
    if value.device.type != device.type:
        raise ValueError(f"generator is on {value.device}, {of} is on {device}: expected one device")


def tensor(name: str, value: object, dtypes: frozenset[torch.dtype] = FLOATS) -> Tensor:
    """Refuse anything but a strided tensor of one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        dtype = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{name} has dtype {dtype}: expected one of {names}{_way_to_floats(name, value.dtype, dtypes)}")
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor: expected a dense (strided) one")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}: expected a dense (strided) tensor")
    return value


def _way_to_floats(name: str, dtype: torch.dtype, dtypes: frozenset[torch.dtype]) -> str:
    """How integers become what is expected."""
    if dtype not in _INTEGERS:
        return ""
    if torch.int64 in dtypes:
        return f"; {name}.int()"
    if torch.uint8 in dtypes:
        return f"; {name}.float(), or for integers 0 to 255 {name}.to(torch.uint8), read as {name} / 255"
    return f"; {name}.float()"


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
        raise TypeError(f"{name}={shown(value)}: expected an int, got {type(value).__name__}")
    if not 0 <= value <= len(shape):
        raise ValueError(f"{name}={shown(value)}: expected 0 to {len(shape)}, the number of dimensions of {of} (shape {tuple(shape)})")


def same_event(event_dim: int, **tensors: Tensor) -> None:
    """Refuse a target and a reconstruction whose event shapes differ: they are never broadcast."""
    (a_name, a), (b_name, b) = tensors.items()
    n = event_dim
    if n and (len(a.shape) < n or a.shape[len(a.shape) - n :] != b.shape[len(b.shape) - n :]):
        raise ValueError(
            f"{a_name} has shape {tuple(a.shape)}, {b_name} has shape {tuple(b.shape)}: "
            f"expected the same last {n} dimension{'s' * (n > 1)} (event_dim={n}){_way_to_shape(a_name, a, b.shape)}"
        )


def _way_to_shape(name: str, t: Tensor, shape: torch.Size) -> str:
    """How the same numbers, flattened or as images, get the other shape."""
    if len(t.shape) < 2 or len(shape) < 2 or t.shape[0] != shape[0] or t.shape.numel() != shape.numel():
        return ""
    what = "flatten" if len(t.shape) > len(shape) else "reshape"
    sizes = ", ".join(map(str, (-1, *shape[1:])))
    return f"; {what} {name} to {tuple(shape)}: {name}.{'view' if t.is_contiguous() else 'reshape'}({sizes})"


def sparse_values(name: str, value: Tensor, dtypes: frozenset[torch.dtype]) -> Tensor:
    """Of a CSR tensor, which has to be a matrix, what is stored."""
    if value.ndim != 2:
        raise ValueError(f"{name} is sparse and has shape {tuple(value.shape)}: expected (rows, columns)")
    return tensor(name, value.values(), dtypes)


def counts(name: str, value: object) -> Tensor:
    """Refuse what cannot be counts: they have no gradient."""
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        sparse_values(name, value, COUNTS)
        t = value
    else:
        t = tensor(name, value, COUNTS)
    if t.requires_grad:
        raise ValueError(f"{name} requires a gradient: counts have none, expected {name}.detach()")
    return t


def observed(x: Tensor, event_dim: int, **parameters: Tensor) -> None:
    """Check data and the parameters of its distribution, the first of which has the event's shape."""
    tensor("x", x, TARGETS)
    _distribution_of(x, event_dim, parameters)


def counted(x: Tensor, event_dim: int, **parameters: Tensor) -> None:
    """The same of counts."""
    counts("x", x)
    if x.layout == torch.sparse_csr:
        full = broadcast(**parameters)
        if event_dim != 1 or x.shape != full:
            raise ValueError(
                f"x is sparse and has shape {tuple(x.shape)}, its parameters have {tuple(full)}, event_dim={shown(event_dim)}: "
                "expected the same shape and event_dim=1; x.to_dense() broadcasts"
            )
    _distribution_of(x, event_dim, parameters)


def _distribution_of(x: Tensor, event_dim: int, parameters: dict[str, Tensor]) -> None:
    for name, t in parameters.items():
        tensor(name, t)
    same_device(x=x, **parameters)
    name, first = next(iter(parameters.items()))
    event_dims("event_dim", event_dim, name, first.shape)
    same_event(event_dim, **{"x": x, name: first})
    broadcast(x=x, **parameters)


def likelihood(name: str, clip_mode: str | None, eps: float) -> Likelihood:
    """The entry of a likelihood that has the clip mode."""
    one_of("likelihood", name, tuple(LIKELIHOODS))
    found = LIKELIHOODS[name]
    if clip_mode is not None and found.clips == (None,):
        raise ValueError(f"clip={shown(clip_mode)}: expected None for likelihood={name!r}")
    clip(clip_mode, eps)
    return found


def any_likelihood(value: str | Callable[..., Tensor], clip_mode: str | None, eps: float) -> None:
    """Refuse what is neither a likelihood's name nor a function, and a clip mode that it does not have."""
    if not callable(value):
        likelihood(value, clip_mode, eps)
    elif clip_mode is not None:
        raise ValueError(f"clip={shown(clip_mode)}: expected None for a likelihood that is a function")


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
    if clip is not None:
        one_of("clip", clip, CLIPS)
    if clip in ("clamp", "add"):
        real("eps", eps, 1e-30, 0.499)
    elif type(eps) is not float or not -math.inf < eps < math.inf:
        real("eps", eps)
