"""The simplest case that still fails the same way: axis by axis the plain choice, as long as the finding stays of one kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from .case import Case, shape_of
from .families import FAMILIES
from .judge import Finding
from .runs import leaves_of, numbers_of

T = TypeVar("T")


def shrink(
    case: T, found: Finding, examine: Callable[[T], Finding | None], simpler: Callable[[T], Iterator[T]], seconds: float
) -> tuple[T, Finding]:
    """``case`` and ``found``, or a simpler pair."""
    end, again = time.monotonic() + seconds, True
    while again:
        again = False
        for candidate in simpler(case):
            if time.monotonic() > end:
                return case, found
            other = examine(candidate)
            if other is not None and same(found, other):
                case, found, again = candidate, other, True
                break
    return case, found


def same(a: Finding, b: Finding) -> bool:
    """One fault, as far as its name tells."""
    return a.kind == b.kind and (a.kind not in ("exception", "not a TypeError or ValueError") or a.what.split()[0] == b.what.split()[0])


def simpler(case: Case) -> Iterator[Case]:
    """Each case that is one step simpler."""
    for name, sizes in case.sizes.items():
        for other in _smaller(sizes, removable=not any(s.ones or s.drop for s in case.specs if name in s.dims)):
            yield _settled(replace(case, sizes=case.sizes | {name: other}))
    if case.check != "none":
        yield replace(case, check="none")
    if case.upstream != "ones" and case.options.get("of") != "responsibilities":  # which sum to one
        yield replace(case, upstream="ones")
    if case.threads != 1:
        yield replace(case, threads=1)
    for name, plain in FAMILIES[case.family].defaults.items():
        if case.options[name] != plain:
            kept = tuple(s for s in case.specs if not (name == "prior" and s.name.startswith("prior")))
            yield _settled(replace(case, options=case.options | {name: plain}, specs=kept))
    for s in case.specs:
        plain: list[dict[str, Any]] = [
            {"layout": "contiguous"},
            {"dtype": "float32"},
            {"grad": False},
            {"pool": (None,)},
            {"ones": (), "drop": 0},
        ]
        plain += [{"pool": (v,)} for v in s.pool if len(s.pool) > 1]
        plain += [{"pool": (v,)} for v in (0.0, 1.0) if s.pool == (None,) and s.kind not in ("factor", "std", "var", "probs")]
        for fields in plain:
            if any(getattr(s, f) != v for f, v in fields.items()):
                yield _settled(case.change(s.name, **fields))


def _smaller(sizes: tuple[int, ...], removable: bool) -> Iterator[tuple[int, ...]]:
    for i, n in enumerate(sizes):
        if removable and len(sizes) > 1:
            yield sizes[:i] + sizes[i + 1 :]
        for m in (1, 2, n // 4, n // 2, n * 3 // 4, n - 1):
            if 0 < m < n:
                yield (*sizes[:i], m, *sizes[i + 1 :])


def _settled(case: Case) -> Case:
    """With the noise's shape that of the sample."""
    if "noise" not in case.sizes:
        return case
    mu, logvar = (shape_of(case, s) for s in case.specs[:2])
    shape = tuple(torch.broadcast_shapes(mu, logvar))
    samples = case.options["num_samples"]
    return replace(case, sizes=case.sizes | {"noise": shape if samples is None else (samples, *shape)})


# --- as a snippet -----------------------------------------------------------------------------------------------------


def snippet(case: Case) -> str:
    """What a user could paste; numbers are written out where they are few or all the same."""
    numbers = numbers_of(case)
    leaves = leaves_of(case, numbers)
    lines = ["import torch", "import vae_fast", ""]
    for s in case.specs:
        lines.append(f"{s.name} = {_expression(numbers[s.name], leaves[s.name], s.layout)}{'.requires_grad_()' if s.grad else ''}")
    given = {n: _Name(n) for n in leaves}
    if case.options.get("donate"):
        given["recon"] = _Name("recon * 1.0")
    name, arguments = FAMILIES[case.family].call(case, given)  # type: ignore[arg-type]
    lines.append(f"torch.set_num_threads({case.threads})")
    lines.append(f"out = vae_fast.{name}({', '.join(f'{k}={_value(v, case)}' for k, v in arguments.items())})")
    if any(s.grad for s in case.specs):
        first = "out[0]" if name in SEVERAL or case.options.get("factorized") == "both" else "out"
        lines.append(f"{first}.backward({_upstream(case, first)})")
    lines.append(
        f"print(out, {', '.join(f'{s.name}.grad' for s in case.specs if s.grad)})" if any(s.grad for s in case.specs) else "print(out)"
    )
    return "\n".join(lines)


SEVERAL = ("reparameterize_with_kl", "total_correlation")  # results


class _Name:
    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def to_sparse_csr(self) -> _Name:
        return _Name(f"{self.text}.to_sparse_csr()")


def _value(v: Any, case: Case) -> str:
    return f"torch.Generator().manual_seed({case.seed})" if isinstance(v, torch.Generator) else repr(v)


def _upstream(case: Case, out: str) -> str:
    if case.upstream.startswith("2^"):
        return f"torch.full_like({out}, {2.0 ** int(case.upstream[2:])})"
    return {"ones": f"torch.ones_like({out})", "zeros": f"torch.zeros_like({out})"}.get(
        case.upstream, f"torch.randn_like({out})  # {case.upstream}"
    )


def _expression(numbers: torch.Tensor, leaf: torch.Tensor, layout: str) -> str:
    t = numbers.contiguous()
    shape, dtype = tuple(t.shape), "" if t.dtype == torch.float32 else f", dtype={t.dtype}"
    flat = t.flatten()
    if t.numel() and bool((flat == flat[0]).all()):
        text = f"torch.full({shape}, {flat[0].item()!r}{dtype})"
    elif t.numel() <= 32:
        text = f"torch.tensor({t.tolist()}{dtype})"
    else:
        text = f"torch.randn({shape}{dtype})"  # any values, it seems
    if layout == "negated":
        return f"torch._neg_view(-{text})"
    if leaf.stride() != t.stride():
        size = 1 + sum((n - 1) * k for n, k in zip(shape, leaf.stride(), strict=True))
        if 0 in leaf.stride():
            return f"torch.zeros({size}{dtype}).as_strided({shape}, {leaf.stride()}) + 0  # values {text}, strides {leaf.stride()}"
        return f"torch.empty_strided({shape}, {leaf.stride()}{dtype}).copy_({text})"
    return text
