"""The evidence lower bound in one call: likelihood and KL of every sample, summed and reduced in one pass over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, overload

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional._dispatch import overridable
from vae_fast.functional._evaluate import Parts, evaluated
from vae_fast.functional._likelihood_term import Recon
from vae_fast.functional._numbers import Number
from vae_fast.functional._own_likelihood import LogProb

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _ELBOOptions(TypedDict, total=False):
    """What :func:`elbo` takes by name, to those who check types."""

    likelihood: str | LogProb
    beta: float | Tensor
    clip: str | None
    eps: float
    prior_mu: Number | None
    prior_logvar: Number | None
    scale: str
    scale_bounds: bounds.ScaleBounds | None
    recon_scale_bounds: bounds.ScaleBounds | None
    free_bits: float | Tensor | None
    event_dim: int
    latent_dim: int
    check_data: bool


class _LossOptions(_ELBOOptions, total=False):
    """And :func:`elbo_loss`."""

    reduction: str
    donate_recon: bool


@overload
def elbo(
    x: Tensor, recon: Recon, mu: Tensor, logvar: Tensor, *, return_parts: Literal[False] = False, **options: Unpack[_ELBOOptions]
) -> Tensor: ...
@overload
def elbo(x: Tensor, recon: Recon, mu: Tensor, logvar: Tensor, *, return_parts: Literal[True], **options: Unpack[_ELBOOptions]) -> Parts: ...
@overridable
def elbo(
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str | LogProb = "bernoulli",
    beta: float | Tensor = 1.0,
    clip: str | None = None,
    eps: float = 1e-9,
    prior_mu: Number | None = None,
    prior_logvar: Number | None = None,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    recon_scale_bounds: bounds.ScaleBounds | None = None,
    free_bits: float | Tensor | None = None,
    event_dim: int = 1,
    latent_dim: int = 1,
    return_parts: bool = False,
    check_data: bool = False,
) -> Tensor | Parts:
    r"""Evidence lower bound of each sample with an analytic KL, in nats.

    .. math:: \mathrm{ELBO}(x) = \log p(x \mid z) - \beta\, \mathrm{KL}(N(\mu, \sigma^2) \| N(\mu_0, \sigma_0^2))

    (Kingma and Welling 2014, eq. 10; beta: Higgins et al. 2017.) The result is not reduced over the batch: see :func:`elbo_loss`.

    Args:
        x: data, any floating dtype, bool, or uint8 (read as ``x / 255``), shape ``(*batch, *event)``; in [0, 1] for the Bernoulli
            likelihoods, which is not looked at unless it is asked for, see :func:`bernoulli_log_prob`; counts, which may be integers or
            sparse, for those of counts, see :func:`poisson_log_prob`.
        recon: the decoder's output, by ``likelihood``. Only the location has to have the shape of the event; the others broadcast, as one
            learned scale does.

            - ``"bernoulli"`` and ``"continuous_bernoulli"``: logits; ``"bernoulli_probs"``: probabilities
            - ``"gaussian"``: the mean (of unit variance), or a (mean, logvar) pair
            - ``"laplace"`` and ``"log_normal"``: the location (of scale 1), or a (loc, log_scale) pair
            - ``"student_t"``: a (df, loc) pair (of scale 1), or a (df, loc, log_scale) triple
            - ``"poisson"``: log_rate
            - ``"negative_binomial"``: a (log_mu, log_theta) pair
            - ``"zero_inflated_negative_binomial"``: a (log_mu, log_theta, zi_logits) triple
            - ``"discretized_logistic"`` (8 bits): a (loc, log_scale) pair
            - ``"discretized_logistic_mixture"`` (8 bits): ``params`` ``(*batch, 10 K, H, W)`` of images ``(*batch, 3, H, W)``, with
              ``event_dim=3``
            - ``"categorical"``: logits ``(*batch, *event, C)``, where x holds class indices
            - ``"multinomial"``: logits ``(*batch, D)``, where x holds counts, with ``event_dim=1``
        mu: posterior mean, shape ``(*batch, *latent)``; batch dimensions broadcast against those of ``recon``.
        logvar: posterior log-variance, or what ``scale`` says.
        likelihood: one of these names, see the ``..._log_prob`` of that name; or a function ``f(x, recon)`` (``f(x, *recon)`` for a tuple)
            that gives one log-probability per sample, as :func:`mdn_log_prob` or one of your own does. ``x`` and ``recon`` are then what
            the function takes, and ``clip`` and ``event_dim`` do not apply. :func:`elbo_loss` calls it once, and once more for a second
            derivative or a second backward pass, where it has to compute the same.
        beta: weight of the KL: a number, or a 0-d tensor, which is read on the device: nothing waits for it, and a value that changes
            is not compiled anew. It gets no gradient. 0 leaves nothing of the KL or its gradient, even where they are out of range, as
            0 times their true values would not either (a warm-up may begin at 0); NaN still shows. Below 0 the two terms have opposite
            signs: a sample for which both are out of range is NaN, and so is a mean or sum over samples of inf and of -inf.
        clip: clip mode of the Bernoulli likelihoods, see :func:`bernoulli_log_prob`.
        eps: the constant of the clip mode.
        prior_mu: prior mean, None is 0; a tensor that broadcasts against ``mu``, or a number.
        prior_logvar: prior log-variance, or what ``scale`` says, as a tensor or a number; None is unit variance.
        scale: what the posterior's and the prior's second tensors are: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"``,
            see :func:`gaussian_kl`. The decoder's own scale, where ``recon`` has one, stays what ``likelihood`` says.
        scale_bounds: ``(low, high, mode)``: ``logvar`` is held between two bounds as it is given, in the units that ``scale`` says, see
            :func:`gaussian_kl`. Give the same to :func:`reparameterize`, whose sample was decoded.
        recon_scale_bounds: the same of the likelihood's scale, the last of several tensors of ``recon``, in the units that ``likelihood``
            says: the log-variance of ``"gaussian"``, the log-scale of the others.
        free_bits: least value of each KL element, see :func:`gaussian_kl`.
        event_dim: number of trailing dimensions of ``x`` that are summed.
        latent_dim: number of trailing dimensions of ``mu`` that are summed.
        return_parts: True: give ``(elbo, likelihood, kl)``, all of the same pass: the log-likelihood ``log p(x|z)``, of the sign that it
            has (a log-probability, below 0), and the KL, at least 0, with the floor of ``free_bits`` and without ``beta``, so that
            ``elbo = likelihood - beta * kl`` to rounding; also where ``beta`` is 0, but for a KL that is out of range, which shows here
            and counts for nothing there. The two carry no gradient.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any input is float64), one value per sample. Differentiable in every tensor. With ``return_parts`` three of
        them.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, logits, mu, logvar = torch.rand(4, 784), torch.randn(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> vae_fast.elbo(x, logits, mu, logvar).shape
        torch.Size([4])
    """
    return evaluated(
        x,
        recon,
        mu,
        logvar,
        likelihood,
        beta,
        clip,
        eps,
        prior_mu,
        prior_logvar,
        scale,
        scale_bounds,
        recon_scale_bounds,
        free_bits,
        event_dim,
        latent_dim,
        None,
        return_parts,
        False,
        check_data,
    )


@overload
def elbo_loss(
    x: Tensor, recon: Recon, mu: Tensor, logvar: Tensor, *, return_parts: Literal[False] = False, **options: Unpack[_LossOptions]
) -> Tensor: ...
@overload
def elbo_loss(
    x: Tensor, recon: Recon, mu: Tensor, logvar: Tensor, *, return_parts: Literal[True], **options: Unpack[_LossOptions]
) -> Parts: ...
@overridable
def elbo_loss(
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str | LogProb = "bernoulli",
    beta: float | Tensor = 1.0,
    clip: str | None = None,
    eps: float = 1e-9,
    prior_mu: Number | None = None,
    prior_logvar: Number | None = None,
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
) -> Tensor | Parts:
    """The negative :func:`elbo`, reduced over the batch: the loss of a VAE, in nats.

    With ``"mean"`` or ``"sum"`` and gradients wanted, the forward pass writes the gradients too (three passes over memory instead
    of five); the backward pass hands them over, scaled only if the upstream gradient is not 1. DTensors sharded along the batch give a
    ``Partial("sum")`` loss, whose ``"mean"`` is that of all rows however many each process has.

    Args:
        x, recon, mu, logvar, likelihood, beta, clip, eps, prior_mu, prior_logvar, scale, scale_bounds, recon_scale_bounds, free_bits,
            event_dim, latent_dim, check_data: as in :func:`elbo`.
        reduction: ``"mean"`` (default; over samples, never over pixels), ``"sum"`` or ``"none"``.
        return_parts: True: give ``(loss, likelihood, kl)``, all of the same pass: ``loss = -likelihood + beta * kl`` to rounding, with the
            two of :func:`elbo`, reduced as the loss is. They are for a log, and carry no gradient.
        donate_recon: **destructive**: with gradients wanted, the forward pass writes the gradient of ``recon`` over ``recon`` itself, whose
            values are lost: no second buffer of its size is allocated. It is refused where that is known to be unsafe (below); whatever
            else saved ``recon`` for its own backward pass raises torch's error about an in-place change there. A bfloat16 gradient is
            rounded once more by an upstream factor that is no power of two. There is no second
            backward pass over a retained graph and no second derivative. It is a permission: nothing is overwritten when no
            gradient is wanted, on the reference backend, or under ``torch.compile``, which plans memory itself.

    Returns:
        float32 (float64 if any input is float64), shape ``()``, or ``batch`` for ``"none"``. With ``return_parts`` three of them.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected. With ``donate_recon``: for a pair, a leaf that
            requires grad, a view of a leaf or of a part of another tensor, a ``recon`` that is not contiguous, that is float16, that is
            broadcast or converted, that shares memory with another argument, or that comes from a layer which needs its own result to
            go back (a sigmoid's or a ReLU's), and for ``reduction="none"``.

    Example:
        >>> import torch, vae_fast
        >>> x, mu, logvar = torch.rand(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> logits = torch.randn(4, 784, requires_grad=True)
        >>> vae_fast.elbo_loss(x, logits, mu, logvar).backward()
        >>> loss, likelihood, kl = vae_fast.elbo_loss(x, logits, mu, logvar, return_parts=True)
        >>> loss.requires_grad, likelihood.requires_grad, bool((loss - (kl - likelihood)).abs() < 1e-3)
        (True, False, True)
    """
    check.one_of("reduction", reduction, check.REDUCTIONS)
    return evaluated(
        x,
        recon,
        mu,
        logvar,
        likelihood,
        beta,
        clip,
        eps,
        prior_mu,
        prior_logvar,
        scale,
        scale_bounds,
        recon_scale_bounds,
        free_bits,
        event_dim,
        latent_dim,
        reduction,
        return_parts,
        donate_recon,
        check_data,
    )
