"""The ELBO and the importance-weighted loss of every likelihood of elements, in any form of the latent scale, with bounds of both scales,
numbers that are tensors, and samples in any place."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import oracle
import torch
from torch import Tensor

from . import scale_bounds
from .case import Case, Spec, budget, extents
from .element_families import continuous_plain, counts_plain
from .family import Family, Tensors, rounding_of_exponents, start
from .group_families import logistic_plain
from .latent_families import PRIORS, elements, reduced

# By likelihood: x, and the decoder's parameters in their order.
_DECODERS = {
    "gaussian": ("location", {"mu": "modest", "scale": "logvar"}),
    "laplace": ("location", {"loc": "modest", "scale": "log_std"}),
    "log_normal": ("positive", {"loc": "modest", "scale": "log_std"}),
    "student_t": ("location", {"df": "df", "loc": "modest", "scale": "log_std"}),
    "continuous_bernoulli": ("target", {"logits": "logits"}),
    "poisson": ("count", {"log_rate": "log_rate"}),
    "negative_binomial": ("count", {"mu": "log_rate", "theta": "log_theta"}),
    "zero_inflated_negative_binomial": ("count", {"mu": "log_rate", "theta": "log_theta", "zi_logits": "logits"}),
    "discretized_logistic": ("target", {"loc": "modest", "scale": "bin_scale"}),
}
_COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")


def _draw(rng: Random) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], list[Spec], list[Spec], list[Spec]]:
    """Options, sizes, and the arguments: x, the decoder's and the latents'."""
    b = budget(rng)
    sizes = {"event": extents(rng, rng.choice((0, 1, 1, 2)), b)}
    sizes["batch"] = extents(rng, rng.choice((1, 1, 2)), max(1, b // max(1, math.prod(sizes["event"]))), large=0.05)
    sizes["latent"] = extents(rng, rng.choice((1, 1, 2)), 32, large=0.0)
    likelihood, scale, prior = rng.choice(tuple(_DECODERS)), rng.choice(oracle.SCALES), rng.choice(PRIORS)
    kind, decoder = _DECODERS[likelihood]
    options = {"likelihood": likelihood, "scale": scale, "prior": prior, "bounds": scale_bounds.draw(rng, scale)}
    options["recon_bounds"] = scale_bounds.draw(rng, "log_std") if "scale" in decoder else None
    x = Spec(
        "x",
        kind,
        ("batch", "event"),
        grad=likelihood not in _COUNTS,
        dtype=rng.choice(("float32", "uint8", "int32")) if likelihood in _COUNTS else "float32",
    )
    recon = [Spec(f"recon_{n}", k, ("batch", "event")) for n, k in decoder.items()]
    latent = [Spec("mu", "location", ("batch", "latent")), Spec("logvar", scale, ("batch", "latent"))]
    latent += [Spec("prior_mu", "location", ("batch", "latent"))] * (prior in ("both", "mean"))
    latent += [Spec("prior_logvar", scale, ("batch", "latent"))] * (prior in ("both", "scale"))
    return options, sizes, [x], recon, latent


def _common(case: Case, t: Tensors) -> dict[str, Any]:
    o = case.options
    recon = tuple(v for n, v in t.items() if n.startswith("recon_"))
    given = {n: v for n, v in t.items() if not n.startswith("recon_")} | {"recon": recon if len(recon) > 1 else recon[0]}
    given |= {"likelihood": o["likelihood"], "scale": o["scale"], "scale_bounds": o["bounds"], "recon_scale_bounds": o["recon_bounds"]}
    return given | {"event_dim": len(case.sizes["event"]), "latent_dim": len(case.sizes["latent"])}


def _log_likelihood(case: Case, t: Tensors) -> Tensor:
    of, n = case.options["likelihood"], len(case.sizes["event"])
    p = {k.removeprefix("recon_"): v for k, v in t.items() if k.startswith("recon_")}
    if case.options["recon_bounds"]:
        p["scale"] = scale_bounds.bounded(p["scale"], case.options["recon_bounds"])
    if of == "gaussian":
        return oracle.gaussian_log_prob(t["x"], p["mu"], p["scale"], event_dim=n)
    if of == "discretized_logistic":
        renamed = {"x": t["x"], "loc": p["loc"], "log_scale": p["scale"]}
        return logistic_plain(replace(case, options={"bits": 8}), renamed)
    if of in _COUNTS:
        return counts_plain(replace(case, options={"of": of, "space": "log"}), {"x": t["x"], **p})
    renamed = {"log_scale" if n == "scale" else n: v for n, v in p.items()}
    return continuous_plain(replace(case, options={"of": of, "scale": "log_std"}), {"x": t["x"], **renamed})


# --- the ELBO ---------------------------------------------------------------------------------------------------------


def _make_elbo(rng: Random) -> Case:
    options, sizes, x, recon, latent = _draw(rng)
    options |= {"beta": rng.choice((1.0, 0.0, 0.3, 4.0)), "free_bits": rng.choice((None, None, 0.0, 0.25))}
    options |= {
        "tensors": rng.random() < 0.3,
        "reduction": rng.choice(("elbo", "elbo", "none", "mean", "sum")),
        "parts": rng.random() < 0.3,
    }
    return start(rng, "whole_elbo", options, sizes, [*x, *recon, *latent], wild=False)


def _elbo_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    number = (lambda v: v if v is None else torch.tensor(v)) if o["tensors"] else lambda v: v
    given = _common(case, t) | {"beta": number(o["beta"]), "free_bits": number(o["free_bits"]), "return_parts": o["parts"]}
    return ("elbo", given) if o["reduction"] == "elbo" else ("elbo_loss", given | {"reduction": o["reduction"]})


def _elbo_plain(case: Case, t: Tensors) -> Any:
    o = case.options
    rows = _log_likelihood(case, t)
    kl = oracle.total(elements(scale_bounds.held(case, t), o["scale"], o["free_bits"]), len(case.sizes["latent"]))
    whole = rows - (torch.tensor(o["beta"]).item() if o["tensors"] else o["beta"]) * kl
    if o["reduction"] != "elbo":
        whole, rows, kl = (reduced(v, o["reduction"]) for v in (-whole, rows, kl))
    return (whole, rows.detach(), kl.detach()) if o["parts"] else whole


# --- importance weights -----------------------------------------------------------------------------------------------


def _make_iwae(rng: Random) -> Case:
    options, sizes, x, recon, latent = _draw(rng)
    sizes["k"] = (rng.choice((1, 2, 3, 5)),)
    last = rng.random() < 0.5
    options |= {"sample_dim": rng.choice((-1, len(sizes["batch"]))) if last else 0, "reduction": rng.choice(("none", "mean", "sum"))}
    batch = ("batch", "k") if last else ("k", "batch")
    recon = [replace(s, dims=(*batch, "event")) for s in recon]
    return start(rng, "whole_iwae", options, sizes, [*x, *recon, Spec("z", "location", (*batch, "latent")), *latent], wild=False)


def _iwae_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "iwae_loss", _common(case, t) | {"sample_dim": case.options["sample_dim"], "reduction": case.options["reduction"]}


def _samples_first(case: Case, t: Tensors) -> Tensors:
    place = len(case.sizes["batch"]) if case.options["sample_dim"] else 0
    return {n: v.movedim(place, 0) if n == "z" or n.startswith("recon_") else v for n, v in t.items()}


def _logs(case: Case, t: Tensors) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z) of each sample."""
    o, t, n = case.options, _samples_first(case, t), len(case.sizes["latent"])
    held = scale_bounds.held(case, t)
    zero = torch.zeros_like(t["z"])
    std = oracle.std_of(t["prior_logvar"], o["scale"]) if "prior_logvar" in t else torch.ones_like(zero)
    log_p = oracle.gaussian_log_prob(t["z"], t.get("prior_mu", zero) + zero, std, scale="std", event_dim=n)
    log_q = oracle.gaussian_log_prob(t["z"], t["mu"] + zero, oracle.std_of(held["logvar"], o["scale"]) + zero, scale="std", event_dim=n)
    return _log_likelihood(case, t) + log_p, log_q


def _iwae_plain(case: Case, t: Tensors) -> Tensor:
    log_p, log_q = _logs(case, t)
    return reduced(math.log(len(log_p)) - (log_p - log_q).logsumexp(0), case.options["reduction"])


def _iwae_rounding(case: Case, t: Tensors) -> Tensor:
    log_p, log_q = _logs(case, t)
    return ((log_p.abs() + log_q.abs()) * rounding_of_exponents(any(s.dtype == "float64" for s in case.specs))).detach().amax(0)


def _iwae_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    """As of the Bernoulli's and the Gaussian's: a derivative of log p(z) less one of log q(z), times the share of the sample."""
    log_p, log_q = _logs(case, t)
    share = (log_p - log_q).softmax(0) * upstream.double().abs() / (log_p[0].numel() if case.options["reduction"] == "mean" else 1)
    first, o = _samples_first(case, t), case.options
    names = [n for n in ("z", "mu", "logvar", "prior_mu", "prior_logvar") if n in t]
    zero = torch.zeros_like(first["z"])
    leaves = {n: (first[n] + zero).detach().requires_grad_() for n in names}

    def std(name: str) -> Tensor:
        s = leaves[name] if name != "logvar" else scale_bounds.held(case, leaves)["logvar"]
        return oracle.std_of(s, o["scale"])

    # each derivative with the sign that makes it positive: of |d| / s for a location, of log s + d^2 / s^2 for a scale
    total = zero.sum()
    for mean, scale in (("mu", "logvar"), ("prior_mu", "prior_logvar")):
        s = std(scale) if scale in leaves else torch.ones_like(zero)
        m = leaves.get(mean, zero)
        d = (leaves["z"] - m).detach().abs()
        total = (
            total
            + (
                _share_of(share, zero) * (d / s.detach().square() * (leaves["z"] + m) - s.log() - 0.5 * (d / s.detach()).square() * s.log())
            ).sum()
        )
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    found = {n: g.abs() for n, g in zip(names, grads, strict=True) if g is not None}
    if o["sample_dim"]:
        found["z"] = found["z"].movedim(0, len(case.sizes["batch"]))
    return {n: g if n == "z" else g.sum(0).sum_to_size(t[n].shape) for n, g in found.items()}


def _share_of(share: Tensor, like: Tensor) -> Tensor:
    return share.reshape((*share.shape, *[1] * (like.ndim - share.ndim))).expand_as(like)


_PLAIN = {"prior": "none", "bounds": None, "recon_bounds": None}

FAMILIES = (
    Family(
        "whole_elbo",
        _make_elbo,
        _elbo_call,
        _elbo_plain,
        _PLAIN | {"beta": 1.0, "free_bits": None, "reduction": "elbo", "tensors": False, "parts": False},
        nearby=scale_bounds.nearby,
    ),
    Family(
        "whole_iwae",
        _make_iwae,
        _iwae_call,
        _iwae_plain,
        _PLAIN | {"reduction": "none"},
        terms=_iwae_terms,
        rounding=_iwae_rounding,
        nearby=scale_bounds.nearby,
        weighs=True,
        rows=False,
    ),
)
