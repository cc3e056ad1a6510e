"""Means of, and draws from, the likelihoods, given what a decoder gives; :mod:`vae_fast.likelihoods` has them by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast._precision import to_compute
from vae_fast._scales import std
from vae_fast.terms import LOG_SINHC, polynomial

LEAST_LOG_SCALE = -7.0


def first(parameters: Sequence[Tensor]) -> Tensor:
    """The mean, where the first parameter is that."""
    return parameters[0]


def _scale(parameters: Sequence[Tensor], form: str, at: int = 1) -> Tensor:
    return std(parameters[at], form) if len(parameters) > at else torch.ones_like(parameters[0])


def draw_bernoulli(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Bits of these probabilities."""
    return torch.bernoulli(p, generator=generator)


def draw_gaussian(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Of a mean and a log-variance, which is 0 where it is left out."""
    mean, scale = torch.broadcast_tensors(parameters[0], _scale(parameters, "logvar"))
    return torch.normal(mean, scale, generator=generator)


def draw_laplace(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """The difference of two exponential draws, scaled."""
    loc, scale = torch.broadcast_tensors(parameters[0], _scale(parameters, "log_std"))
    up, down = torch.empty((2, *loc.shape), dtype=loc.dtype, device=loc.device).exponential_(generator=generator)
    return torch.addcmul(loc, scale, up - down)


def mean_log_normal(parameters: Sequence[Tensor]) -> Tensor:
    """e^(loc + scale^2 / 2)."""
    return (parameters[0] + 0.5 * _scale(parameters, "log_std").square()).exp()


def draw_log_normal(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """The exponential of a normal draw."""
    loc, scale = torch.broadcast_tensors(parameters[0], _scale(parameters, "log_std"))
    return torch.normal(loc, scale, generator=generator).exp()


def mean_continuous_bernoulli(parameters: Sequence[Tensor]) -> Tensor:
    """1 / (1 - e^-a) - 1 / a, by its series around a = 0."""
    a = to_compute(parameters[0])
    near = a.abs() < 1.0
    inside, outside = a.masked_fill(~near, 0.5), a.masked_fill(near, 2.0)
    close = 0.5 + inside * polynomial(inside * inside, [2 * (k + 1) * c for k, c in enumerate(LOG_SINHC)])
    c = outside.abs()
    smaller = 1.0 / c + (-c).exp() / torch.expm1(-c)
    return torch.where(near, close, torch.where(outside < 0, smaller, 1.0 - smaller)).to(parameters[0].dtype)


def draw_continuous_bernoulli(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """The inverse of the distribution function, log(1 + u (e^a - 1)) / a, of -|a|, and mirrored for a > 0."""
    a = to_compute(parameters[0])
    u = torch.rand(a.shape, dtype=a.dtype, device=a.device, generator=generator)
    c = a.abs().clamp(min=1e-30)  # u to rounding
    x = torch.log1p(u * torch.expm1(-c)) / -c
    return torch.where(a < 0, x, 1.0 - x).to(parameters[0].dtype)


def draw_student_t(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """A normal over the root of a chi-squared of as many degrees of freedom, by each of them."""
    n, loc, scale = torch.broadcast_tensors(*parameters[:2], _scale(parameters, "log_std", 2))
    half = 0.5 * to_compute(n)
    square = torch._standard_gamma(half, generator=generator).clamp(min=torch.finfo(half.dtype).tiny) / half
    noise = torch.empty_like(half).normal_(generator=generator)
    return torch.addcmul(loc, scale, (noise * square.rsqrt()).to(loc.dtype))


def draw_negative_binomial(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Poisson's counts of a rate drawn from Gamma(theta, theta / mu)."""
    mu, theta = torch.broadcast_tensors(*(t.exp() for t in parameters[:2]))
    rate = torch._standard_gamma(theta, generator=generator) * (mu / theta)
    return torch.poisson(rate, generator=generator)


def draw_zero_inflated(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """The same, with zeros that are no counts."""
    counts = draw_negative_binomial(parameters, generator)
    kept = torch.bernoulli((-parameters[2]).sigmoid().expand_as(counts), generator=generator)
    return counts * kept


def one_of(logits: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Indices drawn from ``softmax(logits)`` along ``dim``: where logits plus Gumbel noise are largest."""
    noise = torch.empty_like(logits).exponential_(generator=generator).log()
    return (logits - noise).argmax(dim)


def draw_classes(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Class indices, as bytes where these do."""
    logits = parameters[0]
    index = one_of(logits, -1, generator)
    return index.to(torch.uint8) if logits.shape[-1] <= 256 else index


def mean_class(parameters: Sequence[Tensor]) -> Tensor:
    """The expected class index."""
    share = parameters[0].softmax(-1)
    return share @ torch.arange(share.shape[-1], dtype=share.dtype, device=share.device)


def draw_count(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """The counts of one trial: a one at one class."""
    logits = parameters[0]
    return torch.zeros_like(logits).scatter_(-1, one_of(logits, -1, generator).unsqueeze(-1), 1.0)


def mean_level(loc: Tensor, log_scale: Tensor, levels: int = 255) -> Tensor:
    """The mean of a discretised logistic, in [0, 1]: the sum over levels of the probability of being at least that."""
    total, inverse = torch.zeros_like(loc), (-log_scale).exp()
    for k in range(1, levels + 1):
        total = total + ((loc - ((2 * k - 1) / levels - 1.0)) * inverse).sigmoid()
    return total / levels


def draw_level(loc: Tensor, log_scale: Tensor, generator: torch.Generator | None, levels: int = 255) -> Tensor:
    """A draw from a discretised logistic: one of the levels, in [0, 1]."""
    up, down = torch.empty((2, *loc.shape), dtype=loc.dtype, device=loc.device).exponential_(generator=generator)
    y = loc + log_scale.exp() * (up.log() - down.log())  # the difference of two Gumbel draws is logistic
    level: Tensor = ((y + 1.0) * (0.5 * levels)).round().clamp(0, levels)
    return level / levels


def mean_discretized(parameters: Sequence[Tensor]) -> Tensor:
    """Of a location and a log scale."""
    return mean_level(*torch.broadcast_tensors(*parameters))


def draw_discretized(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Of a location and a log scale."""
    loc, log_scale = torch.broadcast_tensors(*parameters)
    return draw_level(loc, log_scale, generator)


def _pixels(parameters: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Logits of the weights ``(..., H, W, K)`` and (locations, log scales, coefficients) of the three colours, of ``(..., 10 K, H, W)``."""
    slots = parameters[0].movedim(-3, -1).unflatten(-1, (10, -1)).unbind(-2)
    return slots[0], [(slots[i], slots[i + 1].clamp(min=LEAST_LOG_SCALE), slots[i + 2].tanh()) for i in (1, 4, 7)]


def mean_pixels(parameters: Sequence[Tensor]) -> Tensor:
    """The mean of a mixture over colour images, in [0, 1]; within a component, that of a colour given the mean of those before it."""
    logits, (red, green, blue) = _pixels(parameters)
    r = mean_level(red[0], red[1])
    g = mean_level(green[0] + red[2] * (2.0 * r - 1.0), green[1])
    b = mean_level(blue[0] + green[2] * (2.0 * r - 1.0) + blue[2] * (2.0 * g - 1.0), blue[1])
    weights = logits.softmax(-1)
    return torch.stack([(weights * t).sum(-1) for t in (r, g, b)], -3)


def draw_pixels(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """A draw from a mixture over colour images: a component for each pixel, then one colour after the other."""
    logits, colours = _pixels(parameters)
    chosen = one_of(logits, -1, generator).unsqueeze(-1)
    red, green, blue = (tuple(t.gather(-1, chosen).squeeze(-1) for t in colour) for colour in colours)
    r = draw_level(red[0], red[1], generator)
    g = draw_level(green[0] + red[2] * (2.0 * r - 1.0), green[1], generator)
    b = draw_level(blue[0] + green[2] * (2.0 * r - 1.0) + blue[2] * (2.0 * g - 1.0), blue[1], generator)
    return torch.stack([r, g, b], -3)
