"""How an ELBO is computed: its arguments checked and put in the kernels' order, the kernel chosen, what may be overwritten."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._backend import C
from vae_fast._scales import SCALES
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import is_dtensor, kernels, reduce
from vae_fast.functional._grouped import as_function
from vae_fast.functional._likelihood_term import Recon, likelihood_term, no_recon_bounds
from vae_fast.functional._numbers import Number, as_kernel_arguments, number
from vae_fast.functional._own_likelihood import Head, LogProb
from vae_fast.functional.gaussian import floor_of, kl_term, prior_of
from vae_fast.likelihoods import LIKELIHOODS, term_params

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


def evaluated(
    x: Tensor,
    recon: Recon,
    mu: Tensor,
    logvar: Tensor,
    likelihood: str | LogProb,
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
    reduction: str | None,
    return_parts: bool,
    donate_recon: bool,
    check_data: bool,
) -> Tensor | Parts:
    """The ELBO of each sample for ``reduction=None``, else the loss: the arguments of the two functions in their order."""
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
        return _given(head.elbo(*head.arguments) if reduction is None else head.loss(reduction))
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
    if reduction is None:
        return _given(_per_sample(k, args, return_parts))
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
