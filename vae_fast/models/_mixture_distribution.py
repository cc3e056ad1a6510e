"""A mixture of Gaussians as a :class:`torch.distributions.Distribution`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vae_fast import functional as F
from vae_fast.functional import _arguments as check
from vae_fast.functional.mixture import has_factors
from vae_fast.models import _em


class MixtureDistribution(Distribution):
    r"""``p(x) = sum_k w_k N(x; mu_k, Sigma_k)`` over vectors of D numbers: ``batch_shape`` is (), ``event_shape`` (D,).

    Args:
        weight_logits, means, scale, covariance_type: as in :func:`vae_fast.mixture_log_prob`.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Raises:
        TypeError, ValueError: by :meth:`log_prob`, naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from vae_fast.models import MixtureDistribution
        >>> p = MixtureDistribution(torch.zeros(2), torch.tensor([[-3.0], [3.0]]), torch.zeros(2, 1))
        >>> p.mean, p.variance, p.sample((5,)).shape
        (tensor([0.]), tensor([10.]), torch.Size([5, 1]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  the base class declares an instance attribute
    has_rsample = False

    def __init__(
        self, weight_logits: Tensor, means: Tensor, scale: Tensor, *, covariance_type: str = "diag", validate_args: bool | None = None
    ) -> None:
        """See the class."""
        has_factors(covariance_type)  # refuses another name
        for name, value in (("weight_logits", weight_logits), ("means", means), ("scale", scale)):
            check.tensor(name, value)
        if validate_args is not None:
            check.flag("validate_args", validate_args)
        self.parameters, self.covariance_type = _em.Parameters(weight_logits, means, scale), covariance_type
        super().__init__(torch.Size(), means.shape[1:], validate_args)

    @property
    def support(self) -> Any:
        """All vectors of real numbers."""
        return constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats: ``(..., D)`` to ``(...)``; differentiable in ``value`` and the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        return F.mixture_log_prob(value, *self.parameters, covariance_type=self.covariance_type)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``(*sample_shape, D)``, without gradients; ``generator`` must be on the device of the parameters."""
        return self.sample_with_component(sample_shape, generator=generator)[0]

    @torch.no_grad()
    def sample_with_component(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(*sample_shape, D)`` and the component of each, int64 ``(*sample_shape)``.

        The component is drawn first and then one Gaussian: time and memory are O(N D) for the diagonal forms and O(N D^2) time for the
        others, never N x K x D.
        """
        logits, means, scale = self.parameters
        shape = torch.Size(sample_shape)
        n, dim = shape.numel(), means.shape[1]
        if n == 0:
            return means.new_empty((*shape, dim)), torch.empty(shape, dtype=torch.int64, device=means.device)
        component = torch.multinomial(logits.softmax(0), n, replacement=True, generator=generator)
        z = torch.randn((n, dim), dtype=means.dtype, device=means.device, generator=generator)
        if self.covariance_type == "diag":
            z *= scale.exp()[component]
        elif self.covariance_type == "spherical":
            z *= scale.exp()[component].unsqueeze(1)
        elif self.covariance_type == "tied":
            z = _colour(z, scale)
        elif self.covariance_type == "full":
            order = component.argsort()
            counts = torch.bincount(component, minlength=len(means)).tolist()
            for k, rows in enumerate(order.split(counts)):
                z[rows] = _colour(z[rows], scale[k])
        else:
            raise ValueError(f"covariance_type={self.covariance_type!r}: expected one that can be drawn from")
        x = z.add_(means[component])
        return x.reshape(*shape, dim), component.reshape(shape)

    @property
    def mean(self) -> Tensor:
        """``sum_k w_k mu_k``, ``(D,)``."""
        return self.parameters.weight_logits.softmax(0) @ self.parameters.means

    @property
    def variance(self) -> Tensor:
        """The variance of each feature, ``(D,)``: within the components and between them."""
        covariances = _em.covariances_of(self.parameters, self.covariance_type).to(self.parameters.means.dtype)
        if has_factors(self.covariance_type):
            covariances = covariances.diagonal(dim1=-2, dim2=-1)
        within = covariances.unsqueeze(-1) if self.covariance_type == "spherical" else covariances
        return self.parameters.weight_logits.softmax(0) @ (within + (self.parameters.means - self.mean).square())


def _colour(z: Tensor, factor: Tensor) -> Tensor:
    # The covariance is (P P^T)^-1, so x = P^-T z; as rows, x P = z.
    x: Tensor = torch.linalg.solve_triangular(factor.triu(), z, upper=True, left=False)
    return x
