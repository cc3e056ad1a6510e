"""A case: inputs built once, and the contenders that do the same work over them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Maker = Callable[[], Function]
Inputs = tuple[Any, ...]
DIRECTIONS = ("both", "forward", "backward")
IN_CACHE = 64 << 20  # bytes: inputs of less are rotated among several sets, so that no set is at hand from the call before


@dataclass(frozen=True)
class Case:
    """One piece of work at one shape.

    Attributes:
        name: what is done.
        shape: its sizes by name, e.g. ``{"B": 8192, "D": 784, "L": 20}``.
        inputs: builds one set of inputs on a device from a generator; those that require gradients get them.
        contenders: by name; each entry makes the function when it is its turn, or raises ``ImportError``. The first is ours.
        least_bytes: by direction, the least that has to be moved: every input read once, every result and gradient written once.
        flops: by direction, the operations of the formula; an exponential, logarithm or division counts as one.
        dtype: of the inputs, as on the command line.
        threads: CPU threads; None is the run's.
        needs: bytes that a contender is known to allocate, for those that may not fit.
        memory_target: the most bytes that ours may allocate, or None.
        memory_share: the same as a share of what the eager contender allocates, or None.
        differentiable: False for work without a backward pass.
    """

    name: str
    shape: Mapping[str, int]
    inputs: Callable[[str, torch.Generator], Inputs]
    contenders: Mapping[str, Maker]
    least_bytes: Mapping[str, int]
    flops: Mapping[str, int]
    dtype: str = "float32"
    threads: int | None = None
    needs: Mapping[str, int] = field(default_factory=dict)
    memory_target: int | None = None
    memory_share: float | None = None
    differentiable: bool = True

    @property
    def label(self) -> str:
        """The case in one line; no two of a suite have the same."""
        sizes = " ".join(f"{k}={v}" for k, v in self.shape.items())
        parts = [self.name, sizes, self.dtype if self.dtype != "float32" else ""]
        parts.append(f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads is not None else "")
        return ", ".join(p for p in parts if p)


class Work:
    """One contender over the inputs of a case: a call in three parts, so that each can be timed.

    Example:
        >>> work = Work(torch.exp, [(torch.zeros(2, requires_grad=True),)], None)
        >>> work().tolist()
        [1.0, 1.0]
    """

    def __init__(self, function: Function, sets: list[Inputs], upstream: list[Tensor | None] | None) -> None:
        """``upstream``: a gradient for each result, None for a scalar; None in place of the list is one that fits, ones."""
        self.function = function
        self.sets = sets
        self.upstream = upstream
        self._rotation = itertools.cycle(sets)
        self.leaves = [[t for t in s if isinstance(t, Tensor) and t.requires_grad] for s in sets]
        self._leaves = itertools.cycle(self.leaves)
        self.differentiable = any(self.leaves)

    def prepare(self) -> Inputs:
        """The next inputs, the gradients of their last use dropped, as ``zero_grad()`` does."""
        for t in next(self._leaves):
            t.grad = None
        return next(self._rotation)

    def forward(self, inputs: Inputs) -> Any:
        """The call."""
        return self.function(*inputs)

    def backward(self, out: Any) -> None:
        """The gradients of every input that requires one."""
        if not self.differentiable:
            return
        outs = [out] if isinstance(out, Tensor) else list(out)
        upstream = self.upstream or [None if t.ndim == 0 else torch.ones_like(t) for t in outs]
        torch.autograd.backward(outs, upstream)

    def __call__(self) -> Any:
        """All of it."""
        out = self.forward(self.prepare())
        self.backward(out)
        return out


class Bench:
    """A case that is set up: one set of inputs for every contender, direction and measure."""

    def __init__(self, case: Case, device: str) -> None:
        """Draw the inputs."""
        generator = torch.Generator(device).manual_seed(0)
        self.case, self.device = case, device
        count = 1 if case.least_bytes["both"] > IN_CACHE else 3
        self.sets = [case.inputs(device, generator) for _ in range(count)]
        self.upstream: list[Tensor | None] | None = None

    def work(self, contender: str) -> Work:
        """A contender at work; its first call may compile.

        Raises:
            ImportError: if the contender's package is not installed.
        """
        function = self.case.contenders[contender]()
        if self.upstream is None and self.case.differentiable:
            with torch.no_grad():
                out = function(*self.sets[0])
            outs = [out] if isinstance(out, Tensor) else list(out)
            self.upstream = [None if t.ndim == 0 else torch.randn_like(t) for t in outs]
        return Work(function, self.sets, self.upstream)


def plain(function: Function) -> Maker:
    """A contender that needs no preparation."""
    return lambda: function


def compiled(function: Function, mode: str | None = None) -> Maker:
    """A contender under torch.compile, for this shape alone."""

    def make() -> Function:
        fast = torch.compile(function, dynamic=False, mode=mode)
        if mode is None:
            return fast

        def step(*inputs: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # results of the call before may be overwritten
            return fast(*inputs)

        return step

    return make


def leaf(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input that wants a gradient.

    Example:
        >>> leaf(torch.zeros(2)).requires_grad
        True
    """
    return values.to(dtype).requires_grad_()
