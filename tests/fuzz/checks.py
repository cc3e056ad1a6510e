"""A case is run, judged against the truth, and run again in another way that must not change the numbers."""

from __future__ import annotations

import contextlib
import math
import traceback
import warnings
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vae_fast
from vae_fast import _backend

from .case import Case, build, exact, is_wild, stable_hash, upstream_of, values
from .families import FAMILIES
from .judge import NEIGHBOURS, Finding, Judge, neighbour, same_bits

Tensors = dict[str, Tensor]
LOOSE = 2e-5  # of the reference backend and of torch.func, which are plain torch in other words


def numbers_of(case: Case) -> Tensors:
    """The arguments' values, each of its dtype, without layouts."""
    ordinary = FAMILIES[case.family].ordinary
    found = ordinary(case) if ordinary else {}
    return {s.name: values(case, s, found.get(s.name)) for s in case.specs}


def leaves_of(case: Case, numbers: Tensors) -> Tensors:
    return {s.name: build(case, s, numbers[s.name]) for s in case.specs}


def invoke(case: Case, tensors: Tensors) -> list[Tensor]:
    """The public function on these tensors."""
    given = dict(tensors)
    if case.options.get("donate"):
        given["recon"] = given["recon"] * 1.0  # somebody's result, not a leaf
    name, arguments = FAMILIES[case.family].call(case, given)
    return outputs(getattr(vae_fast, name)(**arguments))


def outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for t in found if t is not None]


def differentiate(case: Case, outs: list[Tensor], leaves: Tensors, upstreams: list[Tensor] | None = None) -> tuple[list[Tensor], Tensors]:
    """Upstream gradients, and the gradient of each leaf that wants one."""
    upstreams = [upstream_of(case.upstream, o.detach(), case.seed + i) for i, o in enumerate(outs)] if upstreams is None else upstreams
    pairs = [(o, g) for o, g in zip(outs, upstreams, strict=True) if o.requires_grad]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    return upstreams, {n: t.grad for n, t in leaves.items() if t.requires_grad and t.grad is not None}


def run(case: Case, numbers: Tensors | None = None) -> tuple[list[Tensor], Tensors, list[Tensor], Tensors]:
    """Outputs, gradients, upstream gradients and the leaves."""
    leaves = leaves_of(case, numbers_of(case) if numbers is None else numbers)
    outs = invoke(case, leaves)
    upstreams, grads = differentiate(case, outs, leaves)
    return [o.detach() for o in outs], grads, upstreams, leaves


def run_plain(case: Case, numbers: Tensors, dtype: torch.dtype, upstreams: list[Tensor]) -> tuple[list[Tensor], Tensors]:
    grad = {s.name: s.grad for s in case.specs}
    leaves = {n: exact(t, dtype).requires_grad_(grad[n]) for n, t in numbers.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs = outputs(FAMILIES[case.family].plain(case, leaves))
        ups = [g.detach().to(o.dtype) for g, o in zip(upstreams, outs, strict=True)]
        if any(g.shape != o.shape for g, o in zip(ups, outs, strict=True)):
            return [o.detach() for o in outs], {}
        _, grads = differentiate(case, outs, leaves, ups)
    return [o.detach() for o in outs], grads


# --- the verdict ------------------------------------------------------------------------------------------------------


def examine(case: Case) -> Finding | None:
    """What is wrong with this case, if anything."""
    try:
        with threads(case.threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _truth(case) or (EXTRA[case.check](case) if case.check in EXTRA else None)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            "exception", f"{type(error).__name__}@{frame.filename.rsplit('/', 1)[-1]}", f"{case.check}: {type(error).__name__}: {first}"
        )


def _truth(case: Case, slack: float | None = None) -> Finding | None:
    numbers = numbers_of(case)
    outs, grads, upstreams, leaves = run(case, numbers)
    return _rules(case, numbers, outs, grads, leaves) or against_truth(case, numbers, outs, grads, upstreams, slack)


def is_double(case: Case) -> bool:
    if case.family == "linear":
        return next(s.dtype for s in case.specs if s.name == "h") == "float64"
    return any(s.dtype == "float64" for s in case.specs if s.name != "noise")


def against_truth(
    case: Case, numbers: Tensors, outs: list[Tensor], grads: Tensors, upstreams: list[Tensor], slack: float | None = None
) -> Finding | None:
    """The values and gradients against the float64 formula."""
    double, strict = is_double(case), slack is None
    slack = (1e-9 if double else 1e-6) if slack is None else slack
    if case.family == "linear":  # the products are a library's, in its own order
        slack *= 3
    want, want_grads = run_plain(case, numbers, torch.float64, upstreams)
    if case.family in ("mixture", "mdn"):  # documented: a row whose density is out of range adds nothing to any gradient
        kept = [g.masked_fill(w.isnan() | (w.abs() > torch.finfo(o.dtype).max), 0.0) for g, w, o in zip(upstreams, want, outs, strict=True)]
        if not all(torch.equal(a, b) for a, b in zip(kept, upstreams, strict=True)):
            upstreams = kept
            _, want_grads = run_plain(case, numbers, torch.float64, upstreams)
    plain, plain_grads = ([None] * len(want), {}) if double else run_plain(case, numbers, torch.float32, upstreams)
    if len(outs) != len(want):
        return Finding("count", "outputs", f"{len(outs)} outputs, expected {len(want)}")
    unit = max([1e-30, *(g.abs().max().item() for g in upstreams if g.numel())])
    of_exponents = 0.0
    if case.family in ("logsumexp", "iwae", "mixture", "mdn"):  # gradients are e^(l - L) with the L that was rounded, as in torch
        size = max([0.0, *(w.abs().nan_to_num(0.0, 0.0, 0.0).max().item() for w in want if w.numel())])
        of_exponents = size * (1e-15 if double else 1.2e-7)
        of_exponents = math.inf if of_exponents > 0.1 else of_exponents
    judged: list[tuple[Judge, Tensor]] = []
    for i, (got, true) in enumerate(zip(outs, want, strict=True)):
        expected = _dtype_of(case, i, double)
        if got.dtype != expected:
            return Finding("dtype", f"out{i}", f"has dtype {got.dtype}, expected {expected}")
        judged.append((Judge(f"out{i}", true, plain[i], slack), got))
    for name, true in want_grads.items():
        if name not in grads:
            return Finding("missing", f"grad {name}", "no gradient")
        by_tensor = FAMILIES[case.family].by_tensor
        # plain torch adds gradients that were each rounded to the leaf's dtype
        allowed = slack + of_exponents if strict else max(slack + of_exponents, 4 * torch.finfo(numbers[name].dtype).eps)
        judged.append((Judge(f"grad {name}", true, plain_grads.get(name), allowed, unit, by_tensor), grads[name]))
    failed = [(j, got) for j, got in judged if j.verdict(got)]
    if failed and is_wild(case):
        _exempt(case, numbers, upstreams, want, {j.what[5:]: j for j, _ in failed if j.what.startswith("grad")})
    if any(found.kind == "error" for j, got in failed if (found := j.verdict(got))) and not double:
        _appeal(case, numbers, upstreams, {j.what: j for j, _ in failed})
    return next((found for j, got in failed if (found := j.verdict(got))), None) or _undefined(case, numbers, outs, grads, want, want_grads)


def _exempt(case: Case, numbers: Tensors, upstreams: list[Tensor], want: list[Tensor], judges: dict[str, Judge]) -> None:
    """Where the derivative itself is out of range, its product with a small upstream gradient, or with zero, need not be in it.

    Nor has a row a gradient whose importance weights are all out of range.
    """
    rows = next(iter(numbers.values())).numel() if case.options.get("reduction") == "mean" else 1
    unit = [torch.full_like(g, float(rows)) for g in upstreams]
    _, derivatives = run_plain(case, numbers, torch.float64, unit)
    lost = case.family == "iwae" and any((w.abs() > 3.4e38).any() for w in want)
    for name, judge in judges.items():
        slope = derivatives[name]
        out_of_range = slope.isnan() | (slope.abs() > torch.finfo(numbers[name].dtype).max)
        judge.want = judge.want.masked_fill(torch.ones_like(out_of_range) if lost else out_of_range, torch.nan)


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
    if case.family == "iwae" and case.options["reduction"] != "none" and all(w.isnan().all() for w in want):  # see its plain formula
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


def _dtype_of(case: Case, index: int, double: bool) -> torch.dtype:
    if case.family == "sample" and index == 0:
        mu, logvar = (getattr(torch, s.dtype) for s in case.specs[:2])
        return torch.promote_types(mu, logvar)
    return torch.float64 if double else torch.float32


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


# --- the other ways ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def reference_backend() -> Iterator[None]:
    kept, _backend.C = _backend.C, None
    try:
        yield
    finally:
        _backend.C = kept


def _differ(kind: str, first: Any, other: Any, how: str) -> Finding | None:
    (outs, grads, *_), (outs2, grads2, *_) = first, other
    pairs = {f"out{i}": p for i, p in enumerate(zip(outs, outs2, strict=True))} | {f"grad {n}": (grads[n], grads2.get(n)) for n in grads}
    for what, (a, b) in pairs.items():
        if not same_bits(a, b):
            return Finding(kind, what, f"{what} of shape {tuple(a.shape)} differs {how}")
    return None


def _threads(case: Case) -> Finding | None:
    if case.family == "linear":  # documented: the order inside a product is the library's; so each is held to the truth
        for n in (1, 3):
            with threads(n):
                if found := _truth(case):
                    return found
        return None
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append(run(case))
    return _differ("threads", results[0], results[1], "with 1 and 2 threads") or _differ(
        "threads", results[0], results[2], "with 1 and 3 threads"
    )


def _repeat(case: Case) -> Finding | None:
    return _differ("repeat", run(case), run(case), "in a second run")


def _reference(case: Case) -> Finding | None:
    with reference_backend():
        found = _truth(case, 1e-8 if is_double(case) else LOOSE)
    return found and Finding(f"reference {found.kind}", found.what, found.line)


def _autocast(case: Case) -> Finding | None:
    if case.family == "linear":  # its product is what autocast is for
        return None
    leaves = leaves_of(case, numbers_of(case))
    with torch.autocast("cpu", torch.bfloat16):
        outs = invoke(case, leaves)
    _, grads = differentiate(case, outs, leaves)
    return _differ("autocast", run(case), ([o.detach() for o in outs], grads), "under autocast")


def _checkpoint(case: Case) -> Finding | None:
    if case.options.get("donate") or case.options.get("noise") == "drawn":
        return None
    leaves = leaves_of(case, numbers_of(case))
    names = list(leaves)
    outs = outputs(checkpoint(lambda *t: tuple(invoke(case, dict(zip(names, t, strict=True)))), *leaves.values(), use_reentrant=False))
    _, grads = differentiate(case, outs, leaves)
    return _differ("checkpoint", run(case), ([o.detach() for o in outs], grads), "under activation checkpointing")


def _trace(case: Case) -> Finding | None:
    """A trace, called with other values, gives their result."""
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.family == "mixture":
        return None
    numbers = numbers_of(case)
    names = list(numbers)
    tensors = [leaves_of(case, numbers)[n].detach() for n in names]

    def f(*t: Tensor) -> tuple[Tensor, ...]:
        return tuple(invoke(case, dict(zip(names, t, strict=True))))

    try:
        traced = torch.jit.trace(f, tuple(tensors), check_trace=False)
    except (ValueError, TypeError, RuntimeError) as error:
        return None if len(str(error).splitlines()) == 1 else Finding("trace", "message", str(error).splitlines()[0])
    other = [neighbour(t.contiguous(), case.seed) for t in tensors]
    for got, want in zip(traced(*other), f(*other), strict=True):
        if not same_bits(got, want):
            return Finding("trace", "out", "a traced call does not give the result of the call")
    return None


def _func(case: Case) -> Finding | None:
    """The vector-Jacobian product of torch.func, which goes through the plain-torch formula."""
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.options.get("of") == "statistics":
        return None
    numbers = numbers_of(case)
    leaves = leaves_of(case, numbers)
    wanted = [n for n, t in leaves.items() if t.requires_grad]
    if not wanted:
        return None
    fixed = {n: t.detach() for n, t in leaves.items()}
    found, pull = torch.func.vjp(lambda *t: tuple(invoke(case, fixed | dict(zip(wanted, t, strict=True)))), *(fixed[n] for n in wanted))
    outs = list(found)
    upstreams = [upstream_of(case.upstream, o.detach(), case.seed + i) for i, o in enumerate(outs)]
    grads = dict(zip(wanted, pull(tuple(upstreams)), strict=True))
    judged = against_truth(case, numbers, outs, grads, upstreams, 1e-8 if is_double(case) else LOOSE)
    return judged and Finding(f"func {judged.kind}", judged.what, judged.line)


def _double(case: Case) -> Finding | None:
    """The second derivative along one direction, of ordinary numbers, in float64."""
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.options.get("of") == "statistics":
        return None
    if (
        is_wild(case)
        or case.options.get("clip") in ("bce", "clamp")
        or case.options.get("free_bits") is not None
        or case.options.get("min_scale")
    ):
        return None
    numbers = {n: t.double() if t.is_floating_point() else t for n, t in numbers_of(case).items()}
    if sum(t.numel() for t in numbers.values()) > 5000:
        return None
    results = []
    for f in (
        lambda t: invoke(case, t),
        lambda t: outputs(FAMILIES[case.family].plain(case, {n: exact(v) if not v.is_floating_point() else v for n, v in t.items()})),
    ):
        leaves = {s.name: numbers[s.name].clone().requires_grad_(s.grad) for s in case.specs}
        wanted = [t for t in leaves.values() if t.requires_grad]
        if not wanted:
            return None
        outs = [o for o in f(leaves) if o.requires_grad]
        ups = [upstream_of("random", o.detach(), case.seed + i) for i, o in enumerate(outs)]
        first = torch.autograd.grad(outs, wanted, ups, create_graph=True, allow_unused=True)
        kept = [g for g in first if g is not None and g.requires_grad]
        if not kept:
            results.append([torch.zeros_like(t) for t in wanted])
            continue
        directions = [
            upstream_of("random", g.detach(), case.seed + 99 + i) for i, g in enumerate(first) if g is not None and g.requires_grad
        ]
        second = torch.autograd.grad(kept, wanted, directions, allow_unused=True)
        results.append([torch.zeros_like(t) if g is None else g for t, g in zip(wanted, second, strict=True)])
    names = [s.name for s in case.specs if s.grad]
    for name, got, want in zip(names, *results, strict=True):
        found = Judge(f"second {name}", want, None, 1e-7, 1e2, by_tensor=True).verdict(got)
        if found:
            return Finding(f"double {found.kind}", found.what, found.line)
    return None


def _nan(case: Case) -> Finding | None:
    """A NaN in one row leaves every other row's value and gradients as they are."""
    batch = case.sizes.get("batch", ())
    rows = math.prod(batch)
    plain = not any(s.ones or s.drop or s.layout == "expanded" for s in case.specs) and case.options.get("reduction", "none") in (
        "none",
        "elbo",
    )
    if not FAMILIES[case.family].rows or not plain or rows < 2 or not batch:
        return None
    rng = Random(case.seed)
    clean = run(case)
    numbers = numbers_of(case)
    able = [s.name for s in case.specs if numbers[s.name].is_floating_point() and numbers[s.name].numel()]
    if not able:
        return None
    name, row = rng.choice(able), rng.randrange(rows)
    numbers[name] = numbers[name].clone()
    flat = numbers[name].view(rows, -1)
    flat[row, rng.randrange(flat.shape[1])] = math.nan
    outs, grads, *_ = run(case, numbers)
    others = torch.arange(rows) != row
    if not outs[0].reshape(rows, -1)[row].isnan().any():
        return Finding("nan lost", name, f"a NaN in {name} leaves its row's value finite")
    for what, got, want in [("out0", outs[0], clean[0][0]), *((f"grad {n}", g, clean[1][n]) for n, g in grads.items())]:
        if not same_bits(got.reshape(rows, -1)[others], want.reshape(rows, -1)[others]):
            return Finding("nan spreads", what, f"a NaN in row {row} of {name} changes other rows of {what}")
    return None


def _compile(case: Case) -> Finding | None:
    if case.options.get("donate") or case.options.get("noise") == "drawn":
        return None
    torch.compiler.reset()
    numbers = numbers_of(case)
    leaves = leaves_of(case, numbers)
    names = list(leaves)
    f = torch.compile(lambda *t: tuple(invoke(case, dict(zip(names, t, strict=True)))), fullgraph=True, backend="aot_eager")
    outs = list(f(*leaves.values()))
    upstreams, grads = differentiate(case, outs, leaves)
    found = against_truth(case, numbers, [o.detach() for o in outs], grads, upstreams)
    return found and Finding(f"compile {found.kind}", found.what, found.line)


EXTRA = {
    "threads": _threads,
    "repeat": _repeat,
    "reference": _reference,
    "nan": _nan,
    "autocast": _autocast,
    "checkpoint": _checkpoint,
    "trace": _trace,
    "func": _func,
    "double": _double,
    "compile": _compile,
}
