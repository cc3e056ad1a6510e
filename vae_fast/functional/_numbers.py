"""Numbers that may change from call to call: a beta that is warmed up, free bits that are annealed.

A Python number is built into the kernel's arguments. A 0-d tensor is read on its device when the kernel runs, so nobody waits for it; and
under ``torch.compile`` every number becomes such a tensor, or each new value would be compiled anew.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vae_fast.functional import _arguments as check

Number = float | Tensor


def number(
    name: str, value: float | np.ndarray[Any, Any] | np.floating[Any] | np.integer[Any] | Tensor, like: Tensor, low: float = -math.inf
) -> Number:
    """A checked number: a float, or a float64 tensor of no dimensions on the device of ``like``.

    The value of a tensor is not looked at: that would wait for its device.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
    """
    # torch.compile takes a NumPy scalar for an array, and does not follow a look at an array's dtype.
    if isinstance(value, np.ndarray) and (torch.compiler.is_compiling() or value.dtype.kind in "fiu"):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return _on_device(name, value, like)
    value = check.real(name, cast(float, value), low)
    if torch.compiler.is_compiling():
        # A product is what the compiler can take as an input; torch.full or torch.tensor would build the number in.
        return torch.ones((), dtype=torch.float64, device=like.device) * value
    return float(value)


def setting(name: str, value: float | Tensor, low: float = -math.inf) -> Number:
    """The same for a module that keeps the number: a tensor stays the caller's own, who may change it in place.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
    """
    if isinstance(value, Tensor):
        _on_device(name, value, value)
        return value
    return check.real(name, value, low)


def _on_device(name: str, value: Tensor, like: Tensor) -> Tensor:
    if value.is_nested or value.layout != torch.strided:
        raise TypeError(f"{name}: expected a number, or a dense tensor of no dimensions, got one that is nested or sparse")
    if value.ndim != 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected a number, or a tensor of no dimensions")
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}: expected a real number")
    if value.requires_grad:
        raise ValueError(f"{name} requires grad: expected a constant, it gets no gradient (use {name}.detach())")
    return value.to(like.device, torch.float64)


def as_kernel_arguments(value: Number) -> tuple[float, Tensor | None]:
    """The two arguments that the kernels' ops take for one number: the number itself, or where it lies on the device."""
    return (0.0, value) if isinstance(value, Tensor) else (value, None)
