"""Mixtures of Gaussians and density networks: their axes, calls and plain formulas."""

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import mixtures
import torch
from torch import Tensor

from .case import Case, Spec, extents
from .family import Family, Tensors, rounding_of_exponents, start


def _make_mixture(rng: Random) -> Case:
    covariance = rng.choice(mixtures.COVARIANCES)
    k, d = rng.choice((1, 1, 2, 3, 5, 17, 64)), rng.choice((1, 1, 2, 3, 7, 16, 33))
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 1, 2)), max(1, 2**15 // (k * d)), large=0.2), "k": (k,), "d": (d,)}
    scale = {"diag": ("k", "d"), "spherical": ("k",), "tied": ("d", "d"), "full": ("k", "d", "d")}[covariance]
    kind = "log_scale" if covariance in ("diag", "spherical") else "factor"
    specs = [Spec("x", "bounded", ("batch", "d")), Spec("weight_logits", "exponent", ("k",))]
    specs += [Spec("means", "bounded", ("k", "d")), Spec("scale", kind, scale)]
    options = {"covariance": covariance, "of": rng.choice(("log_prob", "log_prob", "responsibilities", "statistics"))}
    if options["of"] == "responsibilities":  # far from means, the differences of huge numbers that make its gradient have no true value
        specs = [replace(s, kind="ordinary") if s.name in ("x", "means") else s for s in specs]
    case = start(rng, "mixture", options, sizes, specs)
    if options["of"] == "statistics":
        case = replace(case, specs=tuple(replace(s, grad=False) for s in case.specs))
    return replace(case, upstream="random") if options["of"] == "responsibilities" else case  # they sum to one, whatever the arguments


def _mixture_ordinary(case: Case) -> Tensors:
    torch.manual_seed(case.seed)
    k, d = case.sizes["k"][0], case.sizes["d"][0]
    found = mixtures.problem(case.sizes["batch"], k, d, case.options["covariance"])
    return dict(zip(mixtures.ARGUMENTS, found, strict=True))


def _mixture_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return f"mixture_{case.options['of']}", t | {"covariance_type": case.options["covariance"]}


def log_sum_exp(joint: Tensor) -> Tensor:
    """Shifted first: torch.logsumexp's gradient e^(a - L) counts K equal terms K times where log K is lost in the rounding of L."""
    top = joint.detach().amax(-1, keepdim=True).clamp(min=-torch.finfo(joint.dtype).max)
    return (joint - top).logsumexp(-1) + top.squeeze(-1)


def _mixture_joint(t: Tensors, covariance: str) -> Tensor:
    """log w_k + log N(x; mu_k, Sigma_k) in float64, right also where weights or scales are far out of what torch.distributions takes."""
    x, logits, means, scale = (t[n] for n in mixtures.ARGUMENTS)
    if covariance in ("diag", "spherical"):
        log_n = _log_normal(x.unsqueeze(-2), means, scale if covariance == "diag" else scale.unsqueeze(-1))
    else:  # not by the inverse factor, whose rounding counts
        factor = scale.triu()
        factor = factor.expand(len(means), *factor.shape) if covariance == "tied" else factor
        log_n = mixtures._Direct(means, factor).log_prob(x.unsqueeze(-2))
    return log_n + logits.log_softmax(-1)


def _log_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Summed over the last dimension; right for every log standard deviation, which torch.distributions, with its exponential, is not."""
    delta = x - mean
    at = (delta == 0) & (log_scale < -700.0)  # or 0 * inf
    u = delta * torch.where(at, 0.0, -log_scale).exp()
    return -(log_scale + 0.5 * mixtures.LOG_2PI + 0.5 * u.square()).sum(-1)


def _mixture_plain(case: Case, t: Tensors) -> Any:
    args, covariance = [t[n] for n in mixtures.ARGUMENTS], case.options["covariance"]
    exact = args[0].dtype == torch.float64 and args[0].numel() > 0
    joint = _mixture_joint(t, covariance) if exact else None
    log_prob = mixtures.log_prob(*args, covariance) if joint is None else log_sum_exp(joint)
    if case.options["of"] == "log_prob":
        return log_prob
    q = mixtures.responsibilities(*args, covariance) if joint is None else joint.softmax(-1)
    largest = torch.finfo(torch.float64 if any(s.dtype == "float64" for s in case.specs) else torch.float32).max
    q = q.masked_fill((log_prob < -largest).unsqueeze(-1), 0.0)  # documented: all zero where log p is -inf
    if exact and case.options["of"] == "statistics" and largest < 1e300:
        q = q.masked_fill(q < 2e-38, 0.0)  # no float32, whatever it is multiplied with
    if case.options["of"] == "responsibilities":
        return q
    delta = (t["x"].unsqueeze(-2) - t["means"]).reshape(-1, *t["means"].shape)
    q = q.reshape(-1, q.shape[-1])
    sums = _weighed_sums(q, delta, covariance)
    return log_prob, q.sum(0), *(sums if not exact or largest > 1e300 else _within_range(sums, t["scale"], covariance, len(q)))


def _unsure(case: Case, t: Tensors) -> list[Tensor]:
    """What the rounding of the exponents leaves open: of responsibilities, and of the sums that they weigh."""
    covariance, of = case.options["covariance"], case.options["of"]
    if of == "log_prob" or not t["x"].numel():
        return []
    joint = _mixture_joint(t, covariance).reshape(-1, len(t["means"]))
    double = any(s.dtype == "float64" for s in case.specs)
    rounding = rounding_of_exponents(double) * _size_of_exponents(t, covariance).reshape(joint.shape).amax(-1, keepdim=True)
    log_q = joint.log_softmax(-1)
    q = log_q.exp()
    reach = torch.maximum((log_q + rounding).clamp(max=0.0).exp() - q, q - (log_q - rounding).exp())
    open_ = torch.minimum(reach, reach.sum(-1, keepdim=True) - reach).nan_to_num(1.0)  # what one loses, others have
    if of == "responsibilities":
        return [open_.reshape(*t["x"].shape[:-1], -1)]
    delta = (t["x"].unsqueeze(-2) - t["means"]).reshape(-1, *t["means"].shape).abs()
    first, second = _weighed_sums(open_, delta, covariance)
    return [torch.zeros(()), open_.sum(0), first, second]


def _size_of_exponents(t: Tensors, covariance: str) -> Tensor:
    """Of each row and component: of the numbers that the logarithm of the density is a sum of, each with a rounding."""
    delta, scale = t["x"].unsqueeze(-2) - t["means"], t["scale"]
    if covariance in ("diag", "spherical"):
        return (delta * (-(scale if covariance == "diag" else scale.unsqueeze(-1))).exp()).square().sum(-1)
    u, parts = (
        torch.einsum("...kd,...de->...ke" if covariance == "tied" else "...kd,kde->...ke", d, f)
        for d, f in ((delta, scale.triu()), (delta.abs(), scale.triu().abs()))
    )
    return (u.abs() * parts).sum(-1)


def _exponents(case: Case, t: Tensors) -> float:
    """The largest of a component that has a share."""
    covariance = case.options["covariance"]
    if case.options["of"] == "statistics" or covariance in ("diag", "spherical") or not t["x"].numel():
        return 0.0
    shared = _mixture_joint(t, covariance).softmax(-1) > 1e-9
    return _size_of_exponents(t, covariance).masked_fill(~shared, 0.0).nan_to_num(0.0, 0.0, 0.0).max().item()


def _weighed_sums(q: Tensor, delta: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
    form = {"diag": "nk,nkd,nkd->kd", "spherical": "nk,nkd,nkd->k", "tied": "nk,nki,nkj->ij", "full": "nk,nki,nkj->kij"}[covariance]
    return torch.einsum("nk,nkd->kd", q, delta), torch.einsum(form, q, delta, delta)


def _within_range(sums: tuple[Tensor, Tensor], scale: Tensor, covariance: str, rows: int) -> tuple[Tensor, ...]:
    """Documented: the sums are made in units of standard deviations. NaN, which is not judged, where they would be subnormal in float32."""
    if covariance in ("diag", "spherical"):
        width = (scale if covariance == "diag" else scale.unsqueeze(-1)).exp()
        units = width, width.square() if covariance == "diag" else width.square().squeeze(-1)
    else:
        factor = scale.triu()
        diagonal = factor.diagonal(dim1=-2, dim2=-1).abs().reshape(-1, factor.shape[-1]).amax(0)
        units = 1 / diagonal, 1 / (diagonal.unsqueeze(-1) * diagonal)
    return tuple(s.masked_fill(s.abs() < 1e-36 * max(rows, 1) * u, torch.nan) for s, u in zip(sums, units, strict=True))


def _make_mdn(rng: Random) -> Case:
    k, d = rng.choice((1, 2, 3, 5, 17)), rng.choice((1, 1, 2, 3, 7, 33))
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 2)), max(1, 2**15 // (k * d))), "k": (k,), "d": (d,)}
    options = {"shared": rng.random() < 0.4, "min_scale": rng.choice((0.0, 0.0, 0.05, 1.1))}
    specs = [
        Spec("y", "bounded", ("batch", "d")),
        Spec("weight_logits", "exponent", ("batch", "k")),
        Spec("means", "bounded", ("batch", "k", "d")),
    ]
    specs.append(Spec("log_scale", "log_scale", ("batch", "k") if options["shared"] else ("batch", "k", "d")))
    ones = [s if rng.random() < 0.7 else replace(s, ones=tuple(i for i in range(len(sizes["batch"])) if rng.random() < 0.6)) for s in specs]
    return start(rng, "mdn", options, sizes, ones)


def _mdn_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "mdn_log_prob", t | {"min_scale": case.options["min_scale"]}


def _mdn_plain(case: Case, t: Tensors) -> Tensor:
    batch = torch.broadcast_shapes(t["y"].shape[:-1], t["weight_logits"].shape[:-1], t["means"].shape[:-2])
    y, floor = t["y"].expand(*batch, t["y"].shape[-1]), case.options["min_scale"]
    if y.dtype != torch.float64 or not all(v.numel() for v in t.values()):
        return mixtures.mdn_log_prob(y, t["weight_logits"], t["means"], t["log_scale"], floor)
    log_scale = t["log_scale"].unsqueeze(-1) if case.options["shared"] else t["log_scale"]
    log_n = _log_normal(y.unsqueeze(-2), t["means"], log_scale.clamp(min=math.log(floor)) if floor else log_scale)
    return log_sum_exp(log_n + t["weight_logits"].log_softmax(-1))


def weight_terms(log_prob: Callable[[Tensors], Tensor], t: Tensors, upstream: Tensor, sums: int = 1) -> Tensors:
    """The gradient of a weight's logit is sum g (q - w), of probabilities that each have a rounding: sum |g| (q + w).

    With L the log-density, of so many sums over components, whose derivative is q - w, and that of log sum_k e^{a_k} being w, it is a
    derivative of L + 2 log sum_k e^{a_k} (for each sum).
    """
    leaves = {n: v.detach().double().requires_grad_(n == "weight_logits") for n, v in t.items()}
    logits = leaves["weight_logits"]
    total = upstream.abs().double() * (log_prob(leaves) + 2.0 * sums * logits.logsumexp(-1))
    return {"weight_logits": torch.autograd.grad(total.sum(), logits)[0].nan_to_num(0.0)}


def _mixture_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    if case.options["of"] == "log_prob":
        return weight_terms(lambda leaves: _mixture_plain(case, leaves), t, upstream)
    if case.options["of"] == "statistics":
        return {}
    g, q = upstream.double().abs(), _mixture_plain(case, t)
    found = {"weight_logits": (q * (g + (q * g).sum(-1, keepdim=True))).nan_to_num(0.0).reshape(-1, q.shape[-1]).sum(0)}
    if case.options["covariance"] in ("tied", "full"):
        # sum g q (e_k - sum q e), of whose exponents e each has the logarithm of the determinant
        found["scale"] = 2.0 * g.sum() / t["scale"].abs()
    return found


def _mdn_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    return weight_terms(lambda leaves: _mdn_plain(case, leaves), t, upstream)


FAMILIES = (
    Family(
        "mixture",
        _make_mixture,
        _mixture_call,
        _mixture_plain,
        {"of": "log_prob"},
        _mixture_ordinary,
        terms=_mixture_terms,
        exponents=_exponents,
        unsure=_unsure,
        by_tensor=True,
        weighs=True,
        loses_rows=True,
        rows=False,
    ),
    Family(
        "mdn",
        _make_mdn,
        _mdn_call,
        _mdn_plain,
        {"min_scale": 0.0},
        terms=_mdn_terms,
        by_tensor=True,
        weighs=True,
        loses_rows=True,
    ),
)
