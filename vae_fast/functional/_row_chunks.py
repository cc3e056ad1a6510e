"""Plain-torch formulas over blocks of rows, for what has no kernel where it runs: the memory of one block, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Elements of the largest array that a block of rows may make (16 MiB in float32), but for blocks of a single row.
ELEMENTS = 2**22


def by_rows(f: Callable[..., tuple[Tensor, ...]], per_row: int, rows: list[Tensor], shared: list[Tensor]) -> tuple[Tensor, ...]:
    """``f(*rows, *shared)``, a tuple of tensors with one value per row, computed on blocks of the tensors ``rows``, each ``(N, ...)``.

    ``per_row`` is the number of elements that ``f`` makes of each row. What a block makes is computed again in the backward pass.
    """
    n, step = len(rows[0]), max(1, ELEMENTS // per_row)
    if n <= step:
        return f(*rows, *shared)
    parts = []
    for start in range(0, n, step):
        block = [t[start : start + step] for t in rows]
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            parts.append(checkpoint(f, *block, *shared, use_reentrant=False))
        else:
            parts.append(f(*block, *shared))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))
