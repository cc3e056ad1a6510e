"""Distributions whose log-probability is a term of the kernels' table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributions

from vae_fast import functional as F
from vae_fast.distributions._rows import ROWS, number, numbers, same_event


def normal_rows(d: distributions.Normal, value: Any, n: int) -> Tensor:
    """:data:`~vae_fast.distributions._rows.Rows` of a normal distribution, in the form of ``scale="std"``."""
    if d._validate_args:
        d._validate_sample(value)
    loc, scale = number(d.loc), number(d.scale)
    x, loc, scale = same_event(n, numbers(value, loc), loc, scale)
    return F.gaussian_log_prob(x, loc, scale, scale="std", event_dim=n)


def _laplace_rows(d: distributions.Laplace, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    loc, scale = number(d.loc), number(d.scale)
    x, loc, scale = same_event(n, numbers(value, loc), loc, scale)
    return F.laplace_log_prob(x, loc, scale, scale="std", event_dim=n)


def _bernoulli_rows(d: distributions.Bernoulli, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    given = number(d._param)
    is_bool = isinstance(value, Tensor) and value.dtype == torch.bool  # which the kernels read as it is
    x, given = same_event(n, value if is_bool else numbers(value, given), given)
    if d._param is d.__dict__.get("logits"):
        return F.bernoulli_log_prob(x, given, event_dim=n)
    # torch's own probs_to_logits clamps so, by the precision of the probabilities
    return F.bernoulli_log_prob(x, probs=given, clip="clamp", eps=torch.finfo(given.dtype).eps, event_dim=n)


class Normal(distributions.Normal):
    r""":class:`torch.distributions.Normal` on our kernels: ``log_prob``, ``rsample`` and ``sample``, and its KL divergences.

    A sample's noise is ours (Philox, see :func:`vae_fast.reparameterize`): it follows ``torch.manual_seed``, and ``sample`` and
    ``rsample`` give the same numbers from the same seed, but not those of torch's class. Everything else is inherited.

    Args:
        loc: mean, a tensor or a number.
        scale: standard deviation, broadcast against ``loc``.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Normal
        >>> Normal(torch.zeros(2), 1.0).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3, 2])
        >>> torch.distributions.kl_divergence(Normal(torch.ones(2), 1.0), Normal(0.0, 1.0))
        tensor([0.5000, 0.5000])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each element, float32 (float64 if any tensor is); differentiable in value, loc and scale."""
        return normal_rows(self, value, 0)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``loc + scale * noise`` of shape ``sample_shape + batch_shape``, in one pass; differentiable in both."""
        drawn = torch.Size(sample_shape)
        shape = drawn + self._batch_shape
        if shape.numel() == 0:
            return self.loc + self.scale * self.loc.new_empty(shape)
        z = F.reparameterize(self.loc, self.scale, scale="std", num_samples=drawn.numel() if drawn else None)
        return z.reshape(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """:meth:`rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class Laplace(distributions.Laplace):
    """:class:`torch.distributions.Laplace` with ``log_prob`` on our kernels; the rest is inherited, draws are torch's own.

    Args:
        loc: location, a tensor or a number.
        scale: b, broadcast against ``loc``.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Laplace
        >>> Laplace(torch.zeros(2), 1.0).log_prob(torch.zeros(2))
        tensor([-0.6931, -0.6931])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each element, float32 (float64 if any tensor is); differentiable in value, loc and scale."""
        return _laplace_rows(self, value, 0)


class Bernoulli(distributions.Bernoulli):
    """:class:`torch.distributions.Bernoulli` with ``log_prob`` on our kernels; the rest is inherited, draws are torch's own.

    Given ``logits`` it is exact for every logit. Given ``probs`` it is torch's value: probabilities count as clipped to
    ``[eps, 1 - eps]`` with the eps of their dtype, but their logarithms are taken directly, not by way of a logit.

    Args:
        probs: probability of 1, a tensor or a number. Give this or ``logits``.
        logits: its log-odds.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are not 0 or 1.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Bernoulli
        >>> Bernoulli(logits=torch.tensor([0.0, -100.0])).log_prob(torch.tensor([1.0, 0.0]))
        tensor([-0.6931, -0.0000])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each element, float32 (float64 if any tensor is); differentiable in value and the parameter."""
        return _bernoulli_rows(self, value, 0)


ROWS.update(
    {
        distributions.Normal.log_prob: normal_rows,
        Normal.log_prob: normal_rows,
        distributions.Laplace.log_prob: _laplace_rows,
        Laplace.log_prob: _laplace_rows,
        distributions.Bernoulli.log_prob: _bernoulli_rows,
        Bernoulli.log_prob: _bernoulli_rows,
    }
)
