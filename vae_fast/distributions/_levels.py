"""A distribution of the levels of an image's pixels, which torch does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from vae_fast import _samplers
from vae_fast import functional as F
from vae_fast.distributions._rows import ROWS, number, numbers, same_event


class _Levels(constraints.Constraint):
    """``k / highest`` for k = 0 to ``highest``, to within the rounding of the value's dtype."""

    is_discrete = True

    def __init__(self, highest: int) -> None:
        self.highest = highest
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value * self.highest
        near = torch.finfo(value.dtype).eps * self.highest if value.is_floating_point() else 0.0
        inside: Tensor = ((level - level.round()).abs() <= near) & (value >= 0.0) & (value <= 1.0)
        return inside

    def __repr__(self) -> str:
        return f"Levels(0, 1 / {self.highest}, ..., 1)"


def _discretized_logistic_rows(d: Any, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    log_scale = d.scale.to(torch.promote_types(d.scale.dtype, torch.float32)).log()
    x, loc, log_scale = same_event(n, numbers(value, d.loc), d.loc, log_scale)
    return F.discretized_logistic_log_prob(x, loc, log_scale, bits=d.bits, event_dim=n)


class DiscretizedLogistic(distributions.Distribution):
    r"""Levels of grey, ``k / (2 ** bits - 1)`` in [0, 1], under a logistic distribution cut into ``2 ** bits`` bins.

    .. math:: p(x) = \sigma\Big(\frac{y + h - m}{s}\Big) - \sigma\Big(\frac{y - h - m}{s}\Big), \qquad y = 2 x - 1

    with h half the width of a bin; the first bin reaches to minus infinity, the last to infinity, so that the probabilities of all levels
    sum to 1 (Kingma et al. 2016; :func:`vae_fast.discretized_logistic_log_prob`). torch has no such class.

    Args:
        loc: m, in units of [-1, 1], a tensor or a number.
        scale: s in the same units, above 0, broadcast against ``loc``; its standard deviation is ``pi / sqrt(3)`` times that.
        bits: 1 to 8.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are no levels. A uint8 is a number here, as
            everywhere in this module: divide bytes by 255.

    Raises:
        ValueError: naming the argument, if ``bits`` is out of range; as torch's classes do, for arguments and values out of theirs.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import DiscretizedLogistic
        >>> p = DiscretizedLogistic(torch.tensor([0.0, 0.9]), 0.1, bits=2)
        >>> p.log_prob(torch.tensor([1 / 3, 1.0])), p.mean
        (tensor([-0.6957, -0.0926]), tensor([0.5000, 0.9705]))
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, loc: Tensor | float, scale: Tensor | float, bits: int = 8, validate_args: bool | None = None) -> None:
        """See the class."""
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"bits={bits!r}: expected 1 to 8")
        self.bits = bits
        self.loc, self.scale = (number(t) for t in broadcast_all(loc, scale))
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return _Levels(2**self.bits - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """The same distribution with a larger batch."""
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        shape = torch.Size(batch_shape)
        new.bits, new.loc, new.scale = self.bits, self.loc.expand(shape), self.scale.expand(shape)
        distributions.Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean level, in [0, 1]."""
        return _samplers.mean_level(self.loc, self.scale.log(), 2**self.bits - 1)

    @property
    def variance(self) -> Tensor:
        """Of the level, by the sum over all of them."""
        x = self.enumerate_support()
        return (self.log_prob(x).exp() * (x - self.mean).square()).sum(0)

    def entropy(self) -> Tensor:
        """In nats, by the sum over all levels."""
        log_p = self.log_prob(self.enumerate_support())
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(0)

    def cdf(self, value: Any) -> Tensor:
        """The probability of a level of at most ``value``."""
        if self._validate_args:
            self._validate_sample(value)
        x, highest = numbers(value, self.loc), 2**self.bits - 1
        below = ((2.0 * x - 1.0 + 1.0 / highest - self.loc) / self.scale).sigmoid()
        return torch.where(x < 1.0 - 0.5 / highest, below, torch.ones_like(below))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, ``(2 ** bits, *batch_shape)``, or ``(2 ** bits, 1, ...)`` if they are not to be expanded."""
        highest = 2**self.bits - 1
        levels = torch.arange(highest + 1, dtype=self.loc.dtype, device=self.loc.device) / highest
        column: Tensor = levels.reshape(-1, *[1] * self.loc.ndim)
        return column.expand(-1, *self.batch_shape) if expand else column

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients, ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            drawn: Tensor = _samplers.draw_level(self.loc.expand(shape), self.scale.log().expand(shape), None, 2**self.bits - 1)
            return drawn

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each level, float32 (float64 if any tensor is); differentiable in loc and scale."""
        return _discretized_logistic_rows(self, value, 0)


ROWS[DiscretizedLogistic.log_prob] = _discretized_logistic_rows
