"""What a call costs beside its arithmetic: the ways of putting a kernel behind autograd, at a size where nothing else matters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import vae_fast
from vae_fast._backend import C
from vae_fast.bench.case import Case, Inputs, compiled, leaf, plain
from vae_fast.bench.cases_head import plain_logits, plain_sample
from vae_fast.bench.cases_mixture import distributions, products

ARGUMENTS = ("bernoulli_logits.none", "kl.logvar", 1e-9, -math.inf, None, 1.0, None, 1, 1, True)


def _no_checks(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Any:
    assert C is not None
    return C.elbo_loss([x, logits], [mu, logvar], *ARGUMENTS, False)


def _dispatcher(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Any:
    return torch.ops.vae_fast.elbo_loss([x, logits], [mu, logvar], *ARGUMENTS)


class _PythonFunction(torch.autograd.Function):
    """The pybind11 kernel inside a Python autograd.Function, its gradients given: what the wrapping alone costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Any:
        """The kernel, without autograd of its own."""
        ctx.save_for_backward(logits, mu, logvar)
        return _no_checks(x, logits, mu, logvar)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """The shapes of the gradients that a kernel would have written."""
        return None, *(torch.empty_like(t) for t in ctx.saved_tensors)


def overhead() -> list[Case]:
    """A loss, a sample and a mixture that are hardly there, on one thread.

    Example:
        >>> [case.name for case in overhead()]
        ['elbo_loss', 'reparameterize_with_kl', 'mixture_log_prob']
    """
    batch, data, latent = 4, 8, 2

    def head(device: str, g: torch.Generator) -> Inputs:
        x = torch.rand(batch, data, device=device, generator=g)
        return x, *(leaf(torch.randn(batch, n, device=device, generator=g)) for n in (data, latent, latent))

    def gaussian(device: str, g: torch.Generator) -> Inputs:
        return head(device, g)[2:]

    def mixture(device: str, g: torch.Generator) -> Inputs:
        return tuple(leaf(torch.randn(*s, device=device, generator=g)) for s in ((4, 2), (2,), (2, 2), (2, 2)))

    routes: dict[str, Any] = {"ours": plain(vae_fast.elbo_loss)}
    if C is not None:
        routes |= {"pybind11, no checks": plain(_no_checks), "torch.ops, no checks": plain(_dispatcher)}
        routes |= {"Python autograd.Function, no checks": plain(_PythonFunction.apply)}
    routes |= {"eager": plain(plain_logits), "compile": compiled(plain_logits)}
    sampled = {"ours": plain(vae_fast.reparameterize_with_kl), "eager": plain(plain_sample), "compile": compiled(plain_sample)}
    mixed = {"ours": plain(vae_fast.mixture_log_prob), "eager": plain(products), "compile": compiled(products)}
    mixed |= {"distributions": plain(distributions)}
    sizes = {"B": batch, "D": data, "L": latent}
    none = {"both": 0}
    return [
        Case("elbo_loss", sizes, head, routes, none, none, threads=1),
        Case("reparameterize_with_kl", {"B": batch, "L": latent}, gaussian, sampled, none, none, threads=1),
        Case("mixture_log_prob", {"N": 4, "K": 2, "D": 2}, mixture, mixed, none, none, threads=1),
    ]
