"""KL divergences and reparameterized samples."""

import math
from random import Random
from typing import Any

import oracle
import torch
from torch import Tensor

import vae_fast

from . import scale_bounds
from .case import Case, Spec, broadcast, budget, extents, shape_of
from .family import COLUMNS, Family, Tensors, start

PRIORS = ("none", "none", "both", "mean", "scale")


def _gaussian_specs(rng: Random, sizes: dict[str, tuple[int, ...]], scale: str, prior: str) -> list[Spec]:
    kind = "lone_logvar" if scale == "logvar" and prior in ("none", "mean") else scale
    specs = [Spec("mu", "location", ("batch", "event")), Spec("logvar", kind, ("batch", "event"))]
    specs += [Spec("prior_mu", "location", ("batch", "event"))] * (prior in ("both", "mean"))
    specs += [Spec("prior_logvar", scale, ("batch", "event"))] * (prior in ("both", "scale"))
    return [specs[0], *(broadcast(rng, sizes, s) for s in specs[1:])]


def event_sizes(rng: Random) -> dict[str, tuple[int, ...]]:
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
    sizes = event_sizes(rng)
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


def reduced(t: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: t, "mean": t.mean, "sum": t.sum}[reduction]()


def elements(t: Tensors, scale: str, free_bits: float | None) -> Tensor:
    kl = oracle.kl_elements(t["mu"], t["logvar"], t.get("prior_mu"), t.get("prior_logvar"), scale)
    return kl if free_bits is None else kl.clamp(min=free_bits)


def _kl_plain(case: Case, t: Tensors) -> Tensor:
    o, t = case.options, scale_bounds.held(case, t)
    return reduced(oracle.total(elements(t, o["scale"], o["free_bits"]), len(case.sizes["event"])), o["reduction"])


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
    sizes = event_sizes(rng)
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
    kl = oracle.total(elements(t, o["scale"], o["free_bits"]), len(case.sizes["event"]))
    return z, kl


FAMILIES = (
    Family(
        "kl",
        _make_kl,
        _kl_call,
        _kl_plain,
        {"scale": "logvar", "prior": "none", "bounds": None, "free_bits": None, "reduction": "none"},
        nearby=scale_bounds.nearby,
    ),
    Family(
        "sample",
        _make_sample,
        _sample_call,
        _sample_plain,
        {"scale": "logvar", "bounds": None, "num_samples": None, "free_bits": None},
        nearby=scale_bounds.nearby,
        rows=False,
    ),
)
