"""A case is judged against the truth, and run again in another way that must not change the numbers."""

from __future__ import annotations

import math
import traceback
import warnings
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .case import Case, exact, is_wild, upstream_of
from .families import FAMILIES
from .judge import Finding, Judge, neighbour, same_bits
from .runs import differentiate, invoke, is_double, leaves_of, numbers_of, outputs, reference_backend, run, threads
from .truth import LOOSE, against_truth, truth


def examine(case: Case) -> Finding | None:
    """What is wrong with this case, if anything."""
    try:
        with threads(case.threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return truth(case) or (EXTRA[case.check](case) if case.check in EXTRA else None)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            "exception", f"{type(error).__name__}@{frame.filename.rsplit('/', 1)[-1]}", f"{case.check}: {type(error).__name__}: {first}"
        )


# --- the other ways ---------------------------------------------------------------------------------------------------


def _differ(kind: str, first: Any, other: Any, how: str) -> Finding | None:
    (outs, grads, *_), (outs2, grads2, *_) = first, other
    pairs = {f"out{i}": p for i, p in enumerate(zip(outs, outs2, strict=True))} | {f"grad {n}": (grads[n], grads2.get(n)) for n in grads}
    for what, (a, b) in pairs.items():
        if not same_bits(a, b):
            return Finding(kind, what, f"{what} of shape {tuple(a.shape)} differs {how}")
    return None


def _threads(case: Case) -> Finding | None:
    if FAMILIES[case.family].products:  # documented: the order inside a product is the library's; so each is held to the truth
        for n in (1, 3):
            with threads(n):
                if found := truth(case):
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
        found = truth(case, 1e-8 if is_double(case) else LOOSE)
    return found and Finding(f"reference {found.kind}", found.what, found.line)


def _autocast(case: Case) -> Finding | None:
    if FAMILIES[case.family].products:  # its product is what autocast is for
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
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.family == "mixture" or case.options.get("sparse"):
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
    by_row = replace(case, options=case.options | {"reduction": "none"})
    reduces = case.options.get("reduction") in ("mean", "sum")
    rows = invoke(by_row, dict(zip(names, other, strict=True))) if reduces else []
    for i, (got, want) in enumerate(zip(traced(*other), f(*other), strict=True)):
        if not same_bits(got, want) and not (reduces and _same_sum(got, want, rows[i], case.options["reduction"] == "mean")):
            return Finding("trace", "out", "a traced call does not give the result of the call")
    return None


def _same_sum(a: Tensor, b: Tensor, rows: Tensor, mean: bool) -> bool:
    """Documented: outside of eager mode the sum over the batch is torch's, in float64, whose order is its own."""
    if a.shape != b.shape or a.dtype != b.dtype or not rows.isfinite().all():
        return False
    order = rows.numel() * 2.0**-53 * rows.double().abs().sum().item() / (rows.numel() if mean else 1)
    return abs(a.item() - b.item()) <= 2.0 * order + torch.finfo(a.dtype).eps * abs(b.item())


def _func(case: Case) -> Finding | None:
    """The vector-Jacobian product of torch.func, which goes through the plain-torch formula."""
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.options.get("of") == "statistics":
        return None
    if case.options.get("sparse"):  # torch.func has no sparse tensors
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
    if case.options.get("donate") or case.options.get("noise") == "drawn" or case.options.get("sparse"):
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
