"""Distributions made of others: ``Independent`` and mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributions

from vae_fast import functional as F
from vae_fast.distributions._elementwise import normal_rows
from vae_fast.distributions._rows import ROWS, number, numbers, rows_of, sum_last

# torch's own, whatever is in their place later
_expand_mixture: Callable[..., Any] = distributions.MixtureSameFamily.expand
_sample_mixture: Callable[..., Tensor] = distributions.MixtureSameFamily.sample
_mixture_log_prob: Callable[..., Tensor] = distributions.MixtureSameFamily.log_prob


def _independent_rows(d: distributions.Independent[Any], value: Any, n: int) -> Tensor:
    n += d.reinterpreted_batch_ndims
    rows = rows_of(d.base_dist)
    return sum_last(d.base_dist.log_prob(value), n) if rows is None else rows(d.base_dist, value, n)


def _mixture_rows(d: distributions.MixtureSameFamily, value: Any, n: int) -> Tensor:
    components = diagonal_normals(d)
    if components is None:
        return sum_last(_mixture_log_prob(d, value), n)
    if d._validate_args:
        d._validate_sample(value)
    elif components._validate_args:
        components._validate_sample(d._pad(value))
    alone = d.__dict__.get("_alone", d)  # before it was expanded
    if alone is not d:
        components = diagonal_normals(alone)
    log_prob = _normals_log_prob(numbers(value, number(components.loc)), alone.mixture_distribution.logits, components, d._event_ndims)
    if alone is not d:
        log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, d.batch_shape))
    return sum_last(log_prob, n)


def _normals_log_prob(x: Tensor, weight_logits: Tensor, components: distributions.Normal, n: int) -> Tensor:
    """log sum_k w_k N(x; loc_k, scale_k) over the last ``n`` dimensions; loc and scale are ``(*batch, K, *event)``."""
    loc, scale = number(components.loc), number(components.scale)
    log_scale = scale.to(torch.promote_types(scale.dtype, torch.float32)).log()
    if n == 0:
        x, loc, log_scale = x.unsqueeze(-1), loc.unsqueeze(-1), log_scale.unsqueeze(-1)
    else:
        x = x.expand(torch.broadcast_shapes(x.shape, loc.shape[loc.ndim - n :])).flatten(-n)
        loc, log_scale = loc.flatten(-n), log_scale.flatten(-n)
    if loc.ndim == 2 and weight_logits.ndim == 1:
        return F.mixture_log_prob(x, weight_logits, loc, log_scale)
    return F.mdn_log_prob(x, weight_logits, loc, log_scale)


def diagonal_normals(d: distributions.MixtureSameFamily) -> Any:
    """The normal distribution at the bottom of a mixture's components, whose every event dimension was once one of its batch; or None."""
    component: Any = d.component_distribution
    while rows_of(component) is _independent_rows:
        component = component.base_dist
    return component if rows_of(component) is normal_rows else None


class Independent(distributions.Independent[Any]):
    """:class:`torch.distributions.Independent`, with ``log_prob`` summed in the same pass if our kernels know the base distribution.

    They know the element-wise classes of :mod:`vae_fast.distributions`, torch's own of the same names (except ``LogNormal``, which has to
    be ours), and an ``Independent`` of them. For any other base distribution ``log_prob`` is summed afterwards, as torch does. Everything
    else is inherited; draws are those of the base distribution. The KL divergence between two ``Independent`` normal distributions is one
    pass too.

    Args:
        base_distribution: any distribution.
        reinterpreted_batch_ndims: how many of its last batch dimensions become event dimensions.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Independent, Normal
        >>> Independent(Normal(torch.zeros(4, 2), 1.0), 1).log_prob(torch.zeros(4, 2))
        tensor([-1.8379, -1.8379, -1.8379, -1.8379])
    """

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of each event, ``sample_shape + batch_shape``; differentiable in whatever the base distribution's is."""
        return _independent_rows(self, value, 0)


class MixtureSameFamily(distributions.MixtureSameFamily):
    r""":class:`torch.distributions.MixtureSameFamily`, which for diagonal normal components forms no N x K array.

    If the components are a ``Normal``, or an ``Independent`` of one (ours or torch's own), ``log_prob`` is
    :func:`vae_fast.mixture_log_prob`, one pass over the value with memory O(N + K D), gradients included; if each element of the batch has
    its own parameters, it is :func:`vae_fast.mdn_log_prob`. An expanded mixture is computed from its parameters before ``expand``.
    ``sample`` then draws from the chosen components only, with our noise. For other components torch's formula is used, in which only
    the components' ``log_prob`` may be ours.

    Args:
        mixture_distribution: a ``Categorical`` over K components.
        component_distribution: a distribution whose last batch dimension is K.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        ValueError: as torch's class does.

    Example:
        >>> import torch
        >>> from vae_fast.distributions import Independent, MixtureSameFamily, Normal
        >>> weights = torch.distributions.Categorical(logits=torch.zeros(2))
        >>> means = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
        >>> MixtureSameFamily(weights, Independent(Normal(means, 1.0), 1)).log_prob(torch.zeros(3, 2))
        tensor([-2.5310, -2.5310, -2.5310])
    """

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """The same mixture with a larger batch; it keeps the unexpanded parameters, so that gradients have their size."""
        new = _expand_mixture(self, batch_shape, _instance)
        if "_alone" in self.__dict__ or not self.batch_shape:
            new._alone = self.__dict__.get("_alone", self)
        return new

    def log_prob(self, value: Any) -> Tensor:
        """Log-density of each event, ``sample_shape + batch_shape``; differentiable in the value and all parameters."""
        return _mixture_rows(self, value, 0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients, ``sample_shape + batch_shape + event_shape``."""
        components = diagonal_normals(self)
        shape = self._extended_shape(torch.Size(sample_shape))
        if components is None:
            return _sample_mixture(self, torch.Size(sample_shape))
        if shape.numel() == 0:
            return torch.empty(shape, dtype=components.loc.dtype, device=components.loc.device)
        with torch.no_grad():
            chosen = self.mixture_distribution.expand(self.batch_shape).sample(torch.Size(sample_shape))
            loc, scale = (_of_component(t, chosen, self._event_ndims) for t in (components.loc, components.scale))
            return F.reparameterize(loc, scale, scale="std")


def _of_component(t: Tensor, chosen: Tensor, n: int) -> Tensor:
    """The rows of ``(*batch, K, *event)`` that were chosen: ``(*sample, *batch, *event)`` for ``chosen`` of ``(*sample, *batch)``."""
    dim = t.ndim - n - 1
    if dim == 0:
        return t[chosen]
    index = chosen.reshape(*chosen.shape, *(1,) * (n + 1)).expand(*chosen.shape, 1, *t.shape[dim + 1 :])
    t = t.expand(*chosen.shape, *t.shape[dim:])
    return torch.gather(t, chosen.ndim, index).squeeze(chosen.ndim)


ROWS.update(
    {
        distributions.Independent.log_prob: _independent_rows,
        Independent.log_prob: _independent_rows,
        distributions.MixtureSameFamily.log_prob: _mixture_rows,
        MixtureSameFamily.log_prob: _mixture_rows,
    }
)
