"""A mixture density network: a network whose output is a distribution, which may have several modes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import functional as F
from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import reduce


class MDNOutput(NamedTuple):
    """The mixture for each input: ``(..., K)``, ``(..., K, D)`` and ``(..., K, D)``, or ``(..., K)`` with one scale for all of D."""

    weight_logits: Tensor
    means: Tensor
    log_scale: Tensor


class MixtureDensityNetwork(nn.Module):
    r"""``p(y|x) = sum_k pi_k(x) N(y; mu_k(x), diag sigma_k(x)^2)`` (Bishop 1994, "Mixture density networks", eq. 22 and 23).

    One linear layer on top of ``trunk`` gives all three of pi (as logits), mu and sigma (as its logarithm); the likelihood is one call of
    :func:`vae_fast.mdn_log_prob`. The argument order is that of a regression: input, then target.

    Args:
        trunk: any module, ``(..., inputs)`` to ``(..., hidden_dim)``; ``nn.Identity()`` for a linear model.
        hidden_dim: size of what the trunk gives.
        n_components: K.
        target_dim: D, size of y.
        min_scale: least standard deviation, in the units of y: without one, a component that sits on a target has a likelihood
            without bound.
        shared_scale: one standard deviation for each component in place of one for each target dimension too.

    The means' biases are drawn from N(0, 1), so that components begin apart: scale targets to about unit variance.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vae_fast.models import MixtureDensityNetwork
        >>> mdn = MixtureDensityNetwork(nn.Sequential(nn.Linear(1, 32), nn.Tanh()), 32, n_components=5, target_dim=2)
        >>> x, y = torch.randn(8, 1), torch.randn(8, 2)
        >>> mdn.loss(x, y).backward()
        >>> mdn.sample(x, 10).shape
        torch.Size([10, 8, 2])
    """

    def __init__(
        self,
        trunk: nn.Module,
        hidden_dim: int,
        n_components: int,
        target_dim: int = 1,
        *,
        min_scale: float = 1e-3,
        shared_scale: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        check.module("trunk", trunk)
        for name, size in (("hidden_dim", hidden_dim), ("n_components", n_components), ("target_dim", target_dim)):
            check.positive_int(name, size)
        min_scale = check.real("min_scale", min_scale, 0.0)
        check.flag("shared_scale", shared_scale)
        self.trunk, self.n_components, self.target_dim = trunk, n_components, target_dim
        self.min_scale, self.shared_scale = min_scale, shared_scale
        k, d = n_components, target_dim
        self._sizes = (k, k * d, k if shared_scale else k * d)
        self.head = nn.Linear(hidden_dim, sum(self._sizes))
        with torch.no_grad():
            self.head.bias[k : k + k * d].normal_()

    def _raw(self, x: Tensor) -> MDNOutput:
        """The heads' output: the scale is not floored."""
        logits, means, log_scale = self.head(self.trunk(x)).split(self._sizes, -1)
        shape = (self.n_components, self.target_dim)
        return MDNOutput(logits, means.unflatten(-1, shape), log_scale if self.shared_scale else log_scale.unflatten(-1, shape))

    def forward(self, x: Tensor) -> MDNOutput:
        """The parameters of ``p(y|x)``: :class:`MDNOutput` with standard deviations of ``min_scale`` or more.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from vae_fast.models import MixtureDensityNetwork
            >>> [tuple(t.shape) for t in MixtureDensityNetwork(nn.Identity(), 3, 5, 2)(torch.zeros(8, 3))]
            [(8, 5), (8, 5, 2), (8, 5, 2)]
        """
        out = self._raw(x)
        return out if self.min_scale == 0.0 else out._replace(log_scale=out.log_scale.clamp(min=math.log(self.min_scale)))

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """``log p(y|x)`` in nats.

        Args:
            x: inputs, ``(..., inputs)``.
            y: targets, ``(..., D)``; leading dimensions broadcast against those of x.

        Returns:
            float32 (float64 for a float64 model or target), the batch shape.

        Raises:
            TypeError, ValueError: naming the argument, the value given and what was expected.
        """
        return F.mdn_log_prob(y, *self._raw(x), min_scale=self.min_scale)

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """The negative log-likelihood in nats; over the batch ``"mean"``, ``"sum"`` or ``"none"``; arguments as in :meth:`log_prob`."""
        check.one_of("reduction", reduction, check.REDUCTIONS)
        return reduce(-self.log_prob(x, y), reduction)

    def mean(self, x: Tensor) -> Tensor:
        """``E[y|x] = sum_k pi_k mu_k``, ``(..., D)``: what least squares would predict."""
        logits, means, _ = self._raw(x)
        expected: Tensor = (logits.softmax(-1).unsqueeze(-1) * means).sum(-2)
        return expected

    @torch.no_grad()
    def sample(self, x: Tensor, num_samples: int | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of y for each input, ``(num_samples, ..., D)``, or ``(..., D)`` for None; the component is drawn first, then one Gaussian.

        Raises:
            TypeError, ValueError: naming the argument, the value given and what was expected.
        """
        if num_samples is not None:
            check.positive_int("num_samples", num_samples)
        check.generator(generator, self.head.weight.device, "the model")
        found: MDNOutput = self(x)
        logits, means, log_scale = found
        batch, k, d = means.shape[:-2], self.n_components, self.target_dim
        count, rows = num_samples or 1, batch.numel()
        if rows == 0:
            return means.new_empty((*(() if num_samples is None else (num_samples,)), *batch, d))
        component = torch.multinomial(logits.reshape(rows, k).softmax(-1).float(), count, replacement=True, generator=generator).T
        row = torch.arange(rows, device=x.device)
        scale = log_scale.exp().reshape(rows, k, -1)[row, component]
        noise = torch.randn((count, rows, d), dtype=means.dtype, device=means.device, generator=generator)
        y = means.reshape(rows, k, d)[row, component] + scale * noise
        return y.reshape(*(() if num_samples is None else (count,)), *batch, d)

    def extra_repr(self) -> str:
        """The settings that the printed submodules do not show."""
        shown = {name: getattr(self, name) for name in ("n_components", "target_dim", "min_scale", "shared_scale")}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
