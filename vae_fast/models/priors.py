"""Priors over the latent variable of a VAE that are made of its own posteriors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional import _arguments as check
from vae_fast.functional import mixture_log_prob
from vae_fast.models._mixture_distribution import MixtureDistribution
from vae_fast.models._posterior import posterior_of


class VampPrior(nn.Module):
    r"""The variational mixture of posteriors (Tomczak and Welling 2018, "VAE with a VampPrior", eq. 8 to 10).

    .. math:: p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k)

    where q is the encoder's posterior and the K pseudo-inputs ``u_k`` are learned with the rest. Its density is one call of
    :func:`vae_fast.mixture_log_prob` with K diagonal Gaussians; the encoder runs once on the pseudo-inputs for each call.

    The same prior in other packages: ``VAMP`` in pythae, ``VampPrior`` in SysVI (scvi-tools; per dimension, with learned weights). RecVAE's
    composite prior is a factorized mixture, too: :func:`vae_fast.mixture_log_prob` with ``factorized=True`` and three components.

    Give the encoder of the VAE itself: its weights are then trained through the prior too.

    Args:
        encoder: as in :class:`vae_fast.models.VAE`: a pair ``(mu, logvar)`` or one tensor holding both.
        n_pseudo: K.
        input_shape: of one input: a size or a shape.
        bounds: pseudo-inputs are kept between these two numbers (grey values: 0 and 1); None for data without bounds.
        pseudo_inputs: where they start, ``(K, *input_shape)``: data, say. None draws them uniformly between the bounds, or from N(0, 1).
        factorized: True: every latent dimension is a mixture by itself, ``p(z) = prod_d 1/K sum_k q(z_d | u_k)``, as in SysVI (scvi-tools),
            and so is what is drawn.
        latent_ndim: number of latent dimensions, as the ``latent_dim`` of the VAE has; they are flattened.
        generator: CPU generator for the draw; None is torch's default.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vae_fast.models import VAE, VampPrior
        >>> encoder = nn.Linear(784, 2 * 20)
        >>> vae = VAE(encoder, nn.Linear(20, 784), latent_dim=20, prior=VampPrior(encoder, 50, 784))
        >>> vae.loss(torch.rand(8, 784)).backward()
        >>> vae.prior.pseudo_inputs.grad.shape
        torch.Size([50, 784])
    """

    weight_logits: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        n_pseudo: int,
        input_shape: int | Sequence[int],
        *,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        pseudo_inputs: Tensor | None = None,
        factorized: bool = False,
        latent_ndim: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        check.module("encoder", encoder)
        check.positive_int("n_pseudo", n_pseudo)
        check.positive_int("latent_ndim", latent_ndim)
        check.flag("factorized", factorized)
        shape = (n_pseudo, *check.sizes("input_shape", input_shape))
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"bounds={check.shown(bounds)}: expected a pair of numbers, or None")
            low = check.real("bounds[0]", bounds[0])
            bounds = (low, check.real("bounds[1]", bounds[1], low))
        check.generator(generator, torch.device("cpu"), "what it draws")
        if pseudo_inputs is None:
            if bounds is None:
                pseudo_inputs = torch.randn(shape, generator=generator)
            else:
                pseudo_inputs = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
        else:
            check.tensor("pseudo_inputs", pseudo_inputs)
            if pseudo_inputs.shape != shape:
                raise ValueError(f"pseudo_inputs has shape {tuple(pseudo_inputs.shape)}: expected {shape}")
        self.encoder, self.bounds, self.factorized, self.latent_ndim = encoder, bounds, factorized, latent_ndim
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self.register_buffer("weight_logits", torch.zeros(n_pseudo), persistent=False)

    def distribution(self) -> MixtureDistribution:
        """The mixture of the posteriors as they are now, over ``(L,)``; gradients reach the pseudo-inputs and the encoder."""
        u = self.pseudo_inputs if self.bounds is None else self.pseudo_inputs.clamp(*self.bounds)
        mu, logvar = posterior_of(self.encoder(u), self.latent_ndim)
        return MixtureDistribution(self.weight_logits, mu.flatten(1), 0.5 * logvar.flatten(1), validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)`` in nats, ``(..., L)`` to ``(...)``."""
        if self.factorized:
            return mixture_log_prob(z, *self.distribution().parameters, factorized=True)
        return self.distribution().log_prob(z)

    def forward(self, z: Tensor) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(z)

    def sample(self, n: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent draws of z, ``(n, L)``, without gradients.

        Example:
            >>> from torch import nn
            >>> from vae_fast.models import VampPrior
            >>> VampPrior(nn.Linear(6, 2 * 3), 10, 6).sample(4).shape
            torch.Size([4, 3])
        """
        check.positive_int("n", n)
        with torch.no_grad():
            mixture = self.distribution()
            if not self.factorized:
                return mixture.sample((n,), generator=generator)
            _, means, log_std = mixture.parameters
            pick = torch.randint(len(means), (n, means.shape[1]), device=means.device, generator=generator)
            noise = torch.randn(pick.shape, dtype=means.dtype, device=means.device, generator=generator)
            return means.gather(0, pick) + log_std.exp().gather(0, pick) * noise

    def extra_repr(self) -> str:
        """The settings that the printed encoder does not show."""
        factorized = ", factorized=True" if self.factorized else ""
        return f"n_pseudo={len(self.pseudo_inputs)}, input_shape={tuple(self.pseudo_inputs.shape[1:])}, bounds={self.bounds}{factorized}"
