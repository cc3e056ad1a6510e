"""Means of, and draws from, the likelihoods whose element needs a group of parameters; :mod:`vae_fast.likelihoods` has them by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_LOG_SCALE = -7.0


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
