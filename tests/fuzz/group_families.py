"""Likelihoods over classes and levels: softmaxes, the last layer with one, discretised logistics and their mixtures."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case, Spec, broadcast, budget, dress, extents, shape_of
from .element_families import COUNT_DTYPES, numbers_in, sizes_of
from .family import Family, Tensors, rounding_of_exponents, start

# --- classes ----------------------------------------------------------------------------------------------------------


def _make_categorical(rng: Random) -> Case:
    k, b = rng.choice((1, 2, 3, 7, 17, 200, 256, 1000)), budget(rng)
    event = extents(rng, rng.choice((0, 1, 1, 2)), max(1, b // k))
    cut = rng.randint(0, len(event))
    room = max(1, b // max(1, k * math.prod(event)))
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 2)), room), "before": event[:cut], "k": (k,), "after": event[cut:]}
    dtype = rng.choice(("int16", "int32", "int64", *(("uint8",) if k <= 256 else ())))
    x = Spec("x", "index", ("batch", "before", "after"), dtype=dtype, grad=False)
    logits = Spec("logits", "logits", ("batch", "before", "k", "after"))
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in (x, logits)]
    return start(rng, "categorical", {}, sizes, specs)


def _categorical_ordinary(case: Case) -> Tensors:
    torch.manual_seed(case.seed)
    logits = next(s for s in case.specs if s.name == "logits")
    x = torch.randint(case.sizes["k"][0], shape_of(case, case.specs[0]))
    return {"x": x, "logits": 3.0 * torch.randn(shape_of(case, logits), dtype=torch.float64)}


def _categorical_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    before, after = (len(case.sizes[n]) for n in ("before", "after"))
    return "categorical_log_prob", t | {"dim": -1 - after, "event_dim": before + after}


def _categorical_plain(case: Case, t: Tensors) -> Tensor:
    before, after = (len(case.sizes[n]) for n in ("before", "after"))
    log_p, x = t["logits"].log_softmax(-1 - after).movedim(-1 - after, -1), numbers_in(case, t["x"]).long()
    shape = torch.broadcast_shapes(x.shape, log_p.shape[:-1])
    chosen = log_p.expand(*shape, log_p.shape[-1]).gather(-1, x.expand(shape).unsqueeze(-1)).squeeze(-1)
    return oracle.total(chosen, before + after)


def _make_multinomial(rng: Random) -> Case:
    sparse = rng.random() < 0.4
    d = rng.choice((1, 2, 3, 17, 100, 1000, 5000))
    batch = extents(rng, 1 if sparse else rng.choice((0, 1, 1, 2)), max(1, budget(rng) // d))
    sizes = {"batch": batch, "event": (d,)}
    dtypes = ("float32", "float64", "int16", "int32", "int64") if sparse else COUNT_DTYPES
    x = Spec("x", "count", ("batch", "event"), dtype=rng.choice(dtypes), grad=not sparse)
    logits = Spec("logits", "logits", ("batch", "event"))
    if not sparse:
        x, logits = (broadcast(rng, sizes, s, "batch") if batch else s for s in (x, logits))
    options = {"sparse": sparse, "coefficient": rng.random() < 0.3}
    case = start(rng, "multinomial", options, sizes, [replace(x, grad=x.dtype not in ("int16", "int32", "int64") and x.grad), logits])
    return case.change("x", layout="contiguous") if sparse else case


def _multinomial_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    x = t["x"].to_sparse_csr() if case.options["sparse"] else t["x"]
    return "multinomial_log_prob", t | {"x": x, "coefficient": case.options["coefficient"]}


def multinomial(x: Tensor, logits: Tensor, coefficient: bool) -> Tensor:
    """0 times anything is 0."""
    log_p = logits.log_softmax(-1)
    out = torch.where(x == 0, x * 0.0 + x * log_p.nan_to_num(0.0, 0.0, 0.0), x * log_p).sum(-1)
    return out + (x.sum(-1) + 1.0).lgamma() - (x + 1.0).lgamma().sum(-1) if coefficient else out


def _coefficient_size(case: Case, t: Tensors) -> float:
    """The logarithm of the coefficient, which nearly makes up for that of the probabilities where counts are large: both are rounded."""
    total = numbers_in(case, t["x"]).sum(-1)
    return (total + 1.0).lgamma().max().item() if case.options["coefficient"] and total.numel() else 0.0


def _multinomial_plain(case: Case, t: Tensors) -> Tensor:
    return multinomial(numbers_in(case, t["x"]), t["logits"], case.options["coefficient"])


def _counted_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    """The gradient of a logit is a difference, g (x_k - (sum x) p_k), of terms that each have a rounding."""
    last = {n: t[n] for n in ("h", "weight", "bias") if n in t}
    logits = F.linear(*last.values()) if last else t["logits"]
    x = numbers_in(case, t["x"])
    rows = upstream.double().abs().expand(torch.broadcast_shapes(x.shape[:-1], logits.shape[:-1]))
    size = rows.unsqueeze(-1) * (x + x.sum(-1, keepdim=True) * logits.softmax(-1))
    if case.options.get("reduction") == "mean":
        size = size / max(1, rows.numel())
    size = size.sum_to_size(logits.shape)
    if not last:
        return {"logits": size}
    rows, h = size.reshape(-1, size.shape[-1]), last["h"].abs()
    found = {"h": size @ last["weight"].abs(), "weight": rows.mT @ h.reshape(len(rows), h.shape[-1])}
    return found | ({"bias": rows.sum(0)} if "bias" in last else {})


def _make_linear(rng: Random) -> Case:
    sparse = rng.random() < 0.4
    batch = extents(rng, 1 if sparse else rng.choice((0, 1, 1, 2)), rng.choice((16, 128, 1024)))
    sizes = {"batch": batch, "event": (rng.choice((1, 2, 5, 17, 64, 784)),), "features": (rng.choice((1, 2, 7, 33, 128)),)}
    options = {"sparse": sparse, "coefficient": rng.random() < 0.3, "reduction": rng.choice(("none", "mean", "sum"))}
    specs = [Spec("h", "small", ("batch", "features")), Spec("weight", "small", ("event", "features"))]
    specs += [Spec("bias", "logits", ("event",))] * (rng.random() < 0.7)
    dtype = rng.choice(("float32", "float32", "float64"))
    x = Spec("x", "count", ("batch", "event"), dtype=rng.choice(("float32", "int32", "int64") if sparse else COUNT_DTYPES), grad=not sparse)
    if not sparse and batch:
        x, specs[0] = broadcast(rng, sizes, x, "batch"), broadcast(rng, sizes, specs[0], "batch")
    x = replace(x, grad=x.grad and x.dtype == "float32")
    case = start(rng, "linear_multinomial", options, sizes, [replace(s, dtype=dtype) for s in specs], dtypes=False)
    case = replace(case, specs=(*dress(rng, [x], dtypes=x.dtype == "float32"), *case.specs))
    return case.change("x", layout="contiguous") if sparse else case


def _linear_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    name, given = _multinomial_call(case, t)
    return f"linear_{name}", given | {"reduction": case.options["reduction"]}


def _rounding_of_logits(case: Case, t: Tensors) -> Tensor:
    """Of the logits, which are sums, and so of the exponents of their softmax."""
    return rounding_of_exponents(t["h"].dtype == torch.float64) * F.linear(
        t["h"].abs(), t["weight"].abs(), t["bias"].abs() if "bias" in t else None
    )


def _linear_plain(case: Case, t: Tensors) -> Tensor:
    rows = multinomial(numbers_in(case, t["x"]), F.linear(t["h"], t["weight"], t.get("bias")), case.options["coefficient"])
    return {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[case.options["reduction"]]()


# --- levels -----------------------------------------------------------------------------------------------------------


def _log_bin(y: Tensor, loc: Tensor, log_scale: Tensor, bits: int) -> Tensor:
    """The mass of a bin; what is left of log(1 - e^-w) where its width w in units of the scale is no number is log w."""
    half = 1 / (2**bits - 1)
    delta, inverse = y - loc, (-log_scale).exp()
    a, b = (delta + half) * inverse, (delta - half) * inverse
    log_width = math.log(2 * half) - log_scale
    some = log_width > -30.0
    inner = torch.where(some, torch.log(-torch.expm1(-torch.where(some, log_width, 0.0).exp())), log_width)
    middle = F.logsigmoid(a) + F.logsigmoid(-b) + inner
    return torch.where(y < -1 + half, F.logsigmoid(a), torch.where(y > 1 - half, F.logsigmoid(-b), middle))


def _levels(case: Case, x: Tensor) -> Tensor:
    """On [-1, 1]; bytes are levels."""
    return 2 * numbers_in(case, x) / (2 ** case.options["bits"] - 1) - 1 if case.specs[0].dtype == "uint8" else 2 * x - 1


def _make_logistic(rng: Random) -> Case:
    sizes, whole = sizes_of(rng), ("batch", "event")
    x = Spec("x", "target", whole, dtype=rng.choice(("float32", "uint8", "uint8", "bool")))
    specs = [x, Spec("loc", "modest", whole), Spec("log_scale", "bin_scale", whole)]
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in specs]
    return start(rng, "discretized_logistic", {"bits": rng.choice((1, 2, 5, 8, 8))}, sizes, specs)


def _logistic_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "discretized_logistic_log_prob", t | {"bits": case.options["bits"], "event_dim": len(case.sizes["event"])}


def logistic_plain(case: Case, t: Tensors) -> Tensor:
    return oracle.total(_log_bin(_levels(case, t["x"]), t["loc"], t["log_scale"], case.options["bits"]), len(case.sizes["event"]))


def _make_images(rng: Random) -> Case:
    colours, k = rng.choice((1, 3)), rng.choice((1, 2, 3, 5, 10))
    slots = k * (10 if colours == 3 else 3)
    layout = rng.choice(("nhwc", "nchw"))
    room = max(1, budget(rng) // slots)
    pixels = extents(rng, 2, room, large=0.0)
    sizes = {"batch": extents(rng, rng.choice((0, 1, 1, 2)), max(1, room // max(1, math.prod(pixels))), large=0.05)}
    sizes |= {"pixels": pixels, "colours": (colours,), "slots": (slots,)}

    def order(of: str) -> tuple[str, ...]:
        return ("batch", "pixels", of) if layout == "nhwc" else ("batch", of, "pixels")

    x = Spec("x", "target", order("colours"), dtype=rng.choice(("float32", "uint8", "uint8", "uint8")), grad=False)
    specs = [broadcast(rng, sizes, s, "batch") if sizes["batch"] else s for s in (x, Spec("params", "params", order("slots")))]
    options = {"layout": layout, "convention": rng.choice(("exact", "exact", "vdvae", "nvae")), "bits": rng.choice((1, 5, 8, 8))}
    return start(rng, "images", options, sizes, specs)


def _images_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    return "discretized_logistic_mixture_log_prob", t | case.options


def _published_log_bin(y: Tensor, loc: Tensor, log_scale: Tensor, bits: int, last: float) -> Tensor:
    """A difference of two sigmoids, or the density where that is tiny."""
    half, inverse = 1 / (2**bits - 1), (-log_scale).exp()
    plus, minus, mid = inverse * (y - loc + half), inverse * (y - loc - half), inverse * (y - loc)
    log_delta = _log_bin(torch.zeros_like(y), loc - y, log_scale, bits) if bits > 1 else (plus.sigmoid() - minus.sigmoid()).log()
    density = F.logsigmoid(mid) + F.logsigmoid(-mid) - log_scale - math.log((2**bits - 1) / 2)
    inside = torch.where(log_delta > math.log(1e-5), log_delta, density)
    # logsigmoid, since softplus turns linear at 20: an error of 2e-9
    return torch.where(y < -0.999, F.logsigmoid(plus), torch.where(y > last, F.logsigmoid(-minus), inside))


def _images_plain(case: Case, t: Tensors) -> Tensor:
    o = case.options
    dim = -1 if o["layout"] == "nhwc" else -3
    y, p = _levels(case, t["x"]).movedim(dim, -1), t["params"].movedim(dim, -1)
    colours = case.sizes["colours"][0]
    k = p.shape[-1] // (10 if colours == 3 else 3)
    logits, rest = p[..., :k], p[..., k:].unflatten(-1, (colours, -1))
    total = logits.log_softmax(-1)
    for c in range(colours):
        loc, log_scale = rest[..., c, :k], rest[..., c, k : 2 * k]
        log_scale = torch.where(log_scale > -7.0, log_scale, -7.0)  # documented: no gradient at the floor
        if c == 1:
            loc = loc + rest[..., 0, 2 * k :].tanh() * y[..., :1]
        if c == 2:
            loc = loc + rest[..., 1, 2 * k :].tanh() * y[..., :1] + rest[..., 2, 2 * k :].tanh() * y[..., 1:2]
        value = y[..., c : c + 1]
        if o["convention"] == "exact":
            total = total + _log_bin(value, loc, log_scale, o["bits"])
        else:
            total = total + _published_log_bin(value, loc, log_scale, o["bits"], 0.99 if o["convention"] == "nvae" else 0.999)
    top = total.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(total.dtype).min)
    return ((total - top).logsumexp(-1) + top.squeeze(-1)).sum((-1, -2))


FAMILIES = (
    Family("categorical", _make_categorical, _categorical_call, _categorical_plain, {}, _categorical_ordinary),
    Family(
        "multinomial",
        _make_multinomial,
        _multinomial_call,
        _multinomial_plain,
        {"coefficient": False},
        terms=_counted_terms,
        size=_coefficient_size,
        rows=False,  # where nothing was counted, nothing of a logit is seen
    ),
    Family(
        "linear_multinomial",
        _make_linear,
        _linear_call,
        _linear_plain,
        {"coefficient": False, "reduction": "none"},
        terms=_counted_terms,
        rounding=_rounding_of_logits,
        weighs=True,
        by_tensor=True,
        products=True,
        rows=False,
    ),
    Family("discretized_logistic", _make_logistic, _logistic_call, logistic_plain, {"bits": 8}),
    Family("images", _make_images, _images_call, _images_plain, {"convention": "exact", "bits": 8}, by_tensor=True, weighs=True),
)
