"""The verdict: a case's values and gradients against the float64 formula, and what autograd may expect of them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .case import Case, exact, full_shape, is_wild, stable_hash
from .families import FAMILIES
from .family import MOST_ROUNDING, rounding_of_exponents
from .judge import NEIGHBOURS, Finding, Judge, neighbour, same_bits
from .runs import Tensors, dtype_of, is_double, numbers_of, run, run_plain

SINGLE = 1e-6  # relative, of what is computed in float32
LOOSE = 2e-5  # of the reference backend and of torch.func, which are plain torch in other words


def truth(case: Case, slack: float | None = None) -> Finding | None:
    numbers = numbers_of(case)
    outs, grads, upstreams, leaves = run(case, numbers)
    return _rules(case, numbers, outs, grads, leaves) or against_truth(case, numbers, outs, grads, upstreams, slack)


def against_truth(
    case: Case, numbers: Tensors, outs: list[Tensor], grads: Tensors, upstreams: list[Tensor], slack: float | None = None
) -> Finding | None:
    """The values and gradients against the float64 formula."""
    double, strict, family = is_double(case), slack is None, FAMILIES[case.family]
    slack = (1e-9 if double else SINGLE) if slack is None else slack
    if family.products:
        slack *= 3
    want, want_grads = run_plain(case, numbers, torch.float64, upstreams)
    if family.loses_rows and _beyond_units(case, numbers, double):
        return None
    if family.loses_rows:
        # documented: the sum of squares, twice the value, is what has to be in range
        half = [torch.finfo(o.dtype).max / 2 for o in outs]
        kept = [g.masked_fill(w.isnan() | (w.abs() > r), 0.0) for g, w, r in zip(upstreams, want, half, strict=True)]
        unsure = [(w.abs() > 0.98 * r) & (w.abs() < 2 * r) for w, r in zip(want, half, strict=True)]
        if case.options.get("of") == "statistics" and unsure[0].any():  # sums over rows, of which one may be lost
            return None
        want = [w.masked_fill(u, torch.nan) for w, u in zip(want, unsure, strict=True)]
        if not all(torch.equal(a, b) for a, b in zip(kept, upstreams, strict=True)):
            upstreams = kept
            want_grads = run_plain(case, numbers, torch.float64, upstreams)[1]
    plain, plain_grads = ([None] * len(want), {}) if double else run_plain(case, numbers, torch.float32, upstreams)
    if len(outs) != len(want):
        return Finding("count", "outputs", f"{len(outs)} outputs, expected {len(want)}")
    unit = max([1e-30, *(g.abs().max().item() for g in upstreams if g.numel())]) * max(1.0, abs(case.options.get("beta", 1.0)))
    of_exponents = 0.0
    if family.weighs:
        if family.rounding:
            size = family.rounding(case, {n: exact(t) for n, t in numbers.items()})
            of_exponents = size.masked_fill(size > MOST_ROUNDING, 0.0).max().item() if size.numel() else 0.0  # the plain formula has those
        else:
            logs = want
            if case.options.get("of") == "responsibilities":  # which are weights themselves: their exponents are the density's
                logs = run_plain(replace(case, options=case.options | {"of": "log_prob"}), numbers, torch.float64, upstreams)[0]
            size = max([0.0, *(w.abs().nan_to_num(0.0, 0.0, 0.0).max().item() for w in logs if w.numel())])
            if family.exponents:
                size = max(size, family.exponents(case, {n: exact(t) for n, t in numbers.items()}))
            of_exponents = size * rounding_of_exponents(double)
            of_exponents = math.inf if of_exponents > MOST_ROUNDING else of_exponents
    judged: list[tuple[Judge, Tensor]] = []
    unsure = family.unsure(case, {n: exact(t) for n, t in numbers.items()}) if family.unsure else []
    for i, (got, true) in enumerate(zip(outs, want, strict=True)):
        expected = dtype_of(case, i, double)
        if got.dtype != expected:
            return Finding("dtype", f"out{i}", f"has dtype {got.dtype}, expected {expected}")
        # a float32 sample beside a KL in float64 has the precision of its own dtype
        own = slack if not double or expected == torch.float64 else SINGLE if strict else LOOSE
        judge = Judge(f"out{i}", true, plain[i], own)
        if family.size:
            judge.floor = max(judge.floor, family.size(case, {n: exact(t) for n, t in numbers.items()}))
        if unsure:
            judge.unsure = unsure[i]
        judged.append((judge, got))
    terms = family.terms(case, {n: exact(t) for n, t in numbers.items()}, upstreams[0]) if family.terms and want_grads else {}
    for name, true in want_grads.items():
        if name not in grads:
            return Finding("missing", f"grad {name}", "no gradient")
        # plain torch adds gradients that were each rounded to the leaf's dtype
        allowed = slack + of_exponents if strict else max(slack + of_exponents, 4 * torch.finfo(numbers[name].dtype).eps)
        judge = Judge(f"grad {name}", true, plain_grads.get(name), allowed, unit, family.by_tensor, terms.get(name))
        judged.append((judge, grads[name]))
    failed = [(j, got) for j, got in judged if j.verdict(got)]
    if failed and is_wild(case):
        _exempt(case, numbers, upstreams, {j.what: j for j, _ in failed})
    failed = [(j, got) for j, got in failed if j.verdict(got)]
    if failed:
        _allow_for_rounding(case, numbers, upstreams, {j.what: j for j, _ in failed})
    if any(found.kind == "error" for j, got in failed if (found := j.verdict(got))) and not double:
        _appeal(case, numbers, upstreams, {j.what: j for j, _ in failed})
    return next((found for j, got in failed if (found := j.verdict(got))), None) or _undefined(case, numbers, outs, grads, want, want_grads)


def _beyond_units(case: Case, numbers: Tensors, double: bool) -> bool:
    """Documented: a mixture measures in standard deviations, and knows none that 1 / std has no number for."""
    if case.options.get("covariance") in ("tied", "full"):
        return False
    log_std = next((numbers[n].double() for n in ("scale", "log_scale") if n in numbers), None)
    return log_std is not None and bool((log_std.abs() > (700.0 if double else 87.0)).any())


def _exempt(case: Case, numbers: Tensors, upstreams: list[Tensor], judges: dict[str, Judge]) -> None:
    """Documented: what is out of range on the way stays so. A row in the mean or sum of the batch; a derivative that a small factor (an
    upstream gradient, beta, the slope of a bound, a component's share) multiplies; an element of the gradient of a broadcast argument."""
    options = case.options
    if options.get("reduction") in ("mean", "sum"):
        rows, _ = run_plain(replace(case, options=options | {"reduction": "none"}), numbers, torch.float64, upstreams)
        for name, judge in judges.items():
            if name.startswith("out") and (rows[int(name[3:])].abs() > _largest(numbers)).any():
                judge.want = torch.full_like(judge.want, torch.nan)
    count = max(1, next(iter(numbers.values())).numel()) if options.get("reduction") == "mean" else 1
    unit = [torch.full_like(g, count / min(1.0, abs(options.get("beta", 1.0)) or 1.0)) for g in upstreams]
    if options.get("bounds"):
        case = replace(case, options=options | {"bounds": (*options["bounds"][:2], "straight_through")})
    whole = _written_out(case, numbers)
    apart = FAMILIES[case.family].apart
    ways = [(given, factors, None) for given, factors in ((numbers, unit), (whole, unit), (whole, upstreams))]
    for given, factors, formula in [*ways, (whole, unit, apart)] if apart else ways:
        _, derivatives = run_plain(case, given, torch.float64, factors, formula)
        for name, judge in judges.items():
            if name.startswith("grad"):
                slope = derivatives[name[5:]]
                beyond = slope.isnan() | (slope.abs() > torch.finfo(numbers[name[5:]].dtype).max / 8)  # it is itself a product of a few
                judge.want = judge.want.masked_fill(beyond.double().sum_to_size(judge.want.shape) > 0, torch.nan)


def _written_out(case: Case, numbers: Tensors) -> Tensors:
    """The arguments in the shapes that they are broadcast to."""
    return {s.name: numbers[s.name].expand(full_shape(case, s)).clone() for s in case.specs}


def _allow_for_rounding(case: Case, numbers: Tensors, upstreams: list[Tensor], judges: dict[str, Judge]) -> None:
    """Documented: the gradient of a broadcast argument is a sum of elements that each have a rounding, whose size this is; a scale between
    bounds has one of the bounds' size, and what that leaves open are the truths of the nearest bounds that can be told apart."""
    shared = [s.name for s in case.specs if (s.ones or s.drop) and f"grad {s.name}" in judges]
    if shared:
        _, elements = run_plain(case, _written_out(case, numbers), torch.float64, upstreams)
        for name in shared:
            judge = judges[f"grad {name}"]
            sizes = elements[name].abs().nan_to_num(0.0, 0.0, 0.0).sum_to_size(judge.want.shape)
            judge.terms = torch.maximum(judge.terms, sizes)
    nearby = FAMILIES[case.family].nearby
    for other in nearby(case) if nearby else []:
        outs, grads = run_plain(other, numbers, torch.float64, upstreams)
        for name, judge in judges.items():
            found = outs[int(name[3:])] if name.startswith("out") else grads[name[5:]]
            judge.unsure = torch.maximum(judge.unsure, (found - judge.want).abs().nan_to_num(0.0, 0.0, 0.0))


def _largest(numbers: Tensors) -> float:
    """The largest number of the type that a case is computed in."""
    return torch.finfo(torch.float64 if any(t.dtype == torch.float64 for t in numbers.values()) else torch.float32).max


def _appeal(case: Case, numbers: Tensors, upstreams: list[Tensor], judges: dict[str, Judge]) -> None:
    few = sum(t.numel() for t in numbers.values()) < 500  # then any of them may be exact by luck
    for i in range(5 * NEIGHBOURS if few else NEIGHBOURS):
        near = {n: neighbour(t, stable_hash(case.seed, i, n), 4 ** (1 + i % 6)) for n, t in numbers.items()}
        results = [run_plain(case, near, d, upstreams) for d in (torch.float64, torch.float32)]
        for name, judge in judges.items():
            want, plain = ((o[int(name[3:])] if name.startswith("out") else g.get(name[5:])) for o, g in results)
            if want is not None and plain is not None:
                judge.appeal(want, plain)


def _undefined(case: Case, numbers: Tensors, outs: list[Tensor], grads: Tensors, want: list[Tensor], want_grads: Tensors) -> Finding | None:
    """Where the float64 formula has no number either, finite inputs still give no NaN: but for means over nothing."""
    if not all(t.numel() for t in numbers.values()):
        return None
    both = (case.family == "iwae" and case.options["reduction"] != "none") or (case.family == "elbo" and case.options["beta"] < 0)
    if both and all(w.isnan().any() for w in want):  # documented: infinities of both signs have no sum, see the plain formulas
        return None
    for i, (got, true) in enumerate(zip(outs, want, strict=True)):
        if (bad := got.isnan() & true.isnan()).any():
            return Finding("nan-too", f"out{i}", f"NaN in {int(bad.sum())} of {bad.numel()}, as in the float64 formula, for finite inputs")
    for name, true in want_grads.items():
        if (bad := grads[name].isnan() & true.isnan()).any() and all(o.isfinite().all() for o in outs):
            return Finding(
                "nan-too", f"grad {name}", f"NaN in {int(bad.sum())} of {bad.numel()}, as in the float64 formula, for finite inputs"
            )
    return None


def _rules(case: Case, numbers: Tensors, outs: list[Tensor], grads: Tensors, leaves: Tensors) -> Finding | None:
    """What autograd may expect: inputs as they were, gradients like their leaves."""
    for spec in case.specs:
        t = leaves[spec.name]
        if not same_bits(
            exact(t.detach(), t.dtype if t.is_floating_point() else torch.float64),
            exact(numbers[spec.name], t.dtype if t.is_floating_point() else torch.float64),
        ):
            return Finding("modified", spec.name, "the argument's values were changed")
        g = grads.get(spec.name)
        if g is None:
            continue
        if (g.shape, g.dtype) != (t.shape, t.dtype):
            return Finding("gradient", spec.name, f"gradient is {g.dtype} {tuple(g.shape)}, its leaf {t.dtype} {tuple(t.shape)}")
        if spec.layout != "expanded" and _dense(t) and g.stride() != t.stride() and g.numel() > 1 and 1 not in t.shape:
            return Finding(
                "gradient strides", spec.name, f"gradient of shape {tuple(g.shape)} has strides {g.stride()}, its leaf {t.stride()}"
            )
    if case.family == "sample" and case.options["num_samples"] is None:
        mu, logvar = (leaves[n] for n in ("mu", "logvar"))
        usual = (mu.detach() + logvar.detach()).stride()
        if (
            mu.shape == logvar.shape
            and mu.stride() == logvar.stride()
            and _dense(mu)
            and 1 not in mu.shape
            and mu.numel()
            and outs[0].stride() != usual
        ):
            return Finding("strides", "z", f"z of shape {tuple(mu.shape)} has strides {outs[0].stride()}, mu + logvar {usual}")
    return None


def _dense(t: Tensor) -> bool:
    return t.numel() > 0 and t._is_view() is not None and torch.empty_like(t, memory_format=torch.preserve_format).stride() == t.stride()
