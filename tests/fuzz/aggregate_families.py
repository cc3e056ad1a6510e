"""Mixtures of each dimension or with weights of each sample, aggregate posteriors, total correlation and mean discrepancy."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import mixtures
import torch
from torch import Tensor
from torch.distributions import Normal

from .case import Case, Spec, extents
from .family import Family, Tensors, rounding_of_exponents, start
from .mixture_families import log_sum_exp, weight_terms

# --- mixtures ---------------------------------------------------------------------------------------------------------


def _elements(x: Tensor, means: Tensor, log_scale: Tensor) -> Tensor:
    """log N of every row, component and dimension, for every log standard deviation."""
    delta = x.unsqueeze(-2) - means
    at = (delta == 0) & (log_scale < -700.0)  # or 0 * inf
    return -(log_scale + 0.5 * mixtures.LOG_2PI + 0.5 * (delta * torch.where(at, 0.0, -log_scale).exp()).square())


def _densities(log_w: Tensor, each: Tensor, factorized: Any) -> Any:
    joint = log_sum_exp(log_w + each.sum(-1))
    product = log_sum_exp((log_w.unsqueeze(-1) + each).transpose(-1, -2)).sum(-1)
    return {False: joint, True: product, "both": (joint, product)}[factorized]


def _make_mixture(rng: Random) -> Case:
    k, d = rng.choice((1, 2, 3, 5, 17, 64, 200)), rng.choice((1, 2, 3, 7, 16, 33))
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 2)), max(1, 2**15 // (k * d))), "k": (k,), "d": (d,)}
    covariance, factorized = rng.choice(("diag", "spherical")), rng.choice((False, True, "both"))
    by_row = factorized is False or rng.random() < 0.5
    specs = [Spec("x", "bounded", ("batch", "d")), Spec("weight_logits", "logits", ("batch", "k") if by_row else ("k",))]
    specs += [Spec("means", "bounded", ("k", "d")), Spec("scale", "log_std", ("k", "d") if covariance == "diag" else ("k",))]
    return start(rng, "row_mixture", {"covariance": covariance, "factorized": factorized}, sizes, specs, wild=rng.random() < 0.2)


def _mixture_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "mixture_log_prob", t | {"covariance_type": case.options["covariance"], "factorized": case.options["factorized"]}


def _mixture_plain(case: Case, t: Tensors) -> Any:
    scale = t["scale"] if case.options["covariance"] == "diag" else t["scale"].unsqueeze(-1)
    return _densities(t["weight_logits"].log_softmax(-1), _elements(t["x"], t["means"], scale), case.options["factorized"])


def _mixture_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    def both(leaves: Tensors) -> Tensor:
        joint, product = _mixture_plain(replace(case, options=case.options | {"factorized": "both"}), leaves)
        return joint + product

    return weight_terms(both, t, upstream, 1 + t["means"].shape[-1])


def _make_aggregate(rng: Random) -> Case:
    m, d = rng.choice((1, 2, 3, 17, 64, 200)), rng.choice((1, 2, 3, 10, 33))
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 2)), max(1, 2**15 // (m * d))), "m": (m,), "d": (d,)}
    specs = [Spec("z", "bounded", ("batch", "d")), Spec("mu", "bounded", ("m", "d")), Spec("logvar", "logvar", ("m", "d"))]
    return start(rng, "aggregate", {"factorized": rng.choice((False, True, "both"))}, sizes, specs, wild=rng.random() < 0.2)


def _aggregate_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "aggregate_log_prob", t | case.options


def _aggregate_plain(case: Case, t: Tensors) -> Any:
    log_w = t["mu"].new_full((len(t["mu"]),), -math.log(len(t["mu"])))
    return _densities(log_w, _elements(t["z"], t["mu"], 0.5 * t["logvar"]), case.options["factorized"])


# --- total correlation ------------------------------------------------------------------------------------------------


def _make_correlation(rng: Random) -> Case:
    estimator = rng.choice(("mws", "mss"))
    b, d = rng.choice((2, 3, 5, 17, 64, 129)), rng.choice((1, 2, 3, 10))
    options = {
        "estimator": estimator,
        "formula": rng.choice(("beta-tcvae", "disentangling-vae")),
        "dataset_size": rng.choice((b, b + 1, 1000, 60_000)),
        "reduction": rng.choice(("none", "none", "mean", "sum")),
    }
    specs = [Spec(n, k, ("batch", "d")) for n, k in (("z", "location"), ("mu", "location"), ("logvar", "logvar"))]
    return start(rng, "correlation", options, {"batch": (b,), "d": (d,)}, specs, wild=False)


def _correlation_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "total_correlation", t | case.options


def _log_weights(batch: int, dataset_size: int, like: Tensor) -> Tensor:
    """In the words of the public implementations: every (M + 1)-th element is a column."""
    m = batch - 1
    strata = (dataset_size - m) / (dataset_size * m)
    w = like.new_full((batch, batch), 1.0 / m)
    w.view(-1)[:: m + 1] = 1.0 / dataset_size
    w.view(-1)[1 :: m + 1] = strata
    w[m - 1, 0] = strata
    return w.log()


def _correlation_size(case: Case, t: Tensors) -> float:
    """The largest log-density of a z under its own posterior or another, which the parts are differences of."""
    each = Normal(t["mu"], (0.5 * t["logvar"]).exp(), validate_args=False).log_prob(t["z"].unsqueeze(1))
    rows = len(t["z"]) if case.options["reduction"] == "sum" else 1
    size = each.sum(2).logsumexp(1).abs().amax() + math.log(case.options["dataset_size"]) * (1 + t["z"].shape[1])
    return rows * size.item()


def _correlation_plain(case: Case, t: Tensors) -> Any:
    o = case.options
    z, mu, std = t["z"], t["mu"], (0.5 * t["logvar"]).exp()
    each, n = Normal(mu, std, validate_args=False).log_prob(z.unsqueeze(1)), o["dataset_size"]
    paper = o["formula"] == "beta-tcvae"
    if o["estimator"] == "mws":
        shift = math.log(n * len(z)) if paper else 0.0
        joint, product = each.sum(2).logsumexp(1) - shift, (each.logsumexp(1) - shift).sum(1)
    else:
        log_w = _log_weights(len(z), n, z)
        weighed = each + log_w.unsqueeze(2)
        joint = (log_w + each.sum(2) if paper else weighed.sum(2)).logsumexp(1)
        product = weighed.logsumexp(1).sum(1)
    own, prior = (Normal(*p, validate_args=False).log_prob(z).sum(1) for p in ((mu, std), (torch.zeros_like(z), torch.ones_like(z))))
    parts = own - joint, joint - product, product - prior
    return tuple({"none": lambda v=v: v, "mean": v.mean, "sum": v.sum}[o["reduction"]]() for v in parts)


# --- mean discrepancy -------------------------------------------------------------------------------------------------


def _make_mmd(rng: Random) -> Case:
    sizes = {"n": (rng.choice((2, 3, 17, 100)),), "m": (rng.choice((2, 3, 17, 100)),), "d": (rng.choice((1, 2, 10, 33)),)}
    options = {
        "kernel": rng.choice(("imq", "rbf")),
        "bandwidth": rng.choice((1.0, 1.0, 0.3, 4.0)),
        "scales": rng.choice((None, [0.5, 2.0])),
    }
    return start(rng, "mmd", options, sizes, [Spec(n, "small", (s, "d")) for n, s in (("z", "n"), ("prior", "m"))], wild=False)


def _mmd_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "mmd", t | case.options


def _mmd_size(case: Case, t: Tensors) -> float:
    """Of the distances in units of the narrowest kernel, which are differences of squares, times the number of kernels."""
    scales = case.options["scales"] or ((0.1, *[1.0] * 6) if case.options["kernel"] == "imq" else (1.0,))
    width = 2.0 * t["z"].shape[1] * case.options["bandwidth"] ** 2 * min(scales)
    far = max((v - t["prior"].mean(0)).square().sum(1).amax().item() for v in t.values())
    return len(scales) * max(1.0, 4.0 * far / width)


def _mmd_rounding(case: Case, t: Tensors) -> Tensor:
    return torch.tensor(_mmd_size(case, t) * rounding_of_exponents(any(s.dtype == "float64" for s in case.specs)))


def _mmd_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    """Of the gradients, which are sums of the pulls of pairs in every direction."""
    o, (n, m) = case.options, map(len, t.values())
    scales = _mmd_scales(case)

    def pulls(a: Tensor, b: Tensor, of: int) -> Tensor:
        delta = (a.unsqueeze(1) - b).abs()
        distance = delta.square().sum(2, keepdim=True)
        widths = [2.0 * a.shape[1] * o["bandwidth"] ** 2 * s for s in scales]
        slopes = [w / (w + distance).square() if o["kernel"] == "imq" else (-distance / w).exp() / w for w in widths]
        return 2.0 * upstream.double().abs() / of * sum(s * delta for s in slopes).sum(1)  # type: ignore[union-attr]

    return {
        "z": 2.0 * pulls(t["z"], t["z"], n * (n - 1)) + 2.0 * pulls(t["z"], t["prior"], n * m),
        "prior": 2.0 * pulls(t["prior"], t["prior"], m * (m - 1)) + 2.0 * pulls(t["prior"], t["z"], n * m),
    }


def _mmd_scales(case: Case) -> Any:
    return case.options["scales"] or ((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if case.options["kernel"] == "imq" else (1.0,))


def _mmd_plain(case: Case, t: Tensors) -> Tensor:
    o = case.options
    z, prior = t["z"], t["prior"]
    scales = _mmd_scales(case)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = (a.unsqueeze(1) - b).square().sum(2)
        widths = [2.0 * a.shape[1] * o["bandwidth"] ** 2 * s for s in scales]
        return sum(w / (w + distance) if o["kernel"] == "imq" else (-distance / w).exp() for w in widths)  # type: ignore[return-value]

    def within(t: Tensor) -> Tensor:
        return (kernel(t, t) * (1 - torch.eye(len(t), dtype=t.dtype))).sum() / (len(t) * (len(t) - 1))

    return within(z) + within(prior) - 2 * kernel(z, prior).mean()


FAMILIES = (
    Family(
        "row_mixture",
        _make_mixture,
        _mixture_call,
        _mixture_plain,
        {"factorized": True},
        terms=_mixture_terms,
        by_tensor=True,
        weighs=True,
        loses_rows=True,
        rows=False,
    ),
    Family(
        "aggregate",
        _make_aggregate,
        _aggregate_call,
        _aggregate_plain,
        {"factorized": False},
        by_tensor=True,
        weighs=True,
        loses_rows=True,
        rows=False,
    ),
    Family(
        "correlation",
        _make_correlation,
        _correlation_call,
        _correlation_plain,
        {"reduction": "none"},
        size=_correlation_size,
        by_tensor=True,
        weighs=True,
        rows=False,
    ),
    Family(
        "mmd",
        _make_mmd,
        _mmd_call,
        _mmd_plain,
        {"scales": None},
        terms=_mmd_terms,
        rounding=_mmd_rounding,
        size=_mmd_size,
        by_tensor=True,
        weighs=True,
        products=True,
        rows=False,
    ),
)
