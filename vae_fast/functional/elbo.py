"""The evidence lower bound in one call: likelihood and KL of every sample, summed and reduced in one pass over memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._backend import C
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import is_dtensor, kernels, overridable, reduce
from vae_fast.functional._grouped import as_function
from vae_fast.functional._likelihood_term import Recon, likelihood_term, no_recon_bounds
from vae_fast.functional._numbers import Number, as_kernel_arguments, number
from vae_fast.functional._own_likelihood import Head, LogProb
from vae_fast.functional.gaussian import floor_of, kl_term, prior_of
from vae_fast.likelihoods import LIKELIHOODS, term_params
from vae_fast.terms import SCALES

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: What is computed, and what it is made of: the likelihood and the KL.
Parts = tuple[Tensor, Tensor, Tensor]


#: The kernels' names of the likelihoods over one tensor alone, by (likelihood, clip).
_TERMS = {
    (found.name, clip): found.term(1, clip)
    for found in LIKELIHOODS.values()
    for clip in found.clips
    if (len(found.parameters) == 1 or found.family_alone is not None) and not found.of_counts and found.grouped_data is None
}

#: The same of the KL from N(0, 1), by the form of the scale.
_KL = {scale: f"kl.{scale}" for scale in SCALES}

_Arguments = tuple[list[Tensor], list[Tensor], str, list[float], str, Number, Number, int, int]


def _for_kernels(args: _Arguments) -> tuple[Any, ...]:
    """The same as the kernels' ops take them."""
    *tensors_and_names, floor, beta, event_dim, latent_dim = args
    return *tensors_and_names, *as_kernel_arguments(floor), *as_kernel_arguments(beta), event_dim, latent_dim


def _arguments(
    k: Any,
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    likelihood: str,
    beta: float | Tensor,
    clip: str | None,
    eps: float,
    prior_mu: Number | None,
    prior_logvar: Number | None,
    scale: str,
    scale_bounds: bounds.ScaleBounds | None,
    recon_scale_bounds: bounds.ScaleBounds | None,
    free_bits: float | Tensor | None,
    event_dim: int,
    latent_dim: int,
) -> _Arguments:
    """Check everything; the arguments of the kernels ``k`` in their order."""
    if k is not C or type(beta) is not float or not -math.inf < beta < math.inf or free_bits is not None:
        like = check.tensor("mu", mu)
        beta, floor = number("beta", beta, like), floor_of(free_bits, like)
    else:
        floor = -math.inf
    ordinary = False
    given = (prior_mu, prior_logvar, scale_bounds, recon_scale_bounds)
    if k is C and k is not None and all(v is None for v in given):
        try:
            ordinary = (
                (likelihood, clip) in _TERMS
                and scale in _KL
                and type(event_dim) is int
                and type(latent_dim) is int
                and k.ordinary_head(x, recon, mu, logvar, event_dim, latent_dim)
            )
        except (TypeError, RuntimeError):
            ordinary = False  # what the extension cannot take at all; the checks below have words for it
    if ordinary:
        check.clip(clip, eps)
        data: list[Any] = [x, recon]
        return data, [mu, logvar], _TERMS[(likelihood, clip)], term_params(clip, eps), _KL[scale], floor, beta, event_dim, latent_dim
    lik, lik_inputs, params = likelihood_term(x, recon, likelihood, clip, eps, event_dim, recon_scale_bounds)
    prior_mu, prior_logvar = prior_of(mu, logvar, prior_mu, prior_logvar, scale)
    shape = check.gaussian(mu, logvar, prior_mu, prior_logvar, scale)
    check.event_dims("latent_dim", latent_dim, "mu", shape)
    if mu.device != lik_inputs[1].device:
        raise ValueError(f"mu is on {mu.device}, recon is on {lik_inputs[1].device}: expected one device")
    full = torch.broadcast_shapes(*(t.shape for t in lik_inputs))
    batch, latent_batch = full[: len(full) - event_dim], shape[: len(shape) - latent_dim]
    if batch != latent_batch:
        try:
            torch.broadcast_shapes(batch, latent_batch)
        except RuntimeError:
            more = event_dim + len(batch) - len(latent_batch)
            hint = f"; event_dim={more} sums all of one sample" if batch[: len(latent_batch)] == latent_batch else ""
            raise ValueError(
                f"recon has batch shape {tuple(batch)} (event_dim={event_dim}), mu has batch shape {tuple(latent_batch)} "
                f"(latent_dim={latent_dim}): expected shapes that broadcast to one another{hint}"
            ) from None
    kl, kl_inputs = kl_term(mu, logvar, prior_mu, prior_logvar, scale, bounds.checked(scale_bounds, scale))
    return lik_inputs, kl_inputs, lik, params, kl, floor, beta, event_dim, latent_dim


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
        recon: the decoder's output: logits for ``"bernoulli"``, probabilities for ``"bernoulli_probs"``, the mean (of unit variance)
            or a (mean, logvar) pair for ``"gaussian"``, the location (of scale 1) or a (loc, log_scale) pair for ``"laplace"`` and for
            ``"log_normal"``, logits for ``"continuous_bernoulli"``, a (df, loc) pair (of scale 1) or a (df, loc, log_scale) triple for
            ``"student_t"``, log_rate for ``"poisson"``, a (log_mu, log_theta) pair for ``"negative_binomial"``, a (log_mu, log_theta,
            zi_logits) triple for ``"zero_inflated_negative_binomial"``, a (loc, log_scale) pair for ``"discretized_logistic"``, ``params``
            ``(*batch, 10 K, H, W)`` for ``"discretized_logistic_mixture"``, ``logits`` ``(*batch, *event, C)`` for ``"categorical"`` and
            ``(*batch, D)`` for ``"multinomial"``, as the functions of these names take them. Only the location has to have the shape of
            the event; the others broadcast, as one learned scale does.
        mu: posterior mean, shape ``(*batch, *latent)``; batch dimensions broadcast against those of ``recon``.
        logvar: posterior log-variance, or what ``scale`` says.
        likelihood: ``"bernoulli"``, ``"bernoulli_probs"``, ``"gaussian"``, ``"laplace"``, ``"log_normal"``,
            ``"continuous_bernoulli"``, ``"student_t"``, ``"poisson"``, ``"negative_binomial"``, ``"zero_inflated_negative_binomial"``,
            ``"discretized_logistic"`` (8 bits), ``"discretized_logistic_mixture"`` (8 bits, images ``(*batch, 3, H, W)``,
            ``event_dim=3``), ``"categorical"`` (x are class indices) or ``"multinomial"`` (x are counts, ``event_dim=1``), see the
            ``..._log_prob`` of that name; or a function ``f(x, recon)``
            (``f(x, *recon)`` for a tuple) that gives one log-probability per sample, as :func:`mdn_log_prob` or one of your own does:
            ``x`` and ``recon`` are then what it takes them for, and ``clip`` and ``event_dim`` are not its business. :func:`elbo_loss`
            calls it once, and once more for a second derivative or a second backward pass, where it has to compute the same.
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
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x, logits, mu, logvar = torch.rand(4, 784), torch.randn(4, 784), torch.randn(4, 20), torch.randn(4, 20)
        >>> vae_fast.elbo(x, logits, mu, logvar).shape
        torch.Size([4])
    """
    if return_parts is not False:
        check.flag("return_parts", return_parts)
    likelihood = as_function(likelihood, clip, eps, event_dim, check_data)
    if callable(likelihood):
        check.any_likelihood(likelihood, clip, eps)
        no_recon_bounds(recon_scale_bounds)
        head = Head(
            likelihood,
            x,
            recon,
            mu,
            logvar,
            beta,
            prior_mu,
            prior_logvar,
            scale,
            scale_bounds,
            free_bits,
            latent_dim,
            check_data,
            return_parts,
        )
        return _given(head.elbo(*head.arguments))
    k = kernels()
    args = _arguments(
        k,
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
    )
    if (check_data is not False or values.STATE.on) and values.wanted(check_data):
        values.require(*values.head(args[0], args[1], args[2], args[4]))
    return _given(_per_sample(k, args, return_parts))


def _per_sample(k: Any, args: _Arguments, parts: bool) -> tuple[Tensor, ...]:
    """The ELBO of each sample, and if they are wanted its parts."""
    if k is None:
        return reference.elbo_parts(*args) if parts else (reference.elbo(*args),)
    given = _for_kernels(args)
    results: tuple[Tensor, ...] = k.elbo_parts(*given) if parts else (k.elbo(*given),)
    return results


def _given(results: tuple[Tensor, ...]) -> Tensor | Parts:
    """One result, or a tuple with its parts, as the caller gets them."""
    whole, *parts = results
    return (whole, parts[0], parts[1]) if parts else whole


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
            backward pass over a retained graph and no second derivative. Permission, not an order: nothing is overwritten when no
            gradient is wanted, on the reference backend, or under ``torch.compile``, which plans memory itself.

    Returns:
        float32 (float64 if any input is float64), shape ``()``, or ``batch`` for ``"none"``. With ``return_parts`` three of them.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected. With ``donate_recon``: for a pair, a leaf that
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
    if return_parts is not False or donate_recon is not False:
        check.flag("return_parts", return_parts)
        check.flag("donate_recon", donate_recon)
    likelihood = as_function(likelihood, clip, eps, event_dim, check_data)
    if callable(likelihood):
        if donate_recon:
            raise ValueError(
                "donate_recon=True: expected a likelihood by name that is a sum over elements, another may need recon; "
                "use donate_recon=False here"
            )
        check.any_likelihood(likelihood, clip, eps)
        no_recon_bounds(recon_scale_bounds)
        head = Head(
            likelihood,
            x,
            recon,
            mu,
            logvar,
            beta,
            prior_mu,
            prior_logvar,
            scale,
            scale_bounds,
            free_bits,
            latent_dim,
            check_data,
            return_parts,
        )
        return _given(head.loss(reduction))
    k: Any = kernels()
    args = _arguments(
        k,
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
    )
    if (check_data is not False or values.STATE.on) and values.wanted(check_data):
        values.require(*values.head(args[0], args[1], args[2], args[4]))
    if k is None or reduction == "none":
        if donate_recon:
            _check_donation(recon, args, reduction)
        value, *parts = _per_sample(k, args, return_parts)
        return _given(tuple(reduce(t, reduction) for t in (-value, *parts)))
    eager = k is C  # the compiler plans memory itself
    if eager and donate_recon:
        _check_donation(recon, args, reduction)
    op = k.elbo_loss_parts if return_parts else k.elbo_loss
    out: Tensor | Parts = op(*_for_kernels(args), reduction == "mean", *((donate_recon,) if eager else ()))
    return out


def _check_donation(recon: Recon, args: _Arguments, reduction: str) -> None:
    """Refuse to overwrite ``recon`` where its value, or its memory, is known to be somebody else's."""

    def refuse(why: str) -> None:
        raise ValueError(f"donate_recon=True: {why}; use donate_recon=False here")

    if reduction == "none":
        refuse("reduction='none' needs recon again in the backward pass")
    if not isinstance(recon, Tensor):
        raise ValueError("donate_recon=True: expected recon to be one tensor, got a (mean, logvar) pair; use donate_recon=False here")
    if recon.requires_grad and recon.is_leaf:
        refuse("recon is a leaf that requires grad, and would lose its value")
    if recon.dtype == torch.float16:
        refuse("recon is float16, whose gradient has to wait for the loss scale")
    base: Tensor | None = recon._base
    if recon.requires_grad and base is not None and base.is_leaf:
        refuse("recon is a view of a leaf, which would lose its value")
    if not recon.is_contiguous():
        refuse(f"recon of shape {tuple(recon.shape)} has strides {recon.stride()}, expected a contiguous one")
    data, latent, _, _, _, floor, beta, event_dim, latent_dim = args
    full = torch.broadcast_shapes(*(t.shape for t in data))
    batch = torch.broadcast_shapes(full[: len(full) - event_dim], *(t.shape[: t.ndim - latent_dim] for t in latent))
    if recon.shape != batch + full[len(full) - event_dim :]:
        refuse(f"recon of shape {tuple(recon.shape)} is broadcast to batch shape {tuple(batch)}")
    if recon.dtype != torch.float64 and torch.float64 in [t.dtype for t in (*data, *latent)]:
        refuse(f"recon has dtype {recon.dtype} and another argument torch.float64")
    others = [("x", data[0]), *zip(("mu", "logvar", "prior_mu", "prior_logvar"), latent, strict=False)]
    if isinstance(beta, Tensor):
        others.append(("beta", beta))
    if isinstance(floor, Tensor):
        others.append(("free_bits", floor))
    if is_dtensor(recon):
        return  # nothing is overwritten
    storage = recon.untyped_storage().data_ptr()
    for name, t in others:
        if t.untyped_storage().data_ptr() == storage and t.numel():
            refuse(f"recon shares memory with {name}")
    if base is not None and base.numel() != recon.numel():
        refuse(f"recon is a view of a part of a tensor of shape {tuple(base.shape)}, which would lose the values of that part")
    for node in (recon.grad_fn, None if base is None else base.grad_fn):
        if node is not None and hasattr(node, "_saved_result"):
            refuse(f"the layer that made recon ({node.name()}) needs its value to go back")
