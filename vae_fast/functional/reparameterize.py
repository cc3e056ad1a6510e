"""Reparameterized sampling, alone or with the KL divergence in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._precision import compute_all
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import is_dtensor, kernels, overridable, reduce, row_sum
from vae_fast.functional._numbers import Number
from vae_fast.functional.gaussian import floor_of, kl_term, prior_of


def _check(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int | None,
    generator: torch.Generator | None,
    noise: Tensor | None,
    shape: torch.Size,
) -> None:
    """``shape`` is the common shape of mu and logvar."""
    if num_samples is not None:
        check.positive_int("num_samples", num_samples)
        if num_samples * shape.numel() > check.LARGEST:
            raise ValueError(f"num_samples={num_samples}: expected fewer, no tensor has so many elements of shape {tuple(shape)}")
        shape = torch.Size((num_samples, *shape))
    if noise is not None:
        check.tensor("noise", noise)
        check.same_device(noise=noise, mu=mu)
        if noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}: expected {tuple(shape)}, the shape of the result")
        if generator is not None:
            raise ValueError("noise, generator: expected at most one of them, got both")
    check.generator(generator, mu.device, "mu")


def _noise(mu: Tensor, logvar: Tensor, shape: torch.Size, num_samples: int | None, generator: torch.Generator | None) -> Tensor:
    """The reference's own noise: the kernels', but torch's under ``torch.func`` (vmap has rules for randomness) and in ONNX graphs."""
    size = torch.Size(shape if num_samples is None else (num_samples, *shape))
    dtype = reference.compute_dtype([mu, logvar])
    if torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export():
        return torch.randn(size, dtype=dtype, device=mu.device, generator=generator)
    if is_dtensor(mu):
        raise ValueError("noise=None: expected the caller's own, as the plain-torch backend draws none for DTensors")
    state = reference.draw_rng_state(mu, generator)
    return reference.philox_normal(state, size.numel()).to(dtype).view(size)


@overridable
def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""A differentiable sample ``z = mu + std * noise`` with noise from N(0, 1) (Kingma and Welling 2014, section 2.4).

    The noise of element ``i`` of the result is a function of (seed, offset, i) alone, by Philox4x32-10: not of threads, instruction
    set, device, dtype or memory layout. It is never stored: the backward pass draws it again. (seed, offset) come from torch's
    generator, so ``torch.manual_seed``, ``fork_rng``, checkpointing and CUDA graphs act as on ``torch.randn``. For DTensors they come from
    the generator of the mesh's first process, with another seed for each shard: copies of a shard are the same, whatever the seeds were.

    Args:
        mu: mean, any floating dtype, any shape.
        logvar: what ``scale`` says, broadcast against ``mu``.
        scale: ``"logvar"``, ``"log_std"``, ``"std"``, ``"var"`` or ``"softplus"``.
        scale_bounds: ``(low, high, mode)``: ``logvar`` is held between two bounds as it is given, in the units that ``scale`` says, see
            :func:`gaussian_kl`; None leaves it as it is.
        num_samples: None for one sample; S adds a leading dimension of S.
        generator: where (seed, offset) come from; None is torch's default for the device.
        noise: the caller's own noise, of the shape of the result; no gradient flows to it.

    Returns:
        shape of ``mu + logvar``, with a leading ``num_samples`` if given; the promoted dtype of ``mu`` and ``logvar``.
        Differentiable in both.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.reparameterize(torch.zeros(3, 2), torch.zeros(3, 2), num_samples=5).shape
        torch.Size([5, 3, 2])
    """
    shape = check.gaussian(mu, logvar, None, None, scale)
    between = bounds.checked(scale_bounds, scale)
    _check(mu, logvar, num_samples, generator, noise, shape)
    if values.STATE.on:
        values.require(*values.gaussian(mu, logvar, None, None, scale, between is not None), *values.finite(noise=noise))
    form, (mu, logvar) = bounds.held(scale, [mu, logvar], between)
    k = kernels()
    if k is None:
        noise = _noise(mu, logvar, shape, num_samples, generator) if noise is None else noise.detach()
        return reference.reparameterize(mu, logvar, form, num_samples, noise)
    origin = _origin(mu, generator, noise)
    out: Tensor = k.reparameterize([mu, logvar], noise, origin, form, num_samples or 0)
    return out


@overridable
def reparameterize_with_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Number | None = None,
    prior_logvar: Number | None = None,
    *,
    scale: str = "logvar",
    scale_bounds: bounds.ScaleBounds | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    event_dim: int = 1,
    free_bits: float | Tensor | None = None,
    reduction: str = "none",
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize` and :func:`gaussian_kl` in one pass forward and one pass backward.

    Args:
        mu, logvar, scale, scale_bounds, num_samples, generator, noise: as in :func:`reparameterize`.
        prior_mu, prior_logvar, event_dim, free_bits, reduction: as in :func:`gaussian_kl`; the KL does not depend on ``num_samples``.

    Returns:
        ``(z, kl)``: the sample and the KL divergence in nats.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> z, kl = vae_fast.reparameterize_with_kl(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> z.shape, kl.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """
    prior_mu, prior_logvar = prior_of(mu, logvar, prior_mu, prior_logvar, scale)
    shape = check.gaussian(mu, logvar, prior_mu, prior_logvar, scale)
    between = bounds.checked(scale_bounds, scale)
    sample_shape = shape if prior_mu is None and prior_logvar is None else check.broadcast(mu=mu, logvar=logvar)
    _check(mu, logvar, num_samples, generator, noise, sample_shape)
    check.event_dims("event_dim", event_dim, "mu", shape)
    check.one_of("reduction", reduction, check.REDUCTIONS)
    floor = floor_of(free_bits, mu)
    if values.STATE.on:
        values.require(*values.gaussian(mu, logvar, prior_mu, prior_logvar, scale, between is not None), *values.finite(noise=noise))
    k: Any = kernels()
    dtype = torch.promote_types(mu.dtype, logvar.dtype)
    # For a prior with more batch dimensions than the posterior, and for a floor that is read on the device.
    two_passes = k is None or sample_shape != shape or isinstance(floor, Tensor)
    if two_passes:
        mu, logvar = compute_all([mu, logvar])  # the gradient of a half is the sum of two, and rounded once
    name, inputs = kl_term(mu, logvar, prior_mu, prior_logvar, scale, between)
    if two_passes:
        z = reparameterize(mu, logvar, scale=scale, scale_bounds=scale_bounds, num_samples=num_samples, generator=generator, noise=noise)
        z, kl = z.to(dtype), row_sum(name, inputs, [floor], event_dim)
    else:
        origin = _origin(mu, generator, noise)
        z, kl = k.reparameterize_with_kl(inputs, noise, origin, name, num_samples or 0, floor, event_dim)
    return z, reduce(kl, reduction)


def _origin(mu: Tensor, generator: torch.Generator | None, noise: Tensor | None) -> Tensor | torch.Generator | None:
    """Where the noise comes from: eager kernels draw the seed themselves, a traced graph draws it by an op the compiler knows."""
    if noise is None and torch.compiler.is_compiling():
        state: Tensor = torch.ops.vae_fast.draw_seed(mu, generator)
        return state
    return generator
