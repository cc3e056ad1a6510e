"""Every log-likelihood that a decoder can have, at the shape of its users, against its formula in plain PyTorch, as it is and compiled.

Data wants no gradient, parameters do. The formula is that of ``torch.distributions`` (its arguments not checked), or where people use
another package's, that one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributions

import vae_fast
from vae_fast.bench.case import Case, Inputs, Maker, compiled, leaf, plain

Draw = Callable[[tuple[int, ...], str, torch.Generator], Tensor]


@dataclass(frozen=True)
class Input:
    """A tensor of a case: how it is drawn, and whether it wants a gradient."""

    shape: tuple[int, ...]
    draw: Draw
    learned: bool = True

    @property
    def bytes(self) -> int:
        """Of all its elements, which are float32."""
        return 4 * torch.Size(self.shape).numel()


def normal(shift: float = 0.0, spread: float = 1.0) -> Draw:
    """Normal numbers."""
    return lambda shape, device, g: shift + spread * torch.randn(shape, device=device, generator=g)


def uniform(shape: tuple[int, ...], device: str, g: torch.Generator) -> Tensor:
    """Numbers in [0, 1]."""
    return torch.rand(shape, device=device, generator=g)


def row_wise(
    name: str,
    sizes: Mapping[str, int],
    given: list[Input],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    flops: tuple[int, int],
    more: Mapping[str, Maker] | None = None,
) -> Case:
    """A log-probability of each row; ``flops`` are the formula's operations per element, forward and backward.

    ``more`` are other routes of ours, which take the same inputs.
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        drawn = [i.draw(i.shape, device, g) for i in given]
        return tuple(leaf(t) if i.learned else t for t, i in zip(drawn, given, strict=True))

    read, written, out = sum(i.bytes for i in given), sum(i.bytes for i in given if i.learned), 4 * sizes["B"]
    elements = max(torch.Size(i.shape).numel() for i in given)
    forward, backward = (f * elements for f in flops)
    return Case(
        name,
        sizes,
        inputs,
        {"ours": plain(ours), "eager": plain(formula), "compile": compiled(formula), **(more or {})},
        {"forward": read + out, "backward": read + written + out, "both": 2 * read + written + 2 * out},
        {"forward": forward, "backward": backward, "both": forward + backward},
        needs={"eager": 40 * elements, "compile": 24 * elements, "ours": read},
    )


# --- densities --------------------------------------------------------------------------------------------------------


def _summed(p: distributions.Distribution, x: Tensor) -> Tensor:
    log_prob: Tensor = p.log_prob(x)
    return log_prob.sum(-1)


def plain_laplace(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.Laplace(loc, log_scale.exp(), validate_args=False), x)


def plain_gaussian(x: Tensor, mu: Tensor, log_std: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.Normal(mu, log_std.exp(), validate_args=False), x)


def ours_one_scale(x: Tensor, mu: Tensor, log_std: Tensor) -> Tensor:
    """A scale of no dimensions, which the decoder learns beside its weights (a sigma-VAE)."""
    return vae_fast.gaussian_log_prob(x, mu, log_std, scale="log_std")


def continuous(batch: int, data: int) -> list[Case]:
    """Densities of grey values and other real numbers.

    Example:
        >>> [case.name for case in continuous(8, 784)]
        ['laplace_log_prob', 'gaussian_log_prob, one learned scale']
    """
    sizes, shape = {"B": batch, "D": data}, (batch, data)
    grey, location, scale = Input(shape, uniform, learned=False), Input(shape, normal()), Input(shape, normal(spread=0.5))
    one = Input((), normal(spread=0.5))
    return [
        row_wise("laplace_log_prob", sizes, [grey, location, scale], vae_fast.laplace_log_prob, plain_laplace, (7, 7)),
        row_wise("gaussian_log_prob, one learned scale", sizes, [grey, location, one], ours_one_scale, plain_gaussian, (5, 5)),
    ]


def likelihoods(device: str, quick: bool) -> list[Case]:
    """All of them.

    Example:
        >>> likelihoods("cpu", quick=True)[0].label
        'laplace_log_prob, B=256 D=784'
    """
    return continuous(256 if quick else 4096, 784)
