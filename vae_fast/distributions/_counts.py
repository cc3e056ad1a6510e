"""Distributions of counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all, lazy_property, logits_to_probs, probs_to_logits

from vae_fast import functional as F
from vae_fast.distributions._rows import ROWS, number, numbers, same_event


def _poisson_rows(d: distributions.Poisson, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    rate = number(d.rate)
    x, rate = same_event(n, numbers(value, rate), rate)
    return F.poisson_log_prob(x, rate, event_dim=n)


def _negative_binomial_rows(d: Any, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    if d._param is d.__dict__.get("mu"):
        x, mu, theta = same_event(n, numbers(value, d.mu), d.mu, d.theta)
        return F.negative_binomial_log_prob(x, mu, theta, event_dim=n)
    # in logarithms, or the mean would be out of range where its logit is not
    theta, given = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (number(d.total_count), number(d._param)))
    logits = given if d._param is d.__dict__.get("logits") else probs_to_logits(given, is_binary=True)
    log_theta = theta.log()
    x, log_mu, log_theta = same_event(n, numbers(value, theta), logits + log_theta, log_theta)
    return F.negative_binomial_log_prob(x, log_mu, log_theta, space="log", event_dim=n)


def _zero_inflated_rows(d: ZeroInflatedNegativeBinomial, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    x, mu, theta, zi_logits = same_event(n, numbers(value, d.mu), d.mu, d.theta, d.zi_logits)
    return F.zero_inflated_negative_binomial_log_prob(x, mu, theta, zi_logits, event_dim=n)


class Poisson(distributions.Poisson):
    """:class:`torch.distributions.Poisson` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    Args:
        rate: the mean, a tensor or a number.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are not counts.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Poisson
        >>> Poisson(torch.tensor([1.0, 3.0])).log_prob(torch.tensor([0, 2]))
        tensor([-1.0000, -1.4959])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each count, float32 (float64 if any tensor is); differentiable in the rate."""
        return _poisson_rows(self, value, 0)


class NegativeBinomial(distributions.NegativeBinomial):
    r""":class:`torch.distributions.NegativeBinomial` by mean and inverse dispersion, as in scvi-tools, or by torch's parameters.

    ``mu`` is the mean and the variance is ``mu + mu^2 / theta``; torch's ``total_count`` is theta, and its logits are
    ``log mu - log theta``. Both sets of attributes exist, whichever was given. ``log_prob`` is ours and exact (scvi-tools adds 1e-8 inside
    its logarithms); draws, ``mode`` and everything else are torch's.

    Args:
        total_count: torch's name for theta; give it with ``probs`` or ``logits``.
        probs: probability of success.
        logits: its log-odds.
        validate_args: as in :class:`torch.distributions.Distribution`.
        mu: the mean, > 0. Give ``mu`` and ``theta``, or torch's parameters.
        theta: the inverse dispersion, > 0, broadcast against ``mu``.
        scale: what :meth:`get_normalized` returns by this name, for code written for scvi-tools; nothing is computed from it.

    Raises:
        ValueError: as torch's class does, and unless exactly one of the two sets of parameters is given.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import NegativeBinomial
        >>> p = NegativeBinomial(mu=torch.tensor([1.0, 3.0]), theta=torch.tensor([2.0, 0.5]))
        >>> p.log_prob(torch.tensor([0, 2])), p.variance
        (tensor([-0.8109, -2.2621]), tensor([ 1.5000, 21.0000]))
    """

    arg_constraints = {  # noqa: RUF012  the base class declares an instance attribute
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
        **distributions.NegativeBinomial.arg_constraints,
    }

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """See the class."""
        self.scale = scale
        torchs = total_count is not None or probs is not None or logits is not None
        if (mu is None) != (theta is None) or (mu is None) == (not torchs):
            raise ValueError("mu, theta: expected both of them, or total_count with probs or logits")
        if mu is None or theta is None:
            if total_count is None:
                raise ValueError("total_count=None: expected a number or a tensor")
            super().__init__(total_count, probs, logits, validate_args=validate_args)
            return
        self.mu, self.theta = (number(t) for t in broadcast_all(mu, theta))
        self._param = self.mu
        distributions.Distribution.__init__(self, self.mu.shape, validate_args=validate_args)

    @lazy_property
    def mu(self) -> Tensor:
        """The mean."""
        return self.total_count * self.logits.exp()

    @lazy_property
    def theta(self) -> Tensor:
        """The inverse dispersion."""
        return self.total_count

    @lazy_property
    def total_count(self) -> Tensor:
        """The inverse dispersion, by torch's name."""
        return self.theta

    @lazy_property
    def logits(self) -> Tensor:
        """``log mu - log theta``."""
        return self.mu.log() - self.theta.log() if "mu" in self.__dict__ else probs_to_logits(self.probs, is_binary=True)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of success."""
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def mean(self) -> Tensor:
        """``mu``."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """``mu + mu^2 / theta``."""
        return self.mu + self.mu.square() / self.theta

    def get_normalized(self, key: str) -> Tensor | None:
        """``mu`` or ``scale`` by name, as the models of scvi-tools look them up.

        Raises:
            ValueError: if ``key`` is neither.
        """
        if key not in ("mu", "scale"):
            raise ValueError(f"key={key!r}: expected 'mu' or 'scale'")
        found: Tensor | None = getattr(self, key)
        return found

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """The same distribution with a larger batch."""
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            if name in self.__dict__:
                setattr(new, name, self.__dict__[name].expand(shape))
                if self.__dict__[name] is self._param:
                    new._param = new.__dict__[name]
        new.scale = None if self.scale is None else self.scale.expand(shape)
        distributions.Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each count, float32 (float64 if any tensor is); differentiable in the parameters."""
        return _negative_binomial_rows(self, value, 0)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""A negative binomial distribution with extra zeros: the model of single-cell counts in scvi-tools.

    .. math:: p(x) = \sigma(l)\, [x = 0] + \sigma(-l)\, \mathrm{NB}(x; \mu, \theta)

    torch has no such class. ``log_prob`` is ours and exact (scvi-tools adds 1e-8 inside its logarithms).

    Args:
        total_count, probs, logits, validate_args, mu, theta, scale: as in :class:`NegativeBinomial`.
        zi_logits: l, the logits of an extra zero, broadcast against the others.

    Raises:
        ValueError: as :class:`NegativeBinomial` does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import ZeroInflatedNegativeBinomial
        >>> p = ZeroInflatedNegativeBinomial(mu=torch.tensor([1.0, 3.0]), theta=torch.tensor([2.0, 0.5]), zi_logits=torch.zeros(2))
        >>> p.log_prob(torch.tensor([0, 2])), p.mean
        (tensor([-0.3254, -2.9552]), tensor([0.5000, 1.5000]))
    """

    arg_constraints = {**NegativeBinomial.arg_constraints, "zi_logits": constraints.real}  # noqa: RUF012

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        zi_logits: Tensor | float,
        scale: Tensor | None = None,
    ) -> None:
        """See the class."""
        self.scale = scale
        counts = NegativeBinomial(total_count, probs, logits, validate_args, mu=mu, theta=theta)
        self.mu, self.theta, self.zi_logits = (number(t) for t in broadcast_all(counts.mu, counts.theta, zi_logits))
        self._param = self.mu
        distributions.Distribution.__init__(self, self.mu.shape, validate_args=validate_args)

    @lazy_property
    def zi_probs(self) -> Tensor:
        """The probability of an extra zero."""
        return logits_to_probs(self.zi_logits, is_binary=True)

    @property
    def mean(self) -> Tensor:
        """``(1 - zi_probs) mu``."""
        return (1.0 - self.zi_probs) * self.mu

    @property
    def variance(self) -> Tensor:
        """``(1 - zi_probs) mu (1 + mu / theta + zi_probs mu)``."""
        return self.mean * (1.0 + self.mu / self.theta + self.zi_probs * self.mu)

    @property
    def mode(self) -> Tensor:
        """Not implemented: it has no closed form."""
        raise NotImplementedError

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients, ``sample_shape + batch_shape``."""
        with torch.no_grad():
            draw: Callable[..., Tensor] = super().sample
            counts = draw(torch.Size(sample_shape))
            lost = torch.bernoulli(self.zi_probs.expand(counts.shape))
            return counts.masked_fill(lost.bool(), 0.0)

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each count, float32 (float64 if any tensor is); differentiable in the parameters."""
        return _zero_inflated_rows(self, value, 0)


ROWS.update(
    {
        distributions.Poisson.log_prob: _poisson_rows,
        Poisson.log_prob: _poisson_rows,
        distributions.NegativeBinomial.log_prob: _negative_binomial_rows,
        NegativeBinomial.log_prob: _negative_binomial_rows,
        ZeroInflatedNegativeBinomial.log_prob: _zero_inflated_rows,
    }
)
