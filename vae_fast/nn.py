"""The losses as modules: the constructor takes the options, and checks them; ``forward`` takes the tensors.

Each is one call of the function of the same purpose, on which every shape, dtype and formula is written down. Options are attributes and
may be changed between calls: ``loss.beta = 0.5``. Under ``torch.compile`` there is one graph for its first value and one for all others.
With ``dynamic=False``, where torch builds every number in, give a tensor of no dimensions and change it in place (``beta.fill_(0.5)``).
There are no parameters and no buffers: the ``state_dict`` is empty.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from vae_fast import functional as F
from vae_fast._scales import SCALES
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional._dispatch import reduce
from vae_fast.functional._evaluate import Parts
from vae_fast.functional._likelihood_term import Recon
from vae_fast.functional._numbers import Number, setting
from vae_fast.functional._own_likelihood import LogProb

__all__ = ["BernoulliNLLLoss", "ELBOLoss", "GaussianKL", "GaussianNLLLoss", "IWAELoss"]


class _Loss(nn.Module):
    """A function of tensors, its options as attributes."""

    reduction: str

    def __init__(self, **options: Any) -> None:
        """Keep the options, which the subclass has checked."""
        super().__init__()
        self._options = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def _chosen(self, *but: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._options if name not in but}

    def extra_repr(self) -> str:
        """The options that are not the default."""
        parameters = inspect.signature(type(self).__init__).parameters
        shown = {name: value for name, value in self._chosen().items() if isinstance(value, Tensor) or value != parameters[name].default}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _check_common(reduction: str, **dims: int) -> None:
    check.one_of("reduction", reduction, check.REDUCTIONS)
    for name, value in dims.items():
        check.count(name, value)


class ELBOLoss(_Loss):
    r"""The loss of a VAE, :func:`vae_fast.elbo_loss`: :math:`-\log p(x \mid z) + \beta\, \mathrm{KL}(q \| p)`, in nats.

    Args:
        likelihood, beta, clip, eps, scale, scale_bounds, recon_scale_bounds, free_bits, event_dim, latent_dim, return_parts,
            donate_recon, check_data: as in :func:`vae_fast.elbo_loss`.
        reduction: over the batch: ``"mean"`` (over samples, never over pixels), ``"sum"`` or ``"none"``.

    Shape:
        - x: ``(*batch, *event)``; floating, bool or uint8 (read as ``x / 255``).
        - recon: ``(*batch, *event)``, or a (mean, logvar) pair of it for ``"gaussian"``.
        - mu, logvar: ``(*batch, *latent)``; prior_mu, prior_logvar: broadcast against them, or numbers; None is N(0, 1).
        - result: ``()``, or ``batch`` for ``"none"``; float32 (float64 if any input is); with ``return_parts`` three of them,
          ``(loss, likelihood, kl)``.

    Raises:
        TypeError, ValueError: for an option (here), or a tensor (when called), naming it, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> loss = vae_fast.nn.ELBOLoss(beta=0.5, event_dim=3)
        >>> x, logits = torch.rand(4, 1, 28, 28), torch.randn(4, 1, 28, 28, requires_grad=True)
        >>> loss(x, logits, torch.zeros(4, 20), torch.zeros(4, 20)).backward()
        >>> loss
        ELBOLoss(beta=0.5, event_dim=3)
    """

    def __init__(
        self,
        *,
        likelihood: str | LogProb = "bernoulli",
        beta: float | Tensor = 1.0,
        clip: str | None = None,
        eps: float = 1e-9,
        scale: str = "logvar",
        scale_bounds: bounds.ScaleBounds | None = None,
        recon_scale_bounds: bounds.ScaleBounds | None = None,
        free_bits: float | Tensor | None = None,
        event_dim: int = 1,
        latent_dim: int = 1,
        reduction: str = "mean",
        return_parts: bool = False,
        donate_recon: bool = False,
        check_data: bool = False,
    ) -> None:
        """See the class."""
        check.any_likelihood(likelihood, clip, eps)
        check.one_of("scale", scale, SCALES)
        _check_common(reduction, event_dim=event_dim, latent_dim=latent_dim)
        check.flag("return_parts", return_parts)
        check.flag("donate_recon", donate_recon)
        check.flag("check_data", check_data)
        if donate_recon and reduction == "none":
            raise ValueError("donate_recon=True: expected reduction='mean' or 'sum', got 'none', which needs recon in the backward pass")
        super().__init__(
            likelihood=likelihood,
            beta=setting("beta", beta),
            clip=clip,
            eps=eps,
            scale=scale,
            scale_bounds=bounds.checked(scale_bounds, scale),
            recon_scale_bounds=bounds.checked(recon_scale_bounds, "logvar", "recon_scale_bounds"),
            free_bits=None if free_bits is None else setting("free_bits", free_bits, 0.0),
            event_dim=event_dim,
            latent_dim=latent_dim,
            reduction=reduction,
            return_parts=return_parts,
            donate_recon=donate_recon,
            check_data=check_data,
        )

    def forward(
        self, x: Tensor, recon: Recon, mu: Tensor, logvar: Tensor, prior_mu: Number | None = None, prior_logvar: Number | None = None
    ) -> Tensor | Parts:
        """The loss of a batch, or with its parts; shapes: see the class."""
        loss: Tensor | Parts = F.elbo_loss(x, recon, mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, **self._chosen())
        return loss


class IWAELoss(_Loss):
    r"""The loss of an importance-weighted autoencoder, :func:`vae_fast.iwae_loss`: minus the bound of K samples, in nats.

    Args:
        likelihood, clip, eps, scale, scale_bounds, recon_scale_bounds, event_dim, latent_dim, check_data: as in
            :func:`vae_fast.elbo_loss`.
        sample_dim: which batch dimension of recon and z holds the samples, see :func:`vae_fast.iwae_loss`.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - x: ``(*batch, *event)``.
        - recon: ``(K, *batch, *event)``, or a pair of it; z: ``(K, *batch, *latent)``, the samples that were decoded; or with K where
          ``sample_dim`` says.
        - mu, logvar: ``(*batch, *latent)``; prior_mu, prior_logvar: broadcast against them, or numbers; None is N(0, 1).
        - result: ``()``, or ``batch`` for ``"none"``; float32 (float64 if any input is).

    Raises:
        TypeError, ValueError: for an option (here), or a tensor (when called), naming it, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> loss = vae_fast.nn.IWAELoss(reduction="none")
        >>> mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2)
        >>> z = vae_fast.reparameterize(mu, logvar, num_samples=5)
        >>> loss(torch.rand(4, 9), torch.nn.Linear(2, 9)(z), z, mu, logvar).shape
        torch.Size([4])
    """

    def __init__(
        self,
        *,
        likelihood: str | LogProb = "bernoulli",
        clip: str | None = None,
        eps: float = 1e-9,
        scale: str = "logvar",
        scale_bounds: bounds.ScaleBounds | None = None,
        recon_scale_bounds: bounds.ScaleBounds | None = None,
        event_dim: int = 1,
        latent_dim: int = 1,
        sample_dim: int = 0,
        reduction: str = "mean",
        check_data: bool = False,
    ) -> None:
        """See the class."""
        check.any_likelihood(likelihood, clip, eps)
        check.one_of("scale", scale, SCALES)
        _check_common(reduction, event_dim=event_dim, latent_dim=latent_dim)
        check.integer("sample_dim", sample_dim)
        check.flag("check_data", check_data)
        super().__init__(
            likelihood=likelihood,
            clip=clip,
            eps=eps,
            scale=scale,
            scale_bounds=bounds.checked(scale_bounds, scale),
            recon_scale_bounds=bounds.checked(recon_scale_bounds, "logvar", "recon_scale_bounds"),
            event_dim=event_dim,
            latent_dim=latent_dim,
            sample_dim=sample_dim,
            reduction=reduction,
            check_data=check_data,
        )

    def forward(
        self,
        x: Tensor,
        recon: Recon,
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        prior_mu: Number | None = None,
        prior_logvar: Number | None = None,
    ) -> Tensor:
        """The loss of a batch; shapes: see the class."""
        return F.iwae_loss(x, recon, z, mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, **self._chosen())


class GaussianKL(_Loss):
    r"""The KL divergence of a diagonal Gaussian from N(0, 1) or another, :func:`vae_fast.gaussian_kl`, in nats.

    Args:
        scale: what the second tensor is: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"``.
        scale_bounds: ``(low, high, mode)``, between which the second tensor is held, see :func:`vae_fast.gaussian_kl`.
        event_dim: number of trailing dimensions that are summed.
        free_bits: least value of each element, in nats; a number or a tensor of no dimensions.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - mu, logvar: ``(*batch, *event)``; prior_mu, prior_logvar: broadcast against them, or numbers; None is N(0, 1).
        - result: ``()``, or ``batch`` for ``"none"``; float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: for an option (here), or a tensor (when called), naming it, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.nn.GaussianKL(scale="std")(torch.zeros(3, 2), torch.ones(3, 2))
        tensor(0.)
    """

    def __init__(
        self,
        *,
        scale: str = "logvar",
        scale_bounds: bounds.ScaleBounds | None = None,
        event_dim: int = 1,
        free_bits: float | Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        """See the class."""
        check.one_of("scale", scale, SCALES)
        _check_common(reduction, event_dim=event_dim)
        floor = None if free_bits is None else setting("free_bits", free_bits, 0.0)
        between = bounds.checked(scale_bounds, scale)
        super().__init__(scale=scale, scale_bounds=between, event_dim=event_dim, free_bits=floor, reduction=reduction)

    def forward(self, mu: Tensor, logvar: Tensor, prior_mu: Number | None = None, prior_logvar: Number | None = None) -> Tensor:
        """The divergence of a batch; shapes: see the class."""
        return F.gaussian_kl(mu, logvar, prior_mu, prior_logvar, **self._chosen())


class BernoulliNLLLoss(_Loss):
    r"""Minus :func:`vae_fast.bernoulli_log_prob` of logits, in nats; targets may be grey values in [0, 1].

    Unlike :class:`torch.nn.BCEWithLogitsLoss` it sums over the pixels, and only its mean over samples is taken.

    Args:
        clip, eps, event_dim, check_data: as in :func:`vae_fast.bernoulli_log_prob`.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - logits, x: ``(*batch, *event)``; x floating, bool or uint8 (read as ``x / 255``).
        - result: ``()``, or ``batch`` for ``"none"``; float32 (float64 if any input is).

    Raises:
        TypeError, ValueError: for an option (here), or a tensor (when called), naming it, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.nn.BernoulliNLLLoss()(torch.zeros(3, 2), torch.ones(3, 2))
        tensor(1.3863)
    """

    def __init__(
        self, *, clip: str | None = None, eps: float = 1e-9, event_dim: int = 1, reduction: str = "mean", check_data: bool = False
    ) -> None:
        """See the class."""
        check.clip(clip, eps)
        _check_common(reduction, event_dim=event_dim)
        check.flag("check_data", check_data)
        super().__init__(clip=clip, eps=eps, event_dim=event_dim, reduction=reduction, check_data=check_data)

    def forward(self, logits: Tensor, x: Tensor) -> Tensor:
        """The loss of a batch, prediction first as in ``torch.nn``; shapes: see the class."""
        return reduce(-F.bernoulli_log_prob(x, logits, **self._chosen("reduction")), self.reduction)


class GaussianNLLLoss(_Loss):
    r"""Minus :func:`vae_fast.gaussian_log_prob`, in nats, the constant :math:`\tfrac12 \log 2\pi` included.

    Unlike :class:`torch.nn.GaussianNLLLoss` it sums over the event, nothing is clamped unless ``scale_bounds`` says so, and the scale may
    be given in five forms.

    Args:
        scale: what the third tensor is: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"``.
        scale_bounds, event_dim, check_data: as in :func:`vae_fast.gaussian_log_prob`.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - mu, x: ``(*batch, *event)``; logvar: broadcast against mu, None is unit variance.
        - result: ``()``, or ``batch`` for ``"none"``; float32 (float64 if any input is).

    Raises:
        TypeError, ValueError: for an option (here), or a tensor (when called), naming it, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.nn.GaussianNLLLoss()(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor(1.8379)
    """

    def __init__(
        self,
        *,
        scale: str = "logvar",
        scale_bounds: bounds.ScaleBounds | None = None,
        event_dim: int = 1,
        reduction: str = "mean",
        check_data: bool = False,
    ) -> None:
        """See the class."""
        check.one_of("scale", scale, SCALES)
        _check_common(reduction, event_dim=event_dim)
        check.flag("check_data", check_data)
        between = bounds.checked(scale_bounds, scale)
        super().__init__(scale=scale, scale_bounds=between, event_dim=event_dim, reduction=reduction, check_data=check_data)

    def forward(self, mu: Tensor, x: Tensor, logvar: Tensor | None = None) -> Tensor:
        """The loss of a batch, prediction first as in ``torch.nn``; shapes: see the class."""
        return reduce(-F.gaussian_log_prob(x, mu, logvar, **self._chosen("reduction")), self.reduction)
