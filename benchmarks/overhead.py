"""What a call costs beside its arithmetic: the ways of putting a kernel behind autograd, at a size where nothing else matters.

python benchmarks/overhead.py
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import vae_fast
from vae_fast._backend import C


def microseconds(f: Callable[[], object], calls: int = 2000, rounds: int = 9) -> float:
    """Median microseconds per call."""
    for _ in range(calls):
        f()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            f()
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(times)


class PythonFunction(torch.autograd.Function):
    """The pybind11 kernel inside a Python autograd.Function, its gradients given: what the wrapping alone costs."""

    @staticmethod
    def forward(ctx, x, logits, mu, logvar, gradients):  # type: ignore[no-untyped-def]
        """The kernel, without autograd of its own."""
        ctx.save_for_backward(x, logits, mu, logvar)
        ctx.gradients = gradients
        return C.elbo_loss([x, logits], [mu, logvar], *ARGS)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        """The gradients a kernel would have written."""
        _ = ctx.saved_tensors
        return None, *ctx.gradients, None


ARGS = ("bernoulli_logits.none", "kl.logvar", 1e-9, -math.inf, 1.0, 1, 1, True)


def main() -> int:
    """Print the table."""
    if C is None:
        print("benchmarks/overhead.py: the extension is not built", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    x = torch.rand(4, 8)
    leaves = [torch.randn(4, n, requires_grad=True) for n in (8, 2, 2)]
    gradients = [torch.zeros_like(t) for t in leaves]
    routes: dict[str, Callable[[], Tensor]] = {
        "vae_fast.elbo_loss (checks, pybind11, C++ autograd)": lambda: vae_fast.elbo_loss(x, *leaves),
        "pybind11, C++ autograd, no checks": lambda: C.elbo_loss([x, leaves[0]], leaves[1:], *ARGS),
        "dispatcher (torch.ops), C++ autograd, no checks": lambda: torch.ops.vae_fast.elbo_loss([x, leaves[0]], leaves[1:], *ARGS),
        "pybind11 inside a Python autograd.Function, no checks": lambda: PythonFunction.apply(x, *leaves, gradients),
        "plain torch (F.binary_cross_entropy_with_logits and KL)": lambda: plain(x, *leaves),
    }
    print("| route, B=4 D=8 L=2 | forward, µs | forward + backward, µs |\n|---|---|---|")
    for name, forward in routes.items():

        def both(forward: Callable[[], Tensor] = forward) -> None:
            for t in leaves:
                t.grad = None
            forward().backward()

        print(f"| {name} | {microseconds(forward):.1f} | {microseconds(both):.1f} |", flush=True)
    return 0


def plain(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss in plain torch."""
    nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    return (nll - 0.5 * (1 + logvar - mu * mu - logvar.exp()).sum(-1)).mean()


if __name__ == "__main__":
    sys.exit(main())
