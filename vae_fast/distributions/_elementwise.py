"""Distributions whose log-probability is a term of the kernels' table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributions

from vae_fast import functional as F
from vae_fast.distributions._rows import ROWS, Rows, number, numbers, same_event


def _of_location_and_scale(log_prob: Callable[..., Tensor], *names: str) -> Rows:
    """:data:`~vae_fast.distributions._rows.Rows` of a distribution by ``log_prob(x, *parameters, scale="std")``: ``names`` are the
    parameters' as the distribution has them, the last its scale; the event has the shape of ``loc``."""

    def rows(d: Any, value: Any, n: int) -> Tensor:
        if d._validate_args:
            d._validate_sample(value)
        given = {name: number(getattr(d, name)) for name in names}
        ordered = ["loc", *(name for name in names if name != "loc")]
        x, *same = same_event(n, numbers(value, given["loc"]), *(given[name] for name in ordered))
        by_name = dict(zip(ordered, same, strict=True))
        return log_prob(x, *(by_name[name] for name in names), scale="std", event_dim=n)

    return rows


normal_rows = _of_location_and_scale(F.gaussian_log_prob, "loc", "scale")
_laplace_rows = _of_location_and_scale(F.laplace_log_prob, "loc", "scale")
_log_normal_rows = _of_location_and_scale(F.log_normal_log_prob, "loc", "scale")
_student_t_rows = _of_location_and_scale(F.student_t_log_prob, "df", "loc", "scale")


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


def _continuous_bernoulli_rows(d: distributions.ContinuousBernoulli, value: Any, n: int) -> Tensor:
    if d._validate_args:
        d._validate_sample(value)
    given = number(d._param)
    logits = given if d._param is d.__dict__.get("logits") else given.to(torch.promote_types(given.dtype, torch.float32)).logit()
    x, logits = same_event(n, numbers(value, logits), logits)
    return F.continuous_bernoulli_log_prob(x, logits, event_dim=n)


class Normal(distributions.Normal):
    r""":class:`torch.distributions.Normal` on our kernels: ``log_prob``, ``rsample`` and ``sample``, and its KL divergences.

    Draws use our noise (Philox, see :func:`vae_fast.reparameterize`), which follows ``torch.manual_seed``: ``sample`` and ``rsample``
    give the same numbers for the same seed, but not those of torch's class. Everything else is inherited.

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
    """:class:`torch.distributions.Laplace` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    Args:
        loc: location, a tensor or a number.
        scale: b in ``exp(-|x - loc| / b) / (2 b)``, broadcast against ``loc``.
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
    """:class:`torch.distributions.Bernoulli` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    Given ``logits``, it is exact for every logit. Given ``probs``, it is torch's value: probabilities are clipped to
    ``[eps, 1 - eps]`` with the eps of their dtype, but their logarithms are taken directly, not through a logit.

    Args:
        probs: probability of 1, a tensor or a number. Give this or ``logits``.
        logits: its log-odds.
        validate_args: as in :class:`torch.distributions.Distribution`; True refuses values that are not 0 or 1.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Bernoulli
        >>> Bernoulli(logits=torch.tensor([0.0, -2.0])).log_prob(torch.tensor([1.0, 0.0]))
        tensor([-0.6931, -0.1269])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each element, float32 (float64 if any tensor is); differentiable in value and the parameter."""
        return _bernoulli_rows(self, value, 0)


class StudentT(distributions.StudentT):
    """:class:`torch.distributions.StudentT` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    Args:
        df: degrees of freedom, a tensor or a number.
        loc: location, broadcast against ``df``.
        scale: scale (not the standard deviation), broadcast against ``df``.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import StudentT
        >>> StudentT(1.0).log_prob(torch.zeros(2))
        tensor([-1.1447, -1.1447])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each element, float32 (float64 if any tensor is); differentiable in value and all parameters."""
        return _student_t_rows(self, value, 0)


class LogNormal(distributions.LogNormal):
    """:class:`torch.distributions.LogNormal` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    With ``validate_args=False`` a value that is not positive has log-density -inf, where torch's class gives NaN.

    Args:
        loc: mean of the logarithm, a tensor or a number.
        scale: its standard deviation, broadcast against ``loc``.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import LogNormal
        >>> LogNormal(0.0, 1.0).log_prob(torch.ones(2))
        tensor([-0.9189, -0.9189])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each element, float32 (float64 if any tensor is); differentiable in value, loc and scale."""
        return _log_normal_rows(self, value, 0)


class ContinuousBernoulli(distributions.ContinuousBernoulli):
    """:class:`torch.distributions.ContinuousBernoulli` with ``log_prob`` on our kernels; everything else, draws included, is torch's.

    ``lims`` is where torch's formulas switch to a series for the normaliser; ours does not need it, and ``log_prob`` ignores it.

    Args:
        probs: lambda in Loaiza-Ganem and Cunningham (2019), a tensor or a number. Give this or ``logits``.
        logits: its log-odds.
        lims: as in torch's class.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import ContinuousBernoulli
        >>> ContinuousBernoulli(logits=torch.tensor([1.0, 10.0])).log_prob(torch.tensor([0.3, 1.0]))
        tensor([-0.2413,  2.3026])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each element, float32 (float64 if any tensor is); differentiable in value and the parameter."""
        return _continuous_bernoulli_rows(self, value, 0)


ROWS.update(
    {
        distributions.Normal.log_prob: normal_rows,
        Normal.log_prob: normal_rows,
        distributions.Laplace.log_prob: _laplace_rows,
        Laplace.log_prob: _laplace_rows,
        distributions.Bernoulli.log_prob: _bernoulli_rows,
        Bernoulli.log_prob: _bernoulli_rows,
        distributions.StudentT.log_prob: _student_t_rows,
        StudentT.log_prob: _student_t_rows,
        LogNormal.log_prob: _log_normal_rows,  # torch's inherits that of every transformed distribution
        distributions.ContinuousBernoulli.log_prob: _continuous_bernoulli_rows,
        ContinuousBernoulli.log_prob: _continuous_bernoulli_rows,
    }
)
