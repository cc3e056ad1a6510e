"""Time the hot CUDA kernels, each by itself, beside what benchmarks/static/sm_90.json predicts of them from their machine code.

Every call is replayed as a graph (or, where that cannot be, enqueued behind a busy stream: the row says which), in rounds with a copy and a
loop of multiply-adds, which are the limits. The file is written after every kernel. Options hold the host's choices of lanes, grid and
chunk at other values, to compare them; --once starts each kernel three times without timing it, for a profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import vae_fast  # noqa: E402
from vae_fast._backend import C, build_info  # noqa: E402
from vae_fast.bench.case import Work  # noqa: E402
from vae_fast.bench.device_time import timer_of  # noqa: E402
from vae_fast.bench.limits import Probe  # noqa: E402
from vae_fast.files import write_json  # noqa: E402

TABLE = ROOT / "benchmarks" / "static" / "sm_90.json"
ROWS = 1 << 18  # of the kernels that memory limits: a quarter of a gigabyte and more
Made = tuple[Callable[..., Any], tuple[Any, ...], int, int]  # the call, its arguments, the bytes it moves, its operations


@dataclass(frozen=True)
class Call:
    """A kernel by the name that the table has for it, and how to call it."""

    name: str
    make: Callable[[str, int], Made]
    rows: int = ROWS
    target: float = 0.9


def _bernoulli(logits: torch.dtype, x: torch.dtype, grad: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        a = torch.randn(rows, 784, device=device).to(logits)
        data = torch.randint(0, 256, a.shape, device=device, dtype=torch.uint8) if x == torch.uint8 else torch.rand_like(a).to(x)
        moved = data.nbytes + a.nbytes
        if not grad:
            return vae_fast.bernoulli_log_prob, (data, a), moved + 4 * rows, 0
        latent = torch.zeros(rows, 4, device=device)  # the call with a gradient in its forward pass has a KL, too: 0.3% of the bytes
        return vae_fast.elbo_loss, (data, a.requires_grad_(), latent, latent), moved + a.nbytes + 2 * latent.nbytes, 0

    return make


def _logsumexp(dtype: torch.dtype, backward: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        a = torch.randn(rows, 784, device=device).to(dtype)
        if not backward:
            return vae_fast.logsumexp, (a,), a.nbytes + 4 * rows, 0
        out = vae_fast.logsumexp(a)
        arguments = (torch.ones_like(out), a, None, out, 1, [True, False])
        return torch.ops.vae_fast.logsumexp_backward, arguments, 2 * a.nbytes + 8 * rows, 0

    return make


def _sample(backward: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        mu, logvar = torch.randn(rows, 20, device=device), torch.randn(rows, 20, device=device)
        if not backward:
            return vae_fast.reparameterize_with_kl, (mu, logvar), 3 * mu.nbytes + 4 * rows, 0
        z, kl = vae_fast.reparameterize_with_kl(mu.requires_grad_(), logvar.requires_grad_())
        upstream = (torch.randn_like(z), torch.randn_like(kl))

        def gradient(mu: Tensor, logvar: Tensor, z: Tensor, kl: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad((z, kl), (mu, logvar), upstream, retain_graph=True)

        return gradient, (mu, logvar, z, kl), 5 * mu.nbytes + 4 * rows, 0

    return make


def _mixture(components: int, dims: int, backward: bool, **options: Any) -> Callable[[str, int], Made]:
    """Operations as the suite of mixtures counts them; dimension by dimension an exponential, one forward and two backward, counts as the
    multiply-adds that its unit takes as long for, sixteen operations. The forward call finds the joint density as well, uncounted."""
    function, by_dims = partial(vae_fast.mixture_log_prob, **options), "factorized" in options

    def make(device: str, rows: int) -> Made:
        x, means = torch.randn(rows, dims, device=device), torch.randn(components, dims, device=device)
        logits, scale = torch.randn(components, device=device), 0.1 * torch.randn(components, dims, device=device)
        pairs = rows * components * dims
        if not backward:
            return function, (x, logits, means, scale), x.nbytes + 4 * rows, (16 if by_dims else 4) * pairs
        leaves = [t.requires_grad_() for t in (x, logits, means, scale)]
        out = function(*leaves)
        upstream = torch.randn_like(out)

        def gradient(*leaves: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, leaves, upstream, retain_graph=True)

        return gradient, tuple(leaves), 2 * x.nbytes + 8 * rows, (32 if by_dims else 10) * pairs

    return make


def _mdn(backward: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        shapes = (2,), (5,), (5, 2), (5, 2)
        inputs = tuple(torch.randn(rows, *shape, device=device) for shape in shapes)  # y, weight logits, means, scales
        moved = sum(t.nbytes for t in inputs)
        if not backward:
            return vae_fast.mdn_log_prob, inputs, moved + 4 * rows, 0
        out = vae_fast.mdn_log_prob(*(t.requires_grad_() for t in inputs))
        upstream = torch.randn_like(out)

        def gradient(*leaves: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, leaves, upstream, retain_graph=True)

        return gradient, inputs, 2 * moved + 4 * rows, 0

    return make


def _categorical(dtype: torch.dtype, grad: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        x = torch.randint(256, (rows,), device=device)
        logits = torch.randn(rows, 256, device=device).to(dtype)
        moved = x.nbytes + logits.nbytes + 4 * rows
        call = partial(vae_fast.categorical_log_prob, event_dim=0)
        if not grad:
            return call, (x, logits), moved, 0
        if dtype == torch.float32:  # written in the forward pass
            return call, (x, logits.requires_grad_()), moved + logits.nbytes, 0
        arguments = (torch.ones(rows, device=device), x.unsqueeze(-1), logits, None, None, -1, 1, [False, True])
        return torch.ops.vae_fast.softmax_backward, arguments, moved + logits.nbytes, 0

    return make


def _logistic_mixture(dtype: torch.dtype, convention: str, backward: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        x = torch.randint(0, 256, (rows, 32, 32, 3), device=device, dtype=torch.uint8)
        params = torch.randn(rows, 32, 32, 100, device=device).to(dtype)
        function = partial(vae_fast.discretized_logistic_mixture_log_prob, convention=convention)
        if not backward:
            return function, (x, params), x.nbytes + params.nbytes + 4 * rows, 0
        out = function(x, params.requires_grad_())
        upstream = torch.randn_like(out)

        def gradient(params: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, (params,), upstream, retain_graph=True)

        return gradient, (params,), x.nbytes + 2 * params.nbytes + 4 * rows, 0

    return make


def _multinomial(grad: bool) -> Callable[[str, int], Made]:
    def make(device: str, rows: int) -> Made:
        logits = torch.randn(rows, 1024, device=device)
        x = torch.randint(3, logits.shape, device=device).float()
        moved = x.nbytes + logits.nbytes + 4 * rows
        return vae_fast.multinomial_log_prob, (x, logits.requires_grad_(grad)), moved + grad * logits.nbytes, 0

    return make


def _sparse_multinomial(device: str, rows: int) -> Made:
    """A hundred counts of 20,000 to a row; their gradients are written a second time."""
    logits = torch.randn(rows, 20_000, device=device).requires_grad_()
    column = (torch.arange(100, device=device) * 200).expand(rows, 100) + torch.randint(200, (rows, 100), device=device)
    begin = torch.arange(0, 100 * rows + 1, 100, device=device)
    x = torch.sparse_csr_tensor(begin, column.flatten(), torch.ones(100 * rows, device=device), (rows, 20_000))
    return vae_fast.multinomial_log_prob, (x, logits), 2 * logits.nbytes + 12 * column.numel() + 12 * rows, 0


F32, BF16, U8 = torch.float32, torch.bfloat16, torch.uint8
CALLS = [
    Call("bernoulli_logits f32, forward and gradient, D=784", _bernoulli(F32, F32, True)),
    Call("bernoulli_logits f32, x uint8, forward and gradient, D=784", _bernoulli(F32, U8, True)),
    Call("bernoulli_logits f32, forward, D=784", _bernoulli(F32, F32, False)),
    Call("bernoulli_logits bf16, forward and gradient, D=784", _bernoulli(BF16, BF16, True)),
    Call("bernoulli_logits bf16, x uint8, forward and gradient, D=784", _bernoulli(BF16, U8, True)),
    Call("bernoulli_logits bf16, forward, D=784", _bernoulli(BF16, BF16, False)),
    Call("logsumexp f32, forward, K=784", _logsumexp(F32, False)),
    Call("logsumexp f32, backward, K=784", _logsumexp(F32, True)),
    Call("logsumexp bf16, forward, K=784", _logsumexp(BF16, False)),
    Call("logsumexp bf16, backward, K=784", _logsumexp(BF16, True)),
    Call("categorical f32, forward, K=256", _categorical(F32, False), rows=1 << 20),
    Call("categorical f32, forward and gradient, K=256", _categorical(F32, True), rows=1 << 20),
    Call("categorical bf16, forward, K=256", _categorical(BF16, False), rows=1 << 20),
    Call("categorical bf16, backward, K=256", _categorical(BF16, True), rows=1 << 20),
    Call("multinomial f32, forward, K=1024", _multinomial(False)),
    Call("multinomial f32, forward and gradient, K=1024", _multinomial(True)),
    Call("multinomial f32, CSR, forward and gradient, K=20000", _sparse_multinomial, rows=1 << 13),
    Call("sample and KL f32, forward, L=20", _sample(False), rows=1 << 21),
    Call("sample and KL f32, backward, L=20", _sample(True), rows=1 << 21),
    Call("mixture f32, forward, K=256 D=64", _mixture(256, 64, False), target=0.5),
    Call("mixture f32, backward, K=256 D=64", _mixture(256, 64, True), target=0.5),
    Call("mixture tf32x3, forward, K=256 D=64", _mixture(256, 64, False, precision="tf32x3"), target=0.5),
    Call("mixture tf32x3, backward, K=256 D=64", _mixture(256, 64, True, precision="tf32x3"), target=0.5),
    Call("mixture f32 dimension by dimension, forward, K=256 D=64", _mixture(256, 64, False, factorized=True), target=0.5),
    Call("mixture f32 dimension by dimension, backward, K=256 D=64", _mixture(256, 64, True, factorized=True), target=0.5),
    Call("mdn f32, forward, K=5 D=2", _mdn(False), rows=1 << 22),
    Call("mdn f32, backward, K=5 D=2", _mdn(True), rows=1 << 22),
    Call("logistic mixture exact f32, forward, K=10", _logistic_mixture(F32, "exact", False), rows=1 << 10),
    Call("logistic mixture exact f32, backward, K=10", _logistic_mixture(F32, "exact", True), rows=1 << 10),
    Call("logistic mixture exact bf16, forward, K=10", _logistic_mixture(BF16, "exact", False), rows=1 << 10),
    Call("logistic mixture exact bf16, backward, K=10", _logistic_mixture(BF16, "exact", True), rows=1 << 10),
    Call("logistic mixture thin f32, forward, K=10", _logistic_mixture(F32, "nvae", False), rows=1 << 10),
    Call("logistic mixture thin f32, backward, K=10", _logistic_mixture(F32, "nvae", True), rows=1 << 10),
]
KEY = [row["kernel"] for row in json.loads(TABLE.read_text())]


def work_of(call: Call, device: str, rows: int) -> tuple[Work, int, int]:
    """The call on its inputs, the bytes it moves and its operations; what it gives is dropped."""
    function, arguments, moved, operations = call.make(device, rows)

    def alone(*inputs: Any) -> Any:
        with torch.enable_grad():
            return function(*inputs)

    work = Work(alone, [arguments], None)
    work.leaves, work.differentiable = [[]], False  # one call, and no backward pass after it
    work._leaves = iter(lambda: [], None)
    return work, moved, operations


def measured(call: Call, device: str, rows: int, probe: Any, predicted: dict[str, float], rounds: int = 9) -> dict[str, Any]:
    """A row of the result."""
    work, moved, operations = work_of(call, device, rows)
    work()
    timer = timer_of(call.name, work, device)
    samples = []
    for _ in range(rounds):
        probe.measure(0.0)
        samples += [timer.sample()[0] for _ in range(3)]
    limits, _ = probe.limits()
    seconds = statistics.median(samples)
    share = operations / limits.fma / seconds if operations and limits.fma else moved / limits.copy / seconds
    return {
        "kernel": call.name,
        "rows": rows,
        "seconds": seconds,
        "fastest": min(samples),
        "slowest": max(samples),
        "timer": timer.name,
        "not_replayed": timer.not_replayed or None,
        "bytes": moved,
        "flops": operations,
        "copy_gb_per_second": limits.copy / 1e9,
        "fma_gflops": None if limits.fma is None else limits.fma / 1e9,
        "limit": "arithmetic" if operations else "copy",
        "share": share,
        "predicted_share": predicted.get(call.name),
        "target": call.target,
    }


def predictions(gpu: str) -> dict[str, float]:
    """What the committed table predicts, by kernel, for an H100 or H200; of other GPUs nothing."""
    column = next((name for name in ("H200", "H100") if name in gpu), None)
    return {row["kernel"]: row["predicted_share"][column] for row in json.loads(TABLE.read_text())} if column else {}


def line(row: dict[str, Any]) -> str:
    """A row to read."""
    predicted = "   -" if row["predicted_share"] is None else f"{row['predicted_share']:4.0%}"
    mark = "" if row["share"] >= row["target"] else "  below its target"
    timed = row["timer"] if row["not_replayed"] is None else f"{row['timer']} ({row['not_replayed']})"
    return (
        f"{row['kernel']:58}  {row['seconds'] * 1e6:9.1f} us  {row['share']:4.0%} of {row['limit']}, predicted {predicted}  {timed}{mark}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="a kernel by its whole name; may be repeated (default: all)")
    parser.add_argument("--key", action="store_true", help="those of the committed table alone")
    parser.add_argument("--once", action="store_true", help="three calls of each, untimed")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, help="in place of each kernel's own number of rows")
    for name in ("lanes", "blocks", "chunk"):
        parser.add_argument(
            f"--{name}", type=int, default=0, help="in place of the host's choice (vae_fast._C.set_cuda_tuning); 0 leaves it"
        )
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.only or []) - {call.name for call in CALLS})
    if unknown:
        parser.error(f"--only {unknown[0]!r}: expected one of {', '.join(repr(call.name) for call in CALLS)}")
    if C is None or (args.device != "cpu" and build_info()["cuda"] is None):
        parser.error(f"the extension has no CUDA kernels: {build_info()['reason'] or 'it was built for the CPU alone'}")
    if args.lanes or args.blocks or args.chunk:  # refused in words by an extension without CUDA
        C.set_cuda_tuning(args.lanes, args.blocks, args.chunk)
    calls = [c for c in CALLS if (not args.only or c.name in args.only) and (not args.key or c.name in KEY)]
    if args.once:
        for call in calls:
            work, _, _ = work_of(call, args.device, args.rows or call.rows)
            for _ in range(3):
                work()
            if args.device != "cpu":
                torch.cuda.synchronize()
        return 0
    gpu = torch.cuda.get_device_name() if args.device != "cpu" else ""
    result: dict[str, Any] = {"gpu": gpu, "tuning": {n: getattr(args, n) for n in ("lanes", "blocks", "chunk")}, "rows": []}
    result |= {key: build_info()[key] for key in ("torch", "cuda", "arch_list", "commit")}
    probe = Probe(args.device, quick=True)
    for call in calls:
        row = measured(call, args.device, args.rows or call.rows, probe, predictions(gpu))
        result["rows"].append(row)
        print(line(row), flush=True)
        if args.out is not None:
            write_json(args.out, result)
    below = [row["kernel"] for row in result["rows"] if row["share"] < row["target"]]
    print(f"{len(result['rows'])} kernels, {len(below)} below their targets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
