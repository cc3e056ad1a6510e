"""Every public function of :mod:`vae_fast.functional` in plain torch.

This module is three things at once: the oracle the tests compare the kernels with (in float64), the backend that runs when the
extension was not built, and the formula through which second derivatives and ``torch.func`` transforms go. It favours clarity
over speed, but never over numerics: every formula is written so that no finite input gives NaN.

Arguments arrive here already checked by :mod:`vae_fast.functional`; shapes broadcast as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)

#: What the second tensor of a Gaussian may be; ``std = softplus(t)`` for ``"softplus"``.
SCALES = ("logvar", "log_std", "std", "var", "softplus")
#: Clip modes of the Bernoulli log-likelihood, by their name inside term names.
CLIPS = ("none", "clamp", "add", "bce")
#: The tensor that stands for a standard deviation of one, in each scale form.
UNIT_SCALE = {"logvar": 0.0, "log_std": 0.0, "std": 1.0, "var": 1.0, "softplus": math.log(math.expm1(1.0))}


def to_compute(t: Tensor, like: torch.dtype = torch.float32) -> Tensor:
    """The value kernels compute with: float32 for halves and float32, float64 for float64; uint8 is ``t / 255``."""
    dtype = torch.float64 if torch.float64 in (t.dtype, like) else torch.float32
    return t.to(dtype) / 255.0 if t.dtype == torch.uint8 else t.to(dtype)


def compute_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _compute_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    like = compute_dtype(tensors)
    return [to_compute(t, like) for t in tensors]


def _sum_event(t: Tensor, event_dim: int) -> Tensor:
    return t.flatten(-event_dim).sum(-1) if event_dim else t


def reduce(t: Tensor, reduction: str) -> Tensor:
    """``"none"``, ``"mean"`` or ``"sum"`` over every remaining (batch) dimension."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: expected 'none', 'mean' or 'sum'")
    return t if reduction == "none" else t.mean() if reduction == "mean" else t.sum()


def softplus(t: Tensor) -> Tensor:
    """``log(1 + e^t)`` for every t (``F.softplus`` turns linear at 20, an error of 2e-9)."""
    return torch.logaddexp(t, torch.zeros_like(t))


# --- scale forms -----------------------------------------------------------------------------------------------------


def std(t: Tensor, scale: str) -> Tensor:
    """The standard deviation that ``t`` stands for in the given form."""
    if scale == "logvar":
        return (0.5 * t).exp()
    if scale == "log_std":
        return t.exp()
    if scale == "std":
        return t
    if scale == "var":
        return t.sqrt()
    if scale == "softplus":
        return softplus(t)
    raise _unknown_scale(scale)


def _unknown_scale(scale: str) -> ValueError:
    return ValueError(f"scale={scale!r}: expected one of {', '.join(SCALES)}")


def log_std(t: Tensor, scale: str) -> Tensor:
    """log of :func:`std`, without leaving the log domain where the form allows it."""
    if scale == "logvar":
        return 0.5 * t
    if scale == "log_std":
        return t
    if scale == "std":
        return t.log()
    if scale == "var":
        return 0.5 * t.log()
    if scale != "softplus":
        raise _unknown_scale(scale)
    # log softplus(t) is t to rounding where softplus itself would underflow. The unused branch is fed a harmless value, or its gradient
    # would be 0 * inf.
    low = t < (-37.0 if t.dtype == torch.float64 else -17.0)
    return torch.where(low, t, softplus(t.masked_fill(low, 0.0)).log())


def _inverse(log_s: Tensor) -> Tensor:
    # 1 / std, kept finite: a difference of exactly zero times it is then zero, not NaN
    return (-log_s).clamp(max=0.999 * math.log(torch.finfo(log_s.dtype).max)).exp()


def _wide(*tensors: Tensor | None) -> list[Tensor]:
    # Gaussian terms are worked out in float64: differences, squares and exponentials of float32 numbers then stay in range, and a
    # posterior near its prior keeps its digits. None is zero.
    like = next(t for t in tensors if t is not None)
    return [like.new_zeros((), dtype=torch.float64) if t is None else t.double() for t in tensors]


def _standardised(x: Tensor, mu: Tensor, s: Tensor, scale: str) -> Tensor:
    # (x - mu) / std: of half the difference where that overflows, and in the log forms by the root of 1 / std, which seldom does
    difference = x - mu
    over = difference.isinf()
    difference = torch.where(over, 0.5 * x - 0.5 * mu, difference)
    if scale in ("std", "var"):
        z = difference / std(s, scale)
    else:  # at the mean any scale does: zero times infinity would be NaN
        root = (-0.5 * torch.where(difference == 0, torch.zeros_like(difference), log_std(s, scale))).exp()
        z = (difference * root) * root
    return torch.where(over, 2.0 * z, z)


def _compare(s: Tensor, t: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    # log r and (r^2 - 1) / 2 of the quotient r of two standard deviations, without cancellation where r is near 1
    if scale not in ("std", "var"):
        w = log_std(s, scale) - log_std(t, scale)
        return w.clamp(max=torch.finfo(w.dtype).max), 0.5 * torch.expm1(2.0 * w)
    near = (s - t).abs() < 0.5 * t
    excess = torch.where(near, s - t, torch.zeros_like(t)) / t
    w = torch.where(near, excess.log1p(), s.log() - t.log()) * (1.0 if scale == "std" else 0.5)
    r = std(s, scale) / std(t, scale)
    half = torch.where(near, excess * (1.0 + 0.5 * excess) if scale == "std" else 0.5 * excess, (0.5 * r) * r - 0.5)
    return w, half


# --- elementwise terms -----------------------------------------------------------------------------------------------


def _kl_element(mu: Tensor, s: Tensor, prior_mu: Tensor | None, prior_s: Tensor | None, scale: str) -> Tensor:
    # KL(N(m, s^2) || N(p, t^2)) = (e^2w - 1) / 2 - w + z^2 / 2 with w = log s - log t and z = (m - p) / t
    m, wide_s, p = _wide(mu, s, prior_mu)
    if prior_s is None:
        w, z, sd = log_std(wide_s, scale), m - p, std(wide_s, scale)
        half = 0.5 * torch.expm1(2.0 * w) if scale in ("logvar", "log_std") else (0.5 * (sd - 1.0)) * (sd + 1.0)
    else:
        t = prior_s.double()
        (w, half), z = _compare(wide_s, t, scale), _standardised(m, p, t, scale)
    return (half - w + (0.5 * z) * z).to(mu.dtype)


def _bernoulli_logits_element(x: Tensor, a: Tensor, clip: str, eps: float) -> Tensor:
    if clip == "clamp":
        bound = math.log1p(-eps) - math.log(eps)
        a = a.clamp(-bound, bound)
    if clip in ("none", "clamp"):
        # x log sigmoid(a) + (1 - x) log sigmoid(-a): no cancellation of x a against a
        return -(x * softplus(-a) + (1.0 - x) * softplus(a))
    dtype = a.dtype
    x, a = _wide(x, a)  # a probability below float32's range still counts beside a small eps
    p, q = torch.sigmoid(a), torch.sigmoid(-a)
    if clip == "add":
        return (x * (p + eps).log() + (1.0 - x) * (q + eps).log()).to(dtype)
    logs = -softplus(-a), -softplus(a)
    return _bce_element(x, p, q, logs, logs).to(dtype)


def _bernoulli_probs_element(x: Tensor, p: Tensor, clip: str, eps: float) -> Tensor:
    q = 1.0 - p
    if clip == "bce":
        inside = p.masked_fill(p * q < 1e-12, 0.5)  # or the unused branch's gradient would be 0 * inf
        return _bce_element(x, p, q, (p.log(), torch.log1p(-p)), (inside.log(), torch.log1p(-inside)))
    if clip == "add":
        return x * (p + eps).log() + (1.0 - x) * (q + eps).log()
    if clip == "clamp":
        # Clip log p and log(1 - p), not p: in float32 1 - 1e-9 is 1, and log(1 - 1) is -inf.
        low, high = p < eps, q < eps
        inside = torch.where(low | high, torch.full_like(p, 0.5), p)
        log_eps, log1m_eps = math.log(eps), math.log1p(-eps)
        log_p = inside.log().masked_fill(low, log_eps).masked_fill(high, log1m_eps)
        log_q = torch.log1p(-inside).masked_fill(low, log1m_eps).masked_fill(high, log_eps)
        return x * log_p + (1.0 - x) * log_q
    # 0 log 0 = 0, in the value and in the derivative in p
    log_p = p.masked_fill((x == 0) & (p == 0), 0.5).log()
    log_q = torch.log1p(-p.masked_fill((x == 1) & (p == 1), 0.5))
    return x * log_p + (1.0 - x) * log_q


def _bce_element(x: Tensor, p: Tensor, q: Tensor, logs: tuple[Tensor, Tensor], inside: tuple[Tensor, Tensor]) -> Tensor:
    # F.binary_cross_entropy floors both logs at -100 but differentiates as (x - p) / max(p q, 1e-12). Where p q < 1e-12 the
    # value comes from the floored logs and the gradient from a line with that slope; elsewhere both from the logs `inside`.
    log_p, log_q = (t.detach().clamp(min=-100.0) for t in logs)
    line = (x.detach() - 0.5 * p) * (1e12 * p)
    floored = x * log_p + (1.0 - x) * log_q
    return torch.where(p * q < 1e-12, floored + (line - line.detach()), x * inside[0] + (1.0 - x) * inside[1])


def _gaussian_element(x: Tensor, mu: Tensor, s: Tensor | None, scale: str) -> Tensor:
    # -log s - log(2 pi) / 2 - ((x - m) / s)^2 / 2
    wide_x, m = _wide(x, mu)
    if s is None:
        return (-0.5 * LOG_2PI - (0.5 * (wide_x - m)) * (wide_x - m)).to(x.dtype)
    wide_s = s.double()
    z = _standardised(wide_x, m, wide_s, scale)
    return (-log_std(wide_s, scale) - 0.5 * LOG_2PI - (0.5 * z) * z).to(x.dtype)


#: The variants of each family of terms.
_VARIANTS = {
    "kl": SCALES,
    "kl_prior": SCALES,
    "bernoulli_logits": CLIPS,
    "bernoulli_probs": CLIPS,
    "gaussian_unit": ("",),
    "gaussian": SCALES,
}


def term(name: str, inputs: Sequence[Tensor], eps: float, floor: float | Tensor, event_dim: int) -> Tensor:
    """A row-summed term by the name the kernels know it by, e.g. ``"kl.logvar"`` or ``"bernoulli_logits.clamp"``.

    ``inputs`` broadcast against each other; the last ``event_dim`` dimensions are summed. ``eps`` is the clip constant of the
    Bernoulli terms and ``floor`` the least value of an element of the KL terms (free bits; ``-inf`` for none).
    """
    family, _, variant = name.partition(".")
    if variant not in _VARIANTS.get(family, ()):
        raise ValueError(f"term={name!r}: expected one of {', '.join(f'{f}.{v}'.rstrip('.') for f, vs in _VARIANTS.items() for v in vs)}")
    args = _compute_all(inputs)
    if family in ("kl", "kl_prior"):
        prior_mu, prior_s = (args[2], args[3]) if family == "kl_prior" else (None, None)
        element = _kl_element(args[0], args[1], prior_mu, prior_s, variant)
        if isinstance(floor, Tensor):
            element = element.clamp(min=floor.to(element.dtype))
        elif floor != -math.inf:
            element = element.clamp(min=floor)
    elif family == "bernoulli_logits":
        element = _bernoulli_logits_element(args[0], args[1], variant, eps)
    elif family == "bernoulli_probs":
        element = _bernoulli_probs_element(args[0], args[1], variant, eps)
    elif family == "gaussian_unit":
        element = _gaussian_element(args[0], args[1], None, "logvar")
    elif family == "gaussian":
        element = _gaussian_element(args[0], args[1], args[2], variant)
    else:
        raise ValueError(f"term={name!r}: expected a family whose formula is here")
    return _sum_event(element, event_dim)


def elbo(
    likelihood_inputs: Sequence[Tensor],
    kl_inputs: Sequence[Tensor],
    likelihood: str,
    kl: str,
    eps: float,
    floor: float | Tensor,
    beta: float | Tensor,
    event_dim: int,
    latent_dim: int,
) -> Tensor:
    """Row-summed likelihood minus ``beta`` times row-summed KL, one value per sample."""
    like = compute_dtype([*likelihood_inputs, *kl_inputs])  # one precision for both terms
    log_prob = term(likelihood, [to_compute(t, like) for t in likelihood_inputs], eps, floor, event_dim)
    latents = [to_compute(t, like) for t in kl_inputs]
    off = beta == 0
    if off is not False:  # nothing is left of a KL or a derivative that is out of range, but NaN shows: that of harmless numbers, then
        unit = (0.0, UNIT_SCALE[kl.partition(".")[2]]) * 2
        latents = [t.masked_fill(~t.isnan() & off, u) for t, u in zip(latents, unit, strict=False)]
    return log_prob - beta * term(kl, latents, eps, floor, latent_dim)


def linear_bernoulli(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, name: str, eps: float) -> Tensor:
    """Row-summed Bernoulli log-likelihood of the logits ``F.linear(h, weight, bias)``."""
    x = x.float() if x.dtype == torch.float64 != h.dtype else x  # the precision is that of the product
    return term(name, [x, torch.nn.functional.linear(h, weight, bias)], eps, -math.inf, 1)


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
    m, t, e = _compute_all([mu, s, noise])
    # A noise of exactly zero stays zero times a std that is out of range; the unit scale keeps its gradient finite too.
    m, t, e = _wide(m, torch.where(e == 0, torch.full_like(t, UNIT_SCALE[scale]), t), e)
    return (m + std(t, scale) * e).to(dtype)


# --- log-sum-exp -----------------------------------------------------------------------------------------------------


def logsumexp(a: Tensor, dim: int, weights: Tensor | None) -> Tensor:
    """``log sum_k w_k e^{a_k}`` over ``dim``; entries of weight zero are left out whatever their ``a`` is."""
    # torch.logsumexp itself gives NaN gradients where nothing is left to sum. In float64 the sum of float32 weights stays in range.
    a, w = _compute_all([a, torch.ones_like(a) if weights is None else weights])
    dtype = a.dtype
    a, w = torch.broadcast_tensors(*_wide(a, w))
    if a.shape[dim] == 0:
        return a.sum(dim).to(dtype) - math.inf
    top = torch.where(w != 0, a.detach(), -math.inf).amax(dim, keepdim=True)
    top = torch.where(top.isfinite(), top, torch.zeros_like(top))
    # An entry of weight zero may lie far above `top`; the bound keeps 0 * inf out of the sum.
    shifted = a - top
    e = torch.where(w == 0, shifted.clamp(max=700.0), shifted).exp()
    total = (w * e).sum(dim, keepdim=True)
    empty = total == 0  # then the result is -inf, and no entry moves it
    out: Tensor = (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -math.inf)
    return out.squeeze(dim).to(dtype)


# --- mixtures of Gaussians -------------------------------------------------------------------------------------------


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
    x, weight_logits, means, scale = _compute_all([x, weight_logits, means, scale])
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
    return weight_logits.log_softmax(-1) + log_det - 0.5 * LOG_2PI * means.shape[-1] - 0.5 * (u * u).sum(-1)


def mixture_log_prob(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, covariance_type: str) -> Tensor:
    """``log sum_k w_k N(x; mu_k, Sigma_k)``, ``(...,)``."""
    return logsumexp(mixture_log_joint(x, weight_logits, means, scale, covariance_type), -1, None)


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
    x, weight_logits, means, scale = _compute_all([x, weight_logits, means, scale])
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
    y, weight_logits, means, log_scale = _compute_all([y, weight_logits, means, log_scale])
    if log_scale.ndim < means.ndim:
        log_scale = log_scale.unsqueeze(-1)
    log_s = log_scale if floor == -math.inf else log_scale.clamp(min=floor)
    delta = _difference(y.unsqueeze(-2), means)
    log_s = log_s.expand(torch.broadcast_shapes(delta.shape, log_s.shape))
    log_n = -(log_s + 0.5 * _standardise(delta, log_s) ** 2 + 0.5 * LOG_2PI).sum(-1)
    return logsumexp(weight_logits.log_softmax(-1) + log_n, -1, None)
