"""Every term of a row sum in plain torch: the formula of one element, by the names that the kernels' table has (csrc/term_table.h).

This is the first part of :mod:`vae_fast.reference`: the oracle of the tests, the backend where the extension was not built, and what second
derivatives and ``torch.func`` transforms go through. It favours clarity over speed, but never over numerics: no finite input gives NaN.

A new term is a function here and a row in :data:`TERMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vae_fast._precision import compute_dtype, count_to_compute, to_compute, wide
from vae_fast._scales import SCALES, bounded, compare, log_std, scale_input, softplus, split_bounds, standardised, std

LOG_2PI = math.log(2.0 * math.pi)

#: Clip modes of the Bernoulli log-likelihood, by their name inside term names.
CLIPS = ("none", "clamp", "add", "bce")
#: Whether the mean and the dispersion of a count are given as they are, or as their logarithms.
SPACES = ("linear", "log")

Number = float | Tensor
Item = TypeVar("Item")


# --- elementwise terms -----------------------------------------------------------------------------------------------


def _kl(inputs: Sequence[Tensor], scale: str, params: Sequence[Number]) -> Tensor:
    # KL(N(m, s^2) || N(p, t^2)) = (e^2w - 1) / 2 - w + z^2 / 2 with w = log s - log t and z = (m - p) / t
    m, wide_s, p = wide(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)
    if len(inputs) == 2:
        w, z, sd = log_std(wide_s, scale), m - p, std(wide_s, scale)
        half = 0.5 * torch.expm1(2.0 * w) if scale in ("logvar", "log_std") else (0.5 * (sd - 1.0)) * (sd + 1.0)
    else:
        t = inputs[3].double()
        (w, half), z = compare(wide_s, t, scale), standardised(m, p, t, scale)
    kl = (half - w + (0.5 * z) * z).to(inputs[0].dtype)
    (floor,) = params
    if isinstance(floor, Tensor):
        return kl.clamp(min=floor.to(kl.dtype))
    return kl if floor == -math.inf else kl.clamp(min=floor)


def _constant(params: Sequence[Number]) -> float:
    # of the clip modes that have one
    return float(params[0]) if params else math.nan


def _bernoulli_logits(inputs: Sequence[Tensor], clip: str, params: Sequence[Number]) -> Tensor:
    x, a = inputs
    eps = _constant(params)
    if clip == "clamp":
        bound = math.log1p(-eps) - math.log(eps)
        a = a.clamp(-bound, bound)
    if clip in ("none", "clamp"):
        # x log sigmoid(a) + (1 - x) log sigmoid(-a): no cancellation of x a against a
        return -(x * softplus(-a) + (1.0 - x) * softplus(a))
    dtype = a.dtype
    x, a = wide(x, a)  # a probability below float32's range still counts beside a small eps
    p, q = torch.sigmoid(a), torch.sigmoid(-a)
    # each from the smaller of the two: torch differentiates a sigmoid as p (1 - p), which near 1 is a rounding error
    p, q = torch.where(a < 0.0, p, 1.0 - q), torch.where(a < 0.0, 1.0 - p, q)
    if clip == "add":
        return (x * (p + eps).log() + (1.0 - x) * (q + eps).log()).to(dtype)
    logs = -softplus(-a), -softplus(a)
    return _bce_element(x, p, q, logs, logs).to(dtype)


def _bernoulli_probs(inputs: Sequence[Tensor], clip: str, params: Sequence[Number]) -> Tensor:
    x, p = inputs
    eps = _constant(params)
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


def _gaussian_unit(inputs: Sequence[Tensor], variant: str, params: Sequence[Number]) -> Tensor:
    # -log(2 pi) / 2 - (x - m)^2 / 2
    x, m = wide(*inputs)
    return (-0.5 * LOG_2PI - (0.5 * (x - m)) * (x - m)).to(inputs[0].dtype)


def _gaussian(inputs: Sequence[Tensor], scale: str, params: Sequence[Number]) -> Tensor:
    # -log s - log(2 pi) / 2 - ((x - m) / s)^2 / 2
    wide_x, m, wide_s = wide(*inputs)
    z = standardised(wide_x, m, wide_s, scale)
    return (-log_std(wide_s, scale) - 0.5 * LOG_2PI - (0.5 * z) * z).to(inputs[0].dtype)


def _laplace(inputs: Sequence[Tensor], scale: str, params: Sequence[Number]) -> Tensor:
    # -log(2 b) - |x - m| / b
    x, m, s = wide(*inputs)
    size = standardised(x, m, s, scale).abs()
    density = -size - log_std(s, scale) - math.log(2.0)
    return torch.where(size == math.inf, -size, density).to(inputs[0].dtype)


def _log_normal(inputs: Sequence[Tensor], scale: str, params: Sequence[Number]) -> Tensor:
    # -log x - log s - log(2 pi) / 2 - ((log x - m) / s)^2 / 2, and -inf outside x > 0
    wide_x, m, wide_s = wide(*inputs)
    outside = wide_x <= 0
    log_x = wide_x.masked_fill(outside, 1.0).log()
    z = standardised(log_x, m, wide_s, scale)
    density = -(0.5 * z) * z - log_std(wide_s, scale) - 0.5 * LOG_2PI - log_x
    return density.masked_fill(outside & ~density.isnan(), -math.inf).to(inputs[0].dtype)


#: The first coefficients B_2k / (2k (2k)!) of the series of log(sinh(a / 2) / (a / 2)) in a^2.
LOG_SINHC = (
    *(1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000, 1 / 1046139494400),
    *(-2.1185501852016142918e-14, 4.7700344757099136467e-16, -1.0874343492790309365e-17),
)


def polynomial(u: Tensor, coefficients: Sequence[float]) -> Tensor:
    """``c[0] + c[1] u + c[2] u^2 + ...``."""
    total = torch.zeros_like(u)
    for c in reversed(coefficients):
        total = total * u + c
    return total


def _continuous_bernoulli(inputs: Sequence[Tensor], variant: str, params: Sequence[Number]) -> Tensor:
    # x a - log((e^a - 1) / a), by its series around a = 0
    x, a = wide(*inputs)
    near = a.abs() < 1.0
    inside = a.masked_fill(~near, 0.5)
    u = inside * inside
    close = (x - 0.5) * inside - u * polynomial(u, LOG_SINHC)
    outside = a.masked_fill(near, 2.0)
    c = outside.abs()
    far = (c / -torch.expm1(-c)).log() - torch.where(outside < 0, x, 1.0 - x) * c
    return torch.where(near, close, far).to(inputs[0].dtype)


#: The first coefficients of log Gamma(z + 1/2) - log Gamma(z) - log(z) / 2 in 1 / z, 1 / z^3, ... (Stirling's series, DLMF 5.11.8).
_HALF_STEP = (
    *(-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224, -5461 / 425984),
    *(0.059100405375162760417, -0.35928737415986902574, 2.7848617779581170333),
)


def half_step_of_log_gamma(z: Tensor) -> Tensor:
    """``log Gamma(z + 1/2) - log Gamma(z) - log(z) / 2`` in float64, by Stirling's series from z = 8 on and eight steps below."""
    low = z < 8.0
    inverse = torch.where(low, z + 8.0, z).reciprocal()
    v, quotient = z.masked_fill(~low, 1.0), torch.ones_like(z)
    for k in range(8):
        quotient = quotient * ((v + k) / (v + (k + 0.5))) * ((v + (k + 1)) / (v + (k + 0.5)))
    steps = 0.5 * quotient.log()
    return inverse * polynomial(inverse * inverse, _HALF_STEP) + torch.where(low, steps, torch.zeros_like(steps))


def _student_t(inputs: Sequence[Tensor], scale: str, params: Sequence[Number]) -> Tensor:
    # A(n / 2) - log(2 pi) / 2 - log s - (n + 1) / 2 log(1 + t^2 / n), whose logarithm is 2 log|t| - log n far out, t in range or not
    x, m, n, s = wide(*inputs)
    with torch.no_grad():
        t = standardised(x, m, s, scale)
        far = (t / n) * t > 1e18
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    base = half_step_of_log_gamma(0.5 * n) - 0.5 * LOG_2PI
    inside = torch.where(far, one, s)
    z = standardised(torch.where(far, zero, x), torch.where(far, zero, m), inside, scale)
    near = base - log_std(inside, scale) - 0.5 * (n + 1.0) * torch.log1p((z / n) * z)
    log_size = (0.5 * torch.where(far, x, one) - 0.5 * torch.where(far, m, zero)).abs().log() + math.log(2.0)
    beyond = base + n * log_std(torch.where(far, s, one), scale) - (n + 1.0) * (log_size - 0.5 * n.log())
    return torch.where(far, beyond, near).to(inputs[0].dtype)


def discretized_logistic(y: Tensor, loc: Tensor, log_scale: Tensor, half: float, low: float, high: float, thin: bool) -> Tensor:
    """``log(sigmoid(u) - sigmoid(v))`` over the bin ``y +- half`` of values on [-1, 1], in float64.

    The first and the last bin, below ``low`` and above ``high``, reach to infinity. ``thin``: the density times the width where that
    is below log 1e-5.
    """
    # -softplus(-u) - softplus(v) + log(1 - e^(v - u)); the scale is held to where its inverse is a number
    inverse = (-log_scale.clamp(-690.0, 690.0)).exp()
    offset, largest = y - loc, torch.finfo(torch.float64).max
    u, v = (((offset + h) * inverse).clamp(-largest, largest) for h in (half, -half))
    above, below = ~(y > high), ~(y < low)
    zero = torch.zeros_like(offset)
    gap = 2.0 * half * inverse  # of a narrow bin log(1 - e^-gap) from its logarithm, which is a number at any scale
    narrow = math.log(2.0 * half) - log_scale - gap * (0.5 - gap / 24.0)
    inside = torch.where(gap < 1e-3, narrow, (-torch.expm1(-gap)).log()).expand_as(u)
    value = torch.where(above, -softplus(-u), zero) + torch.where(below, -softplus(v), zero) + torch.where(above & below, inside, zero)
    if not thin:
        return value
    t = (offset * inverse).clamp(-largest, largest)
    density = t - 2.0 * softplus(t) - log_scale + math.log(2.0 * half)
    return torch.where(above & below & (value < math.log(1e-5)), density, value)


def _discretized_logistic(inputs: Sequence[Tensor], variant: str, params: Sequence[Number]) -> Tensor:
    x, loc, log_scale = torch.broadcast_tensors(*wide(*inputs))
    levels, stretch = params
    half = 1.0 / float(levels)
    return discretized_logistic(2.0 * stretch * x - 1.0, loc, log_scale, half, half - 1.0, 1.0 - half, False).to(inputs[0].dtype)


# --- counts ----------------------------------------------------------------------------------------------------------


def _poisson(inputs: Sequence[Tensor], variant: str, params: Sequence[Number]) -> Tensor:
    # x log r - r - log x!
    x, r = wide(*inputs)
    log_rate, rate = (r, r.exp()) if variant == "log_rate" else (r.masked_fill(x == 0, 1.0).log(), r)  # 0 log 0 = 0
    return (x * log_rate - rate - (x + 1.0).lgamma()).to(inputs[0].dtype)


def _binet_difference(theta: Tensor, n: Tensor) -> Tensor:
    # what Stirling's formulas of lgamma(n) and lgamma(theta) leave, for theta > 1000 (DLMF 5.11.1)
    u, v = 1.0 / theta, 1.0 / n
    return (v - u) / 12.0 - (v**3 - u**3) / 360.0


def _rising(theta: Tensor, x: Tensor) -> Tensor:
    # lgamma(theta + x) - lgamma(theta) - x log theta, without cancellation where theta is large
    large = theta > 1000.0
    high, low = theta.masked_fill(~large, 1.0), theta.masked_fill(large, 1.0)
    n = high + x
    series = (n - 0.5) * (x / high).log1p() - x + _binet_difference(high, n)
    return torch.where(large, series, (low + x).lgamma() - low.lgamma() - x * low.log())


def _negative_binomial(inputs: Sequence[Tensor], space: str, params: Sequence[Number]) -> Tensor:
    # theta log((theta + e) / s) + x log((mu + e) / s) + lgamma(x + theta) - lgamma(theta) - log x!  with s = theta + mu + e
    x, mu, theta = wide(*inputs[:3])
    (eps,) = params
    log_mu = None
    if space == "log":
        log_mu = mu.clamp(max=60.0)
        mu, theta = log_mu.exp(), theta.clamp(-60.0, 60.0).exp()
    theta = theta.clamp(1e-30, 1e30)
    top = mu + eps
    if log_mu is None or eps != 0.0:
        log_mu = top.masked_fill(x == 0, 1.0).log()  # of which there is nothing then
    count = torch.where(x == 0, torch.zeros_like(x), x * (log_mu - (top / theta).log1p()))
    log_prob = count - theta * (mu / (theta + eps)).log1p() + _rising(theta, x) - (x + 1.0).lgamma()
    return log_prob.to(inputs[0].dtype)


def _zero_inflated_negative_binomial(inputs: Sequence[Tensor], space: str, params: Sequence[Number]) -> Tensor:
    # log(s(l) + s(-l) NB(0)) at 0, log s(-l) + log NB(x) above
    log_prob, logits = _negative_binomial([t.double() for t in inputs[:3]], space, params), inputs[3].double()
    zero = softplus(log_prob - logits) - softplus(-logits)
    return torch.where(inputs[0] == 0, zero, log_prob - softplus(logits)).to(inputs[0].dtype)


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A family of terms: one formula, in variants that the part of the name behind the dot tells apart."""

    #: ``element(inputs, variant, params)``: the inputs in one precision, broadcast against each other.
    element: Callable[[Sequence[Tensor], str, Sequence[Number]], Tensor]
    #: What the values of each input have to be, by the names in :mod:`vae_fast.functional._values`; "scale", "mean" and "dispersion": as
    #: the variant has it.
    inputs: tuple[str, ...]
    variants: tuple[str, ...] = ("",)
    #: Which of the parameters, as a user gives them, each input behind x is; empty if they are in the same order. The first input has the
    #: shape of the event.
    order: tuple[int, ...] = ()


TERMS = {
    "kl": Term(_kl, ("finite", "scale"), SCALES),
    "kl_prior": Term(_kl, ("finite", "scale", "finite", "scale"), SCALES),
    "bernoulli_logits": Term(_bernoulli_logits, ("unit", "finite"), CLIPS),
    "bernoulli_probs": Term(_bernoulli_probs, ("unit", "unit"), CLIPS),
    "gaussian_unit": Term(_gaussian_unit, ("finite", "finite")),
    "gaussian": Term(_gaussian, ("finite", "finite", "scale"), SCALES),
    "laplace": Term(_laplace, ("finite", "finite", "scale"), SCALES),
    "log_normal": Term(_log_normal, ("positive", "finite", "scale"), SCALES),
    "continuous_bernoulli": Term(_continuous_bernoulli, ("unit", "finite")),
    "student_t": Term(_student_t, ("finite", "finite", "positive", "scale"), SCALES, order=(1, 0, 2)),
    "discretized_logistic": Term(_discretized_logistic, ("unit", "finite", "finite")),
    "poisson": Term(_poisson, ("count", "mean"), ("rate", "log_rate")),
    "negative_binomial": Term(_negative_binomial, ("count", "mean", "dispersion"), SPACES),
    "zero_inflated_negative_binomial": Term(_zero_inflated_negative_binomial, ("count", "mean", "dispersion", "finite"), SPACES),
}


def _find(name: str) -> tuple[Term, str]:
    name = split_bounds(name)[0]
    family, _, variant = name.partition(".")
    if family not in TERMS or variant not in TERMS[family].variants or name.endswith("."):
        raise ValueError(f"term={name!r}: expected one of {', '.join(names())}")
    return TERMS[family], variant


def inputs_to_compute(name: str, inputs: Sequence[Tensor], like: torch.dtype) -> list[Tensor]:
    """A term's inputs in one precision."""
    first = count_to_compute if _find(name)[0].inputs[0] == "count" else to_compute
    return [first(inputs[0], like), *(to_compute(t, like) for t in inputs[1:])]


def in_order(name: str, parameters: Sequence[Item]) -> list[Item]:
    """The parameters of a distribution, as a user gives them (all, or the first few), in the order of its term's inputs."""
    family = TERMS.get(split_bounds(name)[0].partition(".")[0])  # an unknown one is refused where it is computed
    order = () if family is None else family.order
    return [parameters[i] for i in order if i < len(parameters)] if order else list(parameters)


def names() -> list[str]:
    """The names of all terms, as the kernels' table has them."""
    return [f"{family}.{variant}".rstrip(".") for family, term in TERMS.items() for variant in term.variants]


def term(name: str, inputs: Sequence[Tensor], params: Sequence[Number], event_dim: int) -> Tensor:
    """A row-summed term by the name the kernels know it by, e.g. ``"kl.logvar"`` or ``"bernoulli_logits.clamp"``.

    ``inputs`` broadcast against each other; the last ``event_dim`` dimensions are summed. ``params`` are the term's own: the constant of
    the Bernoulli clip modes ``"clamp"`` and ``"add"``; the least value of an element of the KL terms (free bits; ``-inf`` for none); the
    constant in the logarithms of the negative binomials (0 for none). The name may end with the bounds of its scale, see
    :func:`with_bounds`.
    """
    found, variant = _find(name)
    inputs = inputs_to_compute(name, inputs, compute_dtype(inputs))
    bounds = split_bounds(name)[1]
    if bounds is not None:
        at = scale_input(name, len(inputs))
        inputs = [*inputs[:at], bounded(inputs[at], bounds), *inputs[at + 1 :]]
    element = found.element(inputs, variant, params)
    return element.flatten(-event_dim).sum(-1) if event_dim else element
