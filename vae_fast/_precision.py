"""The precision that kernels compute in, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_compute(t: Tensor, like: torch.dtype = torch.float32) -> Tensor:
    """The value kernels compute with: float32 for halves and float32, float64 for float64; uint8 is ``t / 255``."""
    dtype = torch.float64 if torch.float64 in (t.dtype, like) else torch.float32
    return t.to(dtype) / 255.0 if t.dtype == torch.uint8 else t.to(dtype)


def count_to_compute(t: Tensor, like: torch.dtype = torch.float32) -> Tensor:
    """The same of counts: bytes are the numbers they are, and sparse rows dense."""
    return (t.to_dense() if t.layout == torch.sparse_csr else t).to(torch.float64 if torch.float64 in (t.dtype, like) else torch.float32)


def compute_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def compute_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of them, in one precision."""
    like = compute_dtype(tensors)
    return [to_compute(t, like) for t in tensors]


def wide(*tensors: Tensor | None) -> list[Tensor]:
    """In float64, where differences, squares and exponentials of float32 numbers stay in range; None is zero."""
    like = next(t for t in tensors if t is not None)
    return [like.new_zeros((), dtype=torch.float64) if t is None else t.double() for t in tensors]


def number_of(size: int) -> int:
    """A size of a tensor as a number: in a trace of ``torch.jit`` it is a tensor, of which products with numbers are float32."""
    return int(size) if torch.jit.is_tracing() else size  # type: ignore[attr-defined, no-untyped-call]
