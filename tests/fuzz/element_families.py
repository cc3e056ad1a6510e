"""Element-wise likelihoods beside the Gaussian and the Bernoulli: counts and continuous terms, their axes, calls and plain formulas."""

import math
from random import Random
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case, Spec, broadcast, budget, extents
from .family import Family, Tensors, start

COUNT_DTYPES = ("float32", "float32", "uint8", "int16", "int32", "int64")
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def sizes_of(rng: Random) -> dict[str, tuple[int, ...]]:
    b = budget(rng)
    event = extents(rng, rng.choice((0, 1, 1, 1, 2)), b)
    return {"batch": extents(rng, rng.choice((0, 1, 1, 2)), max(1, b // max(1, math.prod(event)))), "event": event}


def numbers_in(case: Case, x: Tensor) -> Tensor:
    """Counts as the numbers they are: everywhere else in these tests a byte stands for a 255th of itself."""
    return (x * 255).round() if next(s.dtype for s in case.specs if s.name == "x") == "uint8" else x


# --- counts -----------------------------------------------------------------------------------------------------------


def _stirling_error(t: Tensor) -> Tensor:
    """log Gamma(t + 1) - (t + 1/2) log t + t - log(2 pi) / 2."""
    large = t >= 15.0
    u = 1 / torch.where(large, t, 15.0)
    s = u * u
    series = u * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * (691 / 360360 - s / 156))))))
    small = torch.where(large, 15.0, t)
    return torch.where(large, series, (small + 1).lgamma() - (small + 0.5) * small.log() + small - HALF_LOG_2PI)


def _deviance(x: Tensor, m: Tensor) -> Tensor:
    """x log(x / m) + m - x."""
    u = (x - m) / m
    near = u.abs() < 0.1
    at = torch.where(near, u, 0.0)
    series = sum((-at) ** k / (k * (k - 1)) for k in range(2, 20))
    return torch.where(near, m * series, x * (x / torch.where(near, x, m)).log() + m - x)


def poisson_elements(x: Tensor, rate: Tensor) -> Tensor:
    """By its deviance (Loader 2000): nothing cancels where the count and its rate are both large."""
    x, rate = torch.broadcast_tensors(x, rate)
    some = torch.where(x > 0, x, 1.0)
    return torch.where(x > 0, -_stirling_error(some) - _deviance(some, rate) - HALF_LOG_2PI - 0.5 * some.log(), -rate)


def negative_binomial_elements(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """By two deviances (Loader 2000): that of x from (x + theta) mu / (mu + theta), and that of theta from the rest."""
    x, mu, theta = torch.broadcast_tensors(x, mu, theta)
    some = torch.where(x > 0, x, 1.0)
    n = some + theta
    errors = _stirling_error(n) - _stirling_error(some) - _stirling_error(theta)
    apart = _deviance(some, n * (mu / (mu + theta))) + _deviance(theta, n * (theta / (mu + theta)))
    whole = errors - apart - HALF_LOG_2PI - 0.5 * (some.log() + torch.log1p(some / theta))
    return torch.where(x > 0, whole, -theta * torch.log1p(mu / theta))


def _one_count(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    return (negative_binomial_elements if mu.dtype == torch.float64 else oracle.negative_binomial_elements)(x, mu, theta)


def _make_counts(rng: Random) -> Case:
    return _case_of_counts(rng, rng.choice(("poisson", "negative_binomial", "negative_binomial", "zero_inflated_negative_binomial")))


def _make_mixture(rng: Random) -> Case:
    return _case_of_counts(rng, "negative_binomial_mixture")


def _case_of_counts(rng: Random, of: str) -> Case:
    space = rng.choice(("linear", "log"))
    rate, theta = ("rate", "theta") if space == "linear" else ("log_rate", "log_theta")
    whole = ("batch", "event")
    x = Spec("x", "count", whole, dtype=rng.choice(COUNT_DTYPES), grad=False)
    specs = {
        "poisson": [Spec("log_rate" if space == "log" else "rate", rate, whole)],
        "negative_binomial": [Spec("mu", rate, whole), Spec("theta", theta, whole)],
        "zero_inflated_negative_binomial": [Spec("mu", rate, whole), Spec("theta", theta, whole), Spec("zi_logits", "logits", whole)],
        "negative_binomial_mixture": [
            *(Spec(f"mu_{k}", rate, whole) for k in (1, 2)),
            *(Spec(f"theta_{k}", theta, whole) for k in (1, 2)[: rng.choice((1, 2, 2))]),
            Spec("pi_logits", "logits", whole),
        ],
    }[of]
    sizes = sizes_of(rng)
    first, *others = specs
    name = "mixed_counts" if of == "negative_binomial_mixture" else "counts"
    return start(rng, name, {"of": of, "space": space}, sizes, [x, first, *(broadcast(rng, sizes, s, "batch") for s in others)])


def _counts_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    of, space = case.options["of"], case.options["space"]
    given = t | {"event_dim": len(case.sizes["event"])}
    if of == "negative_binomial_mixture":
        given.setdefault("theta_2", None)
    return f"{of}_log_prob", given if of == "poisson" else given | {"space": space}


def counts_plain(case: Case, t: Tensors) -> Tensor:
    of, log = case.options["of"], case.options["space"] == "log"
    x = numbers_in(case, t["x"])
    p = {n: v.exp() if log and not n.endswith("logits") else v for n, v in t.items() if n != "x"}
    if of == "poisson":
        rate = p["log_rate" if log else "rate"]
        if rate.dtype == torch.float64:
            out = poisson_elements(x, rate)
        else:
            out = x * t["log_rate"] - rate - (x + 1).lgamma() if log else oracle.poisson_log_prob(x, rate, 0)
    elif of == "negative_binomial":
        out = _one_count(x, p["mu"], p["theta"])
    elif of == "zero_inflated_negative_binomial":
        logits, counted = p["zi_logits"], _one_count(x, p["mu"], p["theta"]) + F.logsigmoid(-p["zi_logits"])
        out = torch.where(x == 0, torch.logaddexp(F.logsigmoid(logits), counted), counted)
    else:
        first, second = (_one_count(x, p[f"mu_{k}"], p.get(f"theta_{k}", p["theta_1"])) for k in (1, 2))
        out = torch.logaddexp(F.logsigmoid(p["pi_logits"]) + first, F.logsigmoid(-p["pi_logits"]) + second)
    return oracle.total(out, len(case.sizes["event"]))


def _theta_terms(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Of d/dtheta, digamma(n) - digamma(theta) + log(theta / n) - gap(n / s - 1) with n = x + theta, s = mu + theta: large beside it where
    the mean is small, 1 / theta - 1 / theta."""
    n = x + theta
    excess = n.digamma() - theta.digamma() + (theta / n).log()
    t = (x - mu) / (mu + theta)
    return torch.where(x > 0, excess.abs() + t - t.log1p(), 0.0)


def _counts_terms(case: Case, t: Tensors, upstream: Tensor) -> Tensors:
    if case.options["of"] == "poisson":
        return {}
    log, x = case.options["space"] == "log", numbers_in(case, t["x"]).double()
    p = {n: v.exp() if log and not n.endswith("logits") else v for n, v in t.items() if n != "x"}
    rows = upstream.double().abs().reshape((*upstream.shape, *[1] * len(case.sizes["event"])))
    found = {}
    for name in (n for n in t if n.startswith("theta")):
        mus = [v for n, v in p.items() if n.startswith("mu") and (n[2:] == name[5:] or (name == "theta_1" and "theta_2" not in p))]
        sizes = [rows * _theta_terms(x, mu, p[name]) * (p[name] if log else 1.0) for mu in mus]
        found[name] = sum(s.sum_to_size(t[name].shape) for s in map(torch.Tensor.nan_to_num, sizes))
    if "pi_logits" in t:  # g (q - w), of two probabilities
        first, second = (_one_count(x, p[f"mu_{k}"], p.get(f"theta_{k}", p["theta_1"])) for k in (1, 2))
        share = (t["pi_logits"] + first - second).sigmoid() + t["pi_logits"].sigmoid()
        found["pi_logits"] = (rows * share).nan_to_num(0.0).sum_to_size(t["pi_logits"].shape)
    return found


def _counts_apart(case: Case, t: Tensors) -> Tensor:
    log, x = case.options["space"] == "log", numbers_in(case, t["x"])
    p = {n: v.exp() if log and not n.endswith("logits") else v for n, v in t.items() if n != "x"}
    first, second = (_one_count(x, p[f"mu_{k}"], p.get(f"theta_{k}", p["theta_1"])) for k in (1, 2))
    return oracle.total(first + second + 0.0 * p["pi_logits"], len(case.sizes["event"]))


# --- continuous terms -------------------------------------------------------------------------------------------------


def _make_continuous(rng: Random) -> Case:
    of = rng.choice(("laplace", "log_normal", "student_t", "continuous_bernoulli"))
    whole, sizes = ("batch", "event"), sizes_of(rng)
    if of == "continuous_bernoulli":
        specs = [Spec("x", "target", whole, dtype=rng.choice(("float32", "float32", "uint8", "bool"))), Spec("logits", "logits", whole)]
        return start(
            rng, "continuous", {"of": of, "scale": "log_std"}, sizes, [specs[0], *(broadcast(rng, sizes, s, "batch") for s in specs[1:])]
        )
    scale = rng.choice(oracle.SCALES)
    x = Spec("x", "positive" if of == "log_normal" else "modest", whole)
    specs = [Spec("df", "df", whole)] * (of == "student_t")
    # nearer than the Gaussian's: what comes first in a product of three may be out of range, in the plain formulas too
    kind = "lone_logvar" if scale == "logvar" else scale
    specs += [Spec("loc", "modest", whole), Spec("log_scale", kind, whole)]
    return start(rng, "continuous", {"of": of, "scale": scale}, sizes, [x, *(broadcast(rng, sizes, s, "batch") for s in specs)])


def _continuous_call(case: Case, t: Tensors) -> tuple[str, dict[str, Any]]:
    given = t | {"event_dim": len(case.sizes["event"])}
    return f"{case.options['of']}_log_prob", given if case.options["of"] == "continuous_bernoulli" else given | {
        "scale": case.options["scale"]
    }


def _continuous_bernoulli(x: Tensor, a: Tensor) -> Tensor:
    """(x - 1/2) a - log(sinh(a / 2) / (a / 2)), the logarithm by its series near 0 and without e^a elsewhere."""
    near = a.abs() < 0.5
    far = torch.where(near, 1.0, a).abs()
    rest = torch.where(a < 0, x, 1 - x)  # not (x - 1/2) a, of which a logarithm would be lost
    log = far.log() - torch.log(-torch.expm1(-far)) - rest * far
    u = torch.where(near, a, 0.0).square()
    series = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000, 1 / 1046139494400)
    return torch.where(near, (x - 0.5) * a - sum(c * u ** (k + 1) for k, c in enumerate(series)), log)


def _student_t(x: Tensor, df: Tensor, loc: Tensor, std: Tensor) -> Tensor:
    """With the quotient of two gamma functions by its asymptotic series where they are large."""
    h = 0.5 * df
    large = h > 40.0
    u = 1 / torch.where(large, h, 40.0)
    s = u * u
    series = -0.5 * u.log() - u * (1 / 8 - s * (1 / 192 - s * (1 / 640 - s * (17 / 14336 - s * 31 / 18432))))
    small = torch.where(large, 40.0, h)
    quotient = torch.where(large, series, (small + 0.5).lgamma() - small.lgamma())
    t = (x - loc) / std
    far = t.abs() > 1e100  # whose square may be no number
    log = torch.where(far, 2 * torch.where(far, t, 1.0).abs().log() - df.log(), torch.log1p(torch.where(far, 0.0, t).square() / df))
    return quotient - 0.5 * (math.pi * df).log() - std.log() - (h + 0.5) * log


def continuous_plain(case: Case, t: Tensors) -> Tensor:
    of, n = case.options["of"], len(case.sizes["event"])
    double = t["x"].dtype == torch.float64
    if of == "continuous_bernoulli":
        return oracle.total(_continuous_bernoulli(t["x"], t["logits"]), n)
    scale = case.options["scale"]
    if of == "student_t" and double:
        return oracle.total(_student_t(t["x"], t["df"], t["loc"], oracle.std_of(t["log_scale"], scale)), n)
    formula = getattr(oracle, f"{of}_log_prob")
    return formula(*t.values(), scale=scale, event_dim=n)


FAMILIES = (
    Family("counts", _make_counts, _counts_call, counts_plain, {"space": "linear"}, terms=_counts_terms),
    Family(
        "mixed_counts",
        _make_mixture,
        _counts_call,
        counts_plain,
        {"space": "linear"},
        terms=_counts_terms,
        size=lambda case, t: 1.0,  # the logarithm of a sum near 1 is known to the rounding of 1
        weighs=True,
        apart=_counts_apart,
    ),
    Family("continuous", _make_continuous, _continuous_call, continuous_plain, {"scale": "log_std"}),
)
