"""A variational autoencoder around any encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_fast import functional as F
from vae_fast.functional import _arguments as check
from vae_fast.functional._bounds import ScaleBounds
from vae_fast.functional._bounds import checked as checked_bounds
from vae_fast.functional._likelihood_term import log_likelihood
from vae_fast.functional._numbers import Number, setting
from vae_fast.functional._own_likelihood import LogProb
from vae_fast.likelihoods import Likelihood
from vae_fast.models._decoded import Losses, Recon, VAEOutput, decode_samples, parameters_of_x, with_scale
from vae_fast.models._evidence import log_evidence
from vae_fast.models._objective import Regularizer, check_kl, check_regularizer, how_of, loss_and_kl, loss_of
from vae_fast.models._posterior import posterior_of
from vae_fast.models._vae_arguments import check_recon_bounds, check_scale
from vae_fast.models._vae_prior import check_prior, gaussian_parameter, log_prior, sample_prior


class VAE(nn.Module):
    r"""Encoder, decoder, likelihood and prior, trained on the evidence lower bound (Kingma and Welling 2014).

    The loss is one call of :func:`vae_fast.elbo_loss`, the latent sample one call of :func:`vae_fast.reparameterize`.
    Everything runs under autocast and ``torch.compile(fullgraph=True)`` as far as the encoder and the decoder do.

    Args:
        encoder: ``encoder(x)`` gives the posterior ``q(z|x)``: a pair ``(mu, logvar)``, each ``(batch, *latent)``, or
            one tensor that holds both one after the other along its first latent dimension, e.g. ``(batch, 2 L)`` from
            ``nn.Linear(H, 2 * L)``.
        decoder: ``decoder(z)`` gives the parameters of ``p(x|z)``, see ``likelihood``; shape ``(batch, *event)``.
        latent_dim: size of z, or its shape for a latent with several dimensions. None: one dimension of any size; only
            :meth:`sample` needs to know it.
        likelihood: ``"bernoulli"`` (the decoder gives logits), ``"bernoulli_probs"`` (probabilities), ``"gaussian"`` (the mean, or a pair
            ``(mean, logvar)``), ``"laplace"`` or ``"log_normal"`` (``loc``, or a pair ``(loc, log_scale)``), ``"continuous_bernoulli"``
            (logits), ``"student_t"`` (``(df, loc)`` or ``(df, loc, log_scale)``), ``"poisson"`` (``log_rate``), ``"negative_binomial"``
            (``(log_mu, log_theta)``) or ``"zero_inflated_negative_binomial"`` (``(log_mu, log_theta, zi_logits)``); or a function
            ``f(x, recon)`` (``f(x, *recon)`` for a tuple) that gives one log-probability per sample, see :func:`vae_fast.elbo`: such a
            model has no :meth:`sample`.
        scale: the scale of ``p(x|z)``, where the decoder does not give it, in the form of the likelihood's last parameter (log-variance
            of ``"gaussian"``, log-scale of the others). A tensor becomes a buffer, an ``nn.Parameter`` is trained: of shape ``()`` it is
            one scale for all, of ``(C, 1, 1)`` one for each channel of an image, of that of one ``x`` one for each element (the sigma-VAE
            of Rybkin, Daniilidis and Levine 2021, whose scale finds the weight of the KL that is otherwise beta). None: 1, or the
            decoder's.
        clip: clip mode of the Bernoulli likelihoods, see :func:`vae_fast.bernoulli_log_prob`.
        eps: the constant of the clip mode.
        beta: weight of the KL divergence in the loss: a number, or a tensor of no dimensions. It is an attribute and may be changed
            during training; a tensor that is changed in place changes a compiled or recorded step, too.
        prior_mu: mean of the prior, broadcast against z; None is 0. A tensor or a number becomes a buffer, an ``nn.Parameter`` is
            trained.
        prior_logvar: log-variance of the prior; None is 0.
        prior: any other prior, instead: a module with ``log_prob(z)``, ``(..., L)`` to ``(...)``, and ``sample(n)``, ``(n, L)`` (or a tuple
            that begins with it): a :class:`vae_fast.models.MixtureOfGaussians` with ``n_features=L``, a
            :class:`vae_fast.models.VampPrior`, a flow, ... An object of ``torch.distributions`` over ``(L,)`` becomes a
            :class:`vae_fast.models.DistributionPrior`. A latent with several dimensions is flattened for it. It is trained with the model.
        free_bits: least value of each KL element in the loss, in nats; a number or a tensor, as ``beta``.
        regularizer: what else the loss holds, in nats: any ``f(z, mu, logvar)`` of three ``(batch, L)`` (a latent with several dimensions
            is flattened for it) that gives one number for the batch, ``()``, or one for each sample, ``(batch,)``; the parameters of a
            module are trained. See :func:`vae_fast.total_correlation` (beta-TC-VAE) and :func:`vae_fast.mmd` (InfoVAE).
        scale_bounds: ``(low, high, mode)``, bounds of the posterior's log-variance wherever the model uses it (the loss, the sample, the
            estimate of log p(x)), see :func:`vae_fast.gaussian_kl`; :meth:`encode` gives it as the encoder does.
        recon_scale_bounds: the same of the scale of ``p(x|z)``, the decoder's or the model's own, see :func:`vae_fast.elbo`.
        num_samples, kl: how the loss is estimated unless :meth:`loss` is told otherwise, by :func:`vae_fast.training.fit` too.
        event_dim: number of trailing dimensions of one ``x``: 1 for vectors, 3 for images ``(C, H, W)``.

    With ``prior`` there is no closed form of the KL divergence: its place is taken by ``log q(z|x) - log p(z)`` at the z that is decoded,
    whose mean over z it is.

    ``x`` may be floating (in the dtype of the encoder), bool or uint8: the encoder is given ``x / 255``, the likelihood
    reads the bytes themselves. Counts may be floating or integers: the encoder is given the numbers (whose logarithm ``x.log1p()`` is a
    sensible first step of it).

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vae_fast.models import VAE
        >>> vae = VAE(nn.Linear(784, 2 * 20), nn.Linear(20, 784), latent_dim=20)
        >>> vae.loss(torch.rand(8, 784)).backward()
        >>> vae.sample(3).shape
        torch.Size([3, 784])

        One learned log-variance for each of three channels:

        >>> encoder, decoder = nn.Flatten(), nn.Sequential(nn.Linear(96, 192), nn.Unflatten(-1, (3, 8, 8)))
        >>> scale = nn.Parameter(torch.zeros(3, 1, 1))
        >>> vae = VAE(encoder, decoder, latent_dim=96, likelihood="gaussian", scale=scale, event_dim=3)
        >>> vae.loss(torch.rand(4, 3, 8, 8)).backward()
        >>> scale.grad.shape, vae.sample(2, mean=False).shape
        (torch.Size([3, 1, 1]), torch.Size([2, 3, 8, 8]))

        A beta-TC-VAE with beta 6, the five total correlations that its KL divergence does not hold:

        >>> import vae_fast
        >>> tc = lambda z, mu, logvar: 5.0 * vae_fast.total_correlation(z, mu, logvar, dataset_size=60_000).total_correlation
        >>> vae = VAE(nn.Linear(784, 2 * 10), nn.Linear(10, 784), latent_dim=10, regularizer=tc)
        >>> vae.loss(torch.rand(8, 784)).backward()
    """

    scale: Tensor | None
    prior_mu: Tensor | None
    prior_logvar: Tensor | None
    prior: Any  # a module with log_prob and sample, or None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int | Sequence[int] | None = None,
        likelihood: str | LogProb = "bernoulli",
        scale: Tensor | None = None,
        clip: str | None = None,
        eps: float = 1e-9,
        beta: float | Tensor = 1.0,
        prior_mu: Number | None = None,
        prior_logvar: Number | None = None,
        prior: nn.Module | Distribution | None = None,
        free_bits: float | Tensor | None = None,
        regularizer: Regularizer | None = None,
        scale_bounds: ScaleBounds | None = None,
        recon_scale_bounds: ScaleBounds | None = None,
        num_samples: int = 1,
        kl: str | None = None,
        event_dim: int = 1,
    ) -> None:
        """See the class."""
        super().__init__()
        check.any_likelihood(likelihood, clip, eps)
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            check.module(name, part)
        check.positive_int("event_dim", event_dim)
        check.positive_int("num_samples", num_samples)
        beta = setting("beta", beta)
        if free_bits is not None:
            free_bits = setting("free_bits", free_bits, 0.0)
        if prior is not None:
            for name, value in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar), ("free_bits", free_bits)):
                if value is not None:
                    raise ValueError(f"prior and {name} were both given: expected one of them, {name} belongs to a Gaussian prior")
            prior = check_prior(prior)
        if regularizer is not None:
            check_regularizer(regularizer)
        self.latent_shape = None if latent_dim is None else check.sizes("latent_dim", latent_dim)
        self.encoder, self.decoder, self.prior, self.regularizer = encoder, decoder, prior, regularizer
        self.num_samples, self.kl = num_samples, None if kl is None else check_kl(prior, free_bits, kl)
        self.likelihood, self.clip, self.eps = likelihood, clip, eps
        self.beta, self.free_bits, self.event_dim = beta, free_bits, event_dim
        self.scale_bounds = checked_bounds(scale_bounds, "logvar")
        self.recon_scale_bounds = check_recon_bounds(recon_scale_bounds, None if callable(likelihood) else self._entry())
        for name, value in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
            self._set(name, gaussian_parameter(name, value, self.latent_shape, self._anchor()))
        if scale is not None:
            check_scale(scale, None if callable(likelihood) else self._entry(), event_dim)
        self._set("scale", scale)

    def _set(self, name: str, value: Tensor | None) -> None:
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value)

    @property
    def latent_ndim(self) -> int:
        """Number of trailing dimensions of z."""
        return 1 if self.latent_shape is None else len(self.latent_shape)

    def _anchor(self) -> Tensor:
        """A tensor with the dtype and device of the model."""
        for p in self.parameters():
            if p.is_floating_point():
                return p
        return torch.empty(())

    # --- the network --------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior ``(mu, logvar)`` of ``x``, each ``(batch, *latent)``.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> mu, logvar = MLPVAE(latent_dim=2).encode(torch.rand(5, 784))
            >>> mu.shape, logvar.shape
            (torch.Size([5, 2]), torch.Size([5, 2]))
        """
        of_counts = not callable(self.likelihood) and self._entry().of_counts
        if of_counts:
            x = check.counts("x", x)
            x = x.to_dense() if x.layout == torch.sparse_csr else x
        else:
            check.tensor("x", x, check.TARGETS)
        if x.dtype == torch.uint8 and not of_counts:
            x = x.to(self._anchor().dtype) / 255.0
        elif not x.is_floating_point():
            x = x.to(self._anchor().dtype)
        return posterior_of(self.encoder(x), self.latent_ndim)

    def decode(self, z: Tensor) -> Recon:
        """The decoder's raw output: logits, probabilities, a mean or a ``(mean, logvar)`` pair, by ``likelihood``."""
        recon: Recon = self.decoder(z)
        return recon

    def mean_of(self, recon: Recon) -> Tensor:
        """The mean of ``p(x|z)`` for the decoder's output: pixel values in [0, 1] for the Bernoulli likelihoods; it has gradients."""
        return self._entry().mean(parameters_of_x(self, recon))

    def _entry(self) -> Likelihood:
        if callable(self.likelihood):
            raise ValueError("likelihood is a function: the mean of p(x|z) and how to draw from it are not known; call decode(z)")
        return check.likelihood(self.likelihood, self.clip, self.eps)

    def draw_of(self, recon: Recon, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw from ``p(x|z)`` for the decoder's output: black and white pixels for the Bernoulli likelihoods.

        Args:
            recon: what :meth:`decode` gave.
            generator: where it is drawn from; None is torch's default for the device.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> vae = MLPVAE(latent_dim=2)
            >>> vae.draw_of(vae.decode(torch.zeros(3, 2))).unique()
            tensor([0., 1.])
        """
        parameters = parameters_of_x(self, recon)
        check.generator(generator, parameters[0].device, "recon")
        return self._entry().draw([t.detach() for t in parameters], generator)

    def forward(
        self, x: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None, num_samples: int | None = None
    ) -> VAEOutput:
        """Encode, draw z, decode.

        Args:
            x: data, ``(batch, *event)``.
            noise: the caller's own N(0, 1) noise, of the shape of z; None draws it.
            generator: where the noise is drawn from; None is torch's default for the device.
            num_samples: z is ``(num_samples, batch, *latent)``, all decoded at once; None: one z for each row, ``(batch, *latent)``.

        Returns:
            :class:`VAEOutput` ``(recon, mu, logvar, z)``; give it to :meth:`losses_of` (this is the way with
            ``DistributedDataParallel``, whose hooks sit on ``forward``).

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2)(torch.rand(5, 784)).recon.shape
            torch.Size([5, 784])
        """
        mu, logvar = self.encode(x)
        z = F.reparameterize(mu, logvar, scale_bounds=self.scale_bounds, num_samples=num_samples, noise=noise, generator=generator)
        return VAEOutput(self.decode(z) if num_samples is None else decode_samples(self, z), mu, logvar, z)

    # --- objectives ---------------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        num_samples: int | None = None,
        kl: str | None = None,
        dataset_size: int | None = None,
    ) -> Tensor:
        r"""The negative evidence lower bound, in nats (Kingma and Welling 2014, section 2.3).

        .. math:: \tilde L^A = \frac1L \sum_l \log p(x, z_l) - \log q(z_l|x), \quad
            \tilde L^B = \frac1L \sum_l \log p(x|z_l) - \mathrm{KL}, \quad L(X) \approx \frac NM \sum_{i \le M} \tilde L(x_i)

        Args:
            x: data, ``(batch, *event)``.
            noise, generator: as in :meth:`forward`.
            reduction: over the batch: ``"mean"`` (default), ``"sum"`` or ``"none"``. Pixels and latents are always
                summed.
            num_samples: L, the z of each row; None: the model's own. ``noise`` of more than one is ``(L, batch, *latent)``.
            kl: ``"analytic"`` (eq. 7, estimator B) or ``"sampled"`` (eq. 6, estimator A; weighed by beta); None: the model's own, and of
                that None analytic, where the prior is Gaussian. It cannot be with ``prior``, nor sampled with free bits.
            dataset_size: N, the rows that the batch stands for: the sum (or each row) times N over the batch's M (eq. 8). None: it is
                the batch's own loss.

        Returns:
            float32 (float64 for a float64 model), shape ``()``, or ``(batch,)`` for ``"none"``.

        Raises:
            TypeError, ValueError: naming the argument, the value given and what was expected.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2).loss(torch.rand(5, 784), reduction="none").shape
            torch.Size([5])
        """
        return loss_of(self, x, self._pass(x, noise, generator, num_samples), how_of(self, reduction, kl, dataset_size))

    def _pass(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None, num_samples: int | None) -> VAEOutput:
        if num_samples is not None:
            check.positive_int("num_samples", num_samples)
        several = self.num_samples if num_samples is None else num_samples
        output: VAEOutput = self(x, noise, generator) if several == 1 else self(x, noise, generator, several)
        return output

    def losses(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        num_samples: int | None = None,
        kl: str | None = None,
        dataset_size: int | None = None,
    ) -> Losses:
        """:meth:`loss` and, for the log, the KL divergence of the same pass; arguments as in :meth:`loss`.

        The KL is without beta and free bits and carries no gradient; where it is sampled it is what the loss
        holds. The network and the likelihood run once. The reconstruction term is ``loss - beta * kl`` (without free bits and
        regularizer).

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> loss, kl = MLPVAE(latent_dim=2).losses(torch.rand(5, 784))
            >>> loss.requires_grad, kl.requires_grad
            (True, False)
        """
        return self.losses_of(x, self._pass(x, noise, generator, num_samples), reduction=reduction, kl=kl, dataset_size=dataset_size)

    def losses_of(
        self, x: Tensor, output: VAEOutput, *, reduction: str = "mean", kl: str | None = None, dataset_size: int | None = None
    ) -> Losses:
        """:meth:`losses` from what :meth:`forward` gave for ``x``, with as many samples as it drew."""
        return Losses(*loss_and_kl(self, x, output, how_of(self, reduction, kl, dataset_size)))

    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z)`` in nats, summed over the latent dimensions: ``(..., *latent)`` to ``(...)``.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2).log_prior(torch.zeros(3, 2))
            tensor([-1.8379, -1.8379, -1.8379])
        """
        return log_prior(self, z)

    def log_posterior(self, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """``log q(z|x)`` in nats of the posterior that :meth:`encode` gave, its scale within ``scale_bounds``; batch dimensions broadcast.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2).log_posterior(*torch.zeros(3, 5, 2)).shape
            torch.Size([5])
        """
        return F.gaussian_log_prob(z, mu, logvar, scale_bounds=self.scale_bounds, event_dim=self.latent_ndim)

    def log_likelihood(self, x: Tensor, recon: Recon) -> Tensor:
        """``log p(x|z)`` in nats for the decoder's output; batch dimensions of ``x`` and ``recon`` broadcast."""
        return log_likelihood(x, with_scale(self, recon), self.likelihood, self.clip, self.eps, self.event_dim, self.recon_scale_bounds)

    def log_prob(self, x: Tensor, num_samples: int = 100, *, generator: torch.Generator | None = None, max_rows: int = 8192) -> Tensor:
        r"""Importance-weighted estimate of ``log p(x)``, in nats (Burda, Grosse and Salakhutdinov 2016, eq. 8).

        .. math:: \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

        Its mean is a lower bound that grows with K, and the ELBO (with ``beta=1``) for K = 1. ``x`` is broadcast
        against the samples, never repeated, and at most ``max_rows`` pairs of image and sample are decoded at once:
        under ``torch.no_grad()`` memory does not grow with K beyond one number per pair. Gradients flow (the IWAE
        objective) when they are wanted.

        Args:
            x: data, ``(*batch, *event)``.
            num_samples: K, at least 1.
            generator: where the noise is drawn from; None is torch's default for the device.
            max_rows: most rows the decoder is given in one call. The noise drawn depends on it.

        Returns:
            float32 (float64 for a float64 model), shape ``batch``.

        Raises:
            TypeError, ValueError: naming the argument, the value given and what was expected.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> with torch.no_grad():
            ...     MLPVAE(latent_dim=2).log_prob(torch.rand(5, 784), num_samples=10).shape
            torch.Size([5])
        """
        return log_evidence(self, x, num_samples, max_rows, generator)

    # --- generation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None, mean: bool = True) -> Tensor:
        """``n`` draws of z from the prior, and of each the mean of ``p(x|z)``, ``(n, *event)``.

        Args:
            n: how many.
            generator: where all is drawn from; None is torch's default for the device.
            mean: False: draw x from ``p(x|z)`` instead, see :meth:`draw_of`.

        Raises:
            TypeError: if an argument is not of its kind.
            ValueError: if the model was built without ``latent_dim``.

        Example:
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2).sample(3).shape
            torch.Size([3, 784])
        """
        check.positive_int("n", n)
        check.flag("mean", mean)
        if self.latent_shape is None:
            raise ValueError("latent_dim is not known: build the model with VAE(..., latent_dim=L) to sample from it")
        check.generator(generator, self._anchor().device, "the model")
        recon = self.decode(sample_prior(self, self._anchor(), (n, *self.latent_shape), generator))
        return self.mean_of(recon) if mean else self.draw_of(recon, generator=generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of ``p(x|z)`` at the posterior mean of ``x``; the shape of ``x``. Nothing is drawn.

        Example:
            >>> import torch
            >>> from vae_fast.models import MLPVAE
            >>> MLPVAE(latent_dim=2).reconstruct(torch.rand(5, 784)).shape
            torch.Size([5, 784])
        """
        return self.mean_of(self.decode(self.encode(x)[0]))

    def extra_repr(self) -> str:
        """The settings that the printed submodules do not show."""
        shown = {"likelihood": self.likelihood, "clip": self.clip, "beta": self.beta, "event_dim": self.event_dim}
        if self.regularizer is not None and not isinstance(self.regularizer, nn.Module):
            shown["regularizer"] = getattr(self.regularizer, "__name__", type(self.regularizer).__name__)
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())
