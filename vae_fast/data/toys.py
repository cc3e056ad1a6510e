"""Small synthetic data sets to fit mixtures to: points on a line and in the plane, reproducible from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_fast.functional import _arguments as check

#: Weight of cats by sex: share, mean and standard deviation in kg. Plausible, not measured.
CATS = {"female": (0.5, 3.4, 0.4), "male": (0.5, 4.9, 0.6)}


def toy(name: str, n: int = 10_000, seed: int = 0) -> Tensor:
    r"""Points of a toy density by name.

    ====================  =  ==================================================================================================
    name                  d  what it is
    ====================  =  ==================================================================================================
    ``cats``              1  weight of cats in kg: a Bernoulli(0.5) latent says female, N(3.4, 0.4^2), or male, N(4.9, 0.6^2);
                             plausible figures, not measured ones
    ``checkerboard``      2  uniform on the eight dark squares of a 4 x 4 board over [-4, 4]^2
    ``eight-gaussians``   2  eight round Gaussians of standard deviation 0.3 on a circle of radius 3
    ``galaxy``            2  two spiral arms, a bulge, a halo and three satellites: smooth, with detail at every scale
    ``rings``             2  three concentric rings of radius 1, 2 and 3, equally dense along each, noise 0.1
    ``sine-inverse``      2  Bishop's inverse problem (1994, section 5): columns ``(t, x)`` with x uniform on [0, 1] and
                             ``t = x + 0.3 sin(2 pi x)`` + noise uniform on [-0.1, 0.1]; x is to be predicted from t
    ``spiral``            2  two arms of one and a half turns, noise 0.1
    ``two-moons``         2  two interleaved half circles of radius 1, noise 0.08
    ====================  =  ==================================================================================================

    Args:
        name: one of :data:`TOYS`.
        n: number of points, at least 1.
        seed: seed of the draws; torch's default generators are neither read nor advanced.

    Returns:
        float32, ``(n, d)``; the points are independent draws, in no particular order.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> toy("two-moons", 500).shape
        torch.Size([500, 2])
        >>> round(toy("cats", 20_000).mean().item(), 1)
        4.2
    """
    check.one_of("name", name, TOYS)
    check.positive_int("n", n)
    generator = torch.Generator().manual_seed(seed)
    points = _MAKERS[name](_Source(n, generator))
    return points.to(torch.float32)


def toy_log_prob(name: str, x: Tensor) -> Tensor:
    """The true log-density of a toy whose density has a formula: the best that any fit can reach.

    Args:
        name: ``"cats"``, ``"eight-gaussians"`` or ``"galaxy"``.
        x: ``(n, d)``, floating.

    Returns:
        float64, ``(n,)``, in nats.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> points = toy("eight-gaussians", 20_000)
        >>> round(toy_log_prob("eight-gaussians", points).mean().item(), 1)  # minus the entropy
        -2.5
    """
    check.one_of("name", name, KNOWN)
    check.tensor("x", x)
    mixture = _MIXTURES[name]
    if x.ndim != 2 or x.shape[1] != len(mixture.means[0]):
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (n, {len(mixture.means[0])})")
    return mixture.log_prob(x.double())


@dataclass(frozen=True)
class _Source:
    """The random numbers of one call."""

    n: int
    generator: torch.Generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(self.n, dtype=torch.float64, generator=self.generator)

    def normal(self, d: int = 2) -> Tensor:
        return torch.randn(self.n, d, dtype=torch.float64, generator=self.generator)

    def choice(self, weights: Tensor) -> Tensor:
        return torch.multinomial(weights.double(), self.n, replacement=True, generator=self.generator)


def _plane(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack((x, y), dim=1)


# --- toys with a known density ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mixture:
    """Axis-aligned Gaussians, each then turned about the origin by ``twist * log(1 + radius)``.

    Turning every circle by an angle of its own keeps areas, so that the density is carried along unchanged.
    """

    weights: list[float]
    means: list[list[float]]
    stds: list[list[float]]
    twists: list[float] | None = None

    def sample(self, source: _Source) -> Tensor:
        means, stds = torch.tensor(self.means, dtype=torch.float64), torch.tensor(self.stds, dtype=torch.float64)
        k = source.choice(torch.tensor(self.weights))
        x = means[k] + stds[k] * source.normal(means.shape[1])
        return x if self.twists is None else _turned(x, torch.tensor(self.twists, dtype=torch.float64)[k])

    def log_prob(self, x: Tensor) -> Tensor:
        parts = []
        for k, weight in enumerate(self.weights):
            mean, std = (torch.tensor(t[k], dtype=torch.float64, device=x.device) for t in (self.means, self.stds))
            base = x if self.twists is None else _turned(x, torch.full_like(x[:, 0], -self.twists[k]))
            square = ((base - mean) / std).square().sum(1)
            parts.append(math.log(weight) - 0.5 * square - (std.log() + 0.5 * math.log(2.0 * math.pi)).sum())
        return torch.stack(parts).logsumexp(0)


def _turned(x: Tensor, twist: Tensor) -> Tensor:
    angle = twist * torch.log1p(x.norm(dim=1))
    cos, sin = angle.cos(), angle.sin()
    return _plane(cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1])


_TURN = 2.0 * math.pi
_MIXTURES = {
    "cats": _Mixture([w for w, _, _ in CATS.values()], [[mean] for _, mean, _ in CATS.values()], [[std] for _, _, std in CATS.values()]),
    "eight-gaussians": _Mixture(
        [1.0 / 8] * 8,
        [[3.0 * math.cos(_TURN * k / 8), 3.0 * math.sin(_TURN * k / 8)] for k in range(8)],
        [[0.3, 0.3]] * 8,
    ),
    # Two arms, bulge, halo, three satellites.
    "galaxy": _Mixture(
        [0.29, 0.29, 0.16, 0.14, 0.05, 0.04, 0.03],
        [[1.9, 0.0], [-1.9, 0.0], [0.0, 0.0], [0.0, 0.0], [3.1, 2.2], [-2.9, 2.5], [0.4, -3.6]],
        [[1.0, 0.2], [1.0, 0.2], [0.35, 0.35], [1.9, 1.9], [0.2, 0.2], [0.3, 0.12], [0.12, 0.12]],
        [3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ),
}


# --- toys by construction ---------------------------------------------------------------------------------------------


def _checkerboard(source: _Source) -> Tensor:
    column, row = (source.uniform(0.0, 4.0).floor() for _ in range(2))
    row = 2.0 * (row / 2.0).floor() + column % 2.0  # the dark square among two
    return 2.0 * (_plane(column, row) + _plane(source.uniform(), source.uniform())) - 4.0


def _rings(source: _Source) -> Tensor:
    radius = 1.0 + source.choice(torch.tensor([1.0, 2.0, 3.0]))
    angle = source.uniform(0.0, _TURN)
    return radius[:, None] * _plane(angle.cos(), angle.sin()) + 0.1 * source.normal()


def _sine_inverse(source: _Source) -> Tensor:
    x = source.uniform()
    return _plane(x + 0.3 * torch.sin(_TURN * x) + source.uniform(-0.1, 0.1), x)


def _spiral(source: _Source) -> Tensor:
    turned = source.uniform().sqrt()  # about as many points per length of the arm everywhere
    angle = 1.5 * _TURN * turned
    arm = 2.0 * source.choice(torch.ones(2)) - 1.0
    return (3.5 * turned * arm)[:, None] * _plane(angle.cos(), angle.sin()) + 0.1 * source.normal()


def _two_moons(source: _Source) -> Tensor:
    angle = source.uniform(0.0, math.pi)
    upper = _plane(angle.cos(), angle.sin())
    lower = _plane(1.0 - angle.cos(), 0.5 - angle.sin())
    first = source.choice(torch.ones(2)) == 0
    return torch.where(first[:, None], upper, lower) + 0.08 * source.normal()


_MAKERS: dict[str, Callable[[_Source], Tensor]] = {
    "cats": _MIXTURES["cats"].sample,
    "checkerboard": _checkerboard,
    "eight-gaussians": _MIXTURES["eight-gaussians"].sample,
    "galaxy": _MIXTURES["galaxy"].sample,
    "rings": _rings,
    "sine-inverse": _sine_inverse,
    "spiral": _spiral,
    "two-moons": _two_moons,
}
#: The names :func:`toy` knows, and those that :func:`toy_log_prob` knows too.
TOYS = tuple(_MAKERS)
KNOWN = tuple(_MIXTURES)
