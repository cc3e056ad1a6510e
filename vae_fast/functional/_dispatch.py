"""One place that decides how a checked call reaches its arithmetic.

Eager calls go to the pybind11 functions (least overhead; they themselves fall back on the dispatcher when a tensor subclass, fake tensor
or dispatch mode is in play), calls under ``torch.compile`` to ``torch.ops.vae_fast`` (no graph break), and everything else to
:mod:`vae_fast.reference`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function

from vae_fast import _backend, reference
from vae_fast.functional._numbers import Number

Function = TypeVar("Function", bound=Callable[..., Any])


def overridable(function: Function) -> Function:
    """A public function that arguments with a ``__torch_function__`` of their own may take over, as those of ``torch.nn.functional``.

    So ``torch.fx.symbolic_trace`` records one node for a call, and a ``TorchFunctionMode`` sees it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if has_torch_function((*args, *kwargs.values())):
            return handle_torch_function(call, (*args, *kwargs.values()), *args, **kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def is_dtensor(t: torch.Tensor) -> bool:
    """Whether ``t`` is a tensor of ``torch.distributed``, which has to be there and imported for that."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(t, tensors.DTensor)


def refuse_dtensors(function: str, **tensors: torch.Tensor) -> None:
    """For functions that compare every row with every other: no process has all rows."""
    for name, t in tensors.items():
        if is_dtensor(t):
            raise TypeError(f"{name} is a DTensor: expected a plain tensor, for {function} compares all rows (full_tensor() gathers them)")


_dtensor_admitted = False


def _admit_dtensor() -> bool:
    """Tell the ops what to do with DTensors, once there are some; under ``torch.compile`` while the graph is traced."""
    global _dtensor_admitted
    if not _dtensor_admitted and hasattr(sys.modules.get("torch.distributed.tensor"), "DTensor"):
        importlib.import_module("vae_fast._dtensor")
        _dtensor_admitted = True
    return _dtensor_admitted


_admit_dtensor._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result, without its import of the compiler


def kernels() -> Any | None:
    """The namespace whose functions to call: the extension, ``torch.ops.vae_fast``, or None for the reference."""
    if not _backend.kernels_apply():
        return None
    if torch.compiler.is_compiling():
        _admit_dtensor()
        return torch.ops.vae_fast
    if not _dtensor_admitted:
        _admit_dtensor()
    return _backend.C


def reduce(t: torch.Tensor, reduction: str) -> torch.Tensor:
    """``"none"``, ``"mean"`` or ``"sum"`` over the batch; in eager mode on the kernels, in an order that does not depend on the threads."""
    if reduction == "none" or kernels() is not _backend.C or _backend.C is None:
        return reference.reduce(t, reduction)
    total: torch.Tensor = _backend.C.reduce(t, reduction == "mean")
    return total


def row_sum(term: str, inputs: list[torch.Tensor], params: list[Number], event_dim: int) -> torch.Tensor:
    """A row-summed term (see :func:`vae_fast.terms.term`) on the backend in use."""
    k = kernels()
    if k is None:
        return reference.term(term, inputs, params, event_dim)
    at = params[0] if params and isinstance(params[0], torch.Tensor) else None
    out: torch.Tensor = k.term(inputs, term, params if at is None else [0.0], at, event_dim)
    return out
