"""The head of a VAE: likelihood, KL divergence, sampling, each in plain PyTorch as people write it and in vae_fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from vae_fast.bench.case import Case, Function, Inputs, compiled, leaf, plain

EPS = 1e-6  # of the clipped case: in float32 the plain formula gives NaN at 1e-9
SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "uint8": 1}

# --- as people write it -----------------------------------------------------------------------------------------------


def _target(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def plain_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """The KL divergence to N(0, 1) as it is written in most VAEs."""
    if mu.dtype in (torch.float16, torch.bfloat16):
        mu, logvar = mu.float(), logvar.float()
    return -0.5 * (1 + logvar - mu * mu - logvar.exp()).sum(-1)


def plain_logits(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss over logits."""
    log_prob = -F.binary_cross_entropy_with_logits(_target(logits), _target(x), reduction="none").sum(-1)
    return (plain_kl(mu, logvar) - log_prob).mean()


def plain_probs(x: Tensor, probs: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss over probabilities that are clipped first."""
    p, x = _target(probs).clamp(EPS, 1 - EPS), _target(x)
    log_prob = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    return (plain_kl(mu, logvar) - log_prob).mean()


def plain_sample(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterized sample and its KL divergence."""
    return mu + (0.5 * logvar).exp() * torch.randn_like(mu), plain_kl(mu, logvar)


def plain_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """The Bernoulli log-likelihood of each sample."""
    return -F.binary_cross_entropy_with_logits(_target(logits), _target(x), reduction="none").sum(-1)


def plain_gaussian(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The Gaussian log-likelihood of each sample."""
    return -0.5 * (1.8378770664093453 + logvar + (x - mu) ** 2 / logvar.exp()).sum(-1)


def plain_logsumexp(a: Tensor) -> Tensor:
    """The same over the last dimension."""
    return torch.logsumexp(a, -1)


# --- the same by vae_fast ---------------------------------------------------------------------------------------------


def ours_probs(x: Tensor, probs: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The same loss as :func:`plain_probs`."""
    return vae_fast.elbo_loss(x, probs, mu, logvar, likelihood="bernoulli_probs", clip="clamp", eps=EPS)


# --- the cases --------------------------------------------------------------------------------------------------------


def _cost(forward: int, backward: int, both: int | None = None) -> dict[str, int]:
    return {"forward": forward, "backward": backward, "both": forward + backward if both is None else both}


def contenders(ours: Function, formula: Function, more: Iterable[str] = ("compile",)) -> dict[str, Any]:
    """Ours, the formula as it is, and the formula compiled in the ways named."""
    modes = {"compile": None, "compile-max": "max-autotune"}
    return {"ours": plain(ours), "eager": plain(formula)} | {name: compiled(formula, modes[name]) for name in more}


def _dtypes(dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """Of the targets and of everything else: uint8 is for targets alone."""
    kind: torch.dtype = getattr(torch, dtype)
    return kind, torch.float32 if kind == torch.uint8 else kind


def elbo(
    batch: int,
    data: int,
    latent: int,
    *,
    probs: bool = False,
    dtype: str = "float32",
    against: Iterable[str] = ("compile", "compile-max"),
    threads: int | None = None,
) -> Case:
    """The negative ELBO of a batch as one number, from logits or clipped probabilities.

    Example:
        >>> elbo(100, 784, 20).label
        'elbo_loss, logits, B=100 D=784 L=20'
    """
    of_x, of_rest = _dtypes(dtype)

    def inputs(device: str, g: torch.Generator) -> Inputs:
        x = torch.rand(batch, data, device=device, generator=g)
        x = (x * 255).to(torch.uint8) if of_x == torch.uint8 else x.to(of_x)
        recon, mu, logvar = (torch.randn(batch, n, device=device, generator=g) for n in (data, latent, latent))
        return x, leaf(recon.sigmoid() if probs else recon, of_rest), leaf(mu, of_rest), leaf(logvar, of_rest)

    big, small = batch * data, batch * latent
    read = big * SIZES[dtype] + (big + 2 * small) * of_rest.itemsize  # x, recon, mu and logvar
    written = (big + 2 * small) * of_rest.itemsize  # three gradients
    ours, formula = (ours_probs, plain_probs) if probs else (vae_fast.elbo_loss, plain_logits)
    return Case(
        "elbo_loss, clipped probs" if probs else "elbo_loss, logits",
        {"B": batch, "D": data, "L": latent},
        inputs,
        contenders(ours, formula, against),
        {"forward": read, "both": read + written},  # one pass can write the gradients while it reads for the loss
        _cost(8 * big + 6 * small, 4 * big + 6 * small),
        dtype=dtype,
        threads=threads,
        needs={"eager": 9 * big * 4, "compile": 4 * big * 4, "compile-max": 4 * big * 4, "ours": 3 * big * 4},
    )


def sample(
    batch: int,
    latent: int,
    *,
    dtype: str = "float32",
    against: Iterable[str] = ("compile", "compile-max"),
    threads: int | None = None,
) -> Case:
    """A sample and its KL divergence.

    Example:
        >>> sample(100, 20).label
        'reparameterize_with_kl, B=100 L=20'
    """
    _, of_rest = _dtypes(dtype)

    def inputs(device: str, g: torch.Generator) -> Inputs:
        mu, logvar = (torch.randn(batch, latent, device=device, generator=g) for _ in range(2))
        return leaf(mu, of_rest), leaf(logvar, of_rest)

    size, out = batch * latent * of_rest.itemsize, batch * 4
    philox = 60 * batch * latent  # 10 rounds of 2 products and 4 other operations for 4 normals, and their Box-Muller transform
    return Case(
        "reparameterize_with_kl",
        {"B": batch, "L": latent},
        inputs,
        contenders(vae_fast.reparameterize_with_kl, plain_sample, against),
        _cost(3 * size + out, 5 * size + out, 7 * size + 2 * out),
        _cost(philox + 10 * batch * latent, philox + 8 * batch * latent),
        dtype=dtype,
        threads=threads,
        needs={"eager": 10 * size, "compile": 8 * size, "compile-max": 8 * size, "ours": 6 * size},
    )


def rowwise(name: str, batch: int, width: int, against: Iterable[str] = ("compile",)) -> Case:
    """One function over rows: gaussian_kl, bernoulli_log_prob, gaussian_log_prob or logsumexp.

    Example:
        >>> rowwise("gaussian_kl", 100, 20).label
        'gaussian_kl, B=100 L=20'
    """
    ours, formula, tensors, leaves, flops = _ROWWISE[name]

    def inputs(device: str, g: torch.Generator) -> Inputs:
        values = [torch.randn(batch, width, device=device, generator=g) for _ in range(tensors)]
        return *(t.sigmoid() for t in values[: tensors - leaves]), *(leaf(t) for t in values[tensors - leaves :])

    size, out = 4 * batch * width, 4 * batch
    letter = "L" if name == "gaussian_kl" else "K" if name == "logsumexp" else "D"
    return Case(
        name,
        {"B": batch, letter: width},
        inputs,
        contenders(ours, formula, against),
        _cost(tensors * size + out, (tensors + leaves) * size + out, (2 * tensors + leaves) * size + 2 * out),
        _cost(flops[0] * batch * width, flops[1] * batch * width),
        needs={"eager": 10 * size, "compile": 6 * size, "ours": 5 * size},
    )


#: By name: ours, the plain formula, its tensors, how many of them want gradients, operations per element forward and backward.
_ROWWISE: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int, int, tuple[int, int]]] = {
    "gaussian_kl": (vae_fast.gaussian_kl, plain_kl, 2, 2, (6, 6)),
    "bernoulli_log_prob": (vae_fast.bernoulli_log_prob, plain_bernoulli, 2, 1, (8, 4)),
    "gaussian_log_prob": (vae_fast.gaussian_log_prob, plain_gaussian, 3, 2, (7, 7)),
    "logsumexp": (vae_fast.logsumexp, plain_logsumexp, 1, 1, (3, 3)),
}


def kernels(device: str, quick: bool) -> list[Case]:
    """The rows of the performance contract, and the other functions beside them."""
    more = ("compile",) if quick else ("compile", "compile-max")
    large, wide = (8192, 8192) if device == "cpu" else (65536, 1 << 20)
    rows = [
        elbo(large, 784, 20, against=more),
        elbo(large, 784, 20, probs=True, against=more),
        elbo(100, 784, 20, against=more),
        sample(wide, 20, against=more),
    ]
    if quick:
        return rows
    return [
        *rows,
        rowwise("gaussian_kl", wide, 20),
        rowwise("bernoulli_log_prob", large, 784),
        rowwise("gaussian_log_prob", large, 784),
        rowwise("logsumexp", large, 784),
    ]


def at_shape(shape: tuple[int, int, int], dtype: str, quick: bool) -> list[Case]:
    """The head at a shape and dtype of the user's choice; nothing is promised there."""
    batch, data, latent = shape
    more = ("compile",) if quick else ("compile", "compile-max")
    rows = [elbo(batch, data, latent, dtype=dtype, against=more), elbo(batch, data, latent, probs=True, dtype=dtype, against=more)]
    return rows if dtype == "uint8" else [*rows, sample(batch, latent, dtype=dtype, against=more)]


def sweeps(device: str, quick: bool) -> list[Case]:
    """Batch sizes, latent sizes, data types and threads."""
    batches = (32, 256, 2048) if quick else (32, 256, 2048, 16384, 65536, 262144)
    rows = [elbo(b, 784, 20, against=("compile",)) for b in batches]
    rows += [elbo(b, 3 * 64 * 64, 128, against=()) for b in (batches[:2] if quick else batches)]
    rows += [sample(2048, n, against=()) for n in ((2, 32, 512) if quick else (2, 16, 128, 1024, 4096))]
    base = 1024 if quick else 8192 if device == "cpu" else 65536
    rows += [elbo(base, 784, 20, dtype=t, against=()) for t in ("bfloat16", "float16", "uint8")]
    if device == "cpu":
        rows += [elbo(base, 784, 20, against=(), threads=n) for n in (1, 2)]
    return rows


def memory(device: str, quick: bool) -> list[Case]:
    """Batch sizes for peak memory."""
    batches = (100, 1024) if quick else (100, 1024, 8192, 65536)
    return [elbo(b, 784, 20, against=("compile",)) for b in batches] + [elbo(batches[-1], 784, 20, probs=True, against=("compile",))]
