"""One place that decides how a checked call reaches its arithmetic.

Eager calls go to the pybind11 functions (least overhead; they themselves fall back on the dispatcher when a tensor subclass, fake tensor
or dispatch mode is in play), calls under ``torch.compile`` to ``torch.ops.vae_fast`` (no graph break), and everything else to
:mod:`vae_fast.reference`.
"""

from __future__ import annotations

from typing import Any

import torch

from vae_fast import _backend, reference


def kernels() -> Any | None:
    """The namespace whose functions to call: the extension, ``torch.ops.vae_fast``, or None for the reference."""
    if not _backend.kernels_apply():
        return None
    return torch.ops.vae_fast if torch.compiler.is_compiling() else _backend.C


def row_sum(term: str, inputs: list[torch.Tensor], eps: float, floor: float, event_dim: int) -> torch.Tensor:
    """A row-summed term (see :func:`vae_fast.reference.term`) on the backend in use."""
    k = kernels()
    if k is None:
        return reference.term(term, inputs, eps, floor, event_dim)
    out: torch.Tensor = k.term(inputs, term, eps, floor, event_dim)
    return out
