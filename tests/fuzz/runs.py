"""A case is run: its public call, the plain formula in any precision, and the settings of torch around them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import vae_fast
from vae_fast import _backend

from .case import Case, build, exact, upstream_of, values
from .families import FAMILIES

Tensors = dict[str, Tensor]


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


def run_plain(
    case: Case, numbers: Tensors, dtype: torch.dtype, upstreams: list[Tensor], formula: Callable[[Case, Tensors], Any] | None = None
) -> tuple[list[Tensor], Tensors]:
    """Outputs and gradients of the family's plain formula, or of another one."""
    grad = {s.name: s.grad for s in case.specs}
    if FAMILIES[case.family].products and dtype == torch.float32:  # as the call: in which order a product is summed depends on it
        leaves = {s.name: build(case, s, exact(numbers[s.name], dtype)) for s in case.specs}
    else:
        leaves = {n: exact(t, dtype).requires_grad_(grad[n]) for n, t in numbers.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs = outputs((formula or FAMILIES[case.family].plain)(case, leaves))
        ups = [g.detach().to(o.dtype) for g, o in zip(upstreams, outs, strict=True)]
        if any(g.shape != o.shape for g, o in zip(ups, outs, strict=True)):
            return [o.detach() for o in outs], {}
        _, grads = differentiate(case, outs, leaves, ups)
    return [o.detach() for o in outs], grads


def is_double(case: Case) -> bool:
    if "features" in case.sizes:  # a product has the precision of its factors, whatever is beside it
        return next(s.dtype for s in case.specs if s.name == "h") == "float64"
    return any(s.dtype == "float64" for s in case.specs if s.name != "noise")


def dtype_of(case: Case, index: int, double: bool) -> torch.dtype:
    if case.family == "sample" and index == 0:
        mu, logvar = (getattr(torch, s.dtype) for s in case.specs[:2])
        return torch.promote_types(mu, logvar)
    return torch.float64 if double else torch.float32


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
