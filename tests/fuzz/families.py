"""The ops: the axes of each, the public call, and the plain formula, which in float64 is the truth."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast

from . import aggregate_families, element_families, group_families, mixture_families, scale_bounds
from .case import Case, Spec, broadcast, budget, dress, extents, shape_of
from .family import COLUMNS, MOST_ROUNDING, Family, Tensors, rounding_of_exponents, start

PRIORS = ("none", "none", "both", "mean", "scale")


def _grey(rng: Random) -> str:
    return rng.choice(("float32", "float32", "float32", "uint8", "bool"))


# --- KL and samples ---------------------------------------------------------------------------------------------------


def _gaussian_specs(rng: Random, sizes: dict[str, tuple[int, ...]], scale: str, prior: str) -> list[Spec]:
    kind = "lone_logvar" if scale == "logvar" and prior in ("none", "mean") else scale
    specs = [Spec("mu", "location", ("batch", "event")), Spec("logvar", kind, ("batch", "event"))]
    specs += [Spec("prior_mu", "location", ("batch", "event"))] * (prior in ("both", "mean"))
    specs += [Spec("prior_logvar", scale, ("batch", "event"))] * (prior in ("both", "scale"))
    return [specs[0], *(broadcast(rng, sizes, s) for s in specs[1:])]


def _kl_sizes(rng: Random) -> dict[str, tuple[int, ...]]:
    if rng.random() < COLUMNS:
        return {"batch": (rng.choice((65_537, 70_001, 131_075)),), "event": (rng.choice((1, 2, 3)),)}
    b = budget(rng)
    event = extents(rng, rng.choice((0, 1, 1, 1, 2, 3)), b)
    return {"batch": extents(rng, rng.choice((0, 1, 1, 1, 2, 3)), max(1, b // max(1, math.prod(event)))), "event": event}


def _make_kl(rng: Random) -> Case:
    options = {
        "scale": rng.choice(oracle.SCALES),
        "prior": rng.choice(PRIORS),
        "free_bits": rng.choice((None, None, None, 0.0, 0.25, 3.0)),
        "reduction": rng.choice(("none", "none", "mean", "sum")),
    }
    options["bounds"] = scale_bounds.draw(rng, options["scale"])
    sizes = _kl_sizes(rng)
    return _near_prior(rng, start(rng, "kl", options, sizes, _gaussian_specs(rng, sizes, options["scale"], options["prior"])))


def _near_prior(rng: Random, case: Case) -> Case:
    """Now and then the prior has the very values, or nearly, of the posterior."""
    if case.options["prior"] != "both" or rng.random() < 0.6:
        return case
    by_name = {s.name: s for s in case.specs}
    mu = rng.choice((by_name["mu"].pool[0], 0.0, 1e4))
    s = by_name["logvar"].pool[0]
    nudge = rng.choice((1.0, 1.0, 1 + 1e-6, 1 + 1e-4, 1.01))
    case = case.change("mu", pool=(mu,)).change("prior_mu", pool=(mu,))
    return case.change("logvar", pool=(s,)).change("prior_logvar", pool=(None if s is None else s * nudge,))


def _kl_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "gaussian_kl", t | {
        "scale": o["scale"],
        "scale_bounds": o["bounds"],
        "event_dim": len(case.sizes["event"]),
        "free_bits": o["free_bits"],
        "reduction": o["reduction"],
    }


def _reduced(t: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: t, "mean": t.mean, "sum": t.sum}[reduction]()


def _elements(t: Tensors, scale: str, free_bits: float | None) -> Tensor:
    kl = oracle.kl_elements(t["mu"], t["logvar"], t.get("prior_mu"), t.get("prior_logvar"), scale)
    return kl if free_bits is None else kl.clamp(min=free_bits)


def _kl_plain(case: Case, t: Tensors) -> Tensor:
    o, t = case.options, scale_bounds.held(case, t)
    return _reduced(oracle.total(_elements(t, o["scale"], o["free_bits"]), len(case.sizes["event"])), o["reduction"])


def _make_sample(rng: Random) -> Case:
    options = {
        "scale": rng.choice(oracle.SCALES),
        "prior": rng.choice(PRIORS),
        "num_samples": rng.choice((None, None, 1, 3)),
        "noise": rng.choice(("given", "given", "drawn")),
        "with_kl": rng.random() < 0.5,
        "free_bits": rng.choice((None, None, 0.25)),
    }
    options["bounds"] = scale_bounds.draw(rng, options["scale"])
    if not options["with_kl"]:
        options |= {"prior": "none", "free_bits": None}
    sizes = _kl_sizes(rng)
    specs = _gaussian_specs(rng, sizes, options["scale"], options["prior"])
    if options["noise"] == "given":
        shape = torch.broadcast_shapes(*(_shape(sizes, s) for s in specs[:2]))
        sizes["noise"] = tuple(shape) if options["num_samples"] is None else (options["num_samples"], *shape)
        specs.append(Spec("noise", "noise", ("noise",), grad=False))
    return start(rng, "sample", options, sizes, specs)


def _shape(sizes: dict[str, tuple[int, ...]], spec: Spec) -> tuple[int, ...]:
    return shape_of(Case("", {}, sizes, ()), spec)


def _sample_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    given = t | {"scale": o["scale"], "scale_bounds": o["bounds"], "num_samples": o["num_samples"]}
    if o["noise"] == "drawn":
        given["generator"] = torch.Generator().manual_seed(case.seed)
    if not o["with_kl"]:
        return "reparameterize", given
    return "reparameterize_with_kl", given | {"event_dim": len(case.sizes["event"]), "free_bits": o["free_bits"]}


def _sample_plain(case: Case, t: Tensors) -> Any:
    o, t = case.options, scale_bounds.held(case, t)
    noise = t.get("noise")
    shape = torch.broadcast_shapes(t["mu"].shape, t["logvar"].shape)
    if noise is None:  # the same draw, of a standard normal
        zero = torch.zeros(shape, dtype=torch.float64)
        generator = torch.Generator().manual_seed(case.seed)
        noise = vae_fast.reparameterize(zero, zero, num_samples=o["num_samples"], generator=generator).to(t["mu"].dtype)
    z = t["mu"] + oracle.std_of(t["logvar"], o["scale"]) * noise
    if not o["with_kl"]:
        return z
    kl = oracle.total(_elements(t, o["scale"], o["free_bits"]), len(case.sizes["event"]))
    return z, kl


# --- likelihoods ------------------------------------------------------------------------------------------------------


def _eps(rng: Random, space: str, clip: str | None) -> float:
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


def _likelihood(case: Case, x: Tensor, recon: tuple[Tensor, ...]) -> Tensor:
    o, n = case.options, len(case.sizes["event"])
    if o["space"] == "logits":
        return logits_log_prob(x, recon[0], o["clip"], o["eps"], n)
    if o["space"] == "probs" and o["clip"] == "bce" and recon[0].dtype == torch.float64:
        # documented: (x - p) / max(p (1 - p), 1e-12), of which torch has the constant in float32 only
        p, at, fixed = recon[0], recon[0].detach(), x.detach()
        log_p, log_q = at.log().clamp(min=-100.0), torch.log1p(-at).clamp(min=-100.0)
        slope = (fixed - at) / (at * (1 - at)).clamp(min=1e-12)
        return oracle.total(x * log_p + (1 - x) * log_q + slope * (p - at), n)
    if o["space"] == "probs":
        return oracle.bernoulli_probs(x, recon[0], o["clip"], o["eps"], n)
    return oracle.gaussian_log_prob(x, *recon, event_dim=n)


def _without_edges(case: Case) -> Case:
    """The derivative in x, log p - log(1 - p), is infinite where p is 0 or 1, and the plain formulas' is NaN or floored."""
    at_edge = any(s.kind == "probs" and s.pool != (None,) for s in case.specs)
    return case.change("x", grad=False) if at_edge else case


def _make_bernoulli(rng: Random) -> Case:
    space, clip = rng.choice(("logits", "logits", "probs")), rng.choice(oracle.CLIPS)
    sizes = _kl_sizes(rng)
    specs = [Spec("x", "target", ("batch", "event"), dtype=_grey(rng)), Spec(space, space, ("batch", "event"))]
    options = {"space": space, "clip": clip, "eps": _eps(rng, space, clip)}
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in specs]
    return _without_edges(start(rng, "bernoulli", options, sizes, specs))


def _bernoulli_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "bernoulli_log_prob", t | {"clip": o["clip"], "eps": o["eps"], "event_dim": len(case.sizes["event"])}


def _bernoulli_plain(case: Case, t: Tensors) -> Tensor:
    return _likelihood(case, t["x"], (t[case.options["space"]],))


def _make_gaussian(rng: Random) -> Case:
    scale = rng.choice((None, *oracle.SCALES))
    sizes = _kl_sizes(rng)
    specs = [Spec("x", "location", ("batch", "event"), dtype=_grey(rng)), Spec("mu", "location", ("batch", "event"))]
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


# --- the ELBO and the importance-weighted loss ------------------------------------------------------------------------


def _head(rng: Random, sizes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[Spec]]:
    """Likelihood options, and the tensors x and recon."""
    space = rng.choice(("logits", "logits", "probs", "unit", "pair"))
    clip = rng.choice(oracle.CLIPS) if space in ("logits", "probs") else None
    kind = {"logits": "logits", "probs": "probs"}.get(space, "location")
    target = "target" if space in ("logits", "probs") else "location"
    specs = [Spec("x", target, ("batch", "event"), dtype=_grey(rng)), Spec("recon", kind, ("batch", "event"))]
    specs += [Spec("recon_logvar", "lone_logvar", ("batch", "event"))] * (space == "pair")
    return {"space": space, "clip": clip, "eps": _eps(rng, space, clip), "prior": rng.choice(PRIORS)}, specs


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
    case = _without_edges(start(rng, "elbo", options, sizes, specs))
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
    kl = o["beta"] * oracle.total(_elements(t, "logvar", o["free_bits"]), len(case.sizes["latent"]))
    log_p = _likelihood(case, t["x"], _recon(t))
    rows = log_p - kl
    if o["beta"] < 0:  # documented: infinities of both signs have no sum; their gradients are what they are
        down, up = log_p < -_largest(case), kl < -_largest(case)
        none = down & up if o["reduction"] in ("elbo", "none") else down.any() & up.any()
        rows = rows + torch.where(none, torch.nan, 0.0)
    return rows if o["reduction"] == "elbo" else _reduced(-rows, o["reduction"])


def _make_iwae(rng: Random) -> Case:
    sizes = _head_sizes(rng)
    options, specs = _head(rng, sizes)
    options["reduction"] = rng.choice(("none", "mean", "sum"))
    sizes["k"] = (rng.choice((1, 2, 3, 5, 17)),)
    specs[1:] = [replace(s, dims=("k", *s.dims)) for s in specs[1:]]
    latent = _latent_specs(options["prior"])
    latent = [*latent[:2], *(broadcast(rng, sizes, s) for s in latent[2:])]
    return _without_edges(start(rng, "iwae", options, sizes, [*specs, Spec("z", "location", ("k", "batch", "latent")), *latent]))


def _iwae_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "iwae_loss", _head_call(case, t) | {"reduction": case.options["reduction"]}


def _iwae_logs(case: Case, t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x, z), log q(z) and the log-weight of each sample."""
    n = len(case.sizes["latent"])
    zero = torch.zeros_like(t["z"])
    log_p = oracle.gaussian_log_prob(t["z"], t.get("prior_mu", zero) + zero, t.get("prior_logvar", zero) + zero, event_dim=n)
    log_q = oracle.gaussian_log_prob(t["z"], t["mu"], t["logvar"], event_dim=n)
    log_p = _likelihood(case, t["x"], _recon(t)) + log_p
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
    return _reduced(rows, case.options["reduction"])


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
    options = {"space": "logits", "clip": clip, "eps": _eps(rng, "logits", clip), "reduction": rng.choice(("none", "mean", "sum"))}
    specs = [Spec("h", "small", ("batch", "features")), Spec("weight", "small", ("event", "features"))]
    specs += [Spec("bias", "logits", ("event",))] * (rng.random() < 0.7)
    specs = [broadcast(rng, sizes, specs[0], "batch") if batch else specs[0], *specs[1:]]
    dtype = rng.choice(("float32", "float32", "float64"))
    x = Spec("x", "target", ("batch", "event"), dtype=_grey(rng))
    x = broadcast(rng, sizes, x, "batch") if batch else x
    case = start(rng, "linear", options, sizes, [replace(s, dtype=dtype) for s in specs], dtypes=False)
    return replace(case, specs=(*dress(rng, [x], dtypes=x.dtype == "float32"), *case.specs))


def _linear_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    o = case.options
    return "linear_bernoulli_log_prob", t | {"clip": o["clip"], "eps": o["eps"], "reduction": o["reduction"]}


def _linear_plain(case: Case, t: Tensors) -> Tensor:
    rows = _likelihood(case, t["x"], (F.linear(t["h"], t["weight"], t.get("bias")),))
    return _reduced(rows, case.options["reduction"])


# --- all of them ------------------------------------------------------------------------------------------------------

_BERNOULLI = {"clip": None, "eps": 1e-9}
_HEAD = _BERNOULLI | {"prior": "none"}
FAMILIES = {
    f.name: f
    for f in (
        Family(
            "kl",
            _make_kl,
            _kl_call,
            _kl_plain,
            {"scale": "logvar", "prior": "none", "bounds": None, "free_bits": None, "reduction": "none"},
        ),
        Family(
            "sample",
            _make_sample,
            _sample_call,
            _sample_plain,
            {"scale": "logvar", "bounds": None, "num_samples": None, "free_bits": None},
            rows=False,
        ),
        Family("bernoulli", _make_bernoulli, _bernoulli_call, _bernoulli_plain, _BERNOULLI),
        Family("gaussian", _make_gaussian, _gaussian_call, _gaussian_plain, {"bounds": None, "scale": None}),
        Family("elbo", _make_elbo, _elbo_call, _elbo_plain, _HEAD | {"beta": 1.0, "free_bits": None, "reduction": "elbo", "donate": False}),
        Family(
            "iwae", _make_iwae, _iwae_call, _iwae_plain, _HEAD | {"reduction": "none"}, rounding=_iwae_rounding, weighs=True, rows=False
        ),
        Family("logsumexp", _make_logsumexp, _logsumexp_call, _logsumexp_plain, {"iwae": False, "dim": 0}, weighs=True, rows=False),
        Family(
            "linear",
            _make_linear,
            _linear_call,
            _linear_plain,
            _BERNOULLI | {"reduction": "none"},
            by_tensor=True,
            products=True,
            rows=False,
        ),
        *mixture_families.FAMILIES,
        *element_families.FAMILIES,
        *group_families.FAMILIES,
        *aggregate_families.FAMILIES,
    )
}
