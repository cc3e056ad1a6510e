"""The Bernoulli and the Gaussian log-likelihood."""

from random import Random
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

from . import scale_bounds
from .case import Case, Spec, broadcast
from .family import Family, Tensors, start
from .latent_families import event_sizes

BERNOULLI = {"clip": None, "eps": 1e-9}


def grey(rng: Random) -> str:
    return rng.choice(("float32", "float32", "float32", "uint8", "bool"))


def draw_eps(rng: Random, space: str, clip: str | None) -> float:
    # of a probability in float64, 1 - 1e-30 is 1
    return rng.choice((1e-3, 1e-9, 1e-9, *((1e-30,) if space == "logits" or clip == "add" else ())))


class _LogAdded(torch.autograd.Function):
    """log(sigmoid(a) + eps) with the slope p q / (p + eps), also where q or eps are below the rounding of 1; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.eps = eps
        return torch.where(a > 0, torch.log1p(eps - (-a).sigmoid()), (a.sigmoid() + eps).log())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return grad * a.sigmoid() * (-a).sigmoid() / (a.sigmoid() + ctx.eps), None


def logits_log_prob(x: Tensor, a: Tensor, clip: str | None, eps: float, event_dim: int) -> Tensor:
    """The plain formula; in float64 with derivatives that it does not give."""
    if a.dtype != torch.float64 or clip not in ("bce", "add"):
        return oracle.bernoulli_logits(x, a, clip, eps, event_dim)
    if clip == "add":
        return oracle.total(x * _LogAdded.apply(a, eps) + (1 - x) * _LogAdded.apply(-a, eps), event_dim)
    # documented: (x - p) / max(p (1 - p), 1e-12) in p, although the value is floored; a line through the value with that slope
    fixed, at = x.detach(), a.detach()
    p, q = at.sigmoid(), (-at).sigmoid()
    slope = torch.where(at < 0, fixed - p, q - (1 - fixed)) * (p * q / (p * q).clamp(min=1e-12))
    log_p, log_q = F.logsigmoid(at).clamp(min=-100.0), F.logsigmoid(-at).clamp(min=-100.0)
    return oracle.total(x * log_p + (1 - x) * log_q + slope * (a - at), event_dim)


def likelihood(case: Case, x: Tensor, recon: tuple[Tensor, ...]) -> Tensor:
    o, n = case.options, len(case.sizes["event"])
    if o["space"] == "logits":
        return logits_log_prob(x, recon[0], o["clip"], o["eps"], n)
    if o["space"] == "probs" and o["clip"] == "bce" and recon[0].dtype == torch.float64:
        # documented: (x - p) / max(p (1 - p), 1e-12), of which torch has the constant in float32 only
        p, at, fixed = recon[0], recon[0].detach(), x.detach()
        log_p, log_q = at.log().clamp(min=-100.0), torch.log1p(-at).clamp(min=-100.0)
        slope = (fixed - at) / (at * (1 - at)).clamp(min=1e-12)
        return oracle.total(x * log_p + (1 - x) * log_q + slope * (p - at), n)
    if o["space"] == "probs" and o["clip"] == "clamp" and recon[0].dtype == torch.float64:
        p, eps = recon[0], o["eps"]  # the distance of 1 - eps from 1, as it is rounded, is not eps
        c, high = p.clamp(eps, 1 - eps), p > 0.5
        log_q = torch.where(high, torch.where(high, 1 - p, 0.5).clamp(min=eps).log(), torch.log1p(-torch.where(high, 0.5, c)))
        return oracle.total(torch.xlogy(x, c) + torch.where(x == 1, 0.0, (1 - x) * log_q), n)
    if o["space"] == "probs":
        return oracle.bernoulli_probs(x, recon[0], o["clip"], o["eps"], n)
    return oracle.gaussian_log_prob(x, *recon, event_dim=n)


def without_edges(case: Case) -> Case:
    """The derivative in x, log p - log(1 - p), is infinite where p is 0 or 1, and the plain formulas' is NaN or floored."""
    at_edge = any(s.kind == "probs" and s.pool != (None,) for s in case.specs)
    return case.change("x", grad=False) if at_edge else case


def _make_bernoulli(rng: Random) -> Case:
    space, clip = rng.choice(("logits", "logits", "probs")), rng.choice(oracle.CLIPS)
    sizes = event_sizes(rng)
    specs = [Spec("x", "target", ("batch", "event"), dtype=grey(rng)), Spec(space, space, ("batch", "event"))]
    options = {"space": space, "clip": clip, "eps": draw_eps(rng, space, clip)}
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in specs]
    return without_edges(start(rng, "bernoulli", options, sizes, specs))


def _bernoulli_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "bernoulli_log_prob", t | {"clip": o["clip"], "eps": o["eps"], "event_dim": len(case.sizes["event"])}


def _bernoulli_plain(case: Case, t: Tensors) -> Tensor:
    return likelihood(case, t["x"], (t[case.options["space"]],))


def _make_gaussian(rng: Random) -> Case:
    scale = rng.choice((None, *oracle.SCALES))
    sizes = event_sizes(rng)
    specs = [Spec("x", "location", ("batch", "event"), dtype=grey(rng)), Spec("mu", "location", ("batch", "event"))]
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in specs]
    if scale:
        specs.append(broadcast(rng, sizes, Spec("logvar", "lone_logvar" if scale == "logvar" else scale, ("batch", "event"))))
    return start(rng, "gaussian", {"scale": scale, "bounds": scale_bounds.draw(rng, scale)}, sizes, specs)


def _gaussian_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "gaussian_log_prob", t | {"scale": o["scale"] or "logvar", "scale_bounds": o["bounds"], "event_dim": len(case.sizes["event"])}


def _gaussian_plain(case: Case, t: Tensors) -> Tensor:
    t = scale_bounds.held(case, t)
    scale = case.options["scale"]
    return oracle.gaussian_log_prob(t["x"], t["mu"], t.get("logvar"), scale or "logvar", len(case.sizes["event"]))


FAMILIES = (
    Family("bernoulli", _make_bernoulli, _bernoulli_call, _bernoulli_plain, BERNOULLI),
    Family("gaussian", _make_gaussian, _gaussian_call, _gaussian_plain, {"bounds": None, "scale": None}, nearby=scale_bounds.nearby),
)
