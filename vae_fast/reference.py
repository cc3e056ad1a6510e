"""Every public function of :mod:`vae_fast.functional` in plain torch.

This module is three things at once: the oracle the tests compare the kernels with (in float64), the backend that runs when the
extension was not built, and the formula through which second derivatives and ``torch.func`` transforms go. It favours clarity
over speed, but never over numerics: every formula is written so that no finite input gives NaN. The terms of row sums are in
:mod:`vae_fast.terms`.

Arguments arrive here already checked by :mod:`vae_fast.functional`; shapes broadcast as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast._precision import compute_all, compute_dtype, number_of, to_compute, wide
from vae_fast._scales import SCALES, UNIT_SCALE, bounded, split_bounds, std
from vae_fast.terms import LOG_2PI, Number, discretized_logistic, inputs_to_compute, term

__all__ = ["SCALES", "UNIT_SCALE", "compute_dtype", "std", "term", "to_compute"]


def reduce(t: Tensor, reduction: str) -> Tensor:
    """``"none"``, ``"mean"`` or ``"sum"`` over every remaining (batch) dimension."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: expected 'none', 'mean' or 'sum'")
    if reduction == "none":
        return t
    wide = t.double()  # a mean may be in range where the sum is not
    return (wide.mean() if reduction == "mean" else wide.sum()).to(t.dtype)


# --- a VAE's head ----------------------------------------------------------------------------------------------------


def elbo(
    likelihood_inputs: Sequence[Tensor],
    kl_inputs: Sequence[Tensor],
    likelihood: str,
    params: Sequence[float],
    kl: str,
    floor: Number,
    beta: Number,
    event_dim: int,
    latent_dim: int,
) -> Tensor:
    """Row-summed likelihood minus ``beta`` times row-summed KL, one value per sample."""
    return elbo_parts(likelihood_inputs, kl_inputs, likelihood, params, kl, floor, beta, event_dim, latent_dim)[0]


def elbo_parts(
    likelihood_inputs: Sequence[Tensor],
    kl_inputs: Sequence[Tensor],
    likelihood: str,
    params: Sequence[float],
    kl: str,
    floor: Number,
    beta: Number,
    event_dim: int,
    latent_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`elbo`, and the two that it is made of, without gradients."""
    like = compute_dtype([*likelihood_inputs, *kl_inputs])  # one precision for both terms
    log_prob = term(likelihood, inputs_to_compute(likelihood, likelihood_inputs, like), params, event_dim)
    latents = [to_compute(t, like) for t in kl_inputs]
    divergence = counted = term(kl, latents, [floor], latent_dim)
    off = beta == 0
    if off is not False:  # nothing is left of a KL or a derivative that is out of range, but NaN shows: that of harmless numbers, then
        unit = (0.0, UNIT_SCALE[split_bounds(kl)[0].partition(".")[2]]) * 2
        harmless = [t.masked_fill(~t.isnan() & off, u) for t, u in zip(latents, unit, strict=False)]
        counted = term(kl, harmless, [floor], latent_dim)
    value = log_prob - beta * counted
    return value, log_prob.detach().expand(value.shape), divergence.detach().expand(value.shape)


def linear_likelihood(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, name: str, params: Sequence[float]) -> Tensor:
    """Row-summed log-likelihood of the logits ``F.linear(h, weight, bias)``: a Bernoulli term, or ``"multinomial"``."""
    logits = torch.nn.functional.linear(h, weight, bias)
    if x.layout == torch.sparse_csr:
        repeats = logits.shape[:-2].numel()  # the rows of x once for each of them
        begin, column, counts = x.crow_indices(), x.col_indices().repeat(repeats), x.values().to(compute_dtype([logits])).repeat(repeats)
        per_row = begin.diff().repeat(repeats)
        begin = torch.cat([begin[:1], per_row.cumsum(0)])
        rows: Tensor = softmax(counts, logits.flatten(0, -2), begin, column, -1, 1).unflatten(0, logits.shape[:-1])
        return rows
    x = x.float() if x.dtype == torch.float64 != h.dtype else x  # the precision is that of the product
    return softmax(x, logits, None, None, -1, 1) if name == "multinomial" else term(name, [x, logits], params, 1)


# --- sampling --------------------------------------------------------------------------------------------------------

_PHILOX_M = (0xD2511F53, 0xCD9E8D57)
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox_normal(rng_state: Tensor, numel: int) -> Tensor:
    """The standard normal noise the kernels draw for elements ``0 .. numel - 1``, float64, to rounding.

    Philox4x32-10 (Salmon et al., SC 2011, section 5.3) keyed by the seed ``rng_state[0]``; the counter of element ``i`` is
    ``(offset / 4, i // 4)``, 64 bits each, which is cuRAND's layout (subsequence ``i // 4`` at ``offset``). Words 0, 1 and 2, 3 of a
    block make two Box-Muller pairs ``(r cos 2 pi u_1, r sin 2 pi u_1)`` with ``r = sqrt(-2 log u_0)``, ``u_0 = ((w >> 1) + 1/2) 2^-31``
    rounded to float32 on the way, and ``u_1 = (w >> 1) 2^-31``.
    """
    seed, offset = rng_state[0], (rng_state[1] >> 2) & (2**62 - 1)
    block = torch.arange((numel + 3) // 4, dtype=torch.int64, device=rng_state.device)

    def low(t: Tensor) -> Tensor:
        return t & _MASK

    def high(t: Tensor) -> Tensor:
        return (t >> 32) & _MASK

    c = [low(offset).expand_as(block), high(offset).expand_as(block), low(block), high(block)]
    k0, k1 = low(seed), high(seed)
    for _ in range(10):
        p0, p1 = _PHILOX_M[0] * c[0], _PHILOX_M[1] * c[2]
        c = [high(p1) ^ c[1] ^ k0, low(p1), high(p0) ^ c[3] ^ k1, low(p0)]
        k0, k1 = low(k0 + _PHILOX_W[0]), low(k1 + _PHILOX_W[1])
    r0, r1 = ((-2.0 * (((c[i] >> 1).float() + 0.5) * 2.0**-31).double().log()).sqrt() for i in (0, 2))
    t0, t1 = (2.0 * math.pi * 2.0**-31 * (c[i] >> 1).double() for i in (1, 3))
    return torch.stack([r0 * t0.cos(), r0 * t0.sin(), r1 * t1.cos(), r1 * t1.sin()], dim=-1).flatten()[:numel]


def draw_rng_state(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(seed, offset) of one draw, taken from torch's generator: ``manual_seed``, ``fork_rng`` and CUDA graphs act on it.

    The seed is the generator's next 64 bits, which on the CPU is what the kernels draw: the same seed, the same noise.
    """
    state = torch.zeros(2, dtype=torch.int64, device=like.device)
    state[0].random_(-(2**63), None, generator=generator)
    return state


def reparameterize(mu: Tensor, s: Tensor, scale: str, num_samples: int | None, noise: Tensor) -> Tensor:
    """``mu + std * noise`` in the promoted dtype of ``mu`` and ``s``; ``noise`` has the shape of the result."""
    dtype = torch.promote_types(mu.dtype, s.dtype)
    m, t, e = compute_all([mu, s, noise])
    scale, bounds = split_bounds(scale)
    t = t if bounds is None else bounded(t, bounds)
    # A noise of exactly zero stays zero times a std that is out of range; the unit scale keeps its gradient finite too.
    m, t, e = wide(m, torch.where(e == 0, torch.full_like(t, UNIT_SCALE[scale]), t), e)
    return (m + std(t, scale) * e).to(dtype)


# --- log-sum-exp -----------------------------------------------------------------------------------------------------


def logsumexp(a: Tensor, dim: int, weights: Tensor | None) -> Tensor:
    """``log sum_k w_k e^{a_k}`` over ``dim``; entries of weight zero are left out whatever their ``a`` is."""
    # torch.logsumexp itself gives NaN gradients where nothing is left to sum. In float64 the sum of float32 weights stays in range.
    a, w = compute_all([a, torch.ones_like(a) if weights is None else weights])
    dtype = a.dtype
    a, w = torch.broadcast_tensors(*wide(a, w))
    if a.shape[dim] == 0:
        return torch.sub((a + w).sum(dim).to(dtype), math.inf)  # of both, whose gradients are as empty
    top = torch.where(w != 0, a.detach(), -math.inf).amax(dim, keepdim=True)
    infinite = top == math.inf  # then the result is, and no shares are known of it
    a, top = a.masked_fill(infinite, 0.0), torch.where(top.isfinite(), top, torch.zeros_like(top))
    # An entry of weight zero may lie far above `top`; the bound keeps 0 * inf out of the sum.
    shifted = a - top
    e = torch.where(w == 0, shifted.clamp(max=700.0), shifted).exp()
    total = (w * e).sum(dim, keepdim=True)
    empty = total == 0  # then the result is -inf, and no entry moves it
    out: Tensor = (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -math.inf).masked_fill(infinite, math.inf)
    return out.squeeze(dim).to(dtype)


# --- mixtures of Gaussians -------------------------------------------------------------------------------------------


def _inverse(log_s: Tensor) -> Tensor:
    # 1 / std, kept finite: a difference of exactly zero times it is then zero, not NaN
    return (-log_s).clamp(max=0.999 * math.log(torch.finfo(log_s.dtype).max)).exp()


def _bounded(u: Tensor, delta: Tensor) -> Tensor:
    # Beyond the bound a square is out of range and the density 0: this only keeps inf, and inf - inf, out of the gradient.
    bound = 1e160 if u.dtype == torch.float64 else 1e30
    overflowed = u.isnan() & delta.isfinite().all(-1, keepdim=True)
    return u.masked_fill(overflowed, bound).clamp(-bound, bound)


def _standardise(delta: Tensor, log_s: Tensor) -> Tensor:
    # (x - mu) / sigma in two steps, each of which has a derivative within range
    root, largest = _inverse(0.5 * log_s), torch.finfo(delta.dtype).max
    return _bounded((delta * root).clamp(-largest, largest) * root, delta)


def _difference(x: Tensor, mu: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return (x - mu).clamp(-largest, largest)


def mixture_log_joint(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str) -> Tensor:
    """``log w_k + log N(x; mu_k, Sigma_k)``, ``(..., K)``; see :func:`vae_fast.mixture_log_prob` for the arguments."""
    x, weight_logits, means, scale = compute_all([x, weight_logits, means, scale])
    delta = _difference(x.unsqueeze(-2), means)
    if covariance_type in ("diag", "spherical"):
        log_s = scale if covariance_type == "diag" else scale.unsqueeze(-1).expand_as(means)
        u, log_det = _standardise(delta, log_s), -log_s.sum(-1)
    elif covariance_type not in ("tied", "full"):
        raise ValueError(f"covariance_type={covariance_type!r}: expected 'diag', 'spherical', 'tied' or 'full'")
    else:
        factor = scale.triu()
        u = _bounded(delta @ factor if covariance_type == "tied" else torch.einsum("...kd,kde->...ke", delta, factor), delta)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        log_det = diagonal.masked_fill(diagonal == 0, 1.0).abs().log().masked_fill(diagonal == 0, -math.inf).sum(-1)
    return weight_logits.log_softmax(-1) + log_det - 0.5 * LOG_2PI * number_of(means.shape[-1]) - 0.5 * (u * u).sum(-1)


def mixture_log_prob(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str) -> Tensor:
    """``log sum_k w_k N(x; mu_k, Sigma_k)``, ``(...,)``."""
    return logsumexp(mixture_log_joint(x, weight_logits, means, scale, covariance_type), -1, None)


def mixture_factorized(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str) -> tuple[Tensor, Tensor]:
    """:func:`mixture_log_prob`, and ``sum_d log sum_k w_k N(x_d; mu_kd, sigma_kd^2)``, of diagonal and spherical covariances."""
    if covariance_type not in ("diag", "spherical"):
        raise ValueError(f"covariance_type={covariance_type!r}: expected 'diag' or 'spherical'")
    x, weight_logits, means, scale = compute_all([x, weight_logits, means, scale])
    log_s = scale if covariance_type == "diag" else scale.unsqueeze(-1).expand_as(means)
    log_w = weight_logits.log_softmax(-1)
    u = _standardise(_difference(x.unsqueeze(-2), means), log_s)
    joint = log_w - log_s.sum(-1) - 0.5 * LOG_2PI * number_of(means.shape[-1]) - 0.5 * (u * u).sum(-1)
    each = log_w.unsqueeze(-1) - log_s - 0.5 * LOG_2PI - 0.5 * u * u
    return logsumexp(joint, -1, None), logsumexp(each, -2, None).sum(-1)


def mixture_responsibilities(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str) -> Tensor:
    """``p(k | x)``, ``(..., K)``; 0 where ``log p(x)`` is -inf."""
    joint = mixture_log_joint(x, weight_logits, means, scale, covariance_type)
    top = joint.detach().amax(-1, keepdim=True)
    unexplained = top == -math.inf
    e = (joint.masked_fill(unexplained, 0.0) - top.masked_fill(unexplained, 0.0)).exp()
    return (e / e.sum(-1, keepdim=True)).masked_fill(unexplained, 0.0)


def mixture_statistics(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    responsibilities: Tensor | None,
    sample_weight: Tensor | None,
    covariance_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``log p(x)`` (empty if the responsibilities are given) and the sums over samples of q, q (x - mu) and the second moments."""
    x, weight_logits, means, scale = compute_all([x, weight_logits, means, scale])
    log_prob = x.new_empty(0)
    if responsibilities is None:
        log_prob = mixture_log_prob(x, weight_logits, means, scale, covariance_type)
        responsibilities = mixture_responsibilities(x, weight_logits, means, scale, covariance_type)
    q = responsibilities.to(x.dtype)
    if sample_weight is not None:
        q = q * sample_weight.to(x.dtype).unsqueeze(-1)
    k, d = means.shape
    q, rows = q.reshape(-1, k), x.reshape(-1, d)
    delta = _difference(rows.unsqueeze(-2), means).masked_fill((q == 0).unsqueeze(-1), 0.0)  # or 0 * inf, when squared
    first = torch.einsum("nk,nkd->kd", q, delta)
    forms = {"diag": "nk,nkd,nkd->kd", "spherical": "nk,nkd,nkd->k", "tied": "nk,nki,nkj->ij", "full": "nk,nki,nkj->kij"}
    return log_prob, q.sum(0), first, torch.einsum(forms[covariance_type], q, delta, delta)


def mdn_log_prob(y: Tensor, weight_logits: Tensor, means: Tensor, log_scale: Tensor, floor: float) -> Tensor:
    """``log sum_k w_k N(y; mu_k, diag sigma_k^2)`` with parameters per sample; ``log sigma`` is ``log_scale`` floored at ``floor``."""
    y, weight_logits, means, log_scale = compute_all([y, weight_logits, means, log_scale])
    if log_scale.ndim < means.ndim:
        log_scale = log_scale.unsqueeze(-1)
    log_s = log_scale if floor == -math.inf else log_scale.clamp(min=floor)
    delta = _difference(y.unsqueeze(-2), means)
    log_s = log_s.expand(torch.broadcast_shapes(delta.shape, log_s.shape))
    log_n = -(log_s + 0.5 * _standardise(delta, log_s) ** 2 + 0.5 * LOG_2PI).sum(-1)
    return logsumexp(weight_logits.log_softmax(-1) + log_n, -1, None)


# --- terms over groups of parameters ---------------------------------------------------------------------------------


def group(x: Tensor, params: Tensor, name: str, numbers: Sequence[float], dim: int, event_dim: int) -> Tensor:
    """A mixture over cells by the name the kernels know it by (csrc/group_table.h), summed over the cells of a sample.

    ``dim``, counted from the end, holds the parameters of a cell; parameter j of component k is number ``j K + k``. The numbers are
    ``2^bits - 1``, what x is stretched by, the ends of the first and of the last bin, and the least log scale.
    """
    _, colours, form = name.split(".")
    levels, stretch, low, high, floor = numbers
    dtype = compute_dtype([x, params])
    x, params = wide(*compute_all([x, params]))
    y = [2.0 * stretch * t.unsqueeze(-1) - 1.0 for t in x.movedim(dim, -1).unbind(-1)]
    slots = 10 if colours == "rgb" else 3
    logits, *given = params.movedim(dim, -1).unflatten(-1, (slots, -1)).unbind(-2)
    coefficients = [t.tanh() for t in given[2::3]]
    joint = logits
    for i, colour in enumerate(y):
        loc, log_scale = given[3 * i], given[3 * i + 1]
        if i == 1:
            loc = loc + coefficients[0] * y[0]
        elif i == 2:
            loc = loc + coefficients[1] * y[0] + coefficients[2] * y[1]
        log_scale = torch.where(log_scale <= floor, torch.full_like(log_scale, floor), log_scale)
        joint = joint + discretized_logistic(colour, loc, log_scale, 1.0 / levels, low, high, form == "thin")
    cells = logsumexp(joint, -1, None) - logsumexp(logits, -1, None)
    return (cells.flatten(1 - event_dim).sum(-1) if event_dim > 1 else cells).to(dtype)


def softmax(x: Tensor, logits: Tensor, row_begin: Tensor | None, column: Tensor | None, dim: int, event_dim: int) -> Tensor:
    """The log-probability of classes under ``softmax(logits)`` along ``dim``, summed over a sample.

    Of the indices x, of the counts x, or of the counts of a CSR matrix that are not zero.
    """
    dtype = compute_dtype([logits, x] if x.is_floating_point() else [logits])
    shares = logits.double().log_softmax(dim)  # of logits less the largest, beside which log sum e^l may be nothing
    if row_begin is not None and column is not None:
        rows = torch.arange(len(logits), device=x.device).repeat_interleave(row_begin.diff(), output_size=x.numel())
        counted = x.double() * shares[rows, column.long()]
        return torch.zeros(len(logits), dtype=torch.float64, device=x.device).index_add(0, rows, counted).to(dtype)
    if x.is_floating_point():
        counts = x.double()
        return (counts * torch.where((counts == 0) & shares.isinf(), torch.zeros_like(shares), shares)).sum(-1).to(dtype)
    batch = torch.broadcast_shapes(x.shape[:-event_dim], logits.shape[:-event_dim])
    index, shares = x.long().expand(*batch, *x.shape[-event_dim:]), shares.expand(*batch, *shares.shape[-event_dim:])
    return shares.gather(dim, index).flatten(-event_dim).sum(-1).to(dtype)
