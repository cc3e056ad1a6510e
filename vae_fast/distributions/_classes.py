"""Categorical and multinomial distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributions

from vae_fast import functional as F
from vae_fast.distributions._rows import ROWS, number, numbers
from vae_fast.functional.categorical import INDICES


def _categorical_rows(d: distributions.Categorical, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    logits = number(d.logits)
    x = torch.as_tensor(value, device=logits.device)
    x = x if x.dtype in INDICES else x.long()
    batch = logits.shape[:-1]
    if n and (x.ndim < n or x.shape[x.ndim - n :] != batch[len(batch) - n :]):
        batch = torch.broadcast_shapes(x.shape, batch)
        x, logits = x.expand(batch), logits.expand(*batch, -1)
    return F.categorical_log_prob(x, logits, event_dim=n)


class Categorical(distributions.Categorical):
    """:class:`torch.distributions.Categorical` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    The constructor normalises the logits, as torch's does, which is an extra pass; :func:`vae_fast.categorical_log_prob` needs none.

    Args:
        probs: a probability for each class in the last dimension. Give this or ``logits``.
        logits: their logarithms, up to a constant.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are not class indices.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Categorical
        >>> Categorical(logits=torch.zeros(2, 4)).log_prob(torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each class index, ``(*batch)``, float32 (float64 if the parameters are); differentiable in the parameters."""
        return _categorical_rows(self, value, 0)


class Multinomial(distributions.Multinomial):
    """:class:`torch.distributions.Multinomial` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    Args:
        total_count: number of trials; with ``validate_args=False``, ``log_prob`` also takes counts with another sum.
        probs: a probability for each class in the last dimension. Give this or ``logits``.
        logits: their logarithms, up to a constant.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are not counts.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Multinomial
        >>> Multinomial(3, logits=torch.zeros(4)).log_prob(torch.tensor([2.0, 0.0, 0.0, 1.0]))
        tensor(-3.0603)
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of the counts, multinomial coefficient included; differentiable in the parameters and in floating counts."""
        if self._validate_args:
            self._validate_sample(value)
        logits = number(self.logits)
        x = numbers(value, logits)
        if x.shape[-1:] != logits.shape[-1:]:
            x, logits = torch.broadcast_tensors(x, logits)
        return F.multinomial_log_prob(x, logits, coefficient=True)


ROWS.update({distributions.Categorical.log_prob: _categorical_rows, Categorical.log_prob: _categorical_rows})
