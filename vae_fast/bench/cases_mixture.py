"""Mixtures of Gaussians: density and gradients, mixture density networks, one iteration of EM."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vae_fast
from vae_fast.bench.case import Case, Function, Inputs, compiled, leaf, plain
from vae_fast.models import _em

# --- the formulas -----------------------------------------------------------------------------------------------------


def distributions(x: Tensor, weight_logits: Tensor, means: Tensor, log_std: Tensor) -> Tensor:
    """torch.distributions."""
    components = Independent(Normal(means, log_std.exp()), 1)
    log_prob: Tensor = MixtureSameFamily(Categorical(logits=weight_logits), components).log_prob(x)
    return log_prob


def products(x: Tensor, weight_logits: Tensor, means: Tensor, log_std: Tensor) -> Tensor:
    """The quadratic as two matrix products: the fastest that plain PyTorch has, at the price of accuracy far from the origin."""
    tau = (-2 * log_std).exp()
    constant = torch.log_softmax(weight_logits, 0) - log_std.sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]
    quadratic = (x * x) @ tau.T - 2 * x @ (means * tau).T + (means * means * tau).sum(-1)
    return torch.logsumexp(constant - 0.5 * quadratic, -1)


def keops() -> Function:
    """KeOps, where it is installed."""
    from pykeops.torch import LazyTensor

    def log_prob(x: Tensor, weight_logits: Tensor, means: Tensor, log_std: Tensor) -> Tensor:
        constant = torch.log_softmax(weight_logits, 0) - log_std.sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]
        points, centres = LazyTensor(x[:, None, :].contiguous()), LazyTensor(means[None].contiguous())
        tau, c = LazyTensor((-2 * log_std).exp()[None].contiguous()), LazyTensor(constant[None, :, None].contiguous())
        out: Tensor = (c - ((points - centres) ** 2 * tau).sum(-1) / 2).logsumexp(dim=1).squeeze(-1)
        return out

    return log_prob


def plain_mdn(y: Tensor, weight_logits: Tensor, means: Tensor, log_scale: Tensor) -> Tensor:
    """The likelihood of a mixture density network as people write it."""
    t = (y.unsqueeze(-2) - means) * (-log_scale).exp()
    component = -0.5 * (t * t + math.log(2 * math.pi)).sum(-1) - log_scale.sum(-1)
    return torch.logsumexp(torch.log_softmax(weight_logits, -1) + component, -1)


# --- the cases --------------------------------------------------------------------------------------------------------


def _parameters(n: int, k: int, d: int, device: str, g: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, weights, means, log_std = (torch.randn(*s, device=device, generator=g) for s in ((n, d), (k,), (k, d), (k, d)))
    return x.to(dtype), weights.to(dtype), means.to(dtype), (0.1 * log_std).to(dtype)


def _modes(more: Iterable[str], formula: Function) -> dict[str, Any]:
    modes = {"compile": None, "compile-max": "max-autotune"}
    return {name: compiled(formula, modes[name]) for name in more}


def log_prob(
    n: int,
    k: int,
    d: int,
    *,
    dtype: str = "float32",
    against: Iterable[str] = ("compile", "compile-max"),
    other: Iterable[str] = ("distributions", "keops"),
    memory_target: int | None = None,
    precision: str = "float32",
) -> Case:
    """Log-density of a diagonal mixture; x and every parameter want gradients.

    Example:
        >>> log_prob(1000, 10, 2).label
        'mixture_log_prob, N=1000 K=10 D=2'
    """
    kind: torch.dtype = getattr(torch, dtype)

    def inputs(device: str, g: torch.Generator) -> Inputs:
        return tuple(leaf(t, kind) for t in _parameters(n, k, d, device, g, kind))

    x, parameters, out = n * d * kind.itemsize, (2 * k * d + k) * kind.itemsize, 4 * n
    peers = {"distributions": plain(distributions), "keops": keops}
    forward, backward = 4 * n * k * d, 10 * n * k * d  # twice a multiply-add; those again, and the sums for three gradients
    if precision == "tf32x3":
        forward, backward = 0, 6 * n * k * d  # what is left to other units than tensor cores
    return Case(
        "mixture_log_prob" if precision == "float32" else f"mixture_log_prob {precision}",
        {"N": n, "K": k, "D": d},
        inputs,
        {"ours": plain(partial(vae_fast.mixture_log_prob, precision=precision)), "eager": plain(products)}
        | _modes(against, products)
        | {name: peers[name] for name in other},
        {
            "forward": x + parameters + out,
            "backward": 2 * (x + parameters) + 2 * out,
            "both": 3 * (x + parameters) + 3 * out,
        },
        {"forward": forward, "backward": backward, "both": forward + backward},
        dtype=dtype,
        needs={"distributions": 6 * 4 * n * k * d, "eager": 8 * 4 * n * k, "compile": 5 * 4 * n * k, "compile-max": 5 * 4 * n * k},
        memory_target=memory_target,
    )


def mdn(n: int, k: int, d: int, against: Iterable[str] = ("compile",)) -> Case:
    """The likelihood of a mixture density network.

    Example:
        >>> mdn(100, 5, 2).label
        'mdn_log_prob, N=100 K=5 D=2'
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        y, weights, means, scale = (torch.randn(*s, device=device, generator=g) for s in ((n, d), (n, k), (n, k, d), (n, k, d)))
        return y, leaf(weights), leaf(means), leaf(0.1 * scale)

    size, out = 4 * n * (d + k + 2 * k * d), 4 * n
    forward, backward = 5 * n * k * d, 10 * n * k * d
    return Case(
        "mdn_log_prob",
        {"N": n, "K": k, "D": d},
        inputs,
        {"ours": plain(vae_fast.mdn_log_prob), "eager": plain(plain_mdn)} | _modes(against, plain_mdn),
        {"forward": size + out, "backward": 2 * size + out, "both": 3 * size + 2 * out},
        {"forward": forward, "backward": backward, "both": forward + backward},
    )


def em(n: int, k: int, d: int) -> Case:
    """One iteration of EM with diagonal covariances, from the same parameters each time.

    scikit-learn's is its own E-step and M-step without the checks of ``fit``; on a GPU it still runs on the CPU.

    Example:
        >>> em(1000, 4, 2).label
        'EM iteration, N=1000 K=4 D=2'
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        return _parameters(n, k, d, device, g, torch.float32)

    def ours(x: Tensor, *parameters: Tensor) -> _em.Parameters:
        start = _em.Parameters(*parameters)
        return _em.maximise(start, _em.expectation(lambda: [x], start, "diag"), 1e-6, "diag", "the iteration")

    forward = 8 * n * k * d  # the distances, and two sums
    size = 4 * (n * d + 2 * (2 * k * d + k))
    return Case(
        "EM iteration",
        {"N": n, "K": k, "D": d},
        inputs,
        {"ours": plain(ours), "scikit-learn": _scikit_learn},
        {"forward": size, "both": size},
        {"forward": forward, "both": forward},
        differentiable=False,
    )


def _scikit_learn() -> Function:
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    started: dict[int, tuple[Any, Any]] = {}

    def start(x: Tensor, weight_logits: Tensor, means: Tensor, log_std: Tensor) -> tuple[Any, Any]:
        points = x.cpu().numpy()
        model = GaussianMixture(len(means), covariance_type="diag", max_iter=1, init_params="random_from_data")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one iteration does not converge
            model.fit(points[: 2 * len(means)])
        model.weights_, model.means_ = weight_logits.softmax(0).cpu().numpy(), means.cpu().numpy()
        model.covariances_, model.precisions_cholesky_ = (2 * log_std).exp().cpu().numpy(), (-log_std).exp().cpu().numpy()
        return model, points

    def iteration(*inputs: Tensor) -> None:
        if id(inputs[0]) not in started:  # the estimator is made once; every iteration starts from the same parameters
            started[id(inputs[0])] = start(*inputs)
        model, points = started[id(inputs[0])]
        before = model.weights_, model.means_, model.covariances_, model.precisions_cholesky_
        with threadpool_limits(torch.get_num_threads()):
            model._m_step(points, model._e_step(points)[1])
        model.weights_, model.means_, model.covariances_, model.precisions_cholesky_ = before

    return iteration


def mixtures(device: str, quick: bool) -> list[Case]:
    """The rows of the performance contract."""
    more = ("compile",) if quick else ("compile", "compile-max")
    if quick:
        return [log_prob(10_000, 10, 2, against=more), em(10_000, 16, 16)]
    if device != "cpu":
        shapes = ((100_000, 64, 16), (200_000, 100, 64), (100_000, 256, 64))
        rows = [log_prob(*s, against=more) for s in shapes]
        rows += [log_prob(*s, against=(), other=(), precision="tf32x3") for s in shapes]
        return [*rows, mdn(1 << 18, 5, 2), em(1_000_000, 64, 16)]
    rows = [log_prob(*s, against=more) for s in ((100_000, 10, 2), (100_000, 64, 16), (20_000, 100, 64), (5_000, 50, 784))]
    return [*rows, em(100_000, 64, 16), mdn(8192, 5, 2)]


def at_shape(shape: tuple[int, int, int], dtype: str, quick: bool) -> list[Case]:
    """A mixture at a shape and dtype of the user's choice; nothing is promised there."""
    more = ("compile",) if quick else ("compile", "compile-max")
    rows = [log_prob(*shape, dtype=dtype, against=more)]
    return [*rows, em(*shape)] if dtype == "float32" else rows


def sweeps(device: str, quick: bool) -> list[Case]:
    """Numbers of components."""
    n = 2_000 if quick else 20_000 if device == "cpu" else 200_000
    return [log_prob(n, k, 16, against=(), other=()) for k in ((2, 32) if quick else (2, 16, 128, 1024))]


def memory(device: str, quick: bool) -> list[Case]:
    """Peak memory where N x K x D does not fit."""
    shapes = ((10_000, 16, 16),) if quick else ((100_000, 64, 16), (1_000_000, 64, 16))
    limit = 64 << 20
    return [log_prob(n, k, d, against=("compile",), other=("distributions",), memory_target=4 * n * d + limit) for n, k, d in shapes]
