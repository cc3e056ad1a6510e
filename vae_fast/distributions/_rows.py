"""Log-probabilities summed over the last batch dimensions in the same pass: what ``Independent`` needs of the distribution it wraps.

torch's distributions have only ``log_prob``, one number per element of the batch, so that summing some of its dimensions is another
pass over memory. :data:`ROWS` has the function that does both for each ``log_prob`` whose formula a kernel has: ours, and torch's own,
because ``vae_fast.distributions.Independent`` may be given a plain ``torch.distributions.Normal``. A subclass that overrides ``log_prob``
is not in it: its own method is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

#: ``rows(distribution, value, n)``: its log-probability of ``value``, summed over the last n dimensions of the batch.
Rows = Callable[[Any, Any, int], Tensor]
#: By the ``log_prob`` of the class.
ROWS: dict[Callable[..., Tensor], Rows] = {}


def rows_of(distribution: Distribution) -> Rows | None:
    """The function for a distribution, or None where no kernel has its formula."""
    return ROWS.get(type(distribution).log_prob)


def number(t: Tensor) -> Tensor:
    """A parameter the kernels can take: torch's distributions compute with integers too."""
    return t if t.is_floating_point() else t.to(torch.get_default_dtype())


def numbers(value: Any, like: Tensor) -> Tensor:
    """Observations the kernels can take: an integer is that integer here, and a byte is not ``x / 255``."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value if value.is_floating_point() else value.to(like.dtype)


def same_event(n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, expanded if their last ``n`` dimensions differ: torch's distributions broadcast those as well."""
    first, *others = (t.shape for t in tensors)
    if n == 0 or all(len(s) >= n and s[len(s) - n :] == first[len(first) - n :] for s in (first, *others)):
        return tensors
    expanded: tuple[Tensor, ...] = torch.broadcast_tensors(*tensors)
    return expanded


def sum_last(t: Tensor, n: int) -> Tensor:
    """The sum over the last ``n`` dimensions."""
    return t.flatten(-n).sum(-1) if n else t
