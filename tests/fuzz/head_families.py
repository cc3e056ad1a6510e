"""The ELBO and the importance-weighted loss."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import oracle
import torch
from torch import Tensor

from .case import Case, Spec, broadcast, budget, extents
from .family import COLUMNS, MOST_ROUNDING, Family, Tensors, rounding_of_exponents, start
from .latent_families import PRIORS, elements, reduced
from .likelihood_families import BERNOULLI, draw_eps, grey, likelihood, without_edges

_HEAD = BERNOULLI | {"prior": "none"}


def _head(rng: Random, sizes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[Spec]]:
    """Likelihood options, and the tensors x and recon."""
    space = rng.choice(("logits", "logits", "probs", "unit", "pair"))
    clip = rng.choice(oracle.CLIPS) if space in ("logits", "probs") else None
    kind = {"logits": "logits", "probs": "probs"}.get(space, "location")
    target = "target" if space in ("logits", "probs") else "location"
    specs = [Spec("x", target, ("batch", "event"), dtype=grey(rng)), Spec("recon", kind, ("batch", "event"))]
    specs += [Spec("recon_logvar", "lone_logvar", ("batch", "event"))] * (space == "pair")
    return {"space": space, "clip": clip, "eps": draw_eps(rng, space, clip), "prior": rng.choice(PRIORS)}, specs


def _head_call(case: Case, t: Tensors) -> dict[str, Any]:
    o, t = case.options, dict(t)
    if o["space"] == "pair":
        t["recon"] = (t["recon"], t.pop("recon_logvar"))
    likelihood = {"logits": "bernoulli", "probs": "bernoulli_probs"}.get(o["space"], "gaussian")
    sizes = {"event_dim": len(case.sizes["event"]), "latent_dim": len(case.sizes["latent"])}
    return t | {"likelihood": likelihood, "clip": o["clip"], "eps": o["eps"]} | sizes


def _latent_specs(prior: str) -> list[Spec]:
    kind = "lone_logvar" if prior in ("none", "mean") else "logvar"
    specs = [Spec("mu", "location", ("batch", "latent")), Spec("logvar", kind, ("batch", "latent"))]
    specs += [Spec("prior_mu", "location", ("batch", "latent"))] * (prior in ("both", "mean"))
    return specs + [Spec("prior_logvar", "logvar", ("batch", "latent"))] * (prior in ("both", "scale"))


def _head_sizes(rng: Random) -> dict[str, tuple[int, ...]]:
    if rng.random() < COLUMNS:
        return {"batch": (rng.choice((65_537, 70_001)),), "event": (rng.choice((1, 2)),), "latent": (rng.choice((1, 2)),)}
    b = budget(rng)
    event = extents(rng, rng.choice((0, 1, 1, 1, 2, 3)), b)
    batch = extents(rng, rng.choice((0, 1, 1, 1, 2)), max(1, b // max(1, math.prod(event))))
    room = max(1, b // max(1, math.prod(batch)))
    return {"batch": batch, "event": event, "latent": extents(rng, rng.choice((0, 1, 1, 1, 2)), min(room, 128), large=0.0)}


def _make_elbo(rng: Random) -> Case:
    sizes = _head_sizes(rng)
    options, specs = _head(rng, sizes)
    options["reduction"] = rng.choice(("elbo", "none", "mean", "mean", "sum"))
    options |= {"beta": rng.choice((1.0, 1.0, 0.0, 0.3, 4.0, -1.0, 1e4)), "free_bits": rng.choice((None, None, None, 0.0, 0.25))}
    mu, *others = _latent_specs(options["prior"])
    latent = [broadcast(rng, sizes, mu, "batch"), *(broadcast(rng, sizes, s) for s in others)]
    specs = [*(broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in specs[:2]), *specs[2:], *latent]
    options["donate"] = options["reduction"] in ("mean", "sum") and rng.random() < 0.25
    if options["donate"]:
        options["donate"] = options["space"] != "pair" and all(not s.ones and not s.drop for s in specs)
    case = without_edges(start(rng, "elbo", options, sizes, specs))
    if options["donate"]:
        case = case.change(
            "recon", layout="contiguous", dtype="float64" if any(s.dtype == "float64" for s in case.specs) else case.specs[1].dtype
        )
        case = replace(case, check="none")
        if next(s.dtype for s in case.specs if s.name == "recon") == "float16":  # documented: refused, its gradient has to wait
            case = replace(case, options=case.options | {"donate": False})
    return case


def _elbo_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    given = _head_call(case, t) | {"beta": o["beta"], "free_bits": o["free_bits"]}
    if o["reduction"] == "elbo":
        return "elbo", given
    return "elbo_loss", given | {"reduction": o["reduction"]} | ({"donate_recon": True} if o["donate"] else {})


def _recon(t: Tensors) -> tuple[Tensor, ...]:
    return tuple(t[n] for n in ("recon", "recon_logvar") if n in t)


def _largest(case: Case) -> float:
    """The largest number of the dtype that a case is computed in."""
    return torch.finfo(torch.float64 if any(s.dtype == "float64" for s in case.specs) else torch.float32).max


def _elbo_plain(case: Case, t: Tensors) -> Tensor:
    o = case.options
    kl = o["beta"] * oracle.total(elements(t, "logvar", o["free_bits"]), len(case.sizes["latent"]))
    log_p = likelihood(case, t["x"], _recon(t))
    rows = log_p - kl
    if o["beta"] < 0:  # documented: infinities of both signs have no sum; their gradients are what they are
        down, up = log_p < -_largest(case), kl < -_largest(case)
        none = down & up if o["reduction"] in ("elbo", "none") else down.any() & up.any()
        rows = rows + torch.where(none, torch.nan, 0.0)
    return rows if o["reduction"] == "elbo" else reduced(-rows, o["reduction"])


def _make_iwae(rng: Random) -> Case:
    sizes = _head_sizes(rng)
    options, specs = _head(rng, sizes)
    options["reduction"] = rng.choice(("none", "mean", "sum"))
    sizes["k"] = (rng.choice((1, 2, 3, 5, 17)),)
    specs[1:] = [replace(s, dims=("k", *s.dims)) for s in specs[1:]]
    latent = _latent_specs(options["prior"])
    latent = [*latent[:2], *(broadcast(rng, sizes, s) for s in latent[2:])]
    return without_edges(start(rng, "iwae", options, sizes, [*specs, Spec("z", "location", ("k", "batch", "latent")), *latent]))


def _iwae_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "iwae_loss", _head_call(case, t) | {"reduction": case.options["reduction"]}


def _iwae_logs(case: Case, t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x, z), log q(z) and the log-weight of each sample."""
    n = len(case.sizes["latent"])
    zero = torch.zeros_like(t["z"])
    log_p = oracle.gaussian_log_prob(t["z"], t.get("prior_mu", zero) + zero, t.get("prior_logvar", zero) + zero, event_dim=n)
    log_q = oracle.gaussian_log_prob(t["z"], t["mu"], t["logvar"], event_dim=n)
    log_p = likelihood(case, t["x"], _recon(t)) + log_p
    down = -_largest(case)
    lost = (log_q < down) & (log_p < down)  # documented: such a sample has no weight
    log_w = log_p.masked_fill(log_p < down, -torch.inf) - log_q.masked_fill(log_q < down, -torch.inf)  # one out of range is infinite
    return log_p, log_q, log_w.masked_fill(lost, -torch.inf)


def _iwae_rounding(case: Case, t: Tensors) -> Tensor:
    """Of each row, the rounding of log p - log q where that decides how samples share the weight; 0 where one of them has it all."""
    log_p, log_q, log_w = (log.detach() for log in _iwae_logs(case, t))
    error = (log_p.abs() + log_q.abs()) * rounding_of_exponents(_largest(case) > 1e300)
    rival = log_w + error > (log_w - error).amax(0) - 100.0
    return error.masked_fill(~rival | (rival.sum(0) < 2), 0.0).amax(0)


def _iwae_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    """Every gradient of a latent is a difference of one of log p(z) and one of log q(z), times the share of the sample."""
    zero = torch.zeros_like(t["z"])
    prior_mu, prior_var = t.get("prior_mu", zero), (t.get("prior_logvar", zero)).exp()
    share = _iwae_logs(case, t)[2].softmax(0).nan_to_num(0.0) * upstream.double().abs()
    if case.options["reduction"] == "mean":
        share = share / max(1, share[0].numel())
    share = share.reshape((*share.shape, *[1] * len(case.sizes["latent"])))
    var, q, p = t["logvar"].exp(), (t["z"] - t["mu"]).abs(), (t["z"] - prior_mu).abs()
    sizes = {
        "z": q / var + p / prior_var,
        "mu": q / var,
        "logvar": 0.5 * (q.square() / var + 1.0),
        "prior_mu": p / prior_var,
        "prior_logvar": 0.5 * (p.square() / prior_var + 1.0),
    }
    return {n: (share * size).nan_to_num(0.0, 0.0, 0.0).sum_to_size(t[n].shape) for n, size in sizes.items() if n in t}


def _iwae_plain(case: Case, t: Tensors) -> Tensor:
    log_p, log_q, log_w = _iwae_logs(case, t)
    largest = _largest(case)
    infinite = ((log_w > largest).any(0)) | (log_w < -largest).all(0)  # documented: such a bound has no gradient
    rows = math.log(len(t["z"])) - torch.logsumexp(log_w.masked_fill(infinite, 0.0), 0)
    rows = torch.where(infinite, -log_w.detach().amax(0), rows)
    if rows.dtype == torch.float64 and rows.requires_grad:
        unknown = ~infinite & (_iwae_rounding(case, t) > MOST_ROUNDING)
        rows.register_hook(lambda g: g.masked_fill(unknown, torch.nan))
    # whether a sample has a weight is open where a density is within rounding of the largest number
    edge = torch.stack([(log.abs() / largest - 1).abs() < 1e-5 for log in (log_p, log_q)]).any(0).any(0)
    rows = rows.masked_fill(edge, torch.nan)
    if case.options["reduction"] != "none" and (rows > largest).any() and (rows < -largest).any():
        rows = rows + torch.nan  # documented: infinities of both signs have no sum
    return reduced(rows, case.options["reduction"])


FAMILIES = (
    Family("elbo", _make_elbo, _elbo_call, _elbo_plain, _HEAD | {"beta": 1.0, "free_bits": None, "reduction": "elbo", "donate": False}),
    Family(
        "iwae",
        _make_iwae,
        _iwae_call,
        _iwae_plain,
        _HEAD | {"reduction": "none"},
        terms=_iwae_terms,
        rounding=_iwae_rounding,
        weighs=True,
        rows=False,
    ),
)
