"""What share of a training step is the loss, and so the most that a faster loss can save.

The functions that are named (the loss, the sampling) are wrapped while some steps run. A wrapper detaches what the function is given, so
that the function's own backward pass is a piece by itself, and takes the time of both: nothing is guessed from the names of kernels.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from vae_fast.errors import FileError, RunError

#: From how many times the speed on bfloat16 is advised.
WORTH = 1.5
_CONTRACT = "expected a Python file with step() (or train_step()), one training step, and the function loss(...) that it calls"


@dataclass(frozen=True)
class Advice:
    """Where the time of a step goes.

    Attributes:
        step_seconds: of one step, median.
        loss_seconds: of it in the loss, forward and backward.
        share: of the step that is the loss, 0 to 1.
        bfloat16: how many times as fast this processor multiplies matrices of bfloat16 as of float32; None on CUDA.
    """

    step_seconds: float
    loss_seconds: float
    share: float
    bfloat16: float | None = None

    @property
    def most(self) -> float:
        """How many times as fast a step can become at most: as if the loss took no time.

        Example:
            >>> round(Advice(0.010, 0.002, 0.2).most, 2)
            1.25
        """
        return 1.0 / max(1.0 - self.share, 1e-9)

    def __str__(self) -> str:
        """In two lines, or three."""
        mixed = ""
        if self.bfloat16 is not None and self.bfloat16 >= WORTH:
            mixed = (
                f"\nmatrix products in bfloat16 are {self.bfloat16:.1f} times as fast as in float32 on this processor: "
                "try fit(..., amp=torch.bfloat16), or --amp bf16 on the command line"
            )
        return (
            f"one step: {self.step_seconds * 1e3:.3g} ms, of it in the loss, forward and backward: {self.loss_seconds * 1e3:.3g} ms "
            f"({self.share:.1%})\na faster loss can save at most that: a step at most {self.most:.2f} times as fast"
            f"{mixed}"
        )


def advise(step: Callable[[], object], *parts: tuple[object, str], steps: int = 20, warm_up: int = 3) -> Advice:
    """Time a training step and the functions in it that vae_fast could replace.

    Args:
        step: one training step: forward, backward, optimizer.
        parts: the functions, each as what holds it and its name there: ``(module, "loss")``, ``(model, "reparameterize")``. ``step`` must
            look them up when it runs. They must not write to the tensors they are given.
        steps: how many to time.
        warm_up: how many to run before.

    Returns:
        The times and the share, as :class:`Advice`; ``print`` it.

    Raises:
        RunError: if a step calls none of the parts.

    Example:
        >>> import torch, types
        >>> from vae_fast.bench import advise
        >>> w = torch.randn(10, 10, requires_grad=True)
        >>> here = types.SimpleNamespace(loss=lambda y: y.square().sum())
        >>> advice = advise(lambda: here.loss(torch.ones(5, 10) @ w).backward(), (here, "loss"))
        >>> 0.0 < advice.share < 1.0
        True
    """
    plain, split, inside = [], [], []
    for _ in range(warm_up):
        step()
    for _ in range(steps):
        plain.append(_seconds(step))
        with _hooked(parts) as meter:
            split.append(_seconds(step))
            inside.append(meter.seconds())
        if not meter.calls:
            names = ", ".join(name for _, name in parts)
            raise RunError(f"step() did not call {names}: the share of the loss cannot be told; {_CONTRACT}")
    share = statistics.median(a / b for a, b in zip(inside, split, strict=True))
    whole = statistics.median(plain)
    return Advice(whole, share * whole, share, None if _on_cuda() else bfloat16_speed())


def bfloat16_speed(size: int = 512, turns: int = 7) -> float:
    """How many times as fast a product of matrices is in bfloat16 as in float32, on the CPU, measured.

    Args:
        size: of the square matrices.
        turns: of each; the shortest counts.

    Example:
        >>> bfloat16_speed(64) > 0.0
        True
    """
    a = torch.ones(size, size)
    pairs = {dtype: a.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for turn in range(turns + 1):
        for dtype, t in pairs.items():
            begin = time.perf_counter()
            torch.mm(t, t)
            if turn:  # in the first the library sets itself up
                best[dtype] = min(best[dtype], time.perf_counter() - begin)
    return best[torch.float32] / best[torch.bfloat16]


def advise_file(path: Path, names: Sequence[str] = ("loss",)) -> Advice:
    """The same for a file that defines ``step()`` or ``train_step()`` and the functions of those names, dotted if an object holds them.

    Raises:
        FileError: if the file cannot be used, saying what is expected.
        RunError: if a step calls none of the functions.
    """
    module = _load(path)
    step = getattr(module, "step", None) or getattr(module, "train_step", None)
    if not callable(step):
        raise FileError(f"{path}: defines neither step() nor train_step(); {_CONTRACT}")
    parts = []
    for name in names:
        *owners, last = name.split(".")
        owner: Any = module
        for part in owners:
            owner = getattr(owner, part, None)
        if not callable(getattr(owner, last, None)):
            raise FileError(f"{path}: has no function {name}; {_CONTRACT}, or --loss NAME")
        parts.append((owner, last))
    try:
        return advise(step, *parts)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    except Exception as error:
        raise FileError(f"{path}: step() failed: {type(error).__name__}: {error}") from error


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileError(f"{path}: no such file; {_CONTRACT}")
    spec = importlib.util.spec_from_file_location("vae_fast_advised", path)
    if spec is None or spec.loader is None:
        raise FileError(f"{path}: not a Python file; {_CONTRACT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickling and dataclasses look there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FileError(f"{path}: {type(error).__name__}: {error}; {_CONTRACT}") from error
    finally:
        sys.path.pop(0)
    return module


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _seconds(step: Callable[[], object]) -> float:
    if _on_cuda():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if _on_cuda():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


class _Meter:
    """Adds up spans: wall clock on the CPU, device events on CUDA. A function called inside another counts once."""

    def __init__(self) -> None:
        self.calls = 0
        self._spans: list[Callable[[], float]] = []
        self._depth = 0

    @contextlib.contextmanager
    def span(self) -> Iterator[None]:
        self._depth += 1
        cuda = _on_cuda()
        if cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
        begin = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - begin
            self._depth -= 1
            if cuda:
                end.record()
            if self._depth == 0:
                self._spans.append((lambda: start.elapsed_time(end) / 1e3) if cuda else (lambda: passed))

    def seconds(self) -> float:
        if _on_cuda():
            torch.cuda.synchronize()
        return sum(span() for span in self._spans)


class _Graft(torch.autograd.Function):
    """Joins a piece of graph that was built apart to the graph around it; its backward pass is a span of the meter."""

    @staticmethod
    def forward(ctx: Any, meter: _Meter, outs: list[Tensor], leaves: list[Tensor], *tensors: Tensor) -> Any:
        """The results, cut off."""
        ctx.meter, ctx.outs, ctx.leaves = meter, outs, leaves
        return tuple(t.detach() for t in outs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """The piece's own backward pass; parameters that the function used itself get their gradients here."""
        with ctx.meter.span():
            torch.autograd.backward(ctx.outs, list(upstream))
        return None, None, None, *(t.grad for t in ctx.leaves)


def _wrapped(function: Callable[..., Any], meter: _Meter) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        meter.calls += 1
        flat, spec = _pytree.tree_flatten((args, kwargs))
        places = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.requires_grad] if torch.is_grad_enabled() else []
        tensors = [flat[i] for i in places]
        leaves = [t.detach().requires_grad_() for t in tensors]
        for i, t in zip(places, leaves, strict=True):
            flat[i] = t
        args, kwargs = _pytree.tree_unflatten(flat, spec)
        with meter.span():
            out = function(*args, **kwargs)
        results, shape = _pytree.tree_flatten(out)
        joined = [i for i, t in enumerate(results) if isinstance(t, Tensor) and t.requires_grad]
        if not joined or not tensors:
            return out
        graft: Any = _Graft.apply
        grafted = graft(meter, [results[i] for i in joined], leaves, *tensors)
        for i, t in zip(joined, grafted, strict=True):
            results[i] = t
        return _pytree.tree_unflatten(results, shape)

    return call


@contextlib.contextmanager
def _hooked(parts: Sequence[tuple[object, str]]) -> Iterator[_Meter]:
    meter = _Meter()
    with contextlib.ExitStack() as stack:
        for owner, name in parts:
            own = name in vars(owner)
            before = getattr(owner, name)
            setattr(owner, name, _wrapped(before, meter))
            stack.callback(setattr, owner, name, before) if own else stack.callback(delattr, owner, name)
        yield meter
