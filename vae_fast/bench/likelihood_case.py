"""A log-likelihood as a case: its inputs, and ours beside the formula in plain PyTorch, as it is and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vae_fast.bench.case import Case, Inputs, Maker, compiled, leaf, plain

Draw = Callable[[tuple[int, ...], str, torch.Generator], Tensor]


@dataclass(frozen=True)
class Input:
    """A tensor of a case: how it is drawn, whether it wants a gradient, and how many bytes it has if it is not dense float32."""

    shape: tuple[int, ...]
    draw: Draw
    learned: bool = True
    stored: int | None = None

    @property
    def bytes(self) -> int:
        """Of all that is stored of it."""
        return 4 * torch.Size(self.shape).numel() if self.stored is None else self.stored


def normal(shift: float = 0.0, spread: float = 1.0) -> Draw:
    """Normal numbers."""
    return lambda shape, device, g: shift + spread * torch.randn(shape, device=device, generator=g)


def positive(shift: float = 0.0, spread: float = 1.0) -> Draw:
    """Log-normal numbers."""
    return lambda shape, device, g: (shift + spread * torch.randn(shape, device=device, generator=g)).exp()


def sparse_counts(shape: tuple[int, ...], device: str, g: torch.Generator) -> Tensor:
    """Counts of which one in ten is not 0, in CSR: one at a random place in every ten columns, its logarithm nearly normal."""
    rows, columns = shape
    stored = columns // 10
    places = 10 * torch.arange(stored, device=device) + torch.randint(10, (rows, stored), device=device, generator=g)
    values = (1.0 + (torch.randn(rows * stored, device=device, generator=g)).exp()).floor()
    begins = stored * torch.arange(rows + 1, device=device)
    return torch.sparse_csr_tensor(begins, places.flatten(), values, shape)


def dense_counts(shape: tuple[int, ...], device: str, g: torch.Generator) -> Tensor:
    """The same, dense."""
    return sparse_counts(shape, device, g).to_dense()


def stored_sparse(shape: tuple[int, int]) -> int:
    """Bytes of :func:`sparse_counts`: where rows begin, columns and values.

    Example:
        >>> stored_sparse((2, 20))
        72
    """
    rows, columns = shape
    return 8 * (rows + 1) + 12 * rows * (columns // 10)


_dense: WeakIdKeyDictionary = WeakIdKeyDictionary()


def dense_of(x: Tensor) -> Tensor:
    """The dense form of a CSR input, made when it is first asked for: a route over dense data does not pay for making them.

    Example:
        >>> dense_of(torch.eye(2).to_sparse_csr()).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if x not in _dense:
        _dense[x] = x.to_dense()
    found: Tensor = _dense[x]
    return found


def uniform(shape: tuple[int, ...], device: str, g: torch.Generator) -> Tensor:
    """Numbers in [0, 1]."""
    return torch.rand(shape, device=device, generator=g)


def row_wise(
    name: str,
    sizes: Mapping[str, int],
    given: list[Input],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor] | None,
    flops: tuple[int, int],
    more: Mapping[str, Maker] | None = None,
    spare: float | None = None,
) -> Case:
    """A log-probability of each of the ``B`` rows.

    Args:
        name, sizes: of the case.
        given: its inputs.
        ours, formula: what is measured; None where there is no formula over such inputs.
        flops: the formula's operations per element, forward and backward.
        more: other routes of ours, which take the same inputs.
        spare: the memory that ours may take beside its gradients, as a share of inputs and gradients; None where nothing is promised.
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        drawn = [i.draw(i.shape, device, g) for i in given]
        return tuple(leaf(t) if i.learned else t for t, i in zip(drawn, given, strict=True))

    read, written, out = sum(i.bytes for i in given), sum(i.bytes for i in given if i.learned), 4 * sizes["B"]
    elements = max(torch.Size(i.shape).numel() for i in given)
    forward, backward = (f * elements for f in flops)
    others = {} if formula is None else {"eager": plain(formula), "compile": compiled(formula)}
    return Case(
        name,
        sizes,
        inputs,
        {"ours": plain(ours), **others, **(more or {})},
        {"forward": read + out, "backward": read + written + out, "both": 2 * read + written + 2 * out},
        {"forward": forward, "backward": backward, "both": forward + backward},
        needs={"eager": 40 * elements, "compile": 24 * elements, "ours": read},
        memory_target=None if spare is None else written + int(spare * (read + written)),
    )
