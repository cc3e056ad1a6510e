"""The ops: the axes of each, the public call, and the plain formula, which in float64 is the truth."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

from . import (
    aggregate_families,
    element_families,
    group_families,
    head_families,
    latent_families,
    likelihood_families,
    mixture_families,
    whole_families,
)
from .case import Case, Spec, broadcast, budget, dress, extents
from .family import Family, Tensors, start
from .latent_families import reduced
from .likelihood_families import BERNOULLI, draw_eps, grey, likelihood

# --- sums over exponentials -------------------------------------------------------------------------------------------


def _make_logsumexp(rng: Random) -> Case:
    sizes = {"batch": extents(rng, rng.choice((1, 1, 2, 3)), budget(rng))}
    weighted = rng.random() < 0.4
    options = {"dim": rng.randrange(-len(sizes["batch"]), len(sizes["batch"])), "iwae": not weighted and rng.random() < 0.4}
    specs = [Spec("a", "exponent", ("batch",))] + [broadcast(rng, sizes, Spec("weights", "weights", ("batch",)))] * weighted
    if options["iwae"] and sizes["batch"][options["dim"]] == 0:
        options["iwae"] = False
    return start(rng, "logsumexp", options, sizes, specs)


def _logsumexp_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    dim = {"dim": case.options["dim"]}
    return ("iwae_bound", {"log_w": t["a"], **dim}) if case.options["iwae"] else ("logsumexp", t | dim)


def _logsumexp_plain(case: Case, t: Tensors) -> Tensor:
    dim = case.options["dim"]
    a, w = t["a"], t.get("weights")
    if a.dtype == torch.float64 and a.numel():  # shifted first: at 1e30 the sum's logarithm is lost in the rounding of the result
        kept = a if w is None else torch.where(w > 0, a, -torch.inf)
        top = kept.detach().amax(dim, keepdim=True).clamp(min=-torch.finfo(torch.float64).max)
        return oracle.logsumexp(a - top, w, dim) + top.squeeze(dim) - (math.log(a.shape[dim]) if case.options["iwae"] else 0.0)
    return oracle.logsumexp(a, w, dim) - (math.log(t["a"].shape[dim]) if case.options["iwae"] else 0.0)


# --- the linear layer -------------------------------------------------------------------------------------------------


def _make_linear(rng: Random) -> Case:
    batch = extents(rng, rng.choice((0, 1, 1, 2)), rng.choice((16, 128, 2048)))
    sizes = {"batch": batch, "event": (rng.choice((1, 2, 5, 17, 64, 784)),), "features": (rng.choice((0, 1, 2, 7, 33, 128)),)}
    clip = rng.choice(oracle.CLIPS)
    options = {"space": "logits", "clip": clip, "eps": draw_eps(rng, "logits", clip), "reduction": rng.choice(("none", "mean", "sum"))}
    specs = [Spec("h", "small", ("batch", "features")), Spec("weight", "small", ("event", "features"))]
    specs += [Spec("bias", "logits", ("event",))] * (rng.random() < 0.7)
    specs = [broadcast(rng, sizes, specs[0], "batch") if batch else specs[0], *specs[1:]]
    dtype = rng.choice(("float32", "float32", "float64"))
    x = Spec("x", "target", ("batch", "event"), dtype=grey(rng))
    x = broadcast(rng, sizes, x, "batch") if batch else x
    case = start(rng, "linear", options, sizes, [replace(s, dtype=dtype) for s in specs], dtypes=False)
    return replace(case, specs=(*dress(rng, [x], dtypes=x.dtype == "float32"), *case.specs))


def _linear_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "linear_bernoulli_log_prob", t | {"clip": o["clip"], "eps": o["eps"], "reduction": o["reduction"]}


def _linear_plain(case: Case, t: Tensors) -> Tensor:
    rows = likelihood(case, t["x"], (F.linear(t["h"], t["weight"], t.get("bias")),))
    return reduced(rows, case.options["reduction"])


def _linear_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    """Of the gradients, which are products of a matrix with those of the logits: the products of the sizes."""
    batch = torch.broadcast_shapes(t["x"].shape[:-1], t["h"].shape[:-1])  # of rows of h that are one, each has its own slope
    logits = F.linear(t["h"].expand(*batch, -1), t["weight"], t.get("bias")).requires_grad_()
    rows = reduced(likelihood(case, t["x"], (logits,)), case.options["reduction"])
    (slope,) = torch.autograd.grad(rows, logits, upstream.double())
    sizes = {n: t[n].abs().requires_grad_() for n in ("h", "weight")}
    grads = torch.autograd.grad((slope.nan_to_num(0.0).abs() * F.linear(*sizes.values())).sum(), list(sizes.values()))
    return dict(zip(sizes, grads, strict=True))


# --- all of them ------------------------------------------------------------------------------------------------------

FAMILIES = {
    f.name: f
    for f in (
        *latent_families.FAMILIES,
        *likelihood_families.FAMILIES,
        *head_families.FAMILIES,
        Family("logsumexp", _make_logsumexp, _logsumexp_call, _logsumexp_plain, {"iwae": False, "dim": 0}, weighs=True, rows=False),
        Family(
            "linear",
            _make_linear,
            _linear_call,
            _linear_plain,
            BERNOULLI | {"reduction": "none"},
            terms=_linear_terms,
            by_tensor=True,
            products=True,
            rows=False,
        ),
        *mixture_families.FAMILIES,
        *element_families.FAMILIES,
        *group_families.FAMILIES,
        *aggregate_families.FAMILIES,
        *whole_families.FAMILIES,
    )
}
